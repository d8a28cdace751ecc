"""The demons equilibrium as a layer: what its features do, what they learn by, and what is left out."""

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.imaging.register.test_demons import pair
from tests.imaging.register.test_learned import ADJOINT, TIGHT, D, check_gradients
from torchimplicit.core.outcome import Status
from torchimplicit.imaging import register
from torchimplicit.imaging.register import Demons, FeatureLNCC, LearnedDemons


def layer(levels=((1, 1.3, 0.3),), **options):
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 1), nn.Sigmoid())
    demons = Demons(levels=levels, solver=TIGHT, interpolation="cubic", squarings=2)
    return LearnedDemons(features, demons, most_step=0.6, on_failure="raise", **options).to(D)


def test_weight_and_step_stay_within_their_bounds_whatever_their_parameters():
    fixed, moving = (each.float() for each in pair(16, 16, reach=0.8))
    model = LearnedDemons(nn.Identity(), Demons(levels=((1, 2.0, 1.0),)), most_step=2.0, on_failure="raise")
    with torch.no_grad():
        model.raw_step.fill_(50.0)
        model.similarity.raw_weight.fill_(-50.0)
        found = model(fixed, moving).displacement()
        plain = register.align(fixed, moving, Demons(levels=((1, 2.0, 2.0),))).displacement()
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_the_force_is_that_of_both_parts():
    fixed, warped = torch.rand(2, 1, 3, 8, 8, dtype=D, generator=torch.Generator().manual_seed(0))
    gradient = torch.rand(1, 3, 2, 8, 8, dtype=D)
    similarity = FeatureLNCC(register.LNCC(window=3), 1.5)
    image = register.LNCC(window=3).force(fixed[:, :1], warped[:, :1], gradient[:, :1], [1.0, 1.0])
    left = fixed[:, 1:] - warped[:, 1:]
    expected = image + 1.5 * torch.einsum("bcij,bcdij->bdij", left, gradient[:, 1:])
    torch.testing.assert_close(similarity.force(fixed, warped, gradient, [1.0, 1.0]), expected, rtol=1e-6, atol=1e-6)


def test_gradients_of_all_parameters_are_those_of_differences():
    fixed, moving = pair(8, 7, reach=0.8)
    model = layer()
    weight = torch.linspace(-1, 1, 2 * 8 * 7, dtype=D).view(1, 2, 8, 7).cos()

    def energy():
        return (weight * model(fixed, moving, adjoint=ADJOINT).displacement()).sum()

    parameters = dict(model.named_parameters())
    assert {"raw_step", "similarity.raw_weight", "features.0.weight"} <= set(parameters)
    check_gradients(energy, [*parameters.values()])


@torch.no_grad()
def test_features_that_know_the_answer_find_it_where_values_cannot():
    at = torch.linspace(-1, 1, 32, dtype=D)
    centres = torch.tensor([[0.0, 0.0], [0.25, 0.0]], dtype=D).view(2, 2, 1, 1)
    distance = (at[:, None] - centres[:, 0]).square() + (at - centres[:, 1]).square()
    texture = torch.rand(2, 1, 32, 32, dtype=D, generator=torch.Generator().manual_seed(1))
    maps = torch.exp(-8 * distance)[:, None]

    class Known(nn.Module):
        def forward(self, x):
            return maps[:1] if torch.equal(x, register.similarity.normalised(texture[:1])) else maps[1:]

    demons = Demons(similarity=register.LNCC(eps=10.0), levels=((1, 2.0, 2.0),))
    found = LearnedDemons(Known(), demons, weight=6.0)(texture[:1], texture[1:])
    plain = register.align(texture[:1], texture[1:], demons)
    moved = [float(each.displacement()[0, 0, 12:20, 12:20].mean()) for each in (found, plain)]
    assert moved[0] > 2.5 > 1.0 > abs(moved[1]), moved  # the truth is 31 / 8


def test_a_pair_that_nothing_can_be_told_of_has_a_status_and_disturbs_no_other():
    fixed, moving = pair(8, 7, reach=0.8)
    model = layer()
    model.on_failure = "ignore"
    alone = model(fixed, moving, adjoint=ADJOINT)
    both = model(torch.cat((fixed, torch.ones_like(fixed))), torch.cat((moving, moving)), adjoint=ADJOINT)
    assert both.report.status.tolist()[1] == Status.INFEASIBLE
    assert torch.equal(both.displacement()[0], alone.displacement()[0])
    assert model.report is both.report


def test_training_takes_levels_of_its_own():
    fixed, moving = (each.float() for each in pair(32, 32, reach=0.8))
    model = layer(training_levels=((2, 1.3, 0.3),)).float()
    model.demons = Demons(levels=((1, 1.3, 0.3),), solver=ti.Anderson(rtol=1e-2))
    sizes = [model.train(mode)(fixed, moving).transform.parts[0].grid.size for mode in (True, False)]
    assert sizes == [(16, 16), (32, 32)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "net"}, "try a network"),
        ({"demons": register.Demons(similarity=register.SSD())}, "LNCC"),
        ({"demons": register.Affine()}, "Demons"),
        ({"training_levels": ((3, 1.0, 1.0),)}, "levels"),
        ({"most_step": 1.0}, "in \\(0, 1\\)"),
        ({"weight": 9.0}, "in \\(0, 8\\)"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        LearnedDemons(**{"features": nn.Identity()} | options)


def test_images_of_several_channels_are_refused():
    with pytest.raises(ValueError, match="one channel"):
        layer()(torch.rand(1, 2, 8, 8, dtype=D), torch.rand(1, 2, 8, 8, dtype=D))
