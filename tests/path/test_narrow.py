"""A large batch goes on without those that have arrived, where that changes no bit; else it stays whole."""

import pytest
import torch

import torchimplicit as ti
from torchimplicit.path import narrow

BATCH = 256


class Net(torch.nn.Module):
    def __init__(self, more=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
        self.more, self.sizes = more, []

    def forward(self, t, y):
        self.sizes.append(len(y))
        slope = 3 * self.net(y)
        return slope if self.more is None else slope + self.more(y)


def solved(monkeypatch, net, little, **options):
    """The solution, the gradient of the weights, and the sizes of the batches that the net has seen."""
    monkeypatch.setattr(narrow, "LITTLE", little)
    y0 = torch.randn(BATCH, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y0[:100] *= 0.01
    solution = ti.odeint(net, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), **options)
    gradient = torch.autograd.grad(solution.value.sin().sum(), list(net.net.parameters()))
    return solution, gradient, set(net.sizes)


@pytest.mark.parametrize("graphs", [0, 2**26])
def test_fewer_samples_have_the_same_numbers(monkeypatch, graphs):
    adjoint = ti.Checkpointed(graphs=graphs)
    whole, expected, sizes = solved(monkeypatch, Net(), 2**60, adjoint=adjoint)
    assert sizes == {BATCH}
    fewer, gradient, sizes = solved(monkeypatch, Net(), 0, adjoint=adjoint)
    assert min(sizes) < BATCH
    assert min(sizes) >= narrow.FEWEST
    assert torch.equal(fewer.value, whole.value)
    for name in ("status", "steps", "accepted", "rejected", "residual", "reached"):
        assert torch.equal(getattr(fewer.report, name), getattr(whole.report, name)), name
    for one, other in zip(gradient, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def of_each(y):
    return 0.1 * torch.linspace(0, 1, BATCH, dtype=y.dtype).unsqueeze(1)


def of_the_first(y):
    return 0.1 * torch.linspace(0, 1, BATCH, dtype=y.dtype)[: len(y)].unsqueeze(1)


@pytest.mark.parametrize("more", [of_each, of_the_first])
def test_what_is_captured_for_each_sample_keeps_the_batch_whole(monkeypatch, more):
    """Whether it says so, or would give one sample what is another's."""
    whole, expected, _ = solved(monkeypatch, Net(more), 2**60)
    kept, gradient, _ = solved(monkeypatch, Net(more), 0)
    assert torch.equal(kept.value, whole.value)
    assert torch.equal(kept.report.steps, whole.report.steps)
    for one, other in zip(gradient, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_no_bit_depends_on_whether_mates_arrive_early(monkeypatch):
    monkeypatch.setattr(narrow, "LITTLE", 0)
    net, ts = Net(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.randn(BATCH, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    others = y0.clone()
    others[1:] *= 0.01
    with torch.no_grad():
        alone, beside = ti.odeint(net, y0, ts), ti.odeint(net, others, ts)
    assert torch.equal(alone.value[:, 0], beside.value[:, 0])
    assert alone.report.steps[0] == beside.report.steps[0]


def test_random_numbers_are_drawn_as_often(monkeypatch):
    monkeypatch.setattr(narrow, "LITTLE", 0)
    states = []
    for little in (2**60, 0):
        torch.manual_seed(1)
        solved(
            monkeypatch,
            Net(lambda y: 0.01 * torch.rand_like(y)),
            little,
            on_failure="ignore",
            solver=ti.Tsit5(rtol=1e-2, atol=1e-1),
        )
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
