"""Linear programs of the Netlib collection (D. M. Gay, COAL Newsletter 13, 1985), which is free to use.

The published optima have eleven digits. Programs are rows, equations first, `<=` after them, and bounds on unknowns
where these are not merely nonnegative.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from torchimplicit import Status, qp

OPTIMA = {
    "AFIRO": -464.75314286, "ADLITTLE": 225494.96316, "ISRAEL": -896644.82186, "E226": -18.751929066,
    "SC205": -52.202061212, "KB2": -1749.9001299,
}  # fmt: skip
WITHOUT = ["GALENET", "ITEST2", "ITEST6", "BGPRTR"]


@cache
def stored():
    return json.loads(Path(__file__).with_name("netlib.json").read_text())


def read(name):
    """The arguments of `qp`."""
    one = stored()[name]
    row, column, value = one["rows"]
    p, n = one["equations"], len(one["q"])
    q, bound = (torch.tensor(one[key], dtype=torch.float64) for key in ("q", "bound"))
    rows = torch.zeros(len(bound), n, dtype=torch.float64)
    rows[row, column] = torch.tensor(value, dtype=torch.float64)
    given = {"q": q, "A": rows[:p], "b": bound[:p], "G": rows[p:], "h": bound[p:], "l": torch.zeros_like(q)}
    for key, none in (("l", -torch.inf), ("u", torch.inf)):
        if key in one:
            given[key] = torch.tensor([none if value is None else value for value in one[key]], dtype=torch.float64)
    return given


@pytest.mark.parametrize("name", OPTIMA)
def test_the_published_optimum_is_found_and_called_so(name):
    given = read(name)
    solution = qp(None, **given)
    z = solution.value
    assert abs(given["q"] @ z - OPTIMA[name]) <= 1e-7 * abs(OPTIMA[name])
    assert solution.residual.item() <= 1e-9
    assert (z >= given["l"]).all()
    for rows, bound, violated in (("A", "b", torch.abs), ("G", "h", torch.relu)):
        reached, size = given[rows] @ z, given[rows].abs() @ z.abs() + 1e-6 * z.abs().max()
        assert (violated(reached - given[bound]) <= 1e-9 * size).all()


@pytest.mark.parametrize("name", WITHOUT)
def test_weights_contradict_where_no_point_is_feasible(name):
    given = read(name)
    solution = qp(None, **given, on_failure="ignore")
    assert solution.status.item() == Status.INFEASIBLE
    below, equal, own = solution.certificate.duals
    assert (below >= 0).all()
    pull = given["G"].T @ below + given["A"].T @ equal + own
    size = given["G"].abs().T @ below + given["A"].abs().T @ equal.abs() + own.abs()
    assert (pull.abs() <= 1e-9 * size.max()).all()
    upper = given.get("u", torch.full_like(own, torch.inf))
    met = torch.where(own > 0, upper, torch.where(own < 0, given["l"], 0.0))
    assert given["h"] @ below + given["b"] @ equal + met @ own < 0


def test_slacks_begin_no_smaller_than_the_size_of_the_bounds():
    """Of a program whose first point is nearer to its bounds by far than its solution: its steps crept, 25 and more."""
    assert qp(None, **read("SC205")).steps.item() < 20
