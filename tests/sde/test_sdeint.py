"""`sdeint`: values, states of any shape, seeds, statuses, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchimplicit as ti
from tests.sde.cases import DIFFUSIONS, MATRIX, TS, D, drift, start
from torchimplicit import sde
from torchimplicit.core.status import Status

EULER, HEUN = sde.EulerMaruyama(dt=0.1), sde.Heun(dt=0.1)
UNIT = torch.tensor([0.0, 1.0], dtype=D)


def decay(t, y):
    return -y


def sines(t, y):
    return 0.5 * y.sin()


def test_euler_and_maruyama_by_hand():
    noise = sde.Brownian(seed=4).bind(torch.empty(2, 3, dtype=D))
    y, t = start(), 0.0
    for number, h in enumerate((0.3, 0.2, 0.3, 0.2)):  # of 0.3, and landing on 0.5 and 1.0
        w = noise.increment(number, h).W
        y, t = y + h * drift(torch.tensor(t, dtype=D), y, 0.5, None) + 0.5 * y.sin() * w + 0.1 * MATRIX[:, 0] * w, t + h
    found = ti.sdeint(
        drift, DIFFUSIONS["diagonal"], start(), TS, 0.5, MATRIX, solver=sde.EulerMaruyama(dt=0.3), brownian=4
    )
    assert torch.allclose(found.value[-1], y, rtol=1e-14)
    assert found.report.steps.tolist() == [4, 4]
    assert found.report.nfev == 4 * 2 + 2  # and a look at whether samples are independent


def test_heun_by_hand():
    w = sde.Brownian(seed=4).bind(torch.empty(2, 1, dtype=D)).increment(0, 1.0).W
    y = torch.ones(2, 1, dtype=D)
    z = y - y + w * 0.5 * y.sin()
    expected = y + 0.5 * (-y - z) + 0.5 * w * (0.5 * y.sin() + 0.5 * z.sin())
    options = {"calculus": "stratonovich", "solver": sde.Heun(control=ti.Fixed(None)), "brownian": 4}
    assert torch.allclose(ti.sdeint(decay, sines, y, UNIT, **options).value[-1], expected, rtol=1e-14)


@pytest.mark.parametrize("noise", DIFFUSIONS)
def test_every_noise_is_a_matrix_times_the_increments(noise):
    """The same noise, with its matrix written out."""
    y0, g = start(4), DIFFUSIONS[noise]
    single = {"diagonal": 3, "scalar": 1}.get(noise, 2)
    increments = sde.Brownian(seed=9).bind(torch.empty(4, single, dtype=D))
    whole = torch.diag_embed(g(0, y0, 0.5, MATRIX)) if noise == "diagonal" else g(torch.zeros(4, 1), y0, 0.5, MATRIX)
    expected = y0 - 0.5 * y0 + torch.einsum("bij,bj->bi", whole, increments.increment(0, 1.0).W)
    found = ti.sdeint(drift, g, y0, UNIT, 0.5, MATRIX, noise=noise, solver=sde.EulerMaruyama(), brownian=9)
    assert torch.allclose(found.value[-1], expected, rtol=1e-13)


def test_states_of_any_shape_and_dtype():
    torch.manual_seed(0)
    y0 = {
        "image": torch.randn(2, 3, 4, 4),
        "rest": (torch.randn(2, dtype=torch.complex64), torch.randn(2, 6, dtype=torch.bfloat16)),
    }

    def minus(t, y):
        return pytree.tree_map(lambda leaf: -leaf, y)

    def channels(t, y):
        return pytree.tree_map(lambda leaf: torch.stack((leaf, 2 * leaf, 0 * leaf), -1), y)

    def ones(t, y):
        return pytree.tree_map(torch.ones_like, y)

    for noise, diffusion in (("diagonal", minus), ("additive", ones)):
        found = ti.sdeint(minus, diffusion, y0, torch.tensor([0.0, 1.0]), noise=noise, solver=EULER, brownian=1)
        assert pytree.tree_all(lambda leaf: leaf.isfinite().all(), found.value)
        for leaf, first in zip(pytree.tree_leaves(found.value), pytree.tree_leaves(y0), strict=True):
            assert leaf.shape == (2, *first.shape)
            assert leaf.dtype == first.dtype
    general = ti.sdeint(
        minus, channels, y0, torch.tensor([0.0, 1.0]), noise="general", solver=sde.EulerMaruyama(), brownian=1
    )
    w = sde.Brownian(seed=1).bind(torch.empty(2, 3)).increment(0, 1.0).W
    z = y0["rest"][0]
    assert torch.allclose(general.value["rest"][0][-1], z * (w[:, 0] + 2 * w[:, 1]), rtol=1e-5)


def test_channels_last_change_no_path():
    y0 = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = y0.contiguous(memory_format=torch.channels_last)
    one, other = (
        ti.sdeint(decay, sines, y, torch.tensor([0.0, 1.0]), solver=EULER, brownian=4).value for y in (y0, last)
    )
    assert torch.equal(one, other)


def test_nothing_to_do():
    assert ti.sdeint(decay, sines, torch.zeros(0, 3), TS, solver=EULER).value.shape == (3, 0, 3)
    one = ti.sdeint(decay, sines, start(), TS[:1], solver=EULER)
    assert torch.equal(one.value[0], start())
    assert one.report.converged
    assert ti.sdeint(decay, sines, torch.ones(4), torch.tensor([0.0, 1.0]), solver=EULER).value.shape == (2, 4)


def test_a_report_repeats_its_run():
    torch.manual_seed(5)
    first = ti.sdeint(decay, sines, start(), TS, solver=EULER)
    second = ti.sdeint(decay, sines, start(), TS, solver=EULER)
    assert not torch.equal(first.value, second.value)
    assert torch.equal(
        first.value, ti.sdeint(decay, sines, start(), TS, solver=EULER, brownian=first.report.seed).value
    )
    torch.manual_seed(5)
    assert torch.equal(first.value, ti.sdeint(decay, sines, start(), TS, solver=EULER).value)


def test_a_sample_is_the_same_whatever_its_mates():
    y0, seeds = start(6), torch.tensor([3, 1, 4, 1, 5, 9])
    whole = ti.sdeint(decay, sines, y0, TS, solver=EULER, brownian=seeds)
    assert torch.equal(whole.report.seed, seeds)
    rows = torch.tensor([4, 0])
    some = ti.sdeint(decay, sines, y0[rows], TS, solver=EULER, brownian=seeds[rows])
    assert torch.equal(some.value, whole.value[:, rows])
    twins = ti.sdeint(decay, sines, y0[[0, 0]], TS, solver=EULER, brownian=seeds[[1, 3]]).value
    assert torch.equal(twins[:, 0], twins[:, 1])


def test_a_base_is_the_same_path_at_other_steps():
    constant = lambda t, y: torch.ones_like(y)  # noqa: E731
    paths = [
        ti.sdeint(decay, constant, start(), TS, solver=sde.Heun(dt=2.0**-k), noise="additive",
                  brownian=sde.Brownian(seed=1, base=0.125)).value[-1] for k in (2, 3, 8, 10)
    ]  # fmt: skip
    assert (paths[0] - paths[3]).abs().max() < 0.1
    assert (paths[1] - paths[3]).abs().max() < 0.06
    assert (paths[2] - paths[3]).abs().max() < 2e-3
    ragged = torch.tensor([0.0, 0.25, 0.375, 1.0], dtype=D)  # steps of 1/8, where 1/4 does not fit
    exact = ti.sdeint(
        lambda t, y: 0 * y, constant, start(), ragged, solver=sde.EulerMaruyama(dt=0.125), noise="additive",
        brownian=sde.Brownian(seed=1, base=0.5),
    ).value  # fmt: skip
    coarse = ti.sdeint(
        lambda t, y: 0 * y, constant, start(), UNIT, solver=sde.EulerMaruyama(dt=1.0), noise="additive",
        brownian=sde.Brownian(seed=1, base=0.5),
    ).value  # fmt: skip
    assert torch.allclose(exact[-1], coarse[-1])


def test_who_is_not_finite_is_held_and_changes_no_bit_of_others():
    bad = torch.tensor([False, True, False, False])

    def spoilt(t, y):
        return torch.where((bad & (t.flatten() > 0.45)).unsqueeze(1), torch.nan, sines(t, y))

    for solver in (EULER, HEUN):
        options = {"solver": solver, "calculus": solver.calculus, "brownian": 3}
        clean = ti.sdeint(decay, sines, start(4), TS, **options)
        sol = ti.sdeint(decay, spoilt, start(4), TS, on_failure="ignore", **options)
        assert torch.equal(sol.value[:, ~bad], clean.value[:, ~bad])
        assert sol.status.tolist() == [0, int(Status.NON_FINITE), 0, 0]
        assert sol.value.isfinite().all()
        assert sol.report.reached[1] < 0.6
        assert torch.equal(sol.value[2, 1], sol.value[2, 1])
        with pytest.raises(ti.ConvergenceError, match=r"(?s)non_finite: sample 1 .*held at its last finite"):
            ti.sdeint(decay, spoilt, start(4), TS, **options)


@pytest.mark.parametrize("adjoint", [ti.Direct(), ti.Checkpointed()])
def test_who_is_not_finite_adds_nothing_to_gradients(adjoint):
    bad = torch.tensor([False, True, False])
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)

    def diffusion(t, y, rate, spoilt):
        return torch.where((spoilt & (t.flatten() > 0.45)).unsqueeze(1), torch.nan, rate * y.sin())

    found = []
    for spoilt in (bad, torch.zeros_like(bad)):
        sol = ti.sdeint(
            lambda t, y, rate, _: -rate * y, diffusion, start(3), TS, rate, spoilt, solver=EULER, brownian=3,
            adjoint=adjoint, on_failure="ignore",
        )  # fmt: skip
        found.append(torch.autograd.grad(sol.value[:, ~bad].square().sum(), rate)[0])
    assert torch.allclose(*found, rtol=1e-12)


def test_limits_of_steps():
    sol = ti.sdeint(decay, sines, start(), TS, solver=sde.EulerMaruyama(dt=0.1, max_steps=7), on_failure="ignore")
    assert sol.status.tolist() == [int(Status.MAX_STEPS)] * 2
    assert torch.allclose(sol.report.reached, torch.tensor(0.7, dtype=D))
    assert torch.equal(sol.value[1], sol.value[1])
    late = torch.tensor([1e9, 1e9 + 4096])  # its rounding is 64
    sol = ti.sdeint(
        decay, sines, start(dtype=torch.float32), late, solver=sde.EulerMaruyama(dt=1.0), on_failure="ignore"
    )
    assert sol.status.tolist() == [int(Status.STEP_TOO_SMALL)] * 2


def test_samples_that_see_each_other_are_found():
    sol = ti.sdeint(decay, lambda t, y: y.mean(0).expand_as(y), start(4), TS, solver=EULER, on_failure="ignore")
    assert (sol.status == Status.COUPLED).all()


def test_modules_and_their_methods():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, dtype=D), nn.Linear(3, 3, dtype=D)

        def drift(self, t, y):
            return self.a(y)

        def forward(self, t, y):
            return self.b(y).sigmoid()

    net = Net()
    ti.sdeint(net.drift, net, start(), TS, solver=EULER).value.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    hidden = nn.Linear(3, 3, dtype=D)
    for pair in ((decay, lambda t, y: hidden(y)), (lambda t, y: hidden(y), sines)):
        with pytest.raises(ti.CaptureError, match="module 'hidden'"):
            ti.sdeint(*pair, start(), TS, solver=EULER)


def test_solvers_are_values():
    for solver in (EULER, HEUN):
        assert pickle.loads(pickle.dumps(solver)) == copy.deepcopy(solver) == solver
        assert "dt=0.1" in repr(solver)


def refused(match, error=ValueError, f=decay, g=sines, y0=None, ts=TS, **options):
    with pytest.raises(error, match=match):
        ti.sdeint(f, g, start() if y0 is None else y0, ts, **{"solver": EULER, **options})


def test_bad_input_is_named():
    refused("diffusion: got shape .2, 3, 2. for a state .* try noise='additive'", g=lambda t, y: y.new_ones(2, 3, 2))
    refused("diffusion: got shape .2, 1.", g=lambda t, y: y[:, :1])
    refused("expected for noise='scalar'", g=lambda t, y: y.new_ones(2, 3, 2), noise="scalar")
    refused("diffusion: got torch.float32", TypeError, g=lambda t, y: y.float())
    refused(r"noise='scalar' .*try value.unsqueeze\(-1\) for one channel, or noise='diagonal'", noise="scalar")
    one = {"g": lambda t, y: y[:, :1]}
    refused(r"try value.expand_as\(y\).unsqueeze\(-1\) for one channel", noise="scalar", **one)
    refused(r"noise='general' .*try value.unsqueeze\(-1\) for one channel, or noise='diagonal'", noise="general")
    channels = {"g": lambda t, y: (y[0].new_ones(2, 3, 2), y[0].new_ones(2, 3, 4)), "f": lambda t, y: y}
    refused("one number of channels.*try zeros", y0=(start(), start()), noise="general", **channels)
    refused("diffusion: got a tensor on meta, expected cpu, where the state is", g=lambda t, y: y.to("meta"))
    refused("the drift returned a tensor on meta, expected cpu, where the state is", f=lambda t, y: y.to("meta"))
    refused("prior: got a tuple.*try its drift alone", TypeError, prior=(decay, decay))
    refused(r"try int\(seed\)", TypeError, brownian=0.5)
    refused(r"try int\(seed\)", brownian=torch.tensor(3))
    refused("the drift returned shape", f=lambda t, y: y[:, :1])
    refused("diffusion: got the structure", g=lambda t, y: (y,))
    refused("diffusion: got a float", TypeError, g=lambda t, y: 0.1)
    refused("noise: got 'additive' with .* depends on the state.*try noise='diagonal'", noise="additive")
    refused("try noise='general'", noise="additive", g=lambda t, y: y.unsqueeze(2))
    refused("noise: got 'brown', expected one of 'diagonal'", noise="brown")
    refused("calculus: got 'it', expected", calculus="it")
    refused(r"converges to the 'ito' process.*to_ito\(drift, diffusion, 'diagonal'\)", calculus="stratonovich")
    refused("to_stratonovich", solver=HEUN)
    refused("strictly increase", ts=torch.tensor([0.0, 1.0, 0.5], dtype=D))
    refused("ts: got decreasing times", ts=TS.flip(0))
    refused("expected a floating tensor", TypeError, ts=[0.0, 1.0])
    refused("longer than the whole time of 1, expected", solver=sde.EulerMaruyama(dt=1.5))
    refused(r"solver: got .*try ti.sde.EulerMaruyama\(dt=0.01\)", TypeError, solver=ti.Tsit5())
    refused("solver: got .*EulerMaruyama", TypeError, solver=sde.EulerMaruyama)
    refused("2 seeds|3 seeds", brownian=torch.tensor([1, 2, 3]))
    refused("seed", TypeError, brownian=0.5)
    refused("floating or complex", TypeError, y0=torch.ones(2, 3, dtype=torch.int64))
    refused("adjoint: got .*Checkpointed", adjoint=ti.Backsolve())
    based = {"brownian": sde.Brownian(seed=1, base=0.1), "solver": sde.EulerMaruyama(dt=0.3)}
    refused("got a step of length", **based)
    refused("drift: got a float, expected a callable", TypeError, f=0.1)
    with pytest.raises(TypeError, match="for a path without noise, expected sdeint"):
        ti.odeint(decay, start(), TS, solver=EULER)


def test_remedies_of_bad_diffusions_help():
    column, y0 = (lambda t, y: (0.1 * y[:, :1]).expand_as(y).unsqueeze(-1)), start()
    assert ti.sdeint(decay, column, y0, TS, solver=EULER, noise="scalar").report.converged
    assert ti.sdeint(decay, column, y0, TS, solver=EULER, noise="general").report.converged
    assert ti.sdeint(decay, lambda t, y: 0.1 * y, y0, TS, solver=EULER, brownian=int(torch.tensor(3))).report.converged


def test_a_path_at_other_steps_in_single_precision():
    """Where steps are no power of two, and rounded to times that are."""

    def last(dt, dtype):
        y0 = torch.ones(4, 1, dtype=dtype)
        source = sde.Brownian(seed=1, base=0.01)
        ts = torch.tensor([0.0, 1.0], dtype=dtype)
        solver = sde.EulerMaruyama(dt=dt)
        return ti.sdeint(lambda t, y: 0.1 * y, lambda t, y: 0.2 * y, y0, ts, solver=solver, brownian=source).value[-1]

    for dt in (0.02, 0.01, 0.01 / 16):
        assert torch.allclose(last(dt, torch.float32).double(), last(dt, torch.float64), atol=1e-5)
