"""What kernels make of an iterate is what `Samples` makes of it, and of past residuals what `Ring` does."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import torchimplicit as ti
from torchimplicit.core.problem import Residual
from torchimplicit.solve.compiled.judge import Rules, Step, judged, standing_of
from torchimplicit.solve.compiled.mixing import combined
from torchimplicit.solve.history import Ring
from torchimplicit.solve.samples import Samples

WIDTH, STEPS = 3, 60


class State(NamedTuple):
    z: Tensor
    residual: Tensor


def course(seed):
    """Sizes of residuals `(steps + 1, B)` of samples that arrive, wait, grow, are lost or stop for a while."""
    torch.manual_seed(seed)
    rates = torch.tensor([0.7, 0.9, 1.0, 3.0, 0.97, 0.8], dtype=torch.float64)
    sizes = rates ** torch.arange(STEPS + 1, dtype=torch.float64).unsqueeze(1) * (1 + 0.3 * torch.randn(STEPS + 1, 6))
    sizes = sizes.abs()
    sizes[7 + seed, 4], sizes[3 + seed, 5] = math.nan, math.inf
    sizes[0, 1] = math.nan if seed == 1 else sizes[0, 1]
    return sizes


@pytest.mark.parametrize("seed", range(4))
def test_samples_stop_as_those_that_the_loop_judges(seed):
    solver, sizes = ti.Anderson(rtol=1e-3, max_steps=STEPS), course(seed)
    eps = torch.finfo(torch.float64).eps
    z = torch.randn(STEPS + 1, 6, WIDTH, dtype=torch.float64)
    residual = sizes.unsqueeze(2) * torch.nn.functional.normalize(torch.randn_like(z), dim=2)
    problem = Residual(lambda z, out: z, eps)
    plain = Samples(solver, State(z[0], residual[0]), eps)
    plain.judge(0, State(z[0], residual[0]), problem)
    standing, minute = standing_of(plain, z[0]), torch.tensor(False)
    for k in range(1, STEPS + 1):
        if plain.any_running:
            plain.judge(k, State(z[k], residual[k]), problem)
        size, scale = residual[k].norm(dim=1), z[k].norm(dim=1)
        tolerance = plain.absolute + plain.rtol * scale
        step = Step(torch.tensor(k), z[k - 1], z[k], size, scale, tolerance, plain.limit)
        running = standing.running
        standing, doubtful, parts = judged(standing, step, Rules(solver.patience, eps), minute)
        if bool(doubtful):
            assert bool((running & size.isinf()).any())  # only what overflows needs more care in double precision
            assert bool((size.isinf() == ~(residual[k].isfinite().all(1) | size.isnan())).all())
        assert torch.equal(standing.running, plain.running), k
        stopped = ~standing.running
        assert torch.equal(standing.status[stopped], plain.status[stopped]), k
        assert torch.equal(standing.steps[stopped], plain.steps[stopped]), k
        if bool(parts):
            assert plain.any_running
    assert {int(ti.Status.CONVERGED), int(ti.Status.DIVERGED), int(ti.Status.NON_FINITE)} <= set(
        standing.status.tolist()
    )
    mine = torch.where(standing.latest.unsqueeze(1), z[-1], standing.kept)
    assert torch.equal(mine, plain.answer(z[-1]))
    assert torch.equal(standing.best, plain.best)


@pytest.mark.parametrize("known", [2, 3, 5])
def test_combinations_are_those_of_a_ring(known):
    torch.manual_seed(0)
    window, z = 5, torch.randn(4, 9, dtype=torch.float64)
    ring, pairs = Ring(z, window, 1e-10), []
    for _ in range(known):
        residual = torch.randn_like(z)
        ring.slot.copy_(residual)
        target = ring.append(z, residual, 1.0).clone()
        pairs.append((residual, target))
        z = torch.randn_like(z)
    absent = [(torch.zeros_like(z), torch.zeros_like(z))] * (window - known)
    residuals, targets = zip(*absent, *pairs, strict=True)
    there = torch.tensor([0.0] * (window - known) + [1.0] * known, dtype=torch.float64)
    assert torch.allclose(combined(residuals, targets, there, 1e-10), ring.combine(), rtol=1e-12, atol=1e-12)


def test_a_combination_of_nothing_but_zeros_is_finite():
    zeros = [torch.zeros(2, 3)] * 3
    assert combined(zeros, zeros, torch.tensor([0.0, 1, 1]), 1e-10).isfinite().all()


def test_a_ring_goes_on_where_somebody_else_has_come_to():
    torch.manual_seed(0)
    z, window = torch.randn(2, 4), 4
    plain, other = Ring(z, window, 1e-10), Ring(z, window, 1e-10)
    pairs = []
    for _ in range(6):
        residual = torch.randn_like(z)
        plain.slot.copy_(residual)
        pairs.append((residual, plain.append(z, residual, 0.5).clone()))
        z = torch.randn_like(z)
    residuals, targets = zip(*pairs[-3:], strict=True)
    last = torch.randn_like(z)
    assert torch.equal(other.resume(residuals, targets, last, 6), last)
    plain.slot.copy_(last)
    for ring in (plain, other):
        ring.append(z, ring.slot, 0.5)
    assert torch.equal(plain.combine(), other.combine())
