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


def operations(steps, stepping):
    """Of a solve with so many steps, without those of a field that is one operation."""
    y0, ts = torch.ones(4, 2), torch.tensor([0.0, float(steps)])
    solver = ti.Tsit5(rtol=1e-1, atol=1e3, dt0=1.0, control=ti.PID(largest=1.0 + 1e-9))
    with torch.no_grad(), Count() as count:
        report = ti.odeint(lambda t, y: -y, y0, ts, solver=solver, stepping=stepping).report
    assert report.accepted.tolist() == [steps] * (4 if stepping == "per-sample" else 1)
    return count.number - report.nfev


@pytest.mark.parametrize(("stepping", "most"), [("per-sample", 225), ("joint", 191)])
def test_a_solve_of_one_step(stepping, most):
    assert operations(1, stepping) <= most


def test_a_step_in_which_nothing_happens():
    few, many = operations(2, "per-sample"), operations(12, "per-sample")
    assert many - few <= 10 * 50
