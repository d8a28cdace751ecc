"""`sdeint` along the paths of a `Tree`: the same at any steps, those included that samples choose."""

import pytest
import torch
from torch import func

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, MATRIX, TS, D, drift, rate_and_mix, start
from torchimplicit import sde
from torchimplicit.core.status import Status

TREE = sde.Tree(seed=4, depth=14)
ONES = torch.tensor([[1.0, 0.0]], dtype=D)


def both(t, y, volatility):
    """A geometric Brownian motion, and the noise that drives it."""
    return torch.cat((volatility * y[:, :1], torch.ones_like(y[:, 1:])), 1).unsqueeze(2)


def solve(solver, volatility=0.5, batch=6, source=TREE, ts=TS, **options):
    options = {"noise": "scalar", "calculus": solver.calculus, "brownian": source, **options}
    return ti.sdeint(lambda t, y, v: 0 * y, both, ONES.expand(batch, 2), ts, volatility, solver=solver, **options)


@pytest.mark.parametrize(
    "solver",
    [sde.EulerMaruyama(dt=0.1), sde.Milstein(dt=0.03), sde.SRID2(dt=0.1), sde.Heun(dt=0.25), sde.Heun()],
    ids=str,
)
def test_the_path_is_the_same_at_any_steps(solver):
    path = TREE.bind(torch.empty(6, 1, dtype=D))
    found = solve(solver).value[:, :, 1:]
    assert torch.allclose(found, torch.stack([path.at(t) for t in TS.tolist()]), rtol=1e-10, atol=1e-12)


def test_errors_fall_along_one_path():
    batch, w = 300, TREE.bind(torch.empty(300, 1, dtype=D)).at(1.0).squeeze(1)

    def error(solver):
        exact = torch.exp(0.8 * w - (0.32 if solver.calculus == "ito" else 0))
        return float((solve(solver, 0.8, batch).value[-1, :, 0] - exact).square().mean().sqrt())

    assert error(sde.SRID2(dt=1 / 32)) < 0.45 * error(sde.SRID2(dt=1 / 16))
    assert error(sde.Heun(dt=1 / 32)) < 0.6 * error(sde.Heun(dt=1 / 16))
    assert error(sde.Heun(rtol=1e-2, atol=1e-3)) < 0.3 * error(sde.Heun(rtol=1e-1, atol=1e-2))


@pytest.mark.parametrize("solver", [sde.Heun(dt=0.3), sde.Heun(rtol=3e-2, atol=3e-3)], ids=str)
@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_gradients_and_mates(noise, solver):
    def run(y0, rate, mix, adjoint=ti.Checkpointed(2), source=TREE):
        options = {"noise": noise, "calculus": "stratonovich", "solver": solver, "brownian": source}
        return ti.sdeint(drift, DIFFUSIONS[noise], y0, TS, rate, mix, adjoint=adjoint, **options).value

    found = []
    for adjoint in (ti.Direct(), ti.Checkpointed(2)):
        inputs = tuple(each.requires_grad_() for each in (start(4), *rate_and_mix()))
        value = run(*inputs, adjoint)
        found.append([value, *torch.autograd.grad(value.sin().sum(), inputs, materialize_grads=True)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)
    value, rest = found[0][0], rate_and_mix()
    assert torch.equal(run(start(4)[:2], *rest), value[:, :2])
    mapped = func.vmap(lambda y0: run(y0, *rest))(torch.stack((start(4), 2 * start(4))))
    assert torch.allclose(mapped[0], value, rtol=1e-12)


def test_samples_with_times_of_their_own():
    ts = torch.stack((TS, torch.tensor([0.0, 0.5, 0.5], dtype=D), TS), 1)
    for solver in (sde.Heun(dt=0.2), sde.Heun()):
        seeds = TREE.bind(torch.empty(3, 1)).seeds
        whole = solve(solver, batch=3, ts=ts).value
        for row in range(3):
            alone = solve(solver, batch=1, ts=ts[:, [row]], source=sde.Tree(seed=seeds[[row]], depth=14)).value
            assert torch.allclose(alone[:, 0], whole[:, row], rtol=1e-13)


def test_what_a_tree_cannot_do():
    ts = TS.clone().requires_grad_()
    for solver in (sde.Heun(dt=0.1), sde.Heun()):
        with pytest.raises(ValueError, match=r"a Tree, whose paths have no derivative by time.*Brownian\(seed=...\)"):
            solve(solver, ts=ts)
    solve(sde.Heun(dt=0.1), ts=ts, source=3).value.sum().backward()  # as told
    with pytest.raises(
        ValueError, match=r"a Tree with LogODE, which asks for Levy areas.*Brownian\(seed=..., base=...\)"
    ):
        ti.sdeint(
            drift, DIFFUSIONS["general"], start(), TS, 0.5, MATRIX, noise="general", calculus="stratonovich",
            solver=sde.LogODE(dt=0.1), brownian=TREE,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"outside of span=.*a longer span"):
        solve(sde.Heun(dt=0.1), ts=2 * TS)
    solve(sde.Heun(dt=0.1), ts=2 * TS, source=sde.Tree(seed=4, span=(0.0, 2.0)))
    with pytest.raises(ValueError, match=r"a cell of Tree.*larger depth, or longer steps"):
        solve(sde.Heun(dt=0.01), source=sde.Tree(seed=4, depth=5))
    solve(sde.Heun(dt=0.01), source=sde.Tree(seed=4, depth=7))


def test_steps_shorter_than_a_cell_are_too_small():
    volatility = torch.tensor([[0.3], [60.0], [0.3]], dtype=D)
    sol = solve(sde.Heun(), volatility, 3, sde.Tree(seed=4, depth=11), on_failure="ignore")
    assert sol.status.tolist() == [0, int(Status.STEP_TOO_SMALL), 0]
    seeds = sde.Tree(seed=4).bind(torch.empty(3, 1)).seeds[[0]]
    alone = solve(sde.Heun(), volatility[:1], 1, sde.Tree(seed=seeds, depth=11))
    assert torch.equal(alone.value[:, 0], sol.value[:, 0])
