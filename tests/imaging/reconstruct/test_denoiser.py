"""Networks as priors: what they claim of themselves is so."""

import math

import pytest
import torch

from torchimplicit.imaging import DnCNN, GradientStep, Prior, averaged


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def stretched(prior, factor=20.0):
    """The same with larger weights, as training may make them."""
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(factor)
    return prior


@pytest.mark.parametrize("skip", [True, False])
def test_a_bounded_chain_expands_no_more_than_it_says(skip):
    net = stretched(DnCNN(width=6, depth=3, bound=0.8, skip=skip).double())
    a, b = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    assert net.expansion() == pytest.approx(0.8 + skip)
    jacobian = torch.autograd.functional.jacobian(net, a).reshape(64, 64)
    assert torch.linalg.matrix_norm(jacobian, 2) <= net.expansion() + 1e-9
    assert (net(a) - net(b)).norm() <= net.expansion() * (a - b).norm()
    assert net.lipschitz() == 1 + net.expansion()
    assert DnCNN(width=6, depth=3).expansion() == math.inf


def test_the_chain_takes_real_and_complex_images():
    net = DnCNN(channels=2, width=4, depth=2).double()
    x = draw(2, 8, 8, dtype=torch.complex128)
    real = net(torch.stack((x.real, x.imag), dim=1))
    torch.testing.assert_close(net(x), torch.complex(real[:, 0], real[:, 1]))
    torch.testing.assert_close(net(x.unsqueeze(1)).squeeze(1), net(x))
    with pytest.raises(ValueError, match="channels=2"):
        net(x.real)
    torch.testing.assert_close(net.slope(x), x - net(x))


def test_an_averaged_nonexpansive_network_is_firmly_nonexpansive():
    prior = averaged(stretched(DnCNN(width=6, depth=3, bound=1.0, skip=False).double()))
    a, b = draw(1, 1, 8, 8), draw(1, 1, 8, 8, seed=1)
    moved = prior(a) - prior(b)
    assert (moved * moved).sum() <= (moved * (a - b)).sum() + 1e-9
    assert prior.is_firm()
    assert prior.expansion() == 1
    assert not averaged(prior.net, 0.8).is_firm()
    assert averaged(prior.net, 0.8).expansion() == pytest.approx(1)
    torch.testing.assert_close(prior.slope(a), a - prior(a))


def test_of_a_free_network_nothing_is_claimed():
    for net in (torch.nn.Identity(), DnCNN(width=4, depth=2)):
        assert averaged(net).expansion() == averaged(net).lipschitz() == math.inf
        assert not averaged(net).is_firm()


def test_a_gradient_step_follows_its_energy():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3, padding=1)
    ).double()
    prior, x = GradientStep(net), draw(2, 1, 6, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.energy(x).sum(), x)
    torch.testing.assert_close(prior.slope(x), gradient)
    torch.testing.assert_close(prior(x), x - gradient)
    jacobian = torch.autograd.functional.jacobian(prior.slope, x[:1]).reshape(36, 36)
    torch.testing.assert_close(jacobian, jacobian.mT)
    with torch.no_grad():
        torch.testing.assert_close(prior.slope(x), gradient)


class Half(Prior):
    """A user's own."""

    def forward(self, v):
        return 0.5 * v


def test_a_users_prior_needs_a_denoiser_only():
    prior, x = Half(), draw(1, 2, 2)
    torch.testing.assert_close(prior.slope(x), 0.5 * x)
    assert prior.expansion() == math.inf
    assert not prior.convex
    assert not prior.is_firm()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: DnCNN(depth=1), ValueError, "depth=1"),
        (lambda: DnCNN(bound=0.0), ValueError, "bound"),
        (lambda: averaged(3), TypeError, "int"),
        (lambda: averaged(torch.nn.Identity(), 0.0), ValueError, "share"),
        (lambda: GradientStep(3), TypeError, "int"),
    ],
)
def test_what_is_no_prior_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_gradient_step_is_the_same_in_inference_mode():
    torch.manual_seed(0)
    prior = GradientStep(DnCNN(width=4, depth=3, skip=False, smooth=True))
    x = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        found = prior(x.clone())
    torch.testing.assert_close(found, prior(x).detach())


def test_a_smooth_chain_has_a_slope_that_does_not_jump():
    torch.manual_seed(0)
    smooth, kinked = (DnCNN(width=4, depth=3, smooth=each).double() for each in (True, False))
    kinked.load_state_dict(smooth.state_dict())
    line = torch.linspace(-1, 1, 2001, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    jumps = [net(line)[:, 0, 1, 1].diff().diff().abs().max() for net in (smooth, kinked)]
    assert jumps[0] < 0.05 * jumps[1]
    with pytest.raises(ValueError, match=r"smooth=True.*expected False where there is a bound"):
        DnCNN(smooth=True, bound=1.0)
