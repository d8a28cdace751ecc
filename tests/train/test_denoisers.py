"""The networks that denoise: what they see, that samples stay apart, and that classes and times make a difference."""

import pytest
import torch

from torchimplicit.train.networks import ConditionalMLP, ConditionalUNet, ConditionEmbedding, ImageFlow


def awake(network):
    """Without the zeros that layers start with."""
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return network.double()


def networks(classes=None):
    torch.manual_seed(0)
    dense = ConditionalMLP(6, hidden=16, blocks=2, classes=classes)
    images = ConditionalUNet(2, channels=(4, 8), groups=2, width=8, classes=classes)
    return {(6,): awake(dense), (2, 7, 5): awake(images)}


@pytest.mark.parametrize("shape", [(6,), (2, 7, 5)])
def test_outputs_are_like_inputs_and_see_time_and_class(shape):
    network = networks(classes=3)[shape]
    x, t = torch.randn(4, *shape).double(), torch.rand(4, *(1,) * len(shape)).double()
    label = torch.tensor([0, 1, 2, 3])
    found = network(t, x, label)
    assert found.shape == x.shape
    assert not torch.allclose(network(t + 0.1, x, label), found)
    other = network(t, x, torch.tensor([1, 1, 2, 3]))
    assert torch.equal(other[1:], found[1:])
    assert not torch.allclose(other[0], found[0])
    torch.testing.assert_close(network(t, x)[3], found[3])  # no class is the last one


@pytest.mark.parametrize("shape", [(6,), (2, 7, 5)])
def test_samples_stay_apart(shape):
    network = networks()[shape]
    x, t = torch.randn(3, *shape).double(), torch.rand(3, *(1,) * len(shape)).double()
    found = network(t, x)
    x[1] = torch.nan
    assert torch.equal(network(t, x)[::2], found[::2])


def test_they_start_at_zero():
    assert not ConditionalMLP(6, hidden=8)(torch.rand(2, 1), torch.randn(2, 6)).any()
    assert not ConditionalUNet(1, (8,))(torch.rand(2, 1, 1, 1), torch.randn(2, 1, 8, 8)).any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConditionalMLP(hidden=0), r"ConditionalMLP\(hidden=0\)"),
        (lambda: ConditionalUNet(channels=(12,), groups=8), "multiples of groups=8"),
        (lambda: ConditionEmbedding(8, classes=0), r"ConditionEmbedding\(classes=0\)"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_flow_of_images_starts_as_the_standard_normal_law_and_carries_classes():
    torch.manual_seed(0)
    flow = ImageFlow((1, 4, 4), channels=(4,), groups=2, classes=3).double()
    x, label = torch.randn(3, 1, 4, 4).double(), torch.tensor([0, 1, 1])
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(flow(x, label), normal.log_prob(x).flatten(1).sum(1))
    awake(flow)
    with torch.no_grad():
        found = flow.flow.transport(x, flow.flow.ts, label)[-1]
        other = flow.flow.transport(x, flow.flow.ts, torch.tensor([2, 1, 1]))[-1]
    assert torch.isfinite(found).all()
    assert torch.equal(found[1:], other[1:])
    assert not torch.allclose(found[0], other[0])
