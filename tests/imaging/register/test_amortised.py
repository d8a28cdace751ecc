"""The amortised start: what it guesses, what it learns from, and that it only ever is a start."""

import pytest
import torch

import torchimplicit as ti
from tests.imaging.register.test_demons import pair
from torchimplicit.imaging import register
from torchimplicit.imaging.register import AmortisedStart

D = torch.float64


def network(space=2, **options):
    torch.manual_seed(0)
    return AmortisedStart(space=space, width=8, **options).to(D)


def moved(start, by=0.1):
    with torch.no_grad():
        start.last.weight.normal_(0, by, generator=torch.Generator().manual_seed(1))
    return start


@pytest.mark.parametrize("size", [(32, 32), (33, 35), (32, 33, 34)])
def test_before_training_the_guess_is_no_motion_on_the_halved_grid(size):
    guess = network(len(size))(*pair(*size))
    velocity = guess.parts[0]
    assert velocity.grid.size == tuple(n // 2 for n in size)
    assert velocity.vectors.shape == (1, len(size), *velocity.grid.size)
    assert not velocity.vectors.any()


def test_the_guess_is_where_the_registration_begins_and_not_where_it_ends():
    fixed, moving = pair(24, 24)
    kind = register.Demons(
        levels=((1, 1.5, 0.5),), solver=ti.Anderson(window=10, rtol=1e-9, max_steps=500), interpolation="cubic"
    )
    guess = moved(network())(fixed, moving)
    assert guess.parts[0].vectors.abs().max() > 0.1
    one, two = (register.align(fixed, moving, kind, initial=each) for each in ("world", guess))
    torch.testing.assert_close(one.displacement(), two.displacement(), atol=1e-6, rtol=0)


def test_trained_on_equilibria_it_saves_steps():
    fixed, moving = (torch.cat(each) for each in zip(*(pair(16, 16, seed=s) for s in range(3)), strict=True))
    kind = register.Demons(levels=((1, 1.5, 0.5),), solver=ti.Anderson(window=5, rtol=1e-3, max_steps=200))
    found = register.align(fixed, moving, kind)
    start = network()
    optimizer = torch.optim.Adam(start.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = start.loss(start(fixed, moving), found).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    again = register.align(fixed, moving, kind, initial=start(fixed, moving))
    assert again.report.steps.sum() < 0.8 * found.report.steps.sum()
    torch.testing.assert_close(again.displacement(), found.displacement(), atol=0.05, rtol=0)


def test_the_loss_of_the_answer_itself_is_nothing_and_the_answer_gets_no_gradient():
    fixed, moving = pair(16, 16)
    start = network(halvings=0)
    guess = start(fixed, moving)
    found = register.align(fixed, moving, register.Demons(levels=((1, 1.5, 0.5),)), initial=guess)
    vectors = found.transform.parts[0].vectors
    torch.testing.assert_close(start.loss(guess, found), vectors.square().flatten(1).mean(1))
    exact = register.Chain((register.Velocity(vectors, guess.parts[0].grid), guess.parts[1]))
    assert start.loss(exact, found).item() == 0
    (gradient,) = torch.autograd.grad(start.loss(guess, found).sum(), [start.last.bias])
    assert gradient.abs().min() > 0


def test_the_moving_image_is_looked_at_where_the_linear_map_puts_it():
    fixed, moving = pair(16, 16)
    start = moved(network())
    matrix = torch.eye(3, dtype=D)[None].clone()
    matrix[0, 0, 2] = 2.0
    shifted = moving.roll(2, 2)
    inside = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    plain, placed = start(fixed, moving), start(fixed, shifted, register.Linear(matrix))
    assert torch.equal(placed.parts[1].matrix, matrix)
    apart = [
        (each.parts[0].vectors - plain.parts[0].vectors).abs()[inside].max() for each in (placed, start(fixed, shifted))
    ]
    assert apart[0] < 0.3 * apart[1]


def test_samples_are_independent_of_their_batch_mates_and_bad_ones_have_a_status():
    fixed, moving = pair(16, 16)
    start = moved(network())
    bad = torch.full_like(fixed, torch.nan)
    alone, both = start(fixed, moving), start(torch.cat((fixed, bad)), torch.cat((moving, moving)))
    assert torch.equal(both.parts[0].vectors[:1], alone.parts[0].vectors)
    kind = register.Demons(levels=((1, 1.5, 0.5),))
    found = register.align(
        torch.cat((fixed, bad)), torch.cat((moving, moving)), kind, initial=both, on_failure="ignore"
    )
    assert found.report.status.tolist() == [ti.Status.CONVERGED, ti.Status.NON_FINITE]


@pytest.mark.parametrize("options", [{"space": 1}, {"width": 12}, {"channels": 0}, {"halvings": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="AmortisedStart"):
        AmortisedStart(**options)


def test_other_images_and_other_registrations_are_refused_in_words():
    fixed, moving = pair(12, 12)
    start = network(channels=2)
    with pytest.raises(ValueError, match=r"AmortisedStart\(channels=1, space=2\)"):
        start(fixed, moving)
    start = network()
    found = register.align(fixed, moving, register.Demons(form="displacement", levels=((1, 2.0, 0.2),)))
    with pytest.raises(ValueError, match="form='velocity'"):
        start.loss(start(fixed, moving), found)
