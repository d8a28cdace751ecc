import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_one_more_dimension_parts_a_disc_from_its_ring(tmp_path, capsys):
    picture = tmp_path / "augmented.png"
    losses = runpy.run_path(str(EXAMPLES / "augmented.py"))["main"](steps=60, file=str(picture))
    assert losses["augmented"] < 0.05 < 0.15 < losses["neural ODE"]
    assert picture.stat().st_size > 10_000
    assert "evaluations a solve" in capsys.readouterr().out
