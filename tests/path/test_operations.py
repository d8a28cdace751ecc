"""How many operations a solve takes around the field's: they do not depend on the machine, and may only fall."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchimplicit as ti


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def operations(steps, stepping="per-sample", dt0=1.0):
    """Of a solve with so many steps, without those of a field that is one operation."""
    y0, ts = torch.ones(4, 2), torch.tensor([0.0, float(steps)])
    solver = ti.Tsit5(rtol=1e-1, atol=1e3, dt0=dt0, control=ti.PID(largest=1.0 + 1e-9))
    with torch.no_grad(), Count() as count:
        report = ti.odeint(lambda t, y: -y, y0, ts, solver=solver, stepping=stepping).report
    assert report.accepted.tolist() == [steps] * (4 if stepping == "per-sample" else 1)
    return count.number - report.nfev


@pytest.mark.parametrize(
    ("stepping", "dt0", "most"), [("per-sample", 1.0, 110), ("per-sample", None, 152), ("joint", 1.0, 100)]
)
def test_a_solve_of_one_step(stepping, dt0, most):
    operations(1, stepping, dt0)  # weights are made once
    assert operations(1, stepping, dt0) <= most


def test_a_solve_of_one_step_and_its_gradient():
    y0, ts, a = torch.ones(4, 2), torch.tensor([0.0, 1.0]), torch.ones(2, requires_grad=True)
    solver = ti.Tsit5(rtol=1e-1, atol=1e3, dt0=1.0)

    def solved():
        return ti.odeint(lambda t, y, a: -y * a, y0, ts, a, solver=solver)

    solved().value.sum().backward()  # weights are made once
    with Count() as forward:
        solution = solved()
    total = solution.value.sum()
    with Count() as backward:
        total.backward()
    y = y0.clone().requires_grad_()
    with Count() as product:
        torch.autograd.grad(-y * a, (y, a), y0)
    field = 2 * solution.report.nfev
    assert solution.report.kept == 1
    assert forward.number - field <= 124
    assert backward.number - 6 * (product.number - 2) <= 47


def test_a_step_in_which_nothing_happens():
    few, many = operations(2), operations(12)
    assert many - few <= 10 * 42


def test_samples_that_arrive_one_by_one():
    solver = ti.Tsit5(rtol=1e-1, atol=1e3, dt0=1.0, control=ti.PID(largest=1.0 + 1e-9))

    def count(ends):
        ts = torch.stack((torch.zeros(len(ends)), torch.tensor(ends)))
        with torch.no_grad(), Count() as found:
            report = ti.odeint(lambda t, y: -y, torch.ones(len(ends), 2), ts, solver=solver).report
        return found.number - report.nfev

    one_by_one, together = count([1.0, 2.0, 3.0, 4.0]), count([4.0, 4.0, 4.0, 4.0])
    assert one_by_one - together <= 3 * 45
