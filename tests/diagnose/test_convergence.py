import io

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose


def test_steps_residuals_and_trace_are_those_of_the_layers_own_solve(make_layer, x):
    layer = make_layer()
    result = diagnose.convergence(layer, x)
    assert layer.report is None  # nothing was left behind
    value = layer(x)
    assert torch.equal(result.report.steps, layer.report.steps)
    assert torch.equal(result.report.residual, layer.report.residual)
    assert result.report.trace.shape == (int(result.report.steps.max()) + 1, 5)
    last = result.report.trace[result.report.steps, torch.arange(5)]
    torch.testing.assert_close(last, result.report.residual)
    rms = value.detach().square().mean(1).sqrt()
    torch.testing.assert_close(result.tolerance, 1e-6 + 1e-4 * rms)
    assert (result.report.residual <= result.tolerance).all()


def test_a_warm_start_is_part_of_the_diagnosis_and_survives_it(make_layer, x):
    layer = make_layer(warm_start=True)
    cold = diagnose.convergence(layer, x)
    layer(x)
    last = layer._last
    assert int(diagnose.convergence(layer, x).report.steps.max()) == 0 < int(cold.report.steps.min())
    assert layer._last is last


def test_table_names_the_worst_samples_and_is_short(linear_layer):
    slow = torch.full((400,), 0.1)
    slow[37], slow[5] = 0.9, 0.6
    layer = linear_layer(torch.diag_embed(slow.unsqueeze(1).expand(400, 3)), solver=ti.Picard(max_steps=30))
    result = diagnose.convergence(layer, torch.ones(400, 3))
    table = result.table(worst=3).splitlines()
    assert result.order[:2].tolist() == [37, 5]
    assert len(table) < 15
    assert table[0].startswith("399 of 400 samples converged")
    rows = [line.split() for line in table]
    assert ["37", "max_steps", "30"] in [row[:3] for row in rows]
    (steps,) = (row for row in rows if row[:1] == ["steps"])
    assert steps[1:] == [str(int(result.report.steps.min()))] * 4 + ["30"]  # quantiles: all but two samples are alike
    assert "(397 samples more)" in table[-1]


def test_str_says_what_to_try_when_samples_fail(linear_layer):
    layer = linear_layer(2 * torch.eye(3), solver=ti.Picard(max_steps=100))
    text = str(diagnose.convergence(layer, torch.ones(2, 3)))
    assert text.startswith("0 of 2 samples converged")
    assert "diverged: The map expands. Try damping" in text


def test_plot_draws_every_sample_the_tolerance_and_all_steps(make_layer, x):
    result = diagnose.convergence(make_layer(), x)
    target = io.BytesIO()
    figure = result.plot(target)
    assert target.getvalue().startswith(b"\x89PNG")
    left, right = figure.axes
    assert len(left.collections[0].get_segments()) == 5
    assert left.get_yscale() == "log"
    assert [line.get_label() for line in left.lines][1].startswith("worst (sample")
    assert sum(patch.get_height() for patch in right.patches) == 5
    assert all((axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) > ("", "", "") for axes in (left, right))


@pytest.mark.parametrize("matrix", [torch.zeros(2, 2), 3 * torch.eye(2)])
def test_plot_of_a_solve_that_is_exact_or_not_finite(linear_layer, matrix):
    layer = linear_layer(matrix, solver=ti.Picard(max_steps=5))
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]])
    result = diagnose.convergence(layer, x)
    assert int(result.report.status[2]) == ti.Status.NON_FINITE
    result.plot(io.BytesIO())
    assert result.table()
