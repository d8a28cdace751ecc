"""What `align` and its result take and refuse, whatever the kind."""

import pytest
import torch

from tests.imaging.register.phantoms import texture
from torchimplicit.imaging import Image, register

X = torch.linspace(-3, 3, 40, dtype=torch.float64)


def blob(shift):
    x, y = X[:, None], X[None, :]
    found = torch.exp(-((x - shift) ** 2) - 2 * y**2) + 0.5 * torch.exp(-3 * (x - 1) ** 2 - (y + 1 - shift) ** 2)
    return found[None, None]


KIND = register.Rigid(levels=((2.0, 1.0),))


def test_in_inference_mode_it_is_as_without():
    known = register.align(blob(0.0), blob(0.3), KIND)
    with torch.inference_mode():
        found = register.align(blob(0.0), blob(0.3), KIND)
    torch.testing.assert_close(found.displacement(), known.displacement(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(TypeError, match=r"too few digits to say where things lie; try \.float\(\)"):
        register.align(blob(0.0).to(dtype), blob(0.3).to(dtype), KIND)


def test_a_mapped_pair_is_refused_behind_other_transforms_too():
    def loss(moving):
        return register.align(blob(0.0), moving, KIND).displacement().sum()

    with pytest.raises(NotImplementedError, match="one batch of pairs"):
        torch.func.vmap(torch.func.grad(loss))(torch.stack([blob(0.1), blob(0.2)]))


def test_labels_of_another_grid_are_refused():
    found = register.align(blob(0.0), blob(0.3), KIND)
    with pytest.raises(ValueError, match=r"warp_labels: got \(1, 1, 30, 40\), expected \(B, C, 40, 40\)"):
        found.warp_labels(torch.ones(1, 1, 30, 40, dtype=torch.long))
    assert found.warp_labels(torch.ones(1, 1, 40, 40, dtype=torch.long)).shape == (1, 1, 40, 40)


def test_label_volumes_of_another_place_are_refused():
    volume = torch.rand(12, 12, 12, dtype=torch.float64)
    volume = torch.nn.functional.avg_pool3d(volume[None, None], 3, 1, 1)[0, 0]
    here, there = torch.eye(4, dtype=torch.float64), torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    found = register.align(Image(volume, here), Image(volume, here), KIND, on_failure="ignore")
    with pytest.raises(ValueError, match="warp_labels: got an image on"):
        found.warp_labels(Image(torch.ones(12, 12, 12, dtype=torch.long), there))


def test_a_singular_start_is_refused():
    flat = register.Linear(torch.diag(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))[None])
    with pytest.raises(ValueError, match="got a singular matrix"):
        register.align(blob(0.0), blob(0.3), KIND, initial=flat)


@pytest.mark.parametrize(
    "kind",
    [
        register.Demons(levels=((1, 1.0, 1.0),)),
        register.Variational(levels=(1,)),
        register.BSpline(levels=(1,)),
        register.Rigid(),
        register.Affine(),
    ],
    ids=["velocity", "variational", "bspline", "rigid", "affine"],
)
def test_a_pair_does_not_notice_its_batch_mates(kind):
    """To the bit in a batch of one size; else nearly: products of matrices are rounded by how many rows they have."""
    fixed = torch.cat([texture(18, 16, seed=each) for each in (0, 3, 4)])
    moving = torch.cat([texture(18, 16, seed=each, width=2.7) for each in (0, 3, 4)])
    found = {
        rows: register.align(fixed[list(rows)], moving[list(rows)], kind, on_failure="ignore")
        for rows in ((0,), (0, 1), (0, 2), (0, 1, 2), (0, 2, 1))
    }
    first = {rows: each.displacement()[0] for rows, each in found.items()}
    assert torch.equal(first[0, 1], first[0, 2])
    assert torch.equal(first[0, 1, 2], first[0, 2, 1])
    for rows, each in found.items():
        assert (first[rows] - first[0,]).abs().max() < 1e-12
        assert each.report.steps[0] == found[0,].report.steps[0]
