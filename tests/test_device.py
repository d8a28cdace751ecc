"""Everything works on the device of its inputs, whatever the default device is.

No accelerator is needed to see it: with `meta` as the default, a tensor that is made without saying where has no
values, and the first operation that mixes it with others, or reads it, fails. Inputs and modules are made on the CPU.
"""

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose, nn, optim, sde
from torchimplicit.optim import projection, prox

CPU = torch.device("cpu")
LINE = torch.linspace(0, 1, 5)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator(CPU).manual_seed(sum(shape)), device=CPU)


def weight(n):
    return (draw(n, n) / (3 * n**0.5)).requires_grad_()


def cell(z, x, w):
    return torch.tanh(z @ w + x)


def field(t, y, w):
    return torch.tanh(y @ w)


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)
        torch.nn.init.normal_(self.linear.weight, std=0.1)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


def point(batch=5, **options):
    x = draw(batch, 6)
    return ti.fixed_point(cell, torch.zeros_like(x), x, weight(6), **options).value


def minimum(energy, solver):
    return ti.argmin(energy, torch.ones(4, 3, device=CPU), draw(4, 3).requires_grad_(), solver=solver).value


def squares(z, a):
    return (z - a).square().sum(-1) + (z**4).sum(-1)


def path(f=field, y0=None, n=4, **options):
    return ti.odeint(f, draw(3, n) if y0 is None else y0, LINE, weight(n), **options)


def stochastic(kind, noise="diagonal", **options):
    inward = kind in (sde.Heun, sde.Midpoint, sde.ReversibleHeun, sde.LogODE)
    return ti.sdeint(
        lambda t, y, r: -r * y,
        (lambda t, y, r: 0.1 * y) if noise == "diagonal" else (lambda t, y, r: torch.full_like(y, 0.1)),
        draw(4, 2),
        LINE,
        torch.tensor(0.5, requires_grad=True, device=CPU),
        noise=noise,
        calculus="stratonovich" if inward else "ito",
        solver=kind(dt=0.125),
        **options,
    )


def eye(n):
    return torch.eye(n, device=CPU)


def ones(*shape):
    return torch.ones(*shape, device=CPU)


def second(value, by):
    (gradient,) = torch.autograd.grad(value.sum(), by, create_graph=True)
    return gradient


def second_order():
    w = weight(6)
    return second(ti.fixed_point(cell, torch.zeros(5, 6, device=CPU), draw(5, 6), w).value, w)


def second_order_path():
    w = weight(4)
    return second(ti.odeint(field, draw(3, 4), LINE, w).value, w)


def tangent():
    w = weight(6).detach()
    return torch.func.jvp(
        lambda w: ti.fixed_point(cell, torch.zeros(5, 6, device=CPU), draw(5, 6), w).value, (w,), (w,)
    )


def mapped():
    w, x = weight(6), draw(5, 6)
    return torch.func.vmap(lambda x: ti.fixed_point(cell, torch.zeros_like(x)[None], x[None], w).value)(x)


def cone():
    A = torch.cat((-eye(2), ones(1, 2)))
    b = torch.tensor([0.0, 0.0, 1.0], device=CPU)
    return optim.cone_program(None, draw(3, 2).requires_grad_(), A, b, optim.Cones(nonneg=3)).value


SPLIT = ti.Split(lambda t, y, w: -y, field)
CASES = {
    **{
        f"fixed point, {kind.__name__}": lambda kind=kind: point(solver=kind())
        for kind in (
            ti.Anderson,
            ti.Picard,
            ti.Broyden,
            ti.Newton,
            ti.Polyalgorithm,
            ti.PseudoTransient,
            ti.SteadyState,
        )
    },
    **{
        f"fixed point, {kind.__name__}": lambda kind=kind: point(adjoint=kind(), solver=ti.Broyden())
        for kind in (ti.Phantom, ti.Unrolled, ti.Shine)
    },
    **{
        f"fixed point, {kind.__name__}": lambda kind=kind: point(adjoint=ti.Implicit(kind()))
        for kind in (ti.GMRES, ti.BiCGStab, ti.LU, ti.Neumann)
    },
    "fixed point, active": lambda: point(80, batched_args=(0,)),
    "second order": second_order,
    "second order, path": second_order_path,
    "tangent": tangent,
    "mapped": mapped,
    "root": lambda: ti.root(lambda z, a: z**3 + z - a, draw(4, 3), draw(4, 3).requires_grad_()).value,
    "argmin, LBFGS": lambda: minimum(squares, ti.LBFGS()),
    "argmin, NewtonCG": lambda: minimum(squares, ti.NewtonCG()),
    "least squares": lambda: (
        ti.least_squares(lambda z, a: torch.cat((z - a, z**2), -1), ones(4, 3), draw(4, 3).requires_grad_()).value
    ),
    "constrained": lambda: (
        ti.argmin(
            squares, ones(4, 3), draw(4, 3).requires_grad_(), constraints=lambda z, a: z.sum(-1, keepdim=True) - 1
        ).value
    ),
    **{
        f"path, {kind.__name__}": lambda kind=kind: path(solver=kind()).value
        for kind in (ti.Tsit5, ti.Dopri8, ti.Bosh3, ti.ESDIRK54, ti.Kvaerno3)
    },
    "path, KenCarp4": lambda: path(SPLIT, solver=ti.KenCarp4()).value,
    "path, RK4": lambda: path(solver=ti.RK4(dt=0.1)).value,
    "path, Leapfrog": lambda: (
        path(lambda t, y, w: torch.stack((y[:, 1], -y[:, 0] * w[0, 0]), 1), n=2, solver=ti.Leapfrog(dt=0.1)).value
    ),
    **{
        f"path, {kind.__name__}": lambda kind=kind: path(adjoint=kind()).value
        for kind in (ti.Direct, ti.Backsolve, ti.Reversible)
    },
    "path, joint": lambda: path(stepping="joint").value,
    "path, dense": lambda: path(dense=True).path(torch.tensor(0.3, device=CPU)),
    "path, jumps": lambda: path(jumps=torch.tensor([0.5], device=CPU)).value,
    "path, event": lambda: (
        path(lambda t, y, w: 1 + y @ w, 0 * draw(3, 4), event=ti.Event(lambda t, y, w: y[:, 0] - 0.5)).event_state
    ),
    **{
        f"stochastic, {kind.__name__}": lambda kind=kind: stochastic(kind).value
        for kind in (sde.EulerMaruyama, sde.Heun, sde.Milstein, sde.Midpoint, sde.SRID2, sde.ReversibleHeun, sde.LogODE)
    },
    "stochastic, SRA1": lambda: stochastic(sde.SRA1, "additive").value,
    "stochastic, ShARK": lambda: stochastic(sde.ShARK, "additive").value,
    "stochastic, Tree": lambda: stochastic(sde.Heun, brownian=sde.Tree(seed=0)).value,
    "stochastic, prior": lambda: stochastic(sde.EulerMaruyama, prior=lambda t, y, r: -2 * y).kl,
    "qp": lambda: ti.qp(eye(4), draw(3, 4).requires_grad_(), ones(1, 4), ones(1), l=torch.zeros(4, device=CPU)).value,
    "qp, infeasible": lambda: ti.qp(eye(2), draw(3, 2), ones(2, 2), ones(2), l=ones(2), on_failure="ignore").status,
    "cone program": cone,
    "lqr": lambda: ti.lqr(eye(2), ones(2, 1), eye(2), eye(1), draw(3, 2).requires_grad_(), 5).value,
    "ilqr": lambda: (
        ti.ilqr(
            lambda x, u: x + 0.1 * torch.cat((x[..., 1:], u), -1),
            lambda x, u: x.square().sum(-1) + u.square().sum(-1),
            draw(3, 2),
            horizon=6,
            u0=torch.zeros(3, 6, 1, device=CPU),
        ).value
    ),
    **{
        f"projection, {name}": lambda name=name: getattr(projection, name)(draw(3, 5).requires_grad_())
        for name in ("simplex", "capped_simplex", "isotonic", "l1_ball", "second_order_cone")
    },
    "projection, birkhoff_polytope": lambda: projection.birkhoff_polytope(draw(4, 4).requires_grad_()),
    "projection, semidefinite_cone": lambda: projection.semidefinite_cone(
        (draw(4, 4) + draw(4, 4).mT).requires_grad_()
    ),
    "prox, total_variation": lambda: prox.total_variation(draw(2, 20).requires_grad_(), 0.5),
    "jacobian_penalty": lambda: nn.jacobian_penalty(cell, draw(5, 6), draw(5, 6), weight(6)),
}


LAYERS = {
    "DEQ": lambda: (nn.DEQ(Module()), draw(4, 6)),
    "MonotoneDEQ": lambda: (nn.MonotoneDEQ(nn.MonotoneLinear(6)), draw(4, 6)),
    "MonotoneConv": lambda: (nn.MonotoneDEQ(nn.MonotoneConv(4, 8)), draw(2, 4, 8, 8)),
    "ResidualCell": lambda: (nn.DEQ(nn.ResidualCell(8, 8, 4), ti.Anderson(rtol=1e-2)), draw(2, 8, 6, 6)),
    "NeuralODE": lambda: (nn.NeuralODE(torch.nn.Linear(6, 6), LINE, autonomous=True), draw(4, 6)),
    "NeuralSDE": lambda: (nn.NeuralSDE(lambda t, y: -y, lambda t, y: 0.1 * y, LINE), draw(4, 6).requires_grad_()),
    "QP": lambda: (nn.QP(6, inequalities=3), draw(4, 6)),
}


@pytest.fixture
def _meta():
    with torch.device("meta"):
        yield


def differentiate(value):
    if isinstance(value, torch.Tensor) and value.requires_grad:
        value.sum().backward()


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("case", CASES)
def test_solves_need_no_default_device(case):
    differentiate(CASES[case]())


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_need_no_default_device(layer, request):
    module, x = LAYERS[layer]()
    request.getfixturevalue("_meta")
    differentiate(module(x))


@pytest.mark.parametrize(
    "diagnosis",
    [diagnose.certify, diagnose.check_gradient, diagnose.convergence, diagnose.spectral_radius, diagnose.memory],
)
def test_diagnoses_need_no_default_device(diagnosis, request):
    layer, x = nn.DEQ(Module()), draw(4, 6)
    request.getfixturevalue("_meta")
    assert str(diagnosis(layer, x))
