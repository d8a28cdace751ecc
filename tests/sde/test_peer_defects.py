"""Twenty defects that were measured in torchsde 0.2.6, each as a test of what must hold here instead.

Strong orders of every method on every structure are measured in `methods/test_orders.py`.
"""

import tracemalloc

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose, sde

D = torch.float64
UNIT = torch.tensor([0.0, 1.0], dtype=D)
A = torch.tensor([[0.0, 0.8], [-0.2, 0.3]], dtype=D)  # not symmetric
BASE = 2.0**-4
SOURCE = sde.Brownian(seed=5, base=BASE)
Y0 = torch.tensor([0.5, 0.7], dtype=D).expand(200, 2)
ITO = [sde.Milstein, sde.SRID2]
STRATONOVICH = [sde.Heun, sde.Midpoint]


def named(method):
    return method.__name__


def nothing(t, y):
    return torch.zeros_like(y)


def decay(t, y):
    return -y


def ones(t, y):
    return torch.ones_like(y)


def others(t, y):
    """Called diagonal, but each unknown's noise sees the other unknown."""
    return 0.5 * y.roll(-1, 1).sin() + 0.6


def end(drift, diffusion, method, dt, y0=Y0, **options):
    options = {"calculus": method.calculus, "brownian": SOURCE, "solver": method(dt=dt)} | options
    return ti.sdeint(drift, diffusion, y0, UNIT, **options).value[-1]


def rms(x):
    return float(x.square().sum(1).mean().sqrt())


@pytest.mark.parametrize("method", [*STRATONOVICH, *ITO], ids=named)
def test_01_02_scalar_noise_whose_jacobian_is_not_symmetric(method):
    """Order 0.03 and 0.51 there: a product with the Jacobian's transpose stands for one with the Jacobian."""
    noise = SOURCE.bind(torch.empty(200, 1, dtype=D))
    w = sum(noise.increment(number, BASE).W for number in range(16))
    exact = (torch.linalg.matrix_exp(A * w.unsqueeze(2)) @ Y0.unsqueeze(2)).squeeze(2)
    drift = (lambda t, y: 0.5 * y @ (A @ A).T) if method.calculus == "ito" else nothing
    errors = [
        rms(end(drift, lambda t, y: (y @ A.T).unsqueeze(2), method, dt, noise="scalar") - exact)
        for dt in (BASE, BASE / 8)
    ]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("method", STRATONOVICH, ids=named)
def test_03_diagonal_noise_that_sees_others_converges_to_the_right_process(method):
    """An error of 0.21 at every step there."""
    reference = end(decay, others, sde.EulerMaruyama, BASE / 256)  # of both calculi: g_i does not see y_i
    assert rms(end(decay, others, method, BASE / 32) - reference) < 0.04


@pytest.mark.parametrize("method", ITO, ids=named)
def test_04_the_order_that_such_noise_allows_is_stated(method):
    """Order 1.5 claimed, 0.5 found there."""
    report = ti.sdeint(decay, others, Y0, UNIT, solver=method(dt=BASE), brownian=1).report
    assert (report.structure, report.strong_order) == ("general", 0.5)
    assert "strong order 0.5" in str(report)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct()], ids=str)
@pytest.mark.parametrize("dt", [0.1, 0.025, 0.00625])
def test_05_06_08_gradients_are_those_of_the_steps_however_long(dt, adjoint):
    """Up to 28 % wrong there, and 4e-3 with the reversible method, whose times are sums."""

    def diffusion(t, y, size):
        return size * others(t, y)

    size, y0 = torch.tensor(0.7, dtype=D, requires_grad=True), Y0[:3].clone().requires_grad_()
    options = {"solver": sde.EulerMaruyama(dt=dt), "brownian": 1, "adjoint": adjoint}
    value = ti.sdeint(lambda t, y, size: -y, diffusion, y0, UNIT, size, **options).value[-1]
    noise, y = sde.Brownian(seed=1).bind(Y0[:3]), y0
    for number in range(round(1 / dt)):
        y = y - dt * y + diffusion(None, y, size) * noise.increment(number, dt).W
    assert torch.allclose(value, y, rtol=1e-10)
    found, expected = (torch.autograd.grad(end.sin().sum(), (size, y0)) for end in (value, y))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("method", STRATONOVICH, ids=named)
def test_07_gradients_in_the_other_calculus(method):
    def run(y0, size):
        return ti.sdeint(
            lambda t, y, size: -y, lambda t, y, size: size * others(t, y), y0, UNIT, size,
            solver=method(dt=0.25), calculus="stratonovich", brownian=1,
        ).value  # fmt: skip

    inputs = (Y0[:2].clone().requires_grad_(), torch.tensor(0.7, dtype=D, requires_grad=True))
    assert torch.autograd.gradcheck(run, inputs)


def test_09_outputs_within_a_step_have_their_variance():
    """0.126 and 0.628 there for 0.25 and 0.75: outputs are put on lines between steps."""
    ts, count = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=D), 20_000
    y0 = torch.zeros(count, 1, dtype=D)
    value = ti.sdeint(nothing, ones, y0, ts, solver=sde.SRA1(dt=0.5), noise="additive", brownian=1).value
    assert ((value.var(1).squeeze(1)[1:] - ts[1:]).abs() < 4 * ts[1:] * (2 / count) ** 0.5).all()


def test_10_areas_have_their_variance():
    """0.3345 and 0.2208 there for 0.25."""
    noise = sde.Brownian(seed=1).bind(torch.empty(20_000, 2, dtype=D), levy=True)
    area = noise.increment(0, 1.0).A
    assert area is not None
    assert abs(area[:, 0, 1].var() - 0.25) < 0.015


def test_11_the_seed_of_torch_is_that_of_the_path():
    found = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(end(decay, others, sde.EulerMaruyama, 0.25, brownian=None))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_12_a_path_does_not_depend_on_what_was_asked_before():
    tree = sde.Tree(seed=1).bind(Y0[:2, :1])
    halves = tree.between(0.0, 0.5).W
    again = sde.Tree(seed=1).bind(Y0[:2, :1])
    for question in ((0.3, 0.31), (0.0, 1.0), (0.49, 0.51)):
        again.between(*question)
    assert torch.equal(again.between(0.0, 0.5).W, halves)


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_13_a_sample_s_noise_does_not_depend_on_the_batch(batch):
    few, many = (end(decay, others, sde.EulerMaruyama, 0.25, Y0[:count], brownian=7) for count in (batch, 200))
    assert torch.equal(few, many[:batch])


@pytest.mark.parametrize(("prior", "expected"), [(decay, 0.0), (nothing, torch.inf)])
def test_14_15_no_noise_is_no_division_by_zero_and_no_zero_divergence(prior, expected):
    """NaN there, or 0 where drifts differ along an unknown without noise, and the divergence is infinite."""
    kl = ti.sdeint(decay, nothing, Y0, UNIT, solver=sde.EulerMaruyama(dt=0.25), prior=prior, brownian=1).kl
    assert (kl[-1] == expected).all()


def test_16_a_stiff_equation_does_not_run_away_in_silence():
    """7e21 there, at the smallest step, and no failure."""
    options = {"calculus": "stratonovich", "brownian": 1, "on_failure": "ignore"}
    for solver in (sde.Heun(rtol=1e-2, max_steps=20_000), sde.Heun(rtol=1e-2, dt_min=0.01)):
        drift = lambda t, y: -300 * y  # noqa: E731
        solution = ti.sdeint(drift, lambda t, y: 0.1 * y, Y0[:2], UNIT, solver=solver, **options)
        small = solution.value[-1].abs() < 1
        assert (small.all(1) | (solution.report.status != 0)).all()
        assert solution.value.isfinite().all()


@pytest.mark.parametrize("solver", [sde.Heun(rtol=1e-2), sde.Heun(dt=0.1)], ids=["adaptive", "fixed"])
def test_17_one_sample_of_nan_stops_no_other(solver):
    """An AssertionError there, or NaN in silence."""
    options = {"solver": solver, "calculus": "stratonovich", "brownian": 1, "on_failure": "ignore"}
    broken = Y0[:4].clone()
    broken[1] = torch.nan
    found, whole = (ti.sdeint(decay, lambda t, y: 0.3 * y, y0, UNIT, **options) for y0 in (broken, Y0[:4]))
    assert found.report.failed.tolist() == [1]
    assert torch.equal(found.value[:, [0, 2, 3]], whole.value[:, [0, 2, 3]])


@pytest.mark.parametrize(("dt", "steps"), [(1e-3, 1000), (1e-2, 100)])
def test_18_a_clock_in_single_precision_makes_no_slivers(dt, steps):
    """1001 and 101 steps there, the last ones of 9e-6 and 7e-7."""
    solution = ti.sdeint(decay, ones, torch.zeros(1, 1), UNIT.float(), solver=sde.EulerMaruyama(dt=dt), brownian=1)
    assert solution.report.accepted.tolist() == [steps]


@pytest.mark.parametrize(
    ("method", "noise", "count"),
    [(sde.SRID2, "diagonal", 7), (sde.SRA1, "additive", 4), (sde.EulerMaruyama, "diagonal", 2)],
)
def test_19_evaluations_are_those_of_the_formula(method, noise, count):
    """10 of each function a step there, and 3 for additive noise; a few more a solve look at the structure."""
    solver = method(dt=0.05)
    solution = ti.sdeint(decay, ones, Y0, UNIT, solver=solver, noise=noise, brownian=1)
    assert 20 * count <= solution.report.nfev <= 20 * count + 10


def test_20_noise_is_not_remembered():
    """460 bytes a step there, for ever."""
    noise = sde.Brownian(seed=1).bind(Y0)
    for number in range(300):
        noise.increment(number, 0.1)
    tracemalloc.start()
    for number in range(300, 1300):
        noise.increment(number, 0.1)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000


def test_an_option_that_is_not_known_is_refused():
    with pytest.raises(TypeError, match="adaptve"):
        ti.sdeint(decay, ones, Y0, UNIT, solver=sde.EulerMaruyama(dt=0.1), adaptve=True)


def test_a_wrong_calculus_is_not_hidden_by_convergence():
    """What no measure of errors sees is refused: the solver of the other process."""
    with pytest.raises(ValueError, match="converges to the 'ito' process"):
        diagnose.strong_error(decay, others, Y0, UNIT, solver=sde.Milstein(dt=0.25), calculus="stratonovich")
