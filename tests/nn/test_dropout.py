"""Variational dropout: one mask a solve, in its backward pass, too."""

import copy
import pickle

import pytest
import torch

import torchimplicit as ti

TIGHT = ti.Anderson(rtol=1e-12, atol=1e-12, max_steps=200)


class Cell(torch.nn.Module):
    def __init__(self, width=6, p=0.4):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.dropout = ti.nn.VariationalDropout(p)

    def forward(self, z, x):
        return self.dropout(torch.tanh(0.5 * self.linear(z) + x))


def make_layer(adjoint=ti.Implicit(ti.LU()), **options):
    torch.manual_seed(0)
    return ti.nn.DEQ(Cell().double(), solver=TIGHT, adjoint=adjoint, on_failure="raise", **options)


def make_input(batch=3):
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_solve_has_one_mask_and_the_next_another():
    layer, x = make_layer(), make_input()
    first, second = layer(x).detach(), layer(x).detach()
    assert layer.report.converged
    assert ((first == 0) != (second == 0)).any()
    assert 0.2 < float((torch.stack([layer(x) for _ in range(50)]) == 0).double().mean()) < 0.6
    torch.manual_seed(7)
    again = layer(x)
    torch.manual_seed(7)
    assert torch.equal(layer(x), again), "the generator decides"


def test_expectation_and_identity():
    dropout = ti.nn.VariationalDropout(0.3)
    x = torch.ones(200, 500)
    dropout.begin_solve()
    assert abs(float(dropout(x).mean()) - 1) < 0.01
    assert torch.equal(dropout(x), dropout(x)), "by itself it keeps its mask"
    kept = dropout(x)
    dropout.begin_solve()
    assert not torch.equal(dropout(x), kept)
    assert dropout.eval()(x) is x
    assert ti.nn.VariationalDropout(0.0)(x) is x


@pytest.mark.parametrize(
    "adjoint", [ti.Implicit(ti.LU()), ti.Implicit(), ti.Phantom(steps=40), ti.Unrolled(), ti.Unrolled(True)], ids=str
)
def test_the_backward_pass_has_the_mask_of_its_own_solve(adjoint):
    layer, x = make_layer(adjoint), make_input()
    weight = layer.cell.linear.weight
    values = [layer(x) for _ in range(3)]  # three solves wait for their backward passes
    seeds = []
    for value in values:
        mask = (value != 0).double().detach() / 0.6

        def solve(w, mask=mask):
            z = torch.zeros_like(x)
            for _ in range(100):
                z = mask * torch.tanh(0.5 * (z @ w.T + layer.cell.linear.bias) + x)
            return z

        expected = torch.autograd.grad(solve(weight).sin().sum(), weight)[0]
        (grad,) = torch.autograd.grad(value.sin().sum(), weight)
        assert (solve(weight) - value).abs().max() < 1e-10
        assert (grad - expected).abs().max() < (1e-3 if adjoint == ti.Implicit() else 1e-8)
        seeds.append(mask)
    assert not torch.equal(seeds[0], seeds[1])


def test_second_derivatives_have_it_too():
    layer, x = make_layer(), make_input()
    weight = layer.cell.linear.weight
    value = layer(x)
    mask = (value != 0).double() / 0.6
    layer(x)  # another mask in between
    (grad,) = torch.autograd.grad(value.sin().sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), weight)

    def plain(w):
        z = torch.zeros_like(x)
        for _ in range(100):
            z = mask * torch.tanh(0.5 * (z @ w.T + layer.cell.linear.bias) + x)
        return z.sin().sum()

    inner = torch.func.grad(lambda w: torch.func.grad(plain)(w).square().sum())
    assert (second - inner(weight)).abs().max() < 1e-9


@pytest.mark.parametrize("warm_start", [False, True])
def test_every_batch_size_dtype_and_copy(warm_start):
    layer = make_layer(warm_start=warm_start)
    for batch in (1, 5, 3):
        assert layer(make_input(batch)).shape == (batch, 6)
    dropout = ti.nn.VariationalDropout(0.5)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.complex64):
        assert dropout(torch.ones(4, 4, dtype=dtype)).dtype == dtype
    copies = [copy.deepcopy(dropout), pickle.loads(pickle.dumps(dropout))]
    x = torch.ones(8, 8)
    assert all(torch.equal(copied(x), dropout(x)) for copied in copies)
    assert not dropout.state_dict(), "a mask is nothing to keep"


def test_whole_channels_and_shared_dimensions():
    for module, shape in (
        (ti.nn.VariationalDropout1d(0.5), (20, 10, 4)),
        (ti.nn.VariationalDropout2d(0.5), (20, 10, 2, 3)),
        (ti.nn.VariationalDropout3d(0.5), (20, 10, 2, 2, 2)),
    ):
        kept = (module(torch.ones(shape)) != 0).flatten(2)
        assert (kept.all(2) | ~kept.any(2)).all()
        assert 0.3 < float(kept.double().mean()) < 0.7
        with pytest.raises(ValueError, match="expected"):
            module(torch.ones(3, 3))
    steps = ti.nn.VariationalDropout(0.5, shared=(1,))(torch.ones(9, 4, 8))
    assert (steps == steps[:, :1]).all()
    assert (steps == 0).any()


def test_a_large_batch_keeps_its_mask_when_samples_arrive():
    torch.manual_seed(0)
    cell = Cell(512, p=0.2)
    gain = torch.full((64, 1), 0.1)
    gain[:4] = 1.9  # a long tail

    def f(z, x, cell, gain):
        return gain * cell(z, x)

    x = torch.randn(64, 512)
    answers = []
    for batched in (None, (0, 2)):
        torch.manual_seed(3)
        answers.append(
            ti.fixed_point(f, torch.zeros_like(x), x, cell, gain, batched_args=batched, solver=ti.Picard(max_steps=200))
        )
    assert int(answers[0].steps.max()) > 1.5 * int(answers[0].steps.median())
    assert torch.equal(answers[0].value, answers[1].value)


def test_torch_func_has_the_mask_of_the_solve():
    layer, x = make_layer(), make_input()
    torch.manual_seed(5)
    grad = torch.func.grad(lambda x: layer(x).sin().sum())(x)
    torch.manual_seed(5)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(leaf).sin().sum(), leaf)
    assert (grad - expected).abs().max() < 1e-10


def test_impossible_probabilities_are_refused():
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="probability"):
            ti.nn.VariationalDropout(p)
