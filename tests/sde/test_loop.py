"""Steps that are made without a look are, to the bit, those that are looked at one by one."""

import contextlib

import pytest
import torch

import torchimplicit as ti
from tests.sde.cases import start
from torchimplicit import sde
from torchimplicit.sde import ahead


def drift(t, y):
    return 0.3 * y * torch.cos(t)


def diffusion(t, y):
    return 0.6 * y.sin()


@pytest.mark.parametrize("solver", [sde.EulerMaruyama(dt=0.01), sde.Heun(dt=0.01)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_times_of_everybody_are_those_of_each(batch, dtype, solver):
    options = {"solver": solver, "calculus": solver.calculus, "brownian": 3}
    y0, ts = start(batch, dtype), torch.tensor([0.0, 0.31, 1.0], dtype=dtype)
    together = ti.sdeint(drift, diffusion, y0, ts, **options)
    own = ts.unsqueeze(1).repeat(1, batch + 1)
    own[1, -1] = 0.17
    each = ti.sdeint(drift, diffusion, torch.cat((y0, y0[:1])), own, **options)
    assert torch.equal(each.value[:, :batch], together.value)
    assert each.report.steps.tolist() == [100] * (batch + 1)


def test_large_states_are_made_some_steps_at_a_time():
    """As many as fit, in pairs, whose noise is one word: of an odd number too, at the end of a solve."""
    y0 = torch.linspace(-1, 1, 20_000, dtype=torch.float64).reshape(20, 1000)
    for steps in (1, 2, 3, 5, 7, 8):
        ts = torch.tensor([0.0, steps / 8], dtype=torch.float64)
        options = {"solver": sde.EulerMaruyama(dt=1 / 8), "brownian": 3}
        together = ti.sdeint(drift, diffusion, y0, ts, **options)
        each = ti.sdeint(drift, diffusion, y0, ts.unsqueeze(1).repeat(1, 20), **options)
        assert torch.equal(together.value, each.value)


def test_one_read_for_many_steps(monkeypatch):
    reads = []
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: reads.append(1) or self.item())
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: reads.append(1) or self.item() != 0)
    counts = []
    for steps in (64, 512):
        for _ in range(2):  # times are looked at once, and remembered
            reads.clear()
            ti.sdeint(drift, diffusion, start(), torch.tensor([0.0, 1.0]).double(), solver=sde.Heun(dt=1 / steps),
                      calculus="stratonovich")  # fmt: skip
        counts.append(len(reads))
    assert counts[1] - counts[0] == 7  # one for every 64 steps


def test_narrowed_solves_go_on_with_the_noise_of_their_samples():
    batch, width = 64, 260
    y0 = torch.linspace(0.5, 1.5, batch * width).reshape(batch, width).double()
    ts = torch.stack((torch.zeros(batch), torch.where(torch.arange(batch) < 50, 0.1, 1.0))).double()
    options = {"solver": sde.EulerMaruyama(dt=0.05), "brownian": 3}
    y0.requires_grad_()
    found = []
    for batched in (None, ()):
        sol = ti.sdeint(drift, diffusion, y0, ts, batched_args=batched, **options)
        found.append((sol.value.detach(), *torch.autograd.grad(sol.value.square().sum(), y0)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-13)


@pytest.mark.parametrize("batch", [1, 3])
def test_solves_have_times_of_their_own(batch, monkeypatch):
    y0, ts = start(batch, torch.float64), torch.tensor([0.0, 0.31, 1.0], dtype=torch.float64)
    options = {"solver": sde.EulerMaruyama(dt=0.1), "brownian": 3}

    def writes(t, y):
        y = drift(t, y)
        with contextlib.suppress(RuntimeError):  # of several samples torch refuses it
            t.add_(1.0)
        return y

    first = ti.sdeint(drift, diffusion, y0, ts, **options).value
    ti.sdeint(writes, diffusion, y0, ts, **options)
    assert torch.equal(ti.sdeint(drift, diffusion, y0, ts, **options).value, first)
    monkeypatch.setattr(ahead, "MANY", 1)  # nothing is remembered then
    assert torch.equal(ti.sdeint(drift, diffusion, y0, ts, **options).value, first)


@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 3)])
def test_functions_see_times_that_broadcast(shape):
    y0, seen = torch.rand(3, *shape, dtype=torch.float32), set()

    def noted(t, y):
        seen.add((t.shape, t.dtype))
        return -y * t

    for dtype in (torch.float32, torch.float64):
        ts = torch.tensor([0.0, 1.0], dtype=dtype)
        ti.sdeint(noted, noted, y0, ts, solver=sde.Heun(dt=0.25), calculus="stratonovich", brownian=1)
    assert seen == {(torch.Size((3, *(1,) * len(shape))), torch.float32)}
