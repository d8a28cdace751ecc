"""Flow matching: the field of least loss, couplings, what flows it trains, bad input."""

import math
import sys
from itertools import permutations

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.nn.score.gaussian import D, double
from torchimplicit.nn.score.pairing import optimal_pairs

M, C = 0.7, 0.3


class Straight(nn.Module):
    """The mean velocity of lines from standard to other normal numbers, over some time."""

    def __init__(self, ts=(0.0, 1.0)):
        super().__init__()
        self.mean, self.variance = (nn.Parameter(torch.tensor(value, dtype=D)) for value in (M, C))
        self.ts = ts

    def forward(self, t, z, context=None):
        length = self.ts[1] - self.ts[0]
        u = (t - self.ts[0]) / length
        mean = self.mean if context is None else self.mean + context
        slope = (u * self.variance - (1 - u)) / ((1 - u) ** 2 + u**2 * self.variance)
        return (mean + slope * (z - u * mean)) / length


@pytest.mark.parametrize("ts", [(0.0, 1.0), (2.0, -1.0)])
def test_the_field_of_least_loss_flows_to_the_data(ts):
    field, x = Straight(ts), M + math.sqrt(C) * double(200_000, 1)
    flow = ti.nn.CNF(field, 1, ts, solver=ti.Tsit5(rtol=1e-8, atol=1e-10))
    torch.manual_seed(0)
    loss = ti.nn.flow_matching_loss(flow, x)
    assert loss.shape == (200_000,)
    loss.mean().backward()
    assert all(parameter.grad.abs() < 0.01 for parameter in field.parameters())
    expected = torch.distributions.Normal(M, math.sqrt(C)).log_prob(x[:9, 0])
    assert torch.allclose(flow.log_prob(x[:9]), expected, atol=1e-7)


def test_flow_matching_trains_a_flow():
    """To the entropy of two normal numbers of different widths, from a field that knows nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2)).double()
    flow = ti.nn.CNF(lambda t, z: net(torch.cat([z, t], 1)), 2)
    flow.net, scale = net, torch.tensor([0.4, 1.5], dtype=D)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        optimiser.zero_grad()
        ti.nn.flow_matching_loss(flow, 0.5 + scale * torch.randn(256, 2, dtype=D)).mean().backward()
        optimiser.step()
    x = 0.5 + scale * double(2000, 2)
    with torch.no_grad():
        apart = torch.distributions.Normal(0.5, scale).log_prob(x).sum(1) - flow.log_prob(x)
    assert 0 < apart.mean() < 0.03


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_context_images_and_learned_bases(shape):
    base = torch.distributions.Independent(torch.distributions.Normal(torch.ones(shape, dtype=D), 2.0), len(shape))
    flow = ti.nn.CNF(Straight(), shape, base=base)
    x = double(5, *shape)
    torch.manual_seed(0)
    plain = ti.nn.flow_matching_loss(flow, x)
    torch.manual_seed(0)
    assert not torch.allclose(ti.nn.flow_matching_loss(flow, x, torch.ones(5, *(1,) * len(shape))), plain)
    torch.manual_seed(0)
    z = base.rsample((5,))
    t = torch.rand(5, *(1,) * len(shape), dtype=D)
    by_hand = (flow.field(t, (1 - t) * z + t * x) - (x - z)).square().flatten(1).mean(1)
    assert torch.allclose(plain, by_hand)


@pytest.mark.parametrize("shape", [(2,), (1, 1, 2)])
@pytest.mark.parametrize("ts", [(0.0, 1.0), (2.0, -1.0)])
def test_targets_of_the_batch_are_the_mean_of_the_lines_through_a_point(shape, ts):
    """By hand: every line of the batch through a point starts somewhere, and is as likely as its start."""
    base = torch.distributions.Independent(torch.distributions.Laplace(torch.ones(shape, dtype=D), 2.0), len(shape))
    flow, x = ti.nn.CNF(Straight(ts), shape, ts, base=base), double(5, *shape)
    torch.manual_seed(0)
    found = ti.nn.flow_matching_loss(flow, x, targets="batch")
    torch.manual_seed(0)
    z, s = base.rsample((5,)), torch.rand(5, *(1,) * len(shape), dtype=D)
    for row in range(5):
        point = (1 - s[row]) * z[row] + s[row] * x[row]
        starts = (point - s[row] * x) / (1 - s[row])
        weight = base.log_prob(starts).exp()
        way = torch.tensordot(weight / weight.sum(), x - starts, 1)
        velocity = flow.field((ts[0] + s * (ts[1] - ts[0]))[row], point)
        assert torch.allclose(found[row], (velocity - way / (ts[1] - ts[0])).square().mean())


def test_targets_of_the_batch_have_the_gradient_s_mean_and_less_of_its_variance():
    x, found = M + math.sqrt(C) * double(40, 1), {}
    for targets in ("own", "batch"):
        flow = ti.nn.CNF(Straight(), 1)
        flow.field.mean.data += 0.3
        torch.manual_seed(0)
        rows = [
            torch.stack(
                torch.autograd.grad(ti.nn.flow_matching_loss(flow, x, targets=targets).mean(), list(flow.parameters()))
            )
            for _ in range(2000)
        ]
        found[targets] = torch.stack(rows)
    apart = found["own"].mean(0) - found["batch"].mean(0)
    assert bool((apart.abs() < 4 * (found["own"].var(0) / 2000).sqrt()).all())
    assert bool((found["batch"].var(0) < 0.5 * found["own"].var(0)).all())


def test_a_point_next_to_its_datum_sees_its_own_line():
    """Alone in a batch, or at the end of its line, to rounding of float32."""
    flow = ti.nn.CNF(Straight(), 2).float()
    for x in (torch.randn(1, 2), 1e6 * torch.eye(2)):
        torch.manual_seed(0)
        own = ti.nn.flow_matching_loss(flow, x)
        torch.manual_seed(0)
        assert torch.equal(ti.nn.flow_matching_loss(flow, x, targets="batch"), own)


def test_optimal_pairs_are_the_shortest():
    pytest.importorskip("scipy")
    x, z = double(6, 2), double(6, 2, seed=1)
    pairs = optimal_pairs(x, z)
    length = min((x - z[list(order)]).square().sum() for order in permutations(range(6)))
    assert (x - z[pairs]).square().sum().item() == pytest.approx(length.item())
    assert pairs.sort().values.tolist() == [0, 1, 2, 3, 4, 5]


def test_optimal_pairs_make_straighter_paths():
    """In one dimension they are the ordered ones, whose lines do not cross: nearly no loss is left."""
    pytest.importorskip("scipy")
    flow = ti.nn.CNF(lambda t, z: M + (math.sqrt(C) - 1) * (z - t * M) / (1 + t * (math.sqrt(C) - 1)), 1)
    x = M + math.sqrt(C) * double(512, 1)
    torch.manual_seed(0)
    crossing = ti.nn.flow_matching_loss(flow, x).mean()
    torch.manual_seed(0)
    assert ti.nn.flow_matching_loss(flow, x, coupling="optimal").mean() < 0.03 * crossing


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ModuleNotFoundError, match=r"which is not installed; try pip install torchimplicit\[optim\]"):
        ti.nn.flow_matching_loss(ti.nn.CNF(Straight(), 1), double(4, 1), coupling="optimal")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda flow, x: ti.nn.flow_matching_loss(Straight(), x), TypeError, "flow: got .*ti.nn.CNF"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x[:, :1]), ValueError, r"got \(4, 1\), expected .*\(B, 2\)"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x.long()), TypeError, "got samples of torch.int64"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x, coupling="ot"), ValueError, "coupling='ot'"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x, x, coupling="optimal"), ValueError, "got a context"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x, targets="all"), ValueError, "targets='all'"),
        (lambda flow, x: ti.nn.flow_matching_loss(flow, x, x, targets="batch"), ValueError, "got a context"),
        (
            lambda flow, x: ti.nn.flow_matching_loss(flow, x, targets="batch", coupling="optimal"),
            ValueError,
            "got coupling='optimal'",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call(ti.nn.CNF(Straight(), 2), double(4, 2))
