import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_regression_answers_about_minus_ten(capsys):
    answer = runpy.run_path(str(EXAMPLES / "regression.py"))["main"]()
    assert abs(answer + 10) < 0.05
    printed = capsys.readouterr().out
    assert "2 * -5 = -" in printed
    assert "10 of 10 samples converged" in printed
