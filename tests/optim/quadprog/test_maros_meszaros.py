"""Convex programs of the Maros and Meszaros collection (Optim. Methods Softw. 11, 1999), which is free to use.

Five of them are here; with `TORCHIMPLICIT_DATA`, those in its folder `maros_meszaros` are solved, too.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimplicit import qp

# As published, to nine digits.
OPTIMA = {
    "CVXQP1_S": 1.15907181e4, "DUALC1": 6.15525083e3, "HS118": 6.64820450e2, "HS21": -9.99600000e1,
    "QADLITTL": 4.80318859e5, "QAFIRO": -1.59078179e0, "QBORE3D": 3.10020080e3, "QISRAEL": 2.53478378e7,
    "QSC205": -5.81395349e-3, "QSHARE1B": 7.20078318e5,
}  # fmt: skip
FOLDER = Path(os.environ.get("TORCHIMPLICIT_DATA", "-")) / "maros_meszaros"


@cache
def stored():
    """The programs, as triplets."""
    named = json.loads(Path(__file__).with_name("maros_meszaros.json").read_text())
    for path in sorted(FOLDER.glob("*.npz")):
        if path.stem in OPTIMA and path.stem not in named:
            data = np.load(path)
            named[path.stem] = {key: data[key].tolist() for key in ("q", "l", "u", "n", "constant")} | {
                matrix: [data[f"{matrix}_{part}"].tolist() for part in ("row", "col", "val")] for matrix in "PA"
            }
    return named


def dense(triplets, rows, columns):
    row, column, value = triplets
    matrix = torch.zeros(rows, columns, dtype=torch.float64)
    return matrix.index_put((torch.tensor(row), torch.tensor(column)), torch.tensor(value).double(), accumulate=True)


def read(name):
    one = stored()[name]
    n, m = one["n"], len(one["l"])
    Q = dense(one["P"], n, n)
    Q = Q if torch.equal(Q, Q.T) else Q + Q.T - torch.diag(Q.diagonal())
    ends = (
        torch.tensor([other if value is None else value for value in one[key]], dtype=torch.float64)
        for key, other in (("l", -torch.inf), ("u", torch.inf))
    )
    return Q, torch.tensor(one["q"], dtype=torch.float64), dense(one["A"], m, n), *ends, one["constant"]


@pytest.mark.parametrize("name", stored())
def test_the_published_optimum_is_found_and_called_so(name):
    Q, q, C, lower, upper, constant = read(name)
    solution = qp(Q, q, C=C, l=lower, u=upper)
    z = solution.value
    cost = 0.5 * z @ Q @ z + q @ z + constant
    assert abs(cost - OPTIMA[name]) <= 1e-7 * abs(OPTIMA[name])
    assert solution.residual.item() <= 1e-9
    reached = C @ z
    size = C.abs() @ z.abs() + 1e-6 * z.abs().max()
    assert ((reached - upper).clamp_min(0) + (lower - reached).clamp_min(0) <= 1e-9 * size).all()
