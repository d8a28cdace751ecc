import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_worth_of_comfort_is_recovered_from_heating(tmp_path, capsys):
    picture = tmp_path / "building.png"
    wrong = runpy.run_path(str(EXAMPLES / "mpc_building.py"))["main"](steps=50, picture=str(picture))
    assert max(map(abs, wrong.values())) < 0.05  # measured: 0.04, 1.3 and 1.9 percent after 60 steps
    assert picture.stat().st_size > 10_000
    assert "temperatures at a limit" in capsys.readouterr().out


def test_the_weights_of_a_swing_are_recovered_from_torques(capsys):
    wrong = runpy.run_path(str(EXAMPLES / "mpc_pendulum.py"))["main"](steps=60)
    assert max(map(abs, wrong.values())) < 0.05  # measured: 1.7, 1.6 and 2.3 percent
    assert "recovered to speed" in capsys.readouterr().out
