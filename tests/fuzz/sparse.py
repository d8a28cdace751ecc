"""`qp` with sparse matrices: degenerate programs side by side, made around known solutions, judged by dense algebra.

Programs beside each other that share nothing are one program, whose solution is theirs. With all costs and bounds a
multiple, so is the solution: that makes a batch of one matrix.
"""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import torch

import torchimplicit as ti
from tests.fuzz.degenerate import KINDS, SLOPE, Known, faults_of, one, slope
from tests.fuzz.watch import Fault

LAYOUTS = {"coo": torch.Tensor.to_sparse_coo, "csr": torch.Tensor.to_sparse_csr}


def beside(programs):
    """Programs as one, with the verdict of the last."""
    matrices = (torch.block_diag(*(getattr(known, name) for known in programs)) for name in ("Q", "R"))
    vectors = (torch.cat([getattr(known, name) for known in programs]) for name in ("l", "u", "z", "y", "q", "units"))
    return Known(*matrices, *vectors, status=programs[-1].status)


def draw(dice):
    """A program of one to six parts, of which the last alone may have no solution."""
    kinds = [kind for kind in KINDS if kind not in ("contradictory", "endless")]
    titles = [dice.pick(*kinds) for _ in range(dice.between(0, 5))] + [dice.pick(*KINDS)]
    return beside([KINDS[title](dice) for title in titles]), titles[-1]


def sparse(dice, known_faults):
    known, kind = draw(dice)
    layout, solver = dice.pick(*LAYOUTS), dice.weighted({"Clarabel": 5, "InteriorPoint": 1})
    sizes = torch.tensor([dice.power(-3, 3) for _ in range(dice.between(1, 3))], dtype=one)[:, None]
    weight = dice.normal(len(known.z)) / known.units

    def case():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that CSR is in beta state
            Q, R = (LAYOUTS[layout](matrix) for matrix in (known.Q, known.R))
        q = (sizes * known.q).requires_grad_()
        bounds = {"l": sizes * known.l, "u": sizes * known.u}
        solution = ti.qp(Q, q, C=R, **bounds, solver=getattr(ti.optim, solver)(), on_failure="ignore")
        (found,) = torch.autograd.grad((solution.value @ weight).sum(), q)
        faults = []
        for sample, size in enumerate(sizes.flatten()):
            mine = replace(known, **{name: size * getattr(known, name) for name in "luzyq"}, units=size * known.units)
            its = SimpleNamespace(
                status=solution.status[sample], value=solution.value[sample],
                determined=SimpleNamespace(value=solution.determined.value[sample]),
                duals=SimpleNamespace(bounds=solution.duals.bounds[sample]),
                active=SimpleNamespace(bounds=solution.active.bounds[sample]),
            )  # fmt: skip
            words = faults_of(mine, its)
            if not words and its.status == ti.Status.CONVERGED and bool(its.determined.value):
                expected = slope(known, solution.active.bounds[sample], weight)
                off = ((found[sample] - expected) / known.units).abs().max()
                off = float(off / (1 + (expected / known.units).abs().max()))
                words = [] if off <= SLOPE else [f"the derivative is off by {off:.2g}"]
            faults += [Fault("silent", f"sample {sample}: {word}") for word in words]
        return "converged" if solution.report.converged else "failed", faults

    return f"{kind}, {tuple(known.R.shape)}, batch {len(sizes)}, {layout}, {solver}", case
