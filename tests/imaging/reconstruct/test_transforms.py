"""Function transforms through reconstructions: right against differences and loops, or refused in words."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchimplicit as ti
from torchimplicit import imaging

SOLVER = ti.Anderson(window=10, rtol=1e-12, atol=0, max_steps=5000)
ADJOINT = ti.Implicit(ti.GMRES(rtol=1e-9, restart=60, max_steps=600))
KERNEL = torch.tensor([[0.1, 0.2, 0.05], [0.1, 0.3, 0.05], [0.05, 0.1, 0.05]], dtype=torch.float64)
BLUR = imaging.Blur(KERNEL, "circular")


def ridge():
    return imaging.Ridge(filters=2, taps=3, saturation=0.3).double()


def huber():
    return imaging.Analysis(imaging.Differences(), weight=0.05, width=0.3).double()


def network():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(2, 1, 3, padding=1)
    return imaging.GradientStep(torch.nn.Sequential(*layers)).double()


CELLS = {
    "gradient": lambda: imaging.Gradient(ridge(), eps=0.1),
    "network": lambda: imaging.Gradient(network(), step=0.3, eps=0.1),
    "preconditioned": lambda: imaging.Preconditioned(ridge(), weight=0.8, eps=0.1),
    "proximal": lambda: imaging.Proximal(ridge(), eps=0.1),
    "half-quadratic": lambda: imaging.HalfQuadratic(ridge(), eps=0.1),
    "douglas-rachford": lambda: imaging.DouglasRachford(ridge(), eps=0.1),
    "admm": lambda: imaging.ADMM(ridge(), eps=0.1),
    "primal-dual": lambda: imaging.PrimalDual(huber(), eps=0.1),
}
SMOOTH = "gradient", "network", "half-quadratic", "cg_sense"  # and quick: of these Hessians, too
SOLVE_WITHIN = "half-quadratic", "douglas-rachford", "admm"


def of_layer(name):
    layer = imaging.Reconstruction(CELLS[name]().double(), SOLVER, ADJOINT, on_failure="raise")
    return lambda y, op: layer(y, op)


DENOISER = ridge().requires_grad_(False)
BASELINES = {
    "cg_sense": lambda y, op: imaging.cg_sense(y, op, weight=0.1, solver=ti.CG(rtol=1e-11, max_steps=300)).value,
    "total_variation": lambda y, op: imaging.total_variation(y, op, weight=0.05, solver=SOLVER, adjoint=ADJOINT).value,
    "plug_and_play": lambda y, op: (
        imaging.plug_and_play(y, op, DENOISER, solver=SOLVER, inner=ti.CG(rtol=1e-12), adjoint=ADJOINT).value
    ),
}
ALL = {
    **{name: (lambda name=name: of_layer(name)) for name in CELLS},
    **{k: (lambda f=f: f) for k, f in BASELINES.items()},
}


def measured(batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 1, 6, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", ALL)
def test_both_modes_and_hessians_are_those_of_differences(name):
    run, y, v = ALL[name](), measured(), measured().flip(0)

    def loss(t):
        return (run(y + t * v, BLUR) ** 3).sum()

    zero, h = torch.zeros((), dtype=torch.float64), 1e-4 if name in SMOOTH else 1e-5
    with torch.no_grad():
        less, here, more = (loss(torch.tensor(t, dtype=torch.float64)) for t in (-h, 0.0, h))
        moved = (run(y + h * v, BLUR) - run(y - h * v, BLUR)) / (2 * h)
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(jvp(lambda y: run(y, BLUR), (y,), (v,))[1], moved, **close)
    for one in (grad(loss), jacrev(loss), jacfwd(loss)):
        torch.testing.assert_close(one(zero), (more - less) / (2 * h), **close)
    if name in SMOOTH:
        torch.testing.assert_close(hessian(loss)(zero), (more - 2 * here + less) / h**2, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*SOLVE_WITHIN, "plug_and_play")])
def test_mapped_measurements_are_as_one_after_another(name):
    run, ys = ALL[name](), torch.stack([measured(), 0.5 * measured().flip(0)])
    close = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(vmap(lambda y: run(y, BLUR))(ys), torch.stack([run(y, BLUR) for y in ys]), **close)
    slope = grad(lambda y: (run(y, BLUR) ** 3).sum())
    torch.testing.assert_close(vmap(slope)(ys), torch.stack([slope(y) for y in ys]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*SOLVE_WITHIN, "plug_and_play"])
def test_maps_that_solve_within_are_not_mapped(name):
    run, ys = ALL[name](), torch.stack([measured(), measured()])
    with pytest.raises(NotImplementedError, match="solves within"):
        vmap(lambda y: run(y, BLUR))(ys)
    with pytest.raises(NotImplementedError, match="solves within"):
        vmap(grad(lambda y: run(y, BLUR).sum()))(ys)


@pytest.mark.parametrize("name", ["gradient", "preconditioned", "primal-dual", "total_variation"])
def test_mapped_operators_are_refused(name):
    run, y = ALL[name](), measured()
    with pytest.raises(NotImplementedError, match="expected one for all"):
        vmap(lambda kernel: run(y, imaging.Blur(kernel)))(torch.stack([KERNEL, KERNEL]))
    with pytest.raises(NotImplementedError, match=r"angles that torch\.vmap maps"):
        vmap(lambda angles: imaging.Radon(6, angles).A(y))(torch.tensor([[0.0, 30.0], [10.0, 50.0]]))


def test_norms_that_have_to_be_looked_for_are_found_under_vmap():
    """Lanczos starts at random numbers of a seed, as masks do, which vmap knows nothing of."""
    ys, run = torch.stack([measured(), measured()]), of_layer("gradient")

    def both(y):
        op = imaging.Inpainting(torch.ones(1, 6, 6, dtype=torch.bool)) @ BLUR
        mask = imaging.cartesian(6, 2, center_fraction=0.25, seed=0)
        return run(y.flatten(1), op), mask.double()

    image, mask = vmap(both)(ys)
    torch.testing.assert_close(image[0], both(ys[0])[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(mask[1].bool(), imaging.cartesian(6, 2, center_fraction=0.25, seed=0))
    assert len(imaging.poisson_disc((8, 8), 4, seed=range(2))) == 2


class Starved(imaging.Blur):
    """Whose proximal steps are one of conjugate gradients."""

    def prox(self, z, y, step, solver=None, on_failure="warn"):
        return super().prox(z, y, step, ti.CG(rtol=1e-10, max_steps=1), on_failure)


def test_a_data_step_that_fails_is_told_under_transforms_too():
    op, cell = Starved(KERNEL), imaging.HalfQuadratic(ridge(), eps=0.1)
    layer = imaging.Reconstruction(cell, SOLVER, ADJOINT, on_failure="raise")
    y = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(ti.ConvergenceError, match="The data step's own solve"), torch.no_grad():
        layer(y, op)
    with pytest.raises(ti.ConvergenceError, match="The data step's own solve"):
        jacrev(lambda y: layer(y, op).sum())(y)
