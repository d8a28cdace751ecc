"""Broyden's compiled memory: the same iterates, the same inverse, the same way out of a singular update."""

import shutil

import pytest
import torch

import torchimplicit as ti
from torchimplicit.solve.compiled.secants import CompiledSecants
from torchimplicit.solve.secants import Secants

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
BATCH, WIDTH, MEMORY = 4, 12, 5


def test_it_makes_the_same_steps_and_knows_the_same():
    torch.manual_seed(0)
    z = torch.zeros(BATCH, WIDTH, dtype=torch.float64)
    plain, compiled = Secants(z, MEMORY), CompiledSecants(z, MEMORY)
    matrix = torch.eye(WIDTH, dtype=torch.float64) + 0.3 * torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    residual = torch.randn_like(z)
    for k in range(3 * MEMORY):
        step, same = plain.propose(residual).clone(), compiled.propose(residual)
        assert (step - same).abs().max() < 1e-10 * (1 + step.abs().max()), k
        if k == 7:
            step[1] = 0.0  # a sample that stands still
        change = step @ matrix
        plain.append(step, change)
        compiled.append(step, change)
        residual = residual + change
    v = torch.randn_like(z)
    for product in ("matvec", "rmatvec"):
        gap = getattr(plain.inverse(), product)(v) - getattr(compiled.inverse(), product)(v)
        assert gap.abs().max() < 1e-9


def test_a_solve_is_the_same_and_one_bad_sample_stays_alone():
    torch.manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    weight *= 1.1 / torch.linalg.eigvals(weight).abs().max()
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    x[2, 0] = torch.nan
    solutions = [
        ti.fixed_point(
            lambda z, x, weight: torch.tanh(z @ weight + x),
            torch.zeros_like(x),
            x,
            weight,
            solver=ti.Broyden(memory=MEMORY, rtol=1e-9, atol=0, max_steps=200, compile=compile),
            on_failure="ignore",
        )
        for compile in (False, True)
    ]
    plain, compiled = solutions
    assert torch.equal(plain.status, compiled.status)
    assert plain.status.tolist() == [0, 0, int(ti.Status.NON_FINITE), 0]
    assert (plain.steps - compiled.steps).abs().max() <= 1
    assert (plain.value - compiled.value)[[0, 1, 3]].abs().max() < 1e-8
    assert isinstance(compiled.state, CompiledSecants)
