"""Captured tensors, whenever a function uses them: their gradient would be missing without a word."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.ode import Kvaerno3
from torchimplicit.optim import ProximalGradient, prox
from torchimplicit.sde import EulerMaruyama, ReversibleHeun

Z, TS = torch.zeros(3, 4, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
CAPTURED = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)


def away(z):
    """The captured number, but at the start of a solve."""
    return CAPTURED if bool((z.detach() != 0).any()) else 1.0


def late(t):
    """The captured number, behind the first half of a path."""
    return CAPTURED if float(t.max()) > 0.6 else 1.0


def path(solver, adjoint):
    return lambda: ti.odeint(
        lambda t, y: -y * late(t), Z + 1, TS, solver=solver, adjoint=adjoint, compile=False, on_failure="ignore"
    )


def noisy(adjoint, drift=lambda t, y: -y, diffusion=lambda t, y: 0.1 * torch.ones_like(y), **options):
    options = {"solver": EulerMaruyama(dt=0.1), "adjoint": adjoint, "compile": False} | options
    return lambda: ti.sdeint(drift, diffusion, Z + 1, TS, **options)


EVENT = ti.Event(lambda t, y: y[:, 0] - 1.5 + 0 * late(t))
SOLVES = {
    **{
        f"fixed point, {type(adjoint).__name__}": lambda adjoint=adjoint: ti.fixed_point(
            lambda z: 0.5 * torch.tanh(z) * away(z) + 1, Z, solver=ti.Broyden(), adjoint=adjoint
        )
        for adjoint in (ti.Implicit(), ti.Unrolled(), ti.Phantom(), ti.Shine())
    },
    "root": lambda: ti.root(lambda z: z * away(z) - 1, Z),
    "minimum": lambda: ti.argmin(lambda z: (torch.cosh(z - 1) * away(z)).sum(1), Z),
    "least squares": lambda: ti.least_squares(lambda z: (z - 1) * away(z), Z),
    "split": lambda: ti.fixed_point(ProximalGradient(lambda z: ((z - 1) ** 2 * away(z)).sum(1), prox.l1, 0.2), Z),
    **{
        f"path, {type(adjoint).__name__}": path(ti.RK4(dt=0.1), adjoint)
        for adjoint in (ti.Checkpointed(), ti.Direct(), ti.Backsolve(), ti.Reversible())
    },
    "stiff path": path(Kvaerno3(rtol=1e-3), ti.Checkpointed()),
    "flow": lambda: ti.nn.CNF(lambda t, y: torch.tanh(y) * (CAPTURED if float(t.max()) < 0.4 else 1), (4,)).log_prob(Z),
    "event": lambda: ti.odeint(lambda t, y: torch.ones_like(y), Z, TS, event=EVENT, compile=False),
    "drift": noisy(ti.Checkpointed(), drift=lambda t, y: -y * late(t)),
    "diffusion": noisy(ti.Checkpointed(), diffusion=lambda t, y: 0.1 * torch.ones_like(y) * late(t)),
    "undone": noisy(
        ti.Reversible(), drift=lambda t, y: -y * late(t), solver=ReversibleHeun(dt=0.1), calculus="stratonovich"
    ),
}  # fmt: skip


@pytest.mark.parametrize("solve", SOLVES.values(), ids=SOLVES)
def test_a_tensor_that_is_captured_away_from_the_start_is_refused(solve):
    with pytest.raises(ti.CaptureError, match=r"a tensor of shape \(\)"):
        solve()
    with torch.no_grad():
        solve()


def test_a_tensor_that_is_captured_by_the_function_of_few_samples_is_refused():
    start, rate = torch.ones(512, 64), torch.tensor([0.1] * 500 + [50.0] * 12).unsqueeze(1)
    sizes = set()

    def field(t, y, rate):
        sizes.add(len(y))
        return -rate * y * (CAPTURED.float() if len(y) < 512 else 1)

    with pytest.raises(ti.CaptureError):
        ti.odeint(field, start, torch.tensor([0.0, 1.0]), rate, batched_args=(0,), compile=False)
    assert min(sizes) < 512, "narrowed"


def test_a_captured_leaf_that_is_returned_as_it_is_is_found():
    leaf = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ti.CaptureError, match="tensor 'leaf'"):
        ti.odeint(lambda t, y: leaf, Z, TS)


def test_functions_that_use_up_a_graph_of_their_own_are_none_that_capture():
    def slope(t, y):
        with torch.enable_grad():
            y = y.requires_grad_()
            return -torch.autograd.grad(y.square().sum(), y, create_graph=torch.is_grad_enabled())[0] / 2

    value = ti.odeint(slope, Z + 1, TS, solver=ti.RK4(dt=0.1), compile=False).value
    assert not value.requires_grad
    assert torch.allclose(value[-1], torch.exp(-TS[-1]), rtol=1e-5)


def test_the_class_of_a_module_in_the_place_of_a_module_is_refused():
    for solve in (
        lambda: ti.fixed_point(torch.nn.Tanh, Z),
        lambda: ti.odeint(torch.nn.Tanh, Z, TS),
        lambda: ti.sdeint(torch.nn.Tanh, lambda t, y: y, Z, TS, solver=EulerMaruyama(dt=0.1)),
        lambda: ti.nn.NeuralODE(torch.nn.Tanh, TS),
    ):
        with pytest.raises(TypeError, match=r"got the class Tanh, whose instance Tanh\(...\) is one"):
            solve()


def test_weights_of_another_precision_are_said_beside_torchs_error():
    cell = torch.nn.Linear(4, 4)
    for solve in (lambda: ti.fixed_point(cell, Z), lambda: ti.nn.NeuralODE(cell, TS, autonomous=True)(Z)):
        with pytest.raises(RuntimeError) as caught:
            solve()
        assert "with weights of torch.float32; try .to(torch.float32) on what is given" in caught.value.__notes__[0]
