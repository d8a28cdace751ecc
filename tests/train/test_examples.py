import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_regression_answers_about_minus_ten(capsys):
    answer = runpy.run_path(str(EXAMPLES / "regression.py"))["main"]()
    assert abs(answer + 10) < 0.05
    printed = capsys.readouterr().out
    assert "2 * -5 = -" in printed
    assert "10 of 10 samples converged" in printed


def test_many_weight_decays_beat_the_best_single_one(capsys):
    (errors,) = runpy.run_path(str(EXAMPLES / "hyperparameters.py"))["main"](splits=1, steps=6, sizes=(100, 100, 400))
    one, many, *_ = errors
    assert 0 < many < one - 1  # measured: 9.50 and 12.50 percent
    printed = capsys.readouterr().out
    assert "1770 decays" in printed
    assert "mean" in printed
