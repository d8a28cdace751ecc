"""Splitting: the parts are disjoint, never empty, and the mask together; the truth without noise has no loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchimplicit.imaging import Fourier, Inpainting, Sense, split_loss, split_mask


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def lines(*on):
    return torch.tensor(on, dtype=torch.bool)[:, None]


def seen_always(height, width, centre):
    """The middle of every axis that has more than one entry; nothing where no part is asked for."""
    inside = torch.full((height, width), centre > 0)
    for axis, size in enumerate((height, width)):
        first, length = size // 2 - round(centre * size) // 2, round(centre * size)
        place = torch.arange(size).view((-1, 1) if axis == 0 else (1, -1))
        inside &= ((first <= place) & (place < first + length)) | torch.tensor(size == 1)
    return inside


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0.01, 0.99),
    st.floats(0, 0.6),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_parts_are_disjoint_not_empty_and_all_of_it(height, width, held_out, centre, seed, count):
    mask = torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < 0.7
    kept = seen_always(height, width, centre) & mask
    if int((mask & ~kept).sum()) < (1 if bool(kept.any()) else 2):
        with pytest.raises(ValueError, match=r"shows nothing|to split"):
            split_mask(mask, count, held_out=held_out, center_fraction=centre, seed=seed)
        return
    seen, held = split_mask(mask, count, held_out=held_out, center_fraction=centre, seed=seed)
    assert seen.shape == held.shape == (count, height, width)
    assert torch.equal(seen ^ held, mask.expand_as(seen))  # disjoint, and together the mask
    assert bool(seen.flatten(1).any(1).all() and held.flatten(1).any(1).all())
    assert not bool((held & kept).any())


@pytest.mark.parametrize("seed", range(5))
def test_the_centre_is_kept_and_as_much_held_out_as_asked_for(seed):
    mask = torch.rand(20, 30, generator=torch.Generator().manual_seed(seed)) < 0.5
    seen, held = split_mask(mask, 2, held_out=0.3, center_fraction=0.2, seed=seed)
    assert torch.equal(seen[:, 8:12, 12:18], mask[8:12, 12:18].expand(2, -1, -1))
    outside = int(mask.sum() - mask[8:12, 12:18].sum())
    assert held.flatten(1).sum(1).tolist() == [round(0.3 * outside)] * 2


def test_lines_are_split_as_lines_and_every_one_is_held_out_some_time():
    mask = torch.arange(12)[:, None] % 2 == 0
    total = torch.zeros(12, 1)
    for seed in range(40):
        seen, held = split_mask(mask, held_out=0.4, center_fraction=0.1, seed=seed)
        assert seen.shape == (1, 12, 1)
        total += held[0]
    kept = torch.zeros(12, 1, dtype=torch.bool)
    kept[6] = True
    assert torch.equal(total > 0, mask & ~kept)


def test_a_split_is_its_samples_own():
    mask = torch.rand(9, 8, generator=torch.Generator().manual_seed(0)) < 0.6
    seeds = torch.tensor([3, 5, 3])
    seen, _ = split_mask(mask, 3, seed=seeds)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(split_mask(mask, 1, seed=seeds[1:2])[0][0], seen[1])
    assert not torch.equal(split_mask(mask, seed=0)[0], split_mask(mask, seed=1)[0])
    own = torch.stack([mask, mask.flip(0)])
    assert torch.equal(torch.logical_or(*split_mask(own, 2, seed=1)), own)


@pytest.mark.parametrize("coils", [True, False])
def test_the_truth_has_no_loss_and_another_image_has_one(coils):
    mask, x = lines(1, 1, 0, 1, 1, 1, 0, 1), random(2, 8, 6)
    op = Sense(random(3, 8, 6, seed=1), mask) if coils else Fourier(mask)
    y = op.A(x)
    options = {"held_out": 0.5, "center_fraction": 0.2, "seed": 0}
    assert split_loss(lambda y, op: x, y, op, **options).abs().max() < 1e-28
    assert torch.allclose(split_loss(lambda y, op: 0 * x, y, op, **options), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(split_loss(lambda y, op: 1.5 * x, y, op, **options), torch.full((2,), 0.25).double())


def test_the_reconstruction_sees_nothing_of_what_is_held_out():
    op, seen = Sense(random(3, 8, 6, seed=1), lines(1, 1, 0, 1, 1, 1, 0, 1)), []

    def reconstruct(y, part):
        seen.append((y, part))
        return part.A_adjoint(y)

    x = random(2, 8, 6).requires_grad_()
    loss = split_loss(reconstruct, op.A(x), op, seed=0)
    ((y, part),) = seen
    assert loss.shape == (2,)
    assert type(part) is Sense
    held = part.A(torch.ones_like(x)) == 0
    assert bool((y[held] == 0).all())
    assert not torch.equal(part.coil.mask[0], part.coil.mask[1])
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert bool(gradient.abs().max() > 0)


def test_masks_and_maps_of_the_samples_own():
    mask = torch.stack([lines(1, 1, 0, 1, 1, 1), lines(1, 0, 1, 1, 1, 1)])
    op, x = Sense(random(2, 3, 6, 5, seed=1), mask), random(2, 6, 5)
    both = split_loss(lambda y, op: op.A_adjoint(y), op.A(x), op, seed=torch.tensor([4, 9]))
    alone = Sense(op.maps[1:], mask[1:])
    one = split_loss(lambda y, op: op.A_adjoint(y), alone.A(x[1:]), alone, seed=torch.tensor([9]))
    assert torch.allclose(both[1:], one, rtol=1e-12)


def test_bad_input():
    mask = lines(0, 1, 1, 0)
    with pytest.raises(TypeError, match=r"torch\.bool"):
        split_mask(mask.float())
    with pytest.raises(ValueError, match="shows nothing"):
        split_mask(mask & False)
    for name, value in (
        ("held_out", 0.0),
        ("held_out", 1.0),
        ("center_fraction", -0.1),
        ("center_fraction", 1.0),
        ("held_out", "x"),
    ):
        with pytest.raises(ValueError, match=rf"split_mask\({name}=.*expected a number in"):
            split_mask(mask, **{name: value})
    with pytest.raises(ValueError, match=r"0 entries outside of the centre, expected at least 1"):
        split_mask(mask, center_fraction=0.5)
    with pytest.raises(ValueError, match="1 entries outside of the centre, expected at least 2"):
        split_mask(lines(0, 0, 0, 1), center_fraction=0.0)
    with pytest.raises(ValueError, match=r"expected \(H, W\) or \(2, H, W\)"):
        split_mask(torch.ones(3, 4, 4, dtype=torch.bool), 2)
    with pytest.raises(TypeError, match="expected a Fourier or Sense"):
        split_loss(lambda y, op: y, random(1, 4), Inpainting(mask))
