import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_error_of_the_integral_follows_the_tolerance(tmp_path, capsys):
    picture = tmp_path / "normalisation.png"
    errors = runpy.run_path(str(EXAMPLES / "normalisation.py"))["main"](steps=60, file=str(picture))
    assert list(errors) == [10.0**-power for power in range(1, 8)]
    assert all(error < tolerance for tolerance, error in errors.items())
    assert errors[1e-7] < 1e-2 * max(errors.values())  # loose ones may be right by luck
    assert picture.stat().st_size > 10_000
    assert "evaluations" in capsys.readouterr().out
