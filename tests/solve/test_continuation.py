"""Pseudo-transient continuation: where it arrives, how its time step grows, and how it ends."""

import math

import pytest
import torch

import torchimplicit as ti
from torchimplicit.linear import Matrix
from torchimplicit.solve.continuation import Shifted

TIGHT = {"rtol": 1e-10, "atol": 1e-10, "max_steps": 300}


def cubic(z):
    """One root, at -1.77; the residual has a local minimum at 0.82 that it takes a climb to leave."""
    return z**3 - 2 * z + 2


def reaction(z):
    """Allen and Cahn's steady states on a line of 40 points: mixtures of the phases -1 and 1, most of them unstable."""
    neighbours = torch.nn.functional.pad(z, (1, 1))
    return 1.681 * (2 * z - neighbours[:, :-2] - neighbours[:, 2:]) + z**3 - z


def memory(z, weight):
    """An associative memory with symmetric weights: zero is a fixed point, and no stable one."""
    return torch.tanh(z @ weight)


def slowest_rate(function, z):
    """The smallest real part among the eigenvalues of the Jacobian at every sample: positive where it is stable."""
    jacobians = [torch.autograd.functional.jacobian(lambda row: function(row[None])[0], row) for row in z]
    return torch.linalg.eigvals(torch.stack(jacobians)).real.amin(1)


def test_it_climbs_out_of_a_local_minimum_of_the_residual():
    start = torch.tensor([[0.9], [3.0], [-5.0]], dtype=torch.float64)
    newton = ti.root(cubic, start, solver=ti.Newton(**TIGHT), on_failure="ignore")
    assert newton.status.tolist()[1] == ti.Status.STAGNATED, "else this test would show nothing"
    assert newton.value[1].item() == pytest.approx((2 / 3) ** 0.5, abs=1e-2)
    solution = ti.root(cubic, start, solver=ti.PseudoTransient(dt=0.1, **TIGHT), trace=True)
    assert torch.allclose(solution.value, torch.full_like(start, -1.7692923542), atol=1e-8)
    assert solution.trace[:, 1].diff().nan_to_num().max() > 0, "by way of larger residuals"


def test_it_finds_stable_states_of_a_reaction_where_newton_sticks():
    generator = torch.Generator().manual_seed(0)
    start = 0.3 * torch.randn(6, 40, dtype=torch.float64, generator=generator)
    newton = ti.root(reaction, start, solver=ti.Newton(**TIGHT), on_failure="ignore")
    assert len(newton.report.failed) >= 4
    solution = ti.root(reaction, start, solver=ti.PseudoTransient(dt=0.1, **TIGHT))
    assert (slowest_rate(reaction, solution.value) > 0).all()
    assert (solution.value.abs().amax(1) > 0.5).all(), "not the state of zeros"


def test_it_prefers_the_stable_state():
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    weight = 0.2 * (random + random.T)
    start = 0.1 * torch.randn(4, 30, dtype=torch.float64, generator=generator)

    def residual(z):
        return z - memory(z, weight)

    newton = ti.fixed_point(memory, start, weight, solver=ti.Newton(**TIGHT)).value
    assert (slowest_rate(residual, newton) < -0.5).all()
    stable = ti.fixed_point(memory, start, weight, solver=ti.PseudoTransient(dt=0.1, **TIGHT)).value
    assert (slowest_rate(residual, stable) > 0).all()
    flow = start
    for _ in range(4000):
        flow = flow - 0.1 * residual(flow)
    assert torch.allclose(flow, stable, atol=1e-4), "the one that the flow leads to"


def test_steps_are_those_of_implicit_euler_with_a_relaxed_time_step():
    start = torch.tensor([[3.0], [-4.0]], dtype=torch.float64)
    solution = ti.root(
        cubic,
        start,
        solver=ti.PseudoTransient(dt=0.1, rtol=0.0, atol=1e-30, max_steps=6),
        trace=True,
        on_failure="ignore",
    )
    for sample in range(2):
        z, dt, trace = start[sample].item(), 0.1, []
        for _ in range(7):
            residual = z**3 - 2 * z + 2
            dt = dt * abs(trace[-1] / residual) if trace else dt
            trace.append(abs(residual))
            z = z - residual / (1 / dt + 3 * z**2 - 2)
        assert solution.trace[:, sample].tolist() == pytest.approx(trace, rel=1e-9)


def test_it_ends_in_newton():
    solution = ti.root(
        cubic, torch.full((1, 1), -2.5, dtype=torch.float64), solver=ti.PseudoTransient(dt=0.5, **TIGHT), trace=True
    )
    sizes = solution.trace[:, 0]
    orders = sizes[-3:].log() / sizes[-4:-1].log()
    assert sizes[-1] / sizes[-2] < 1e-4
    assert orders[-1] > 1.5, "superlinear"


def test_an_infinite_time_step_is_newton_without_backtracking():
    start = torch.tensor([[2.0], [-4.0]], dtype=torch.float64)
    options = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 5}
    infinite = ti.root(cubic, start, solver=ti.PseudoTransient(dt=math.inf, **options), trace=True, on_failure="ignore")
    newton = ti.root(cubic, start, solver=ti.Newton(halvings=0, **options), trace=True, on_failure="ignore")
    assert torch.equal(infinite.value, newton.value)
    assert torch.equal(infinite.trace, newton.trace)


def test_smaller_time_steps_take_more_of_them():
    start = torch.full((1, 1), -4.0, dtype=torch.float64)
    steps = [int(ti.root(cubic, start, solver=ti.PseudoTransient(dt=dt, **TIGHT)).steps) for dt in (0.1, 0.01, 0.001)]
    assert steps == sorted(set(steps))


def test_it_waits_longer_than_others_for_a_better_residual():
    start = torch.ones(1, 1, dtype=torch.float64)
    solution = ti.root(cubic, start, solver=ti.PseudoTransient(dt=0.05, **TIGHT), trace=True)
    best = solution.trace[:, 0].cummin(0).values
    assert (best[20:] == best[:-20]).any(), "some twenty steps in a row without a better one"


@pytest.mark.parametrize("width", [4, 300])
def test_large_states_take_gmres_and_small_ones_lu(width):
    target = torch.linspace(0, 1, 2 * width, dtype=torch.float64).view(2, width)
    solver = ti.PseudoTransient(**TIGHT)
    values = [
        ti.root(lambda z, y: z + z**3 - y, torch.zeros_like(target), target, solver=solver).value
        for solver in (solver, ti.PseudoTransient(linear_solver=ti.LU(), **TIGHT))
    ]
    assert torch.allclose(*values, atol=1e-8)
    assert torch.equal(*values) == (width == 4)


def test_unrolled_differentiates_it():
    target = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    solver = ti.PseudoTransient(rtol=1e-12, atol=1e-12)

    def gradient(adjoint):
        value = ti.root(
            lambda z, y: z + z**3 - y, torch.zeros(1, 2).double(), target, solver=solver, adjoint=adjoint
        ).value
        return torch.autograd.grad(value.sum(), target)[0]

    assert torch.allclose(gradient(ti.Unrolled()), gradient(ti.Implicit(ti.LU())), atol=1e-8)
    solver = ti.PseudoTransient(linear_solver=ti.GMRES())
    with pytest.raises(NotImplementedError, match="linear_solver=LU"):
        gradient(ti.Unrolled())


def test_a_shift_is_added_to_every_product():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 5, 5, dtype=torch.float64, generator=generator)
    v = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    shift = torch.tensor([0.0, 1.0, 10.0], dtype=torch.float64)
    operator, dense = Shifted(Matrix(matrix), shift), matrix + shift[:, None, None] * torch.eye(5)
    assert torch.allclose(operator.dense(v), dense)
    assert torch.allclose(operator.matvec(v), (dense @ v.unsqueeze(2)).squeeze(2))
    assert torch.allclose(operator.rmatvec(v), (dense.mT @ v.unsqueeze(2)).squeeze(2))


@pytest.mark.parametrize("options", [{"dt": 0}, {"dt": -1.0}, {"dt": None}, {"linear_solver": "lu"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"PseudoTransient\(.*\): expected"):
        ti.PseudoTransient(**options)
