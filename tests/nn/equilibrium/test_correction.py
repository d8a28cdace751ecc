"""The loss on the way to the fixed point."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.nn import fixed_point_correction

VALUES = [torch.tensor([float(2**k)], dtype=torch.float64) for k in range(4)]  # 1, 2, 4 on the way, then 8


def identity(z):
    return z.sum()


@pytest.mark.parametrize(
    ("gamma", "weights"),
    [
        (0.5, [0.125, 0.25, 0.5]),
        (1, [1, 1, 1]),
        (1.0, [1, 1, 1]),
        ([0.25, 0.5, 0.75], [0.25, 0.5, 0.75]),
        ((0, 0, 2), [0, 0, 2]),
        (torch.tensor([0.25, 0.5, 1.0]), [0.25, 0.5, 1.0]),
    ],
    ids=str,
)
def test_later_iterates_weigh_more(gamma, weights):
    total = fixed_point_correction(identity, VALUES[3], VALUES[:3], gamma)
    assert total.item() == pytest.approx(8 + sum(w * v.item() for w, v in zip(weights, VALUES, strict=False)))
    assert total.dim() == 0


def test_the_usual_weight():
    total = fixed_point_correction(identity, VALUES[3], tuple(VALUES[:3]))
    assert total.item() == pytest.approx(8 + 0.8 * 4 + 0.64 * 2 + 0.512)


def test_a_loss_per_sample_counts_by_its_mean():
    z, along = torch.arange(6.0).view(3, 2), [torch.ones(3, 2)]
    total = fixed_point_correction(lambda z: z.sum(1), z, along, 0.5)
    assert total == (1 + 5 + 9) / 3 + 0.5 * 2
    assert total == fixed_point_correction(lambda z: z.sum(1).mean(), z, along, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_device_are_the_loss_s(dtype):
    z = torch.ones(2, 3, dtype=dtype)
    for gamma in (0.8, [0.1]):
        total = fixed_point_correction(lambda z: z.square().mean(), z, [z], gamma)
        assert (total.dtype, total.device) == (dtype, z.device)
    meta = torch.ones(2, 3, device="meta", dtype=dtype)
    assert fixed_point_correction(lambda z: z.square().mean(), meta, [meta]).device.type == "meta"


def test_an_iterate_without_weight_is_not_evaluated():
    seen = []
    fixed_point_correction(lambda z: seen.append(z.item()) or z.sum(), VALUES[3], VALUES[:3], [0, 1, 0])
    assert seen == [8.0, 2.0]


def test_nested_iterates():
    nested = [{"a": value} for value in VALUES]
    total = fixed_point_correction(lambda z: z["a"].sum(), nested[3], nested[:3], 0.5)
    assert total.item() == 8 + 2 + 0.5 + 0.125


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"trajectory": ()}, ValueError, r"empty trajectory.*try save_steps=\[1, 3\]"),
        ({"gamma": 0.0}, ValueError, r"gamma=0\.0, expected a number in \(0, 1\]"),
        ({"gamma": 1.5}, ValueError, r"gamma=1\.5"),
        ({"gamma": float("nan")}, ValueError, "gamma=nan"),
        ({"gamma": [1.0, 2.0]}, ValueError, "for each of the 3 iterates"),
        ({"gamma": [1.0, -2.0, 1.0]}, ValueError, "expected a number >= 0"),
        ({"loss": lambda z: 1.0}, TypeError, "the loss is a float, expected a tensor"),
    ],
)
def test_impossible_options_are_refused(options, error, says):
    usual = {"loss": identity, "value": VALUES[3], "trajectory": VALUES[:3]}
    with pytest.raises(error, match=says):
        fixed_point_correction(**(usual | options))


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def test_its_gradient_is_the_sum_of_the_gradients():
    torch.manual_seed(0)
    cell, x = Cell(), torch.randn(8, 6, dtype=torch.float64)
    layer = ti.nn.DEQ(cell, solver=ti.Picard(rtol=1e-9), adjoint=ti.Implicit(ti.LU()))
    loss = lambda z: z.square().mean()  # noqa: E731
    weight = cell.linear.weight
    z, along = layer(x, save_steps=[1, 2])
    got = torch.autograd.grad(fixed_point_correction(loss, z, along, 0.7), weight)[0]
    expected = torch.autograd.grad(loss(layer(x)), weight)[0]
    for factor, iterate in zip((0.49, 0.7), along, strict=True):
        start = iterate.detach()
        step = cell(start, x)
        expected = expected + factor * torch.autograd.grad(step, weight, 2 * start / start.numel())[0]
    assert torch.allclose(got, expected, atol=1e-12)


def test_it_makes_early_iterates_better():
    def train(corrected):
        torch.manual_seed(0)
        layer = ti.nn.DEQ(Cell(), solver=ti.Picard(rtol=1e-6, max_steps=100), on_failure="ignore")
        x = torch.randn(32, 6, dtype=torch.float64)
        target = 0.8 * torch.tanh(x.roll(1, 1) - x)
        loss = lambda z: (z - target).square().mean()  # noqa: E731
        optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
        for _ in range(60):
            z, along = layer(x, save_steps=[1, 2])
            total = fixed_point_correction(loss, z, along) if corrected else loss(z)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return loss(layer(x, save_steps=[2])[1][0]).item()

    assert train(corrected=True) < 0.9 * train(corrected=False)
