"""The trellis cell as an equilibrium, and the LSTM that it contains."""

import copy

import pytest
import torch

import torchimplicit as ti
from torchimplicit.nn import DEQ, TrellisCell, TrellisInjection

TIGHT = {"solver": ti.Anderson(rtol=1e-12, atol=1e-14, max_steps=300), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-12))}


def parts(width=3, inputs=2, scale=1.0, **options):
    """An injection and a cell whose weights are large enough to matter."""
    torch.manual_seed(0)
    inject = TrellisInjection(inputs, width, **{k: v for k, v in options.items() if k != "dropout"}).double()
    cell = TrellisCell(width, **options).double()
    for name, weight in cell.named_parameters():
        if name.endswith(("original1", "weight")):
            torch.nn.init.normal_(weight)
        elif name.endswith("original0"):
            torch.nn.init.constant_(weight, scale)
    return inject, cell


def sequence(batch=3, length=7, inputs=2):
    torch.manual_seed(1)
    return torch.randn(batch, length, inputs, dtype=torch.float64)


def layer_of(cell, **options):
    return DEQ(cell, init=cell.start, on_failure="raise", **{**TIGHT, **options})


def largest(got, expected):
    return max(float((a - b).detach().abs().max()) for a, b in zip(got, expected, strict=True))


def test_without_weights_at_the_present_the_equilibrium_is_an_lstm():
    inject, cell = parts(normalise=False)
    lstm = torch.nn.LSTM(2, 3, batch_first=True).double()
    with torch.no_grad():
        past, present = cell.taps.linear.weight.split(3, 1)
        past.copy_(lstm.weight_hh_l0)
        present.zero_()
        past, present = inject.linear.weight.split(2, 1)
        past.zero_()
        present.copy_(lstm.weight_ih_l0)
        inject.linear.bias.copy_(lstm.bias_ih_l0 + lstm.bias_hh_l0)
    x = sequence()
    hidden, kept = layer_of(cell)(inject(x))
    expected, (_, last) = lstm(x)
    assert (hidden - expected).abs().max() <= 1e-10
    assert (kept[:, -1] - last[0]).abs().max() <= 1e-10


@pytest.mark.parametrize(("kernel_size", "dilation"), [(2, 1), (3, 1), (2, 3), (3, 2)])
def test_the_taps_are_a_causal_convolution(kernel_size, dilation):
    inject, _ = parts(kernel_size=kernel_size, dilation=dilation)
    weight = inject.linear.weight.view(12, kernel_size, 2).transpose(1, 2)
    padded = torch.nn.functional.pad(sequence().transpose(1, 2), (inject.reach, 0))
    expected = torch.nn.functional.conv1d(padded, weight, inject.linear.bias, dilation=dilation)
    assert (inject(sequence()) - expected.transpose(1, 2)).abs().max() <= 1e-14


def test_nothing_depends_on_what_comes_later():
    inject, cell = parts(kernel_size=3, dilation=2)
    layer, x, other = layer_of(cell), sequence(), sequence()
    other[:, 4:] += 1
    before, after = layer(inject(x)), layer(inject(other))
    assert largest([part[:, :4] for part in after], [part[:, :4] for part in before]) <= 1e-11
    assert (after[0] - before[0])[:, 4].abs().max() > 1e-3


def test_what_an_evaluation_sees_is_within_its_reach():
    inject, cell = parts(kernel_size=3, dilation=2)
    x = inject(sequence(1))

    def last(hidden):
        return cell((hidden, torch.zeros_like(hidden)), x)[0][:, -1].sum()

    seen = torch.autograd.functional.jacobian(last, sequence(1, 7, 3)).abs().sum((0, 2))
    assert (seen > 0).tolist() == [False, False, True, False, True, False, True]
    assert cell.reach == 4


@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "dilation": 2}, {"normalise": False}])
def test_gradients_agree_with_unrolling(options):
    inject, cell = parts(**options)
    memory = tuple(torch.randn(3, cell.reach, 3, dtype=torch.float64) for _ in range(2))

    def gradients(layer):
        x, before = sequence().requires_grad_(), [part.clone().requires_grad_() for part in memory]
        hidden, kept = layer(inject(x), tuple(before))
        loss = hidden.sin().sum() + kept.cos().sum()
        return torch.autograd.grad(loss, [x, *before, *inject.parameters(), *cell.parameters()])

    exact = gradients(layer_of(cell))
    unrolled = gradients(layer_of(cell, solver=ti.Picard(rtol=1e-12, atol=1e-14, max_steps=300), adjoint=ti.Unrolled()))
    for got, expected in zip(exact, unrolled, strict=True):
        assert (got - expected).abs().max() <= 1e-8 * expected.abs().max()
        assert expected.abs().max() > 1e-4


def test_second_derivatives_are_right():
    inject, cell = parts(width=2, inputs=1)
    layer = layer_of(cell)
    assert torch.autograd.gradgradcheck(lambda x: layer(inject(x))[0], sequence(1, 3, 1).requires_grad_())


def test_samples_are_independent():
    inject, cell = parts()
    layer, x = layer_of(cell), sequence()
    value = layer(inject(x))
    other = x.clone()
    other[1] = 20 * torch.randn(7, 2)
    changed = layer(inject(other))
    for part, kept in zip(changed, value, strict=True):
        assert torch.equal(part[[0, 2]], kept[[0, 2]])
        assert not torch.equal(part[1], kept[1])


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "dilation": 2}, {"dilation": 5}])
def test_memory_continues_a_long_sequence(options, cut):
    inject, cell = parts(**options)
    layer, x = layer_of(cell), sequence()
    whole, injected = layer(inject(x)), inject(x)
    memory = cell.remember(layer(injected[:, :cut]))
    rest = layer(injected[:, cut : cut + 2], memory)
    assert largest(rest, [part[:, cut : cut + 2] for part in whole]) <= 1e-10
    last = layer(injected[:, cut + 2 :], cell.remember(rest, memory))
    assert largest(last, [part[:, cut + 2 :] for part in whole]) <= 1e-10
    assert largest(layer(injected[:, cut + 2 :]), [part[:, cut + 2 :] for part in whole]) > 1e-3


def test_the_injection_has_a_memory_of_inputs():
    inject, _ = parts(kernel_size=3, dilation=2)
    x = sequence()
    assert (inject(x[:, 5:], x[:, 1:5]) - inject(x)[:, 5:]).abs().max() <= 1e-14


def test_memory_is_detached():
    inject, cell = parts()
    memory = cell.remember(layer_of(cell)(inject(sequence())))
    assert not any(part.requires_grad for part in memory)
    assert [part.shape for part in memory] == [(3, 1, 3)] * 2


def test_the_weights_are_normalised_once_a_solve(monkeypatch):
    inject, cell = parts()
    normaliser = cell.taps.linear.parametrizations.weight[0]
    calls, forward = [], type(normaliser).forward
    monkeypatch.setattr(
        type(normaliser), "forward", lambda self, *args: (calls.append(self is normaliser), forward(self, *args))[1]
    )
    x = inject(sequence())
    calls.clear()
    layer = layer_of(cell)
    layer(x)
    assert layer.report.steps.max() > 3
    assert calls == [True]


def test_dropout_is_one_mask_a_solve_and_the_same_at_all_positions():
    inject, cell = parts(width=40, dropout=0.5)
    x, layer = inject(sequence(1)), layer_of(cell)
    first, second = layer(x), layer(x)
    assert layer.report.converged
    assert not torch.equal(first[0], second[0])
    cell.dropout.begin_solve()
    masks = set(map(tuple, (cell.dropout(torch.ones(1, 7, 40)) > 0)[0].tolist()))
    assert len(masks) == 1
    cell.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_dropout_masks_the_memory_alike():
    inject, cell = parts(width=40, dropout=0.5)
    x, memory = inject(sequence(1)), tuple(torch.randn(1, 1, 40, dtype=torch.float64) for _ in range(2))
    cell.dropout.begin_solve()
    dropped = cell.dropout(torch.ones(1, 1, 40, dtype=torch.float64)) == 0
    other = (memory[0] + 5 * dropped, memory[1])
    state = cell.start(x)
    assert torch.equal(cell(state, x, memory)[0], cell(state, x, other)[0])
    assert not torch.equal(cell(state, x, memory)[0], cell(state, x, (memory[0] + 5, memory[1]))[0])


def test_at_first_solves_are_short():
    torch.manual_seed(0)
    inject, cell = TrellisInjection(8, 32), TrellisCell(32)
    layer = DEQ(cell, ti.Anderson(rtol=1e-3), init=cell.start)
    layer(inject(torch.randn(4, 60, 8)))
    assert layer.report.converged
    assert layer.report.steps.max() <= 20


def test_copies_give_the_same():
    inject, cell = parts()
    layer, x = layer_of(cell), inject(sequence()).detach()
    fresh = layer_of(TrellisCell(3).double())
    assert not torch.equal(fresh(x)[0], layer(x)[0])
    fresh.load_state_dict(layer.state_dict())
    for twin in (copy.deepcopy(layer), fresh):
        assert torch.equal(twin(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TrellisCell(0), r"TrellisCell\(width=0\): expected an integer >= 1"),
        (lambda: TrellisCell(4.0), r"TrellisCell\(width=4.0\)"),
        (lambda: TrellisCell(4, kernel_size=1), r"TrellisCell\(kernel_size=1\): expected an integer >= 2"),
        (lambda: TrellisCell(4, dilation=0), r"TrellisCell\(dilation=0\): expected an integer >= 1"),
        (lambda: TrellisCell(4, dropout=1.0), r"VariationalDropout\(p=1.0\): expected a probability"),
        (lambda: TrellisInjection(0, 4), r"TrellisInjection\(inputs=0\): expected an integer >= 1"),
        (lambda: TrellisInjection(2, 0), r"TrellisInjection\(width=0\): expected an integer >= 1"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_inputs_of_the_wrong_shape_are_refused():
    inject, cell = parts()
    x = inject(sequence())
    state = cell.start(x)
    with pytest.raises(ValueError, match=r"got x of shape \(3, 7, 2\).*expected \(3, 7, 12\); try TrellisInjection"):
        cell(state, sequence())
    with pytest.raises(ValueError, match=r"memory of shape \(3, 2, 3\), expected \(3, 1, 3\).*try cell.remember"):
        cell(state, x, (torch.zeros(3, 2, 3), torch.zeros(3, 2, 3)))


def test_a_sequence_without_a_batch_and_half_a_memory_are_refused():
    inject, cell = ti.nn.TrellisInjection(2, 3), ti.nn.TrellisCell(3)
    x = inject(torch.randn(4, 7, 2))
    with pytest.raises(ValueError, match=r"expected \('B', 'T', 12\)"):
        cell(cell.start(x[0]), x[0])
    with pytest.raises(TypeError, match=r"got a memory that is a Tensor, expected the pair.*try cell.remember"):
        cell(cell.start(x), x, torch.zeros(4, 1, 3))
