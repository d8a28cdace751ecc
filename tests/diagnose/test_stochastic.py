"""Errors of stochastic paths: orders that are known, their chance, and pictures."""

import io

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose, sde

D = torch.float64
UNIT = torch.tensor([0.0, 0.5, 1.0], dtype=D)
Y0 = torch.ones(1, 1, dtype=D).expand(1500, 1)
GROWTH = (lambda t, y: 0.3 * y, lambda t, y: 0.5 * y)  # Ito


def strong(solver, equation=GROWTH, y0=Y0, **options):
    return diagnose.strong_error(*equation, y0, UNIT, solver=solver, calculus=solver.calculus, **options)


@pytest.mark.parametrize(
    "solver", [sde.EulerMaruyama(dt=0.125), sde.Milstein(dt=0.125), sde.Heun(dt=0.125)], ids=lambda s: type(s).__name__
)
def test_strong_orders(solver):
    found = strong(solver)
    assert found.stated == (0.5 if isinstance(solver, sde.EulerMaruyama) else 1.0)
    assert abs(found.order - found.stated) < 0.1 + 2 * found.order_spread
    assert found.order_spread < 0.1
    assert found.dt.tolist() == [0.125 / 2**k for k in range(4)]


def test_areas_of_general_noise_are_those_of_one_path():
    turning = torch.tensor([[[0, 0.8], [-0.3, 0.2]], [[0.5, 0.2], [0.1, -0.4]]], dtype=D)

    def diffusion(t, y):
        return torch.einsum("mnk,bk->bnm", turning, y)

    y0 = torch.tensor([[1.0, 0.5]], dtype=D).expand(1500, 2)
    for solver, order in ((sde.LogODE(dt=0.125), 1.0), (sde.Midpoint(dt=0.125), 0.5)):
        found = strong(solver, (lambda t, y: 0 * y, diffusion), y0, noise="general")
        assert found.stated == order
        assert abs(found.order - order) < 0.12 + 2 * found.order_spread


def test_steps_of_given_size_by_a_control():
    """`Heun(control=Fixed(dt))` is `Heun(dt=dt)`."""
    one, other = strong(sde.Heun(control=ti.Fixed(0.125))), strong(sde.Heun(dt=0.125))
    assert torch.equal(one.error, other.error)
    assert one.order == other.order


def test_strong_error_is_the_distance_from_the_exact_path():
    found = strong(sde.EulerMaruyama(dt=0.125), seed=3)
    source = sde.Brownian(seed=3, base=0.125)
    noise = source.bind(Y0)
    W = sum(noise.increment(k, 0.125).W for k in range(8))
    exact = torch.exp(0.3 - 0.125 + 0.5 * W)
    for k in range(4):
        end = ti.sdeint(*GROWTH, Y0, UNIT, solver=sde.EulerMaruyama(dt=0.125 / 2**k), brownian=source).value[-1]
        error = float((end - exact).square().mean().sqrt())
        assert abs(float(found.error[k]) / error - 1) < 0.25


def test_errors_that_no_noise_makes_add_up():
    """Nearly an ordinary equation: Euler's errors of steps and half steps go the same way."""
    quiet = (lambda t, y: -y, lambda t, y: 1e-4 * torch.ones_like(y))
    found = strong(sde.EulerMaruyama(dt=0.125), quiet, noise="additive")
    assert abs(float(found.error[0]) / (torch.e**-1 - 0.875**8) - 1) < 0.1
    assert abs(found.order - 1) < 0.1


def test_spreads_are_those_of_other_seeds():
    found = [strong(sde.EulerMaruyama(dt=0.125), y0=Y0[:200], levels=3, seed=seed) for seed in range(30)]
    orders = torch.tensor([each.order for each in found])
    stated = torch.tensor([each.order_spread for each in found]).mean()
    assert 0.6 < orders.std() / stated < 1.6
    errors, spread = torch.stack([each.error for each in found]), torch.stack([each.spread for each in found]).mean(0)
    assert ((errors.std(0) / spread - 1.1).abs() < 0.6).all()


def test_weak_error_is_known_for_linear_equations():
    """Euler's mean is `(1 + 0.3 dt) ** n`, whatever the noise."""
    found = diagnose.weak_error(
        *GROWTH, torch.ones(20000, 1, dtype=D), UNIT, solver=sde.EulerMaruyama(dt=0.25), levels=3
    )
    exact = torch.tensor([torch.e**0.3 - (1 + 0.3 * dt) ** (1 / dt) for dt in found.dt.tolist()], dtype=D)
    assert ((found.error - exact).abs() < 4 * found.spread + 0.1 * exact).all()
    assert abs(found.order - 1) < 3 * found.order_spread + 0.1
    assert found.stated is None


def test_weak_errors_below_chance_have_no_order():
    still = (lambda t, y: 0 * y, lambda t, y: 0.5 * y)  # a martingale: no weak error of the mean
    found = diagnose.weak_error(*still, Y0[:100], UNIT, solver=sde.EulerMaruyama(dt=0.25), seed=1)
    assert found.order != found.order
    assert "no more than chance; try more samples" in str(found)
    square = diagnose.weak_error(
        *GROWTH, Y0, UNIT, solver=sde.EulerMaruyama(dt=0.25), quantity=lambda y: y.square(), seed=1
    )
    assert square.error.shape == (4,)
    found.plot()


def test_what_is_said_and_drawn():
    solver = sde.Heun(dt=0.25)
    others = (lambda t, y: -y, lambda t, y: 0.5 * y.roll(1, 1))
    found = strong(solver, others, torch.ones(400, 2, dtype=D))
    assert "0.5 is stated" in str(found)
    assert abs(found.order - 0.5) < 0.2
    assert found.table().count("\n") == 6
    target = io.BytesIO()
    found.plot(target)
    assert target.getvalue()[:4] == b"\x89PNG"


def test_nested_states_and_matrices():
    y0 = {"a": torch.ones(50, 2, dtype=D), "b": torch.ones(50, dtype=D)}
    found = diagnose.strong_error(
        lambda t, y: {k: -v for k, v in y.items()},
        lambda t, y: {k: torch.stack((v, v.sin()), -1) for k, v in y.items()},
        y0, UNIT, solver=sde.EulerMaruyama(dt=0.25), noise="general", levels=2,
    )  # fmt: skip
    assert found.error.isfinite().all()
    exact = (lambda t, y: 0 * y, lambda t, y: torch.ones_like(y))
    found = strong(sde.EulerMaruyama(dt=0.25), exact, noise="additive")
    assert found.error.max() < 1e-12


def test_bad_input_is_named():
    for solver, error, text in (
        (ti.Tsit5(), TypeError, "solver: got .*EulerMaruyama"),
        (sde.EulerMaruyama(), ValueError, r"expected one with dt; try EulerMaruyama\(dt=0.1\)"),
        (sde.Heun(rtol=0.1), ValueError, r"expected one with dt; try Heun\(dt=0.1\)"),
        (sde.EulerMaruyama(dt=0.3), ValueError, "try output times .T,. that are multiples of dt"),
    ):
        with pytest.raises(error, match=text):
            diagnose.strong_error(*GROWTH, Y0, UNIT, solver=solver)
    with pytest.raises(ValueError, match="levels: got 1"):
        strong(sde.EulerMaruyama(dt=0.25), levels=1)
    with pytest.raises(ValueError, match="y0: got 1 sample, expected two or more"):
        strong(sde.EulerMaruyama(dt=0.25), y0=Y0[:1])
