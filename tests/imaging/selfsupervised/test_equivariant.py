"""Equivariant imaging: groups are groups, and what is consistent and equivariant has no loss."""

import pytest
import torch

from torchimplicit.imaging import Flip, Inpainting, QuarterTurn, Shift, equivariant_loss

GROUPS = [Flip(), QuarterTurn(), Shift(), Shift(2)]


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", GROUPS, ids=repr)
def test_elements_are_isometries_of_each_sample_alone(group):
    x = random(40, 2, 5, 5, dtype=torch.complex128)
    y = group(x, 3)
    assert y.shape == x.shape
    assert torch.allclose(y.abs().sum((1, 2, 3)), x.abs().sum((1, 2, 3)))
    assert torch.equal(torch.sort(y.real.flatten(1))[0], torch.sort(x.real.flatten(1))[0])  # pixels change places
    z = random(40, 2, 5, 5, dtype=torch.complex128, seed=1)
    assert torch.allclose(group(x + 2j * z, 3), y + 2j * group(z, 3))
    seeds = torch.arange(40)
    assert torch.equal(group(x, seeds)[7:9], group(x[7:9], seeds[7:9]))
    assert not torch.equal(group(x, 3), group(x, 4))


@pytest.mark.parametrize(("group", "count"), [(Flip(), 4), (QuarterTurn(), 4), (Shift(), 9), (Shift(1), 9)])
def test_every_element_is_drawn(group, count):
    x = torch.arange(9.0).view(1, 3, 3).expand(300, 3, 3)
    assert len({tuple(each.flatten().tolist()) for each in group(x, 0)}) == count


def test_no_loss_of_what_is_complete_and_of_nothing_where_nothing_is():
    op = Inpainting(torch.ones(4, 4, dtype=torch.bool))
    y = op.A(random(3, 4, 4))
    assert equivariant_loss(lambda y, op: op.A_adjoint(y), y, op, Flip(), seed=0).abs().max() == 0


def test_both_terms():
    op, group = Inpainting(torch.arange(16).view(4, 4) % 3 > 0), QuarterTurn()
    x, seeds = random(3, 4, 4), torch.tensor([1, 2, 5])
    y = op.A(x)

    def reconstruct(y, op):
        return 0.5 * op.A_adjoint(y)

    found = equivariant_loss(reconstruct, y, op, group, weight=2.0, seed=seeds)
    first = reconstruct(y, op)
    turned = group(first, seeds)
    again = reconstruct(op.A(turned), op)
    expected = (op.A(first) - y).square().mean(1) + 2 * (turned - again).square().mean((1, 2))
    assert torch.allclose(found, expected)
    assert bool((found > 0).all())
    alone = equivariant_loss(reconstruct, y[1:2], op, group, weight=2.0, seed=seeds[1:2])
    assert torch.allclose(alone, found[1:2])


def test_it_learns_what_the_mask_never_shows():
    """Pixels of an image of equal entries: measurements show half, and equivariance fills the rest in."""
    op = Inpainting(torch.tensor([[True, True, False, False]] * 4))
    x = torch.ones(8, 4, 4, dtype=torch.float64) * torch.linspace(0.5, 2, 8).view(8, 1, 1).double()
    y, matrix = op.A(x), torch.full((16, 8), 0.05, dtype=torch.float64, requires_grad=True)
    # From zero it is a saddle: nothing there says that hidden pixels are not zero.
    optimiser = torch.optim.Adam([matrix], 0.02)
    for step in range(100):
        loss = equivariant_loss(lambda y, op: (y @ matrix.mT).view(-1, 4, 4), y, op, Flip(), seed=step).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hidden = ((y @ matrix.mT).view(8, 4, 4) - x)[:, :, 2:]
    assert float(hidden.detach().square().mean()) < 0.01 * float(x.square().mean())


def test_bad_input():
    op = Inpainting(torch.ones(4, 3, dtype=torch.bool))
    y = op.A(random(1, 4, 3))

    def reconstruct(y, op):
        return op.A_adjoint(y)

    with pytest.raises(ValueError, match=r"expected square ones.*try Flip"):
        equivariant_loss(reconstruct, y, op, QuarterTurn())
    with pytest.raises(TypeError, match="expected a group"):
        equivariant_loss(reconstruct, y, op, "flip")
    with pytest.raises(ValueError, match=r"weight=-1.*expected a number >= 0"):
        equivariant_loss(reconstruct, y, op, Flip(), weight=-1)
    with pytest.raises(ValueError, match=r"made .* of images"):
        equivariant_loss(reconstruct, y, op, lambda x, seed: x[:, :2])
    with pytest.raises(ValueError, match="expected an integer >= 1"):
        Shift(0)
