"""The outermost eigenvalues by the Lanczos process, against dense ones."""

import torch

from torchimplicit.linear import Matrix, eigenvalue_range, probe


def symmetric(width, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(batch, width, width, dtype=torch.float64, generator=generator)
    return matrix + matrix.mT


def test_exact_with_as_many_steps_as_unknowns():
    matrix = symmetric(9)
    lowest, highest, play = eigenvalue_range(Matrix(matrix).matvec, probe(matrix[:, 0]))
    values = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(lowest, values[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(highest, values[:, -1], rtol=1e-12, atol=1e-12)
    assert (play < 1e-12).all()


def test_estimates_come_from_within_and_their_play_holds_an_eigenvalue():
    matrix = symmetric(60)
    values = torch.linalg.eigvalsh(matrix)
    before = None
    for steps in (4, 8, 16):
        lowest, highest, play = eigenvalue_range(Matrix(matrix).matvec, probe(matrix[:, 0]), steps)
        assert (lowest >= values[:, 0] - 1e-10).all()
        assert (highest <= values[:, -1] + 1e-10).all()
        assert ((values - highest.unsqueeze(1)).abs().amin(1) <= play + 1e-10).all()
        assert before is None or (highest > before).all(), "more steps say more"
        before = highest


def test_an_invariant_subspace_ends_the_process_without_noise():
    matrix = torch.diag_embed(torch.tensor([[2.0] * 6, [0.0] * 6, [1.0, 1, 1, -3, -3, -3]], dtype=torch.float64))
    lowest, highest, play = eigenvalue_range(Matrix(matrix).matvec, probe(matrix[:, 0]))
    assert lowest[2] == lowest[2].clamp(-3 - 1e-12, -3 + 1e-12)
    torch.testing.assert_close(highest, torch.tensor([2.0, 0, 1], dtype=torch.float64))
    assert (play < 1e-12).all()


def test_a_sample_that_is_not_finite_touches_no_other():
    matrix = symmetric(5)
    alone = eigenvalue_range(Matrix(matrix).matvec, probe(matrix[:, 0]))
    matrix[1, 2, 3] = torch.nan
    beside = eigenvalue_range(Matrix(matrix).matvec, probe(matrix[:, 0]))
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert other.isfinite().all()
