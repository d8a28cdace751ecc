"""Series of different lengths in one call: every sample as if it were alone, and padding that is said to be padding."""

import io
import math
import os
import zipfile
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchimplicit as ti

NAN = math.nan
REAL = os.environ.get("TORCHIMPLICIT_DATA")
# Of another length each, one at its start alone, one running backward.
TS = torch.tensor([[0, 0, 0, 1.0], [1, 0.5, NAN, 0.5], [2, NAN, NAN, 0.2], [2.5, NAN, NAN, NAN]], dtype=torch.float64)


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def swirl(t, y, W):
    return torch.tanh(y @ W) * torch.cos(t)


def alone(i, ts, y0, W, weights, **options):
    """Outputs and gradients of one sample at its own times."""
    own = ~ts[:, i].isnan()
    inputs = [each.detach().clone().requires_grad_() for each in (y0[i : i + 1], ts[own, i], W)]
    value = ti.odeint(swirl, *inputs, **options).value
    return own, value[:, 0], torch.autograd.grad((value[:, 0] * weights[own, i]).sum(), inputs)


@pytest.mark.parametrize("solver", [ti.Tsit5(), ti.Dopri8(), ti.RK4(), ti.RK4(dt=0.1), ti.Kvaerno3()], ids=str)
@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Checkpointed(2), ti.Direct()], ids=str)
def test_every_sample_is_as_alone(solver, adjoint):
    inputs = [each.requires_grad_() for each in (double(4, 3), TS.clone(), 0.5 * double(3, 3, seed=1))]
    y0, _, W = inputs
    solution = ti.odeint(swirl, *inputs, solver=solver, adjoint=adjoint)
    weights = double(4, 4, 3, seed=2) * solution.mask.unsqueeze(2)
    by_y0, by_ts, of_weights = torch.autograd.grad((solution.value * weights).sum(), inputs)
    assert solution.report.converged
    assert torch.equal(solution.mask, ~TS.isnan())
    assert solution.report.reached.tolist() == [2.5, 0.5, 0.0, 0.2]
    total, atol = torch.zeros_like(W), 1e-6 if isinstance(solver, ti.Kvaerno3) else 1e-12  # its stages are solved anew
    for i in range(4):
        own, value, (one, times, each) = alone(i, TS, y0, W, weights, solver=solver, adjoint=adjoint)
        assert torch.allclose(solution.value[own, i], value, rtol=0, atol=atol)
        assert torch.allclose(by_y0[i], one[0], rtol=0, atol=atol)
        assert torch.allclose(by_ts[own, i], times, rtol=0, atol=atol)
        total += each
    assert torch.allclose(of_weights, total, rtol=0, atol=atol)


@pytest.mark.parametrize("adjoint", [ti.Backsolve(), ti.Backsolve(checkpoints=3), ti.Reversible()], ids=str)
def test_adjoints_that_integrate_back_agree(adjoint):
    inputs = [each.requires_grad_() for each in (double(4, 3), TS.clone(), 0.5 * double(3, 3, seed=1))]
    fine = ti.Tsit5(rtol=1e-9, atol=1e-9)
    exact = ti.odeint(swirl, *inputs, solver=fine).value.square().sum()
    found = ti.odeint(swirl, *inputs, solver=fine, adjoint=adjoint).value.square().sum()
    for one, other in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(exact, inputs), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    pad=st.sampled_from(["nan", "last"]),
    seed=st.integers(0, 99),
    extra=st.integers(0, 2),
)
def test_padding_changes_nothing(counts, pad, seed, extra):
    draw = torch.Generator().manual_seed(seed)
    rows, width = [], max(counts) + extra
    for count in counts:
        row = torch.rand(count, dtype=torch.float64, generator=draw).sort().values
        row += torch.arange(count) * 1e-3  # so that no two are the same
        rows.append(torch.cat((row, row.new_full((width - count,), NAN if pad == "nan" else float(row[-1])))))
    y0 = double(len(counts), 2, seed=seed)
    solution = ti.odeint(lambda t, y: -t * y, y0, torch.stack(rows, 1), solver=ti.Tsit5(rtol=1e-3, atol=1e-5))
    assert solution.mask.sum(0).tolist() == counts
    for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
        one = ti.odeint(lambda t, y: -t * y, y0[i : i + 1], row[:count], solver=ti.Tsit5(rtol=1e-3, atol=1e-5))
        assert torch.allclose(solution.value[:count, i], one.value[:, 0], rtol=0, atol=1e-14)
        assert torch.equal(solution.value[count:, i], solution.value[count - 1, i].expand(width - count, -1))


def test_a_repeated_last_time_of_all_samples():
    y0 = double(2, 1).requires_grad_()
    solution = ti.odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    assert solution.mask.tolist() == [[True, True], [True, True], [False, False]]
    assert torch.equal(solution.value[1], solution.value[2])
    (gradient,) = torch.autograd.grad(solution.value[1:].sum(), y0)  # of both, for both are the state there
    assert torch.allclose(gradient, torch.full_like(y0, 2 * math.exp(-1)), rtol=1e-4)


@pytest.mark.parametrize("adjoint", [ti.Checkpointed(), ti.Direct(), ti.Backsolve(), ti.Reversible()], ids=str)
@pytest.mark.parametrize("ts", [[0.5], [0.5, 0.5]], ids=str)
def test_no_way_to_go(adjoint, ts):
    y0, W = double(2, 3).requires_grad_(), double(3, 3).requires_grad_()
    solution = ti.odeint(swirl, y0, torch.tensor(ts, dtype=torch.float64), W, adjoint=adjoint)
    assert solution.report.converged
    assert solution.mask[0].all()
    assert not solution.mask[1:].any()
    assert torch.equal(solution.value, y0.expand(len(ts), 2, 3))
    by_y0, of_weights = torch.autograd.grad(solution.value.sum(), (y0, W))
    assert torch.equal(by_y0, torch.full_like(y0, len(ts)))
    assert torch.equal(of_weights, torch.zeros_like(W))


def test_events_and_dense_output():
    W = (0.5 * double(3, 3, seed=1)).requires_grad_()
    options = {"event": ti.Event(lambda t, y, W: t[:, 0] - 1.5), "dense": True}
    solution = ti.odeint(swirl, double(4, 3), TS, W, **options)
    assert solution.fired.tolist() == [True, False, False, False]
    assert solution.event_time[0].item() == pytest.approx(1.5)
    assert torch.allclose(solution.path(solution.ts.clamp_max(1.5)), solution.value, atol=1e-6)
    assert torch.autograd.grad(solution.path(solution.ts[:2]).sum(), W)[0].isfinite().all()


def test_derivatives_of_every_kind():
    y0, W = double(4, 3), 0.5 * double(3, 3, seed=1)

    def values(W, ts):
        return ti.odeint(swirl, y0, torch.where(TS.isnan(), NAN, ts), W, solver=ti.RK4(dt=0.3)).value

    inputs = (W.requires_grad_(), TS.nan_to_num(0.0).requires_grad_())
    assert torch.autograd.gradcheck(values, inputs)
    backward, forward = (
        jac(values)(*(each.detach() for each in inputs)) for jac in (torch.func.jacrev, torch.func.jacfwd)
    )
    assert torch.allclose(backward, forward, atol=1e-12)


def stays(archive, count):
    """The hours, `(T, B)`, NaN behind each stay's last, at which anything was measured, of so many stays."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in sorted(files.namelist()) if name.endswith(".txt")]
        lines = [io.TextIOWrapper(files.open(name)).read().splitlines()[1:] for name in islice(names, count)]
    rows = []
    for stay in lines:
        clock = sorted({line.split(",")[0] for line in stay})
        minutes = [60 * int(each[:2]) + int(each[3:]) for each in clock]
        rows.append(torch.tensor(minutes, dtype=torch.float64) / 60)
    return torch.nn.utils.rnn.pad_sequence(rows, padding_value=NAN)


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real stays to read")
def test_512_stays_in_intensive_care():
    ts = stays(Path(REAL) / "physionet2012" / "set-a.zip", 512)
    counts = (~ts.isnan()).sum(0)
    y0, W = double(512, 4), 0.5 * double(4, 4, seed=1)
    solution = ti.odeint(swirl, y0, ts, W)
    assert solution.report.converged
    assert torch.equal(solution.mask.sum(0), counts)
    assert int(counts.min()) < 20
    assert int(counts.max()) > 120
    for i in [int(counts.argmin()), int(counts.argmax()), *range(0, 512, 50)]:
        own = ts[: counts[i], i]
        one = ti.odeint(swirl, y0[i : i + 1], own, W)
        assert torch.allclose(solution.value[: counts[i], i], one.value[:, 0], rtol=0, atol=1e-12)
        assert int(solution.steps[i]) == int(one.steps)
