"""Scalings go back to where they came from, and their determinants are those that autograd finds."""

import pytest
import torch

from torchimplicit.train.data import Linear, Logit

SCALINGS = [Linear(), Logit(), Logit(margin=0.01, mean=0.0, std=2.0)]


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_there_and_back(scaling, levels):
    x = levels * torch.rand(5, 2, 3, dtype=torch.float64)
    x[0, 0, :2] = torch.tensor([0.0, levels])
    z = scaling(x, levels)
    assert torch.isfinite(z).all()
    torch.testing.assert_close(scaling.inverse(z, levels), x, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_the_determinant_is_that_of_the_jacobian(scaling):
    x = 17 * torch.rand(4, 3, dtype=torch.float64)
    slopes = torch.stack([torch.func.jacrev(lambda v: scaling(v, 17))(row).diagonal() for row in x])
    torch.testing.assert_close(scaling.log_det(x, 17), slopes.log().sum(1))


@pytest.mark.parametrize("scaling", SCALINGS, ids=repr)
def test_whatever_a_model_draws_becomes_a_picture(scaling):
    x = scaling.inverse(torch.tensor([[-1e4, -1.0, 0.0, 1.0, 1e4]]), 256)
    assert float(x.min()) >= 0
    assert float(x.max()) <= 256


def test_the_logit_of_single_precision_stays_finite_at_the_ends():
    x = torch.tensor([[0.0, 255.99998, 256.0]])
    assert torch.isfinite(Logit()(x, 256)).all()
    assert torch.isfinite(Logit().log_det(x, 256)).all()


@pytest.mark.parametrize(("options", "message"), [({"margin": 0.0}, "above 0"), ({"std": -1.0}, "above 0")])
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Logit(**options)
