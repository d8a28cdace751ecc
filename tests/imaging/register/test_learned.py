"""Parts of an equilibrium that are learned, and where it starts: features, smoothers, similarities, fields."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.imaging.register.phantoms import moved, texture, turned
from tests.imaging.register.test_demons import bumps, pair
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, register
from torchimplicit.imaging.register.grid import Grid

D = torch.float64
TIGHT = ti.Anderson(window=10, rtol=1e-11, max_steps=1000)
ADJOINT = ti.Implicit(ti.GMRES(rtol=1e-9, restart=50, max_steps=500))


class Smoother(nn.Module):
    """Takes some of the vectors away where the fixed image is bright."""

    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.2, dtype=D))

    def forward(self, v, fixed):
        return v / (1 + self.strength * fixed[:, :1].square())


class Weighted(nn.Module):
    """Local correlation of some channels, each with a weight."""

    def __init__(self, channels):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(1, 0.5, channels, dtype=D))

    def prepared(self, fixed, moving):
        return register.LNCC().prepared(fixed, moving)

    def force(self, fixed, warped, gradient, units, weights):
        each = [part.split(1, 1) for part in (fixed, warped, gradient)]
        forces = [register.LNCC().force(*parts, units, weights) for parts in zip(*each, strict=True)]
        return torch.einsum("cb...,c->b...", torch.stack(forces), self.weights)


def learned():
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1)).to(D)
    return {"features": features, "smoother": Smoother(), "similarity": Weighted(2)}


def check_gradients(energy, tensors):
    """That of every tensor that an energy is made of, along a way, against differences."""
    for tensor, gradient in zip(tensors, torch.autograd.grad(energy(), tensors), strict=True):
        way = torch.linspace(-1, 1.2, tensor.numel(), dtype=D).view_as(tensor)
        ends = []
        for h in (1e-4, -1e-4):
            with torch.no_grad():
                tensor += h * way
                ends.append(energy())
                tensor -= h * way
        torch.testing.assert_close((gradient * way).sum(), (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("form", ["velocity", "displacement"])
def test_gradients_by_learned_parts_and_steps_of_samples_are_those_of_differences(form):
    fixed, moving = (torch.cat(each) for each in zip(*(pair(8, 7, reach=0.8, seed=s) for s in (0, 1)), strict=True))
    parts, weight = learned(), texture(8, 7, seed=9)[:, 0]
    parameters = [each for part in parts.values() for each in part.parameters()]
    step = torch.tensor([0.3, 0.2], dtype=D, requires_grad=True)

    def energy():
        options = {"solver": TIGHT, "interpolation": "cubic", "squarings": 2}
        kind = register.Demons(form=form, levels=((1, 1.3, step),), **options, **parts)
        return (weight * register.align(fixed, moving, kind, adjoint=ADJOINT).displacement()).sum()

    check_gradients(energy, [*parameters, step])


@torch.no_grad()
def test_every_learned_part_changes_the_answer_and_a_step_may_be_of_every_voxel():
    fixed, moving = pair(16, 14, reach=0.8)
    levels = ((1, 1.3, 0.5),)
    plain = register.align(fixed, moving, register.Demons(levels=levels)).displacement()
    for name, part in learned().items():
        part = Weighted(1) if name == "similarity" else part
        other = register.align(fixed, moving, register.Demons(levels=((1, 1.3, 0.5),), **{name: part}))
        equal = name == "similarity"  # whose weight is one
        assert torch.allclose(other.displacement(), plain, atol=1e-6) == equal
    step = torch.full((1, 1, 16, 14), 0.5, dtype=D)
    same = register.align(fixed, moving, register.Demons(levels=((1, 1.3, step),)))
    assert torch.equal(same.displacement(), plain)
    step[..., 8:, :] = 0.01
    still = register.align(fixed, moving, register.Demons(levels=((1, 1.3, step),))).displacement()
    assert still[:, :, 12:].norm() < 0.5 * plain[:, :, 12:].norm()


@pytest.mark.parametrize("form", ["velocity", "displacement"])
def test_from_the_answer_there_is_nothing_left_to_do(form):
    fixed, moving = pair(20, 18)
    solver = ti.Anderson(rtol=1e-4, max_steps=200)
    kind = register.Demons(form, levels=((1, 1.5, 1.0),), solver=solver)
    first = register.align(fixed, moving, kind)
    again = register.align(fixed, moving, kind, initial=first)
    assert again.report.steps.item() <= 2 < first.report.steps.item()
    torch.testing.assert_close(again.displacement(), first.displacement(), atol=1e-2, rtol=0)
    u = first.displacement()  # also as a tensor, which a network may have guessed
    near = register.align(fixed, moving, kind, initial=u.requires_grad_())
    assert near.report.steps.item() < first.report.steps.item()
    assert not near.displacement().requires_grad
    torch.testing.assert_close(near.displacement(), first.displacement(), atol=1e-2, rtol=0)


def test_a_field_of_another_grid_and_orientation_starts_the_same_and_stages_of_fields_follow_each_other():
    fixed, moving = pair(12, 14, 12)
    affine = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=D))
    images = [Image(each[0, 0], affine) for each in (fixed, moving)]
    kind = register.Demons("displacement", levels=((1, 1.5, 0.5),), solver=ti.Anderson(rtol=1e-3, max_steps=100))
    first = register.align(*images, kind)
    other = [each.reoriented("PSL") for each in images]
    again = register.align(*other, kind, initial=first.transform)
    assert again.report.steps.item() <= 2
    points = Grid.of(images[0]).points(fixed)[None]
    torch.testing.assert_close(again.transform(points), first.transform(points), atol=2e-2, rtol=0)
    stages = register.align(fixed, moving, [register.Rigid(), register.Demons("displacement"), register.Demons()])
    assert len(stages.stages) == 3
    assert (stages.warp(moving) - fixed).square().mean() < 0.5 * (moving - fixed).square().mean()


def test_a_linear_map_after_a_field_stays_and_has_a_gradient():
    fixed, moving = pair(14, 14, reach=0.8)
    grid = Grid.of(fixed)
    true = register.Linear(turned(0.1, (1.0, -0.5), grid.center))
    matrix = true.matrix.clone().requires_grad_()
    start = register.Displacement(0.1 * bumps(14, 14, seed=5), grid).then(register.Linear(matrix))
    kind = register.Demons(levels=((1, 1.3, 0.3),))
    result = register.align(fixed, moved(moving, true, grid), kind, initial=start)
    assert torch.equal(result.transform.parts[-1].matrix, matrix)
    (gradient,) = torch.autograd.grad(result.transform.parts[0].vectors.square().sum(), matrix)
    assert gradient.abs().max() > 0


def test_what_a_network_guessed_wrong_is_refused_and_what_is_not_finite_is_told():
    fixed, moving = pair(12, 12)
    with pytest.raises(ValueError, match=r"expected a floating displacement \(1, 2, 12, 12\)"):
        register.align(fixed, moving, register.Demons(), initial=torch.zeros(1, 2, 6, 6))
    with pytest.raises(ValueError, match="expected a linear transform to start from"):
        register.align(fixed, moving, register.Rigid(), initial=torch.zeros(1, 2, 12, 12))
    field = register.Displacement(torch.zeros(2, 2, 12, 12), Grid.of(fixed))
    with pytest.raises(ValueError, match="1 samples' own"):
        register.align(fixed, moving, register.Demons(), initial=field)
    both = [each.expand(2, -1, -1, -1) for each in (fixed, moving)]
    start = torch.zeros(2, 2, 12, 12, dtype=D)
    good = register.align(*both, register.Demons(), initial=start)
    start[1, 0, 3, 3] = torch.nan
    result = register.align(*both, register.Demons(), initial=start, on_failure="ignore")
    assert result.report.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]
    assert torch.equal(result.displacement()[0], good.displacement()[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"features": lambda x: x}, TypeError, r"Demons\(features\)"),
        ({"smoother": 3}, TypeError, r"Demons\(smoother\)"),
        ({"features": nn.Conv2d(1, 2, 3)}, ValueError, r"expected \(1, channels, 12, 12\)"),
        ({"levels": ((1, 1.0, torch.ones(3)),)}, ValueError, r"one a sample, \(1,\)"),
    ],
)
def test_impossible_parts_are_refused(options, error, words):
    fixed, moving = (each.float() for each in pair(12, 12))
    with pytest.raises(error, match=words):
        register.align(fixed, moving, register.Demons(**{"levels": ((1, 1.0, 1.0),), **options}))
