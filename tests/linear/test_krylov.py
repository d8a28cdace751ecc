"""GMRES: its opening with Richardson steps, sample by sample."""

import torch

import torchimplicit as ti
from torchimplicit.linear import Matrix


def system(contractions):
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(contractions), 12, 12, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random)[0]
    matrices = (
        torch.eye(12, dtype=torch.float64) - torch.tensor(contractions, dtype=torch.float64)[:, None, None] * basis
    )
    return Matrix(matrices), torch.randn(len(contractions), 12, generator=generator, dtype=torch.float64)


def test_contractions_are_solved_by_richardson_steps():
    operator, b = system([0.1, 0.3, 0.5])
    x, report = ti.GMRES(rtol=1e-8).prepare(operator).solve(b)
    assert report.converged
    richardson = b
    for _ in range(report.nfev - 1):
        richardson = b + richardson - operator.matvec(richardson)
    assert torch.allclose(x[2], richardson[2])
    steps = report.steps.tolist()
    assert steps == sorted(set(steps)), "the stronger the contraction, the fewer steps"
    plain = ti.GMRES(rtol=1e-8, opening=False).prepare(operator).solve(b)
    assert plain.report.converged
    assert not torch.equal(plain.x, x)
    assert torch.allclose(plain.x, x, atol=1e-6)


def test_a_sample_that_does_not_contract_leaves_the_opening_alone():
    operator, b = system([0.3, 0.95, 3.0])
    x, report = ti.GMRES(rtol=1e-8).prepare(operator).solve(b)
    assert report.converged
    assert torch.allclose(operator.matvec(x), b, atol=1e-6)
    for sample in range(3):
        matrix = Matrix(operator.matrix[sample : sample + 1])
        one = ti.GMRES(rtol=1e-8).prepare(matrix).solve(b[sample : sample + 1])
        assert one.report.steps[0] == report.steps[sample], "steps are a sample's own"


def test_limits_hold_in_the_opening_and_after_it():
    operator, b = system([0.5, 0.95])
    for steps in (1, 3):
        _, report = ti.GMRES(rtol=1e-10, max_steps=steps).prepare(operator).solve(b)
        assert (report.status == ti.Status.MAX_STEPS).all()
        assert report.steps.max() <= 2 * steps
