"""The convolutional residual cell as an equilibrium."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti
from torchimplicit.diagnose import spectral_radius

TIGHT = {"solver": ti.Anderson(rtol=1e-11, atol=0, max_steps=300), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}


def cell(**options):
    torch.manual_seed(0)
    return ti.nn.ResidualCell(**{"channels": 4, "inner": 6, "groups": 2, **options}).double()


def image(batch=3, channels=4):
    torch.manual_seed(1)
    return torch.randn(batch, channels, 5, 6, dtype=torch.float64)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])


def test_the_cell_is_its_formula():
    f, z, x = cell(), image(), image().flip(0)
    y = f.norm1(torch.relu(f.conv1(z)))
    assert torch.equal(f(z, x), f.norm3(torch.relu(z + f.norm2(x + f.conv2(y)))))


def test_it_writes_into_neither_state_nor_input():
    f, z, x = cell(), image(), image().flip(0)
    kept = z.clone(), x.clone()
    f(z, x)
    assert torch.equal(z, kept[0])
    assert torch.equal(x, kept[1])


def test_an_evaluation_is_nine_tensor_operations():
    seen = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            seen.append(operation)
            return operation(*args, **(kwargs or {}))

    f, z, x = cell(), image(), image().flip(0)
    with torch.no_grad(), Count():
        f(z, x)
    assert len(seen) == 9, seen


def test_gradients_agree_with_unrolling():
    x, f = image(), cell()
    exact = ti.nn.DEQ(f, on_failure="raise", **TIGHT)
    unrolled = ti.nn.DEQ(f, ti.Picard(rtol=1e-13, atol=0, max_steps=300), ti.Unrolled(), on_failure="raise")
    for got, expected in zip(gradients(exact, x), gradients(unrolled, x), strict=True):
        assert (got - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_samples_are_independent():
    x, layer = image(), ti.nn.DEQ(cell(), on_failure="raise", **TIGHT)
    value = layer(x)
    other = x.clone()
    other[1] = 50 * torch.randn(4, 5, 6)
    assert torch.equal(layer(other)[[0, 2]], value[[0, 2]])
    assert (layer(x[:1]) - value[:1]).abs().max() <= 1e-9


def test_at_first_the_cell_contracts_and_solves_are_short():
    torch.manual_seed(0)
    layer = ti.nn.DEQ(ti.nn.ResidualCell(), ti.Anderson(rtol=1e-3))
    x = torch.randn(4, 48, 8, 8)
    layer(x)
    assert layer.report.converged
    assert layer.report.steps.max() <= 12
    assert spectral_radius(layer, x).max() < 0.95


def test_both_memory_formats_give_the_same():
    f, z, x = cell(), image(), image().flip(0)
    last = f.to(memory_format=torch.channels_last)(z.to(memory_format=torch.channels_last), x)
    assert (last - cell()(z, x)).abs().max() <= 1e-12


def test_autocast_to_bfloat16_keeps_the_state_in_float32():
    layer, x = ti.nn.DEQ(cell().float(), ti.Anderson(rtol=1e-2)), image().float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(x)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert layer.report.converged
    assert layer.report.backward.converged
    assert 0 < (value - exact).abs().max() < 0.2


def test_another_kernel_keeps_the_size_of_the_image():
    assert cell(kernel_size=5)(image(), image()).shape == (3, 4, 5, 6)
    assert cell(kernel_size=1).conv1.weight.shape == (6, 4, 1, 1)


def plain_loop(layer, steps, side, channels=8):
    """The share of samples that converge forward and backward, and the last loss: two classes of made pictures."""
    stem, head = nn.Conv2d(1, channels, 3, padding=1), nn.Linear(channels * side**2, 2)
    model = nn.Sequential(stem, layer, nn.Flatten(), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    forward, backward = [], []
    for _ in range(steps):
        y = torch.randint(2, (8,))
        x = torch.rand(8, 1, side, side)
        x[:, :, :3] += y[:, None, None, None]
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        forward.append(layer.report.status)
        backward.append(layer.report.backward.status)
    share, back = ((torch.cat(status) == ti.Status.CONVERGED).double().mean() for status in (forward, backward))
    return share, back, loss.detach()


def test_a_plain_loop_with_the_defaults_converges():
    """Made data, so that the loop is short; three epochs of handwritten digits do as well."""
    torch.manual_seed(0)
    forward, backward, loss = plain_loop(ti.nn.DEQ(ti.nn.ResidualCell(8, 16, 4)), 20, 6)
    assert loss < 0.3
    assert min(forward, backward) > 0.98


def test_the_tutorials_block_needs_the_limits_that_a_layer_has():
    """It is at the edge of contracting before any training: what is found takes long, and restarts lose it."""
    shares = []
    for options in ({}, {"solver": ti.Anderson(), "adjoint": ti.Implicit()}):
        torch.manual_seed(0)
        cell = ti.nn.ResidualCell(8, 16, 4, floor=1e-5)
        shares.append(plain_loop(ti.nn.DEQ(cell, on_failure="ignore", **options), 10, 8)[:2])
    assert min(shares[0]) >= 0.95, shares
    assert shares[1][0] < shares[0][0] - 0.05, shares


def test_the_tolerances_that_a_warning_advises_help_the_tutorials_block():
    """On sixteen channels, where the defaults leave some samples unsolved: less than a third of those."""
    assert "Polyalgorithm(rtol=1e-2)" in ti.nn.DEQ.advice
    assert "Implicit(GMRES(rtol=0.1, restart=20))" in ti.nn.DEQ.advice
    loose = {"solver": ti.Polyalgorithm(rtol=1e-2), "adjoint": ti.Implicit(ti.GMRES(rtol=0.1, restart=20))}
    shares = []
    for options in ({}, loose):
        torch.manual_seed(1)
        cell = ti.nn.ResidualCell(16, 32, 8, floor=1e-5)
        shares.append(plain_loop(ti.nn.DEQ(cell, on_failure="ignore", **options), 8, 6, 16)[:2])
    assert 1 - shares[1][0] < (1 - shares[0][0]) / 3, shares
    assert shares[1][1] >= shares[0][1], shares


def test_the_floor_makes_the_tutorials_cell_a_contraction():
    radii, x = [], 0.1 * torch.randn(2, 8, 6, 6)
    for floor in (1e-5, 1.0):
        torch.manual_seed(0)
        layer = ti.nn.DEQ(ti.nn.ResidualCell(8, 16, 4, floor=floor), ti.Anderson(max_steps=100), on_failure="ignore")
        radii.append(float(spectral_radius(layer, x).max()))
    assert radii[1] < 0.85, radii
    assert radii[0] > radii[1] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 5}, r"ResidualCell\(channels=5\): expected a multiple of groups=2"),
        ({"inner": 7}, r"ResidualCell\(inner=7\): expected a multiple of groups=2"),
        ({"kernel_size": 4}, r"ResidualCell\(kernel_size=4\): expected an odd number.*try 3"),
        ({"floor": 0.0}, r"ResidualCell\(floor=0.0\): expected a finite number > 0"),
        ({"groups": 0}, r"ResidualCell\(groups=0\): expected an integer >= 1"),
        ({"channels": 4.0}, r"ResidualCell\(channels=4.0\): expected an integer >= 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cell(**options)
