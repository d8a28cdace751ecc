"""Variational dropout: one mask a solve, the same in its backward pass, another at the next solve."""

import copy
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit import diagnose
from torchimplicit.core.status import Status, failure_message
from torchimplicit.nn.parts.dropout import uniform

TIGHT = {"solver": ti.Anderson(rtol=1e-12, atol=1e-12, max_steps=200), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}


class Cell(nn.Module):
    def __init__(self, p=0.4, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6, dtype=dtype)
        with torch.no_grad():
            self.linear.weight.mul_(0.5)
        self.dropout = ti.nn.VariationalDropout(p)

    def forward(self, z, x):
        return torch.tanh(self.linear(self.dropout(z)) + x)


def inputs(dtype=torch.float64):
    return torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6).to(dtype)


def mask_of(cell):
    return cell.dropout(torch.ones(4, 6, dtype=torch.float64))


def unrolled_by_hand(cell, mask, x):
    z = torch.zeros_like(x)
    for _ in range(200):
        z = torch.tanh(cell.linear(z * mask) + x)
    return z


@pytest.mark.parametrize("adjoint", [TIGHT["adjoint"], ti.Unrolled(), ti.Unrolled(checkpoint=True)])
def test_two_forward_before_two_backward_passes(adjoint):
    layer = ti.nn.DEQ(Cell(), solver=TIGHT["solver"], adjoint=adjoint)
    x, values, masks = inputs(), [], []
    for _ in range(2):
        values.append(layer(x))
        masks.append(mask_of(layer.cell))
        assert (layer.cell(values[-1], x) - values[-1]).abs().max() < 1e-11, "the mask stays after the solve"
    assert not torch.equal(*masks), "redrawn at the next solve"
    for value, mask in zip(values, masks, strict=True):
        expected = unrolled_by_hand(layer.cell, mask, x)
        assert (value - expected).abs().max() < 1e-10
        want = torch.autograd.grad(expected.sin().sum(), list(layer.parameters()))
        got = torch.autograd.grad(value.sin().sum(), list(layer.parameters()))
        assert all((a - b).abs().max() < 1e-7 for a, b in zip(got, want, strict=True))


def test_phantom_takes_its_step_under_the_mask_of_the_solve():
    layer = ti.nn.DEQ(Cell(), solver=TIGHT["solver"], adjoint=ti.Phantom())
    x = inputs()
    value, mask = layer(x), mask_of(layer.cell)
    step = torch.tanh(layer.cell.linear(value.detach() * mask) + x)
    want = torch.autograd.grad(step.sum(), layer.cell.linear.weight)[0]
    layer(x)
    assert torch.allclose(torch.autograd.grad(value.sum(), layer.cell.linear.weight)[0], want, atol=1e-10)


def test_every_order_and_func_transforms_see_one_mask():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    x = inputs()[:2].clone().requires_grad_()

    def solve(x):
        torch.manual_seed(5)
        return layer(x)

    assert torch.autograd.gradcheck(solve, (x,))
    assert torch.autograd.gradgradcheck(solve, (x,))
    value = solve(x)
    (expected,) = torch.autograd.grad(value.sin().sum(), x, retain_graph=True)
    assert torch.allclose(torch.func.grad(lambda x: solve(x).sin().sum())(x.detach()), expected, atol=1e-10)
    rows = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0] for v in value.flatten()])
    assert torch.allclose(torch.func.jacrev(solve)(x.detach()).reshape(rows.shape), rows, atol=1e-10)
    copy.deepcopy(layer)  # nothing of a transform is left in the module
    layer(x).sum().backward()


def test_vmap_has_one_mask_for_all_or_says_why_not():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    parameters = {name: torch.stack([p.detach(), 0.5 * p.detach()]) for name, p in layer.named_parameters()}

    def run(parameters):
        return torch.func.functional_call(layer, parameters, (inputs(),))

    both = torch.vmap(run, randomness="same")(parameters)
    mask = mask_of(layer.cell)
    assert (both[0] - unrolled_by_hand(layer.cell, mask, inputs())).abs().max() < 1e-10
    with pytest.raises(NotImplementedError, match="randomness='same'"):
        torch.vmap(run, randomness="different")(parameters)
    assert layer.eval()(inputs()).isfinite().all()


def test_seeds_reproduce_and_eval_neither_drops_nor_draws():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(layer(inputs()))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    layer.eval()
    state = torch.get_rng_state()
    plain = layer(inputs())
    assert torch.equal(torch.get_rng_state(), state)
    assert (plain - unrolled_by_hand(layer.cell, 1.0, inputs())).abs().max() < 1e-10


def test_any_batch_size_and_warm_starts():
    layer = ti.nn.DEQ(Cell(), warm_start=True, **TIGHT)
    for batch in (4, 2, 3, 3):
        value = layer(inputs()[:batch])
        assert layer.report.converged
        assert value.shape == (batch, 6)
        assert (layer.cell(value, inputs()[:batch]) - value).abs().max() < 1e-11


def test_a_mask_outlives_inference_mode():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    with torch.inference_mode():
        value = layer(inputs()).clone()
    layer.cell(torch.zeros(4, 6, dtype=torch.float64, requires_grad=True), inputs()).sum().backward()
    assert value.isfinite().all()
    layer.eval()(inputs()).sum().backward()


def test_a_solve_within_a_solve_keeps_the_outer_mask():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ti.nn.DEQ(Cell(), **TIGHT)

        def forward(self, z, x):
            return 0.3 * self.inner(z + x)

    layer = ti.nn.DEQ(Outer(), solver=ti.Anderson(rtol=1e-9, atol=1e-9), on_failure="raise")
    seeds = set()
    for _ in range(2):
        layer(inputs()).sum().backward()
        seeds.add(int(layer.cell.inner.cell.dropout.seed))
    assert len(seeds) == 2
    layer.cell.inner(inputs())
    assert int(layer.cell.inner.cell.dropout.seed) not in seeds, "alone it draws its own again"


def test_a_captured_module_is_refused_for_it_would_never_draw_again():
    x, dropout = inputs(), ti.nn.VariationalDropout(0.4)

    def solve(f, *args):
        return ti.fixed_point(f, torch.zeros_like(x), x, *args, solver=TIGHT["solver"]).value

    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ti.CaptureError, match="VariationalDropout"):
            solve(lambda z, x: dropout(torch.tanh(0.5 * z + x)))
    first, second = (solve(lambda z, x, drop: drop(torch.tanh(0.5 * z + x)), dropout) for _ in range(2))
    assert ((first == 0) != (second == 0)).any(), "as an argument it draws anew"
    dropout.eval()
    solve(lambda z, x: dropout(torch.tanh(0.5 * z + x)))
    assert dropout.train()(x).isfinite().all(), "outside of a solve it is nobody's business"


def test_an_inner_solve_may_use_what_the_outer_one_was_given():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = ti.nn.VariationalDropout(0.4)

        def forward(self, z, x):
            solver = TIGHT["solver"]
            inner = ti.fixed_point(lambda y, z: self.dropout(torch.tanh(0.3 * y + z)), 0 * z, z, solver=solver)
            return 0.5 * inner.value + x

    layer = ti.nn.DEQ(Outer(), solver=ti.Anderson(rtol=1e-9, atol=1e-9), on_failure="raise")
    value = layer(inputs())
    assert (((value - inputs()).abs() < 1e-12) == (mask_of(layer.cell) == 0)).all()


def test_a_large_batch_of_a_layer_is_right_though_it_cannot_be_narrowed():
    class Tailed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear, self.dropout = nn.Linear(512, 512), ti.nn.VariationalDropout(0.2)
            self.rows = []

        def forward(self, z, x):
            self.rows.append(len(z))
            gain = x[:, :1].abs()  # how slowly a sample converges
            return gain * self.dropout(torch.tanh(0.5 * self.linear(z) + x))

    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    x[:, 0] = 0.1
    x[[5, 17, 40, 63], 0] = 1.7  # a few go on for long: 64 * 512 numbers are enough for the others to be left behind
    layer = ti.nn.DEQ(Tailed(), solver=ti.Picard(max_steps=200), on_failure="raise")
    for training in (True, False):
        layer.train(training)
        layer.cell.rows.clear()
        with torch.no_grad():
            value = layer(x)
        assert set(layer.cell.rows) == {64, 4}
        if training:
            assert layer.cell.rows.count(4) == 1, "the proof fails: the mask of four samples is not that of these four"
        else:
            assert layer.cell.rows.count(4) > 5
        assert (layer.cell(value, x) - value).abs().max() < 1e-3


def test_nothing_is_written_to_and_the_audit_passes():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    problem = ti.core.problem.FixedPoint(layer.cell, inputs(), (inputs(),))
    tensors = problem.explicit.take_tensors()
    assert sum(tensor.dtype == torch.int64 for tensor in tensors) == 1, "the seed is an explicit tensor"
    versions = [tensor._version for tensor in tensors]
    with problem.bind(tensors, audit=True) as residual:
        residual(inputs().clone())
    assert [tensor._version for tensor in tensors] == versions


def test_copies_states_and_diagnoses():
    layer = ti.nn.DEQ(Cell(), **TIGHT)
    value = layer(inputs())
    assert set(layer.state_dict()) == {"cell.linear.weight", "cell.linear.bias"}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(mask_of(twin.cell), mask_of(layer.cell))
        twin(inputs())
        assert not torch.equal(mask_of(twin.cell), mask_of(layer.cell))
    seed = int(layer.cell.dropout.seed)
    diagnose.spectral_radius(layer, inputs())
    assert diagnose.check_gradient(layer, inputs()).ok
    assert int(layer.cell.dropout.seed) == seed, "looking leaves no trace"
    assert (layer.cell(value, inputs()) - value).abs().max() < 1e-11


def test_nonfinite_samples_stay_apart():
    layer = ti.nn.DEQ(Cell(), on_failure="ignore", **TIGHT)
    x = inputs().clone()
    x[1, 0] = torch.nan
    layer(x).sum().backward()
    assert layer.report.status.tolist() == [0, Status.NON_FINITE, 0, 0]
    assert layer.cell.linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64])
def test_dtypes(dtype):
    dropout = ti.nn.VariationalDropout(0.25)
    x = torch.ones(50, 40, dtype=dtype)
    value = dropout(x)
    assert value.dtype == dtype
    assert torch.equal(value != 0, dropout(x.double() if not dtype.is_complex else x) != 0), "one mask in every dtype"
    assert (value[value != 0].abs().float() - 4 / 3).abs().max() < 0.01


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_keep_the_mean_and_look_random(p):
    torch.manual_seed(0)
    dropout = ti.nn.VariationalDropout(p)
    masks = []
    for _ in range(2):
        dropout.begin_solve()
        masks.append((dropout(torch.ones(200, 200)) != 0).double())
    spread = 5 * (p * (1 - p) / 40_000) ** 0.5
    assert all(abs(float(mask.mean()) - (1 - p)) < spread for mask in masks)
    first, second = (mask - mask.mean() for mask in masks)
    noise = 5 * p * (1 - p) / 200
    assert abs(float((first * second).mean())) < noise, "another solve, another mask"
    for dim in (0, 1):
        assert abs(float((first * first.roll(1, dim)).mean())) < noise, "neighbours know nothing of each other"


def test_numbers_are_those_of_splitmix():
    # The first outputs of the reference generator for the seed 1234567, as given with its C source by S. Vigna.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    got = uniform(torch.tensor(1234567), (3,), torch.device("cpu"))
    assert torch.equal(got, torch.tensor([(n >> 11) * 2.0**-53 for n in expected], dtype=torch.float64))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_are_dropped_whole(dims):
    torch.manual_seed(0)
    dropout = {1: ti.nn.VariationalDropout1d, 2: ti.nn.VariationalDropout2d, 3: ti.nn.VariationalDropout3d}[dims](0.5)
    value = dropout(torch.ones(8, 16, *(3,) * dims)).flatten(2)
    assert (value == value[:, :, :1]).all()
    assert 0.3 < float((value == 0).double().mean()) < 0.7
    assert len({tuple(row.tolist()) for row in value[:, :, 0]}) == 8, "every sample has its own"
    with pytest.raises(ValueError, match="shared="):
        dropout(torch.ones(8, 16))


def test_one_mask_for_all_steps_of_a_sequence():
    torch.manual_seed(0)
    value = ti.nn.VariationalDropout(0.5, shared=(1,))(torch.ones(4, 7, 9))
    assert (value == value[:, :1]).all()
    assert 0 < float(value.mean()) < 2
    assert torch.equal(ti.nn.VariationalDropout(0.5, shared=(-2,))(torch.ones(4, 7, 9)), value)


def test_bad_options_and_the_advice_for_plain_dropout():
    for p in (1.0, -0.1):
        with pytest.raises(ValueError, match="probability"):
            ti.nn.VariationalDropout(p)
    layer = ti.nn.DEQ(
        lambda z, x: nn.functional.dropout(torch.tanh(0.5 * z + x), 0.3),
        solver=ti.Picard(max_steps=200),
        on_failure="ignore",
    )
    torch.manual_seed(0)
    layer(inputs())
    assert (layer.report.status == Status.STAGNATED).all()
    assert "VariationalDropout" in failure_message(layer.report)
