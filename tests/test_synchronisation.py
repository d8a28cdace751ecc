"""How often a solve reads the values of a tensor: on an accelerator the host waits for the device each time.

Counted on the CPU, where a read is as visible: by the methods of tensors that hand values to Python, and by operations
whose result has a size that depends on values.
"""

from collections import Counter

import pytest
import torch

import torchimplicit as ti
from torchimplicit import optim

READS = {
    torch.Tensor: (
        *("item", "tolist", "numpy", "cpu", "equal", "allclose", "nonzero", "masked_select"),
        *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
    ),
    torch: ("equal", "allclose", "nonzero", "masked_select", "is_nonzero", "unique"),
}


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def count(monkeypatch):
    """A function that runs another one and says how many reads it made."""
    found, inside = Counter(), [True]

    def watched(name, read):
        def reading(*args, **options):
            found[name] += not inside[0]
            before, inside[0] = inside[0], True  # one read may call another
            try:
                return read(*args, **options)
            finally:
                inside[0] = before

        return reading

    def indexed(x, index):
        parts = index if isinstance(index, tuple) else (index,)
        found["mask"] += any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)
        return getitem(x, index)

    getitem = torch.Tensor.__getitem__
    for owner, names in READS.items():
        for name in names:
            monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    monkeypatch.setattr(torch.Tensor, "__getitem__", indexed)

    def counted(work):
        work()  # what is prepared once
        found.clear()
        inside[0] = False
        try:
            work()
        finally:
            inside[0] = True
        return found.total()

    return counted


def cell(z, x, w):
    return torch.tanh(z @ w + x)


def point(batch=16, n=32, **options):
    x, w = draw(batch, n), (draw(n, n) / (2 * n**0.5)).requires_grad_()
    return ti.fixed_point(cell, torch.zeros_like(x), x, w, **options)


def test_the_count_sees_reads(count):
    x = draw(3)
    assert count(lambda: (bool(x[0] > 0), x.tolist(), x[x > 0], float(x[1]))) == 4


SOLVERS = {ti.Anderson: 1, ti.Picard: 1, ti.Broyden: 2}  # whose secants are looked at, too


@pytest.mark.parametrize(("solver", "reads"), SOLVERS.items(), ids=lambda case: getattr(case, "__name__", ""))
def test_an_uneventful_step_is_read_once(solver, reads, count):
    def solve(rtol):
        return point(1, solver=solver(rtol=rtol, atol=0))

    few, many = solve(1e-2).report.steps, solve(1e-5).report.steps
    assert few < many
    assert count(lambda: solve(1e-5)) - count(lambda: solve(1e-2)) <= reads * int(many - few)


@pytest.mark.parametrize("solver", [ti.Anderson, ti.Picard], ids=lambda solver: solver.__name__)
def test_a_step_at_which_samples_arrive_is_read_four_times(solver, count):
    def solve(batch):
        return point(batch, solver=solver(rtol=1e-5, atol=0))

    steps = solve(16).report.steps
    assert len(steps.unique()) > 3
    assert count(lambda: solve(16)) <= int(steps.max()) + 3 * len(steps.unique()) + 4


def test_looks_apart_are_reads_apart(count):
    def solve(every):
        return point(solver=ti.Anderson(rtol=1e-5, atol=0, check_every=every))

    steps = solve(5).report.steps
    assert count(lambda: solve(5)) <= int(steps.max()) // 5 + 3 * len(steps.unique()) + 4 < count(lambda: solve(1))


def test_reads_do_not_grow_with_the_state(count):
    def both(n):
        solution = point(1, n)
        solution.value.sum().backward()
        return int(solution.report.steps.max() + solution.report.backward.steps.max())

    assert count(lambda: both(256)) <= count(lambda: both(32)) + both(256) - both(32)


def test_a_backward_solve_is_read_once_a_product(count):
    def both(rtol, batch=1):
        solution = point(batch, adjoint=ti.Implicit(linear_solver=ti.GMRES(rtol=rtol)))
        solution.value.sum().backward()
        return int(solution.report.backward.steps.max())

    few, many = both(1e-1), both(1e-5)
    assert few < many
    assert count(lambda: both(1e-5)) - count(lambda: both(1e-1)) <= many - few + 1


def test_a_series_is_not_read_by_its_terms(count):
    def both(terms):
        point(adjoint=ti.Implicit(linear_solver=ti.Neumann(terms=terms))).value.sum().backward()

    assert count(lambda: both(9)) == count(lambda: both(3))


def test_a_path_is_read_once_a_step_and_twice_more_where_it_passes_outputs(count):
    def path(steps, outputs, backward=False):
        w = (draw(8, 8) / 4).requires_grad_()
        ts = torch.linspace(0, 1, outputs)
        solution = ti.odeint(lambda t, y, w: torch.tanh(y @ w), draw(5, 8), ts, w, solver=ti.RK4(dt=1 / steps))
        if backward:
            solution.value.sum().backward()

    assert count(lambda: path(32, 2)) - count(lambda: path(16, 2)) <= 16
    assert count(lambda: path(32, 2, True)) - count(lambda: path(16, 2, True)) <= 2 * 16
    # The second of two outputs is known to be the end of its step; the last of more is looked for within it.
    assert count(lambda: path(16, 9)) <= count(lambda: path(16, 2)) + 2 * 7 + 1


def test_a_program_is_read_once_a_step(count):
    def program(batch):
        Q, q = torch.eye(5).expand(batch, 5, 5), draw(batch, 5).requires_grad_()
        solution = optim.qp(Q, q, draw(batch, 7, 5), torch.ones(batch, 7))
        solution.value.sum().backward()
        return solution.report

    assert count(lambda: program(32)) <= 8 * int(program(32).steps.max()) + 12
