import io

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose

STATE = 5 * 6 * 4  # bytes of one state


@pytest.mark.parametrize("solver", [ti.Picard(), ti.Anderson(), ti.Newton()], ids=lambda solver: type(solver).__name__)
def test_implicit_memory_is_flat_and_unrolled_memory_grows(make_layer, x, solver):
    result = diagnose.memory(make_layer(solver=solver), x, steps=(2, 10, 100))
    assert result.steps == (2, 10, 100)
    assert result.implicit == (2 * STATE,) * 3  # the solution and the input
    first, second, third = result.unrolled
    assert first < second < third
    assert third - second > 5 * (second - first)


def test_unrolled_picard_keeps_just_what_each_step_needs(make_layer, x):
    result = diagnose.memory(make_layer(solver=ti.Picard()), x, steps=(1, 70))
    # Each step keeps the linear layer's input and the output of tanh; the last evaluation is nobody's.
    assert result.unrolled == (2 * STATE, 140 * STATE)
    assert result.ratio == 70
    assert "Unrolled keeps 70 times the memory of Implicit" in str(result)


def test_parameters_do_not_count_however_large():
    layer = ti.nn.DEQ(lambda z, x, big: torch.tanh(big(x) + 0.1 * z))
    result = diagnose.memory(layer, torch.ones(1, 200), torch.nn.Linear(200, 200), steps=(1,))
    assert result.implicit == (2 * 200 * 4,)


def test_the_layers_own_adjoint_is_the_one_compared(make_layer, x):
    phantom = diagnose.memory(make_layer(adjoint=ti.Phantom(steps=3)), x, steps=(5,))
    assert phantom.names == ("Phantom", "Unrolled")
    assert phantom.implicit[0] == 6 * STATE  # as three Picard steps
    checkpointed = diagnose.memory(make_layer(adjoint=ti.Unrolled(checkpoint=True)), x, steps=(20,))
    plain = diagnose.memory(make_layer(adjoint=ti.Unrolled()), x, steps=(20,))
    assert checkpointed.implicit == plain.implicit == (2 * STATE,)
    assert checkpointed.unrolled < plain.unrolled


def test_the_layer_stays_untouched(make_layer, x):
    layer = make_layer(warm_start=True)
    with torch.no_grad():
        result = diagnose.memory(layer, x, steps=[3, 1, 3])
    assert result.steps == (1, 3)
    assert layer.report is None
    assert layer._last is None
    assert not x.requires_grad


def test_table_and_plot_show_the_ratio(make_layer, x):
    result = diagnose.memory(make_layer(solver=ti.Picard()), x, steps=(1, 10, 70))
    rows = [line.split() for line in result.table().splitlines()]
    assert rows[0] == ["steps", "Implicit", "Unrolled", "ratio"]
    assert rows[-1] == ["70", "240", "B", "16.8", "KB", "70"]
    target = io.BytesIO()
    (axes,) = result.plot(target).axes
    assert target.getvalue().startswith(b"\x89PNG")
    assert "70 times" in [text.get_text() for text in axes.texts]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert list(axes.lines[0].get_ydata()) == list(result.unrolled)
    (axes,) = diagnose.memory(make_layer(), x, steps=(1,)).plot().axes
    assert axes.get_yscale() == "linear"


@pytest.mark.parametrize("steps", [(), (0,), (1.5,), 10])
def test_impossible_steps(make_layer, x, steps):
    with pytest.raises(ValueError, match=r"memory\(steps=.*expected"):
        diagnose.memory(make_layer(), x, steps=steps)


def test_a_solver_that_cannot_be_unrolled_says_so(make_layer, x):
    layer = make_layer(solver=ti.Newton(linear_solver=ti.GMRES()))
    with pytest.raises(NotImplementedError, match=r"linear_solver=LU\(\)"):
        diagnose.memory(layer, x)
