"""The denoiser: scores, velocities, losses, samples of their own, bad input."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from tests.nn.score.gaussian import MEAN, PREDICTIONS, SCHEDULES, VARIANCE, D, Exact, double, model


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_score_and_velocity_of_normal_data(schedule, prediction):
    own = model(schedule, prediction)
    first, last = schedule.span
    t = torch.linspace(first, last, 7, dtype=D)[1:-1]
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    x = alpha * MEAN + double(5, 3)
    with torch.no_grad():
        score, velocity = own.score(x, t), own.velocity(x, t)
        assert torch.equal(own(x, t), own.denoised(x, t))
        assert torch.allclose(own.score(x[1:2], float(t[1])), score[1:2])
    assert torch.allclose(score, (alpha * MEAN - x) / (alpha**2 * VARIANCE + sigma**2), rtol=1e-8)

    def flow(t):  # what stays so many standard deviations from the mean
        a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        size = (alpha**2 * VARIANCE + sigma**2).sqrt()
        return a * MEAN + (x - alpha * MEAN) / size * (a**2 * VARIANCE + s**2).sqrt()

    expected = torch.func.jvp(flow, (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(velocity, expected, rtol=1e-7, atol=1e-9)


def test_the_network_is_given_the_level_and_data_of_size_one():
    seen = []

    def network(t, x):
        seen.append((t, x))
        return torch.zeros_like(x)

    own = ti.nn.Denoiser(network, ti.nn.VP(), shape=(1, 2, 2), std=1.0, interval=None)
    t, x = torch.tensor([0.1, 0.9], dtype=D), double(2, 1, 2, 2)
    own.denoised(x, t)
    assert seen[0][0].shape == (2, 1, 1, 1)
    assert torch.allclose(seen[0][0].flatten(), -own.schedule.log_snr(t) / 8)
    assert torch.allclose(seen[0][1], x)  # alpha^2 + sigma^2 = 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_weighting_is_the_error_of_its_network(prediction):
    """Noise, image, velocities by hand against the loss of a denoiser of another kind with that weighting."""
    own, x = model(prediction="x"), double(6, 3)
    torch.manual_seed(0)
    loss = own.loss(x, weighting=prediction)
    torch.manual_seed(0)
    least, most = (math.log(level) for level in own.schedule.levels)
    s = (least + (most - least) * torch.rand(6, dtype=D)).exp()[:, None]
    eps = torch.randn_like(x)
    found = own.denoise(x + s * eps, s)
    noise = (x + s * eps - found) / s
    a, b = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    wanted = {
        "eps": (noise, eps), "x": (found, x), "v": (a * noise - b * found, a * eps - b * x),
        "flow": (noise - found, eps - x),
        "edm": tuple((0.5 * e - s / 0.5 * d) / (s**2 + 0.25).sqrt() for e, d in ((noise, found), (eps, x))),
    }  # fmt: skip
    one, other = wanted[prediction]
    assert torch.allclose(loss, (one - other).square().mean(1), rtol=1e-7)


@pytest.mark.parametrize("levels", [None, torch.distributions.Normal(-1.0, 3.0)])
def test_the_likelihood_weighting_does_not_depend_on_how_levels_are_drawn(levels):
    """For normal data its mean is the integral of `c / (c + s^2)` over `log s`."""
    own = model()
    x = MEAN + VARIANCE.sqrt() * double(60_000, 3)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = own.loss(x, weighting="likelihood", levels=levels)
    tau = torch.linspace(*(math.log(level) for level in own.schedule.levels), 4001, dtype=D)
    expected = torch.trapezoid((VARIANCE / (VARIANCE + (2 * tau).exp()[:, None])).mean(1), tau)
    assert abs(loss.mean() - expected) < 4 * loss.std() / math.sqrt(len(x))


def test_the_loss_is_least_at_the_data():
    own, x = model(), MEAN + VARIANCE.sqrt() * double(50_000, 3)
    torch.manual_seed(0)
    loss = own.loss(x)
    loss.mean().backward()
    assert all(grad.abs().max() < 0.02 for grad in (own.network.mean.grad, own.network.variance.grad))
    assert loss.shape == (50_000,)
    with torch.no_grad():
        own.network.mean += 0.2
        torch.manual_seed(0)
        assert own.loss(x).mean() > loss.mean() + 0.01


def test_labels_are_hidden_in_training_alone():
    seen = []

    def network(t, x, label):
        seen.append(label)
        return x

    own = ti.nn.Denoiser(network, shape=3, classes=4, label_dropout=0.25, interval=None)
    x, label = double(4000, 3), torch.arange(4000) % 4
    torch.manual_seed(0)
    own.loss(x, label)
    own.eval().loss(x, label)
    own.loss(x)
    own.denoised(x, 1.0, 2)
    assert abs((seen[0] == 4).double().mean() - 0.25) < 4 * math.sqrt(0.1875 / 4000)
    assert torch.equal(seen[1], label)
    assert seen[2].unique().tolist() == [4]
    assert seen[3].unique().tolist() == [2]


def test_guidance_by_a_class():
    """Two normal classes and their mixture's stand-in, all of one variance: guidance moves the mean on."""
    own = ti.nn.Denoiser(Exact(), shape=3, classes=2, interval=None)
    with torch.no_grad():
        own.network.variance.fill_(0.5)
    label = torch.arange(6000) % 2
    for weight, mean in ((1.0, 0.5), (0.0, 0.0)):
        x = own.sample(6000, seed=1, label=label, guidance=weight)
        assert abs(x[label == 1].mean() - mean) < 4 * math.sqrt(0.5 / 9000)
    assert own.sample(6000, seed=1, label=label, guidance=3.0)[label == 1].mean() > 1
    assert torch.equal(own.sample(3, seed=1, label=1), own.sample(3, seed=1, label=torch.ones(3, dtype=torch.int64)))


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(3)])
def test_networks_in_training_are_warned_of_when_they_draw(part):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, t, x):
            return self.part(x)

    network = Network()
    own = ti.nn.Denoiser(network.eval(), shape=3, interval=None).train()
    own.loss(double(4, 3).float())
    with pytest.warns(UserWarning, match=f"network's 'part' is a {type(part).__name__} in training.*model.eval"):
        own.sample(4)
    own.eval().sample(4)


def test_losses_under_transforms():
    own, x = ti.nn.Denoiser(Exact(), shape=3), double(4, 3).clamp(-1, 1)
    weights = dict(own.named_parameters())

    def loss(weights, x):
        torch.manual_seed(0)
        return torch.func.functional_call(Loss(own), {f"model.{name}": w for name, w in weights.items()}, (x,))

    torch.manual_seed(0)
    expected = torch.autograd.grad(own.loss(x).mean(), [*weights.values()])
    for one, other in zip(torch.func.grad(loss)(weights, x).values(), expected, strict=True):
        assert torch.allclose(one, other)
    both = torch.func.vmap(loss, (None, 0), randomness="same")(weights, torch.stack([x, x]))
    assert torch.allclose(both, own_mean(own, x).expand(2))


def own_mean(own, x):
    torch.manual_seed(0)
    return own.loss(x).mean()


class Loss(nn.Module):
    """The mean loss as a module's forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.loss(x).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_other_dtypes(dtype):
    net = nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 3))
    own = ti.nn.Denoiser(lambda t, x: net(torch.cat([t, x], 1)), shape=3)
    own.net, x = net, double(64, 3).float().clamp(-1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = own.loss(x)
        drawn = own.sample(4, seed=1)
    assert loss.dtype == drawn.dtype == torch.float32
    loss.mean().backward()
    assert net[0].weight.grad.isfinite().all()


def test_copies_prints_and_weights():
    own = model()
    x = own.sample(3, seed=1)
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert torch.equal(other.sample(3, seed=1), x)
    assert {name.split(".")[0] for name in own.state_dict()} == {"network"}
    for word in ("shape=(3,)", "EDM(sigma_min=0.002", "prediction='edm'", "std=0.5", "on_failure='warn'"):
        assert word in repr(own)


def test_functions_without_weights_follow_the_module():
    own = ti.nn.Denoiser(lambda t, x: torch.zeros_like(x), shape=2)
    assert own.sample(2).dtype == torch.float32
    assert own.double().sample(2).dtype == D


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"network": 3}, TypeError, r"Denoiser\(network=...\): got a int"),
        ({"network": nn.Linear(3, 3)}, TypeError, r"network=Linear\): takes .*expected network\(t, y, ...\)"),
        ({"schedule": ti.nn.EDM}, TypeError, r"schedule: got .*try EDM\(\)"),
        ({"shape": ()}, ValueError, r"Denoiser\(shape=\(\)\)"),
        ({"shape": (1, 0)}, ValueError, r"Denoiser\(shape="),
        ({"prediction": "noise"}, ValueError, "prediction='noise'.*'eps', 'x', 'v', 'edm', 'flow'"),
        ({"std": 0.0}, ValueError, r"std=0.0\): expected the data's standard deviation"),
        ({"classes": 0}, ValueError, "classes=0"),
        ({"label_dropout": 2}, ValueError, "label_dropout=2"),
        ({"interval": (1, -1)}, ValueError, "interval="),
        ({"on_failure": "shrug"}, ValueError, "on_failure"),
    ],
)
def test_mistakes_are_refused_at_construction(options, error, words):
    with pytest.raises(error, match=words):
        ti.nn.Denoiser(**({"network": lambda t, x: x, "shape": 3} | options))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, x: m.loss(x[:, :2]), ValueError, r"Denoiser.loss: got \(4, 2\), expected samples of shape \(B, 3\)"),
        (lambda m, x: m.loss([1.0]), ValueError, "got list"),
        (lambda m, x: m.loss((100 * x).long()), TypeError, r"torch.int64.*bits_per_dimension\(images, levels=256\)"),
        (
            lambda m, x: m.loss(x.abs() * 255),
            ValueError,
            r"got values from .*within \(-1.0, 1.0\).*scale",
        ),
        (lambda m, x: m.loss(torch.full((4, 3), torch.nan)), ValueError, "NaN or infinity in sample 0"),
        (lambda m, x: m.loss(x, 7), ValueError, "got class 7, expected 0 to 4, which the model knows, or 5, no class"),
        (lambda m, x: m.loss(x, torch.tensor([0, -1, 2, 9])), ValueError, "got class -1, 9"),
        (lambda m, x: m.loss(x, torch.zeros(3).long()), ValueError, r"got shape \(3,\), expected \(4,\)"),
        (lambda m, x: m.loss(x, torch.zeros(4)), TypeError, r"got torch.float32.*label.long\(\)"),
        (lambda m, x: m.loss(x, weighting="snr"), ValueError, "weighting='snr'.*'likelihood'"),
        (lambda m, x: m.loss(x, levels=3), TypeError, "levels=3.*Normal"),
        (lambda m, x: m.denoised(x, torch.ones(3)), ValueError, r"t=...\): got shape \(3,\)"),
        (lambda m, x: m.sample(-1), ValueError, "count=-1"),
        (lambda m, x: m.sample(2, seed=torch.arange(3)), ValueError, "got 3 seeds for a batch of 2"),
        (lambda m, x: m.sample(2, seed=1.5), TypeError, r"Sample\(seed\): got 1.5"),
        (lambda m, x: m.sample(2, label="cat"), TypeError, "got str, expected an int"),
        (lambda m, x: m.sample(2, ti.Tsit5()), TypeError, "sampler: got .*DPMSolverMultistep"),
        (lambda m, x: m.sample(2, guidance="much"), ValueError, "guidance='much'"),
        (lambda m, x: m.sample(2, guidance=2.0), ValueError, "guidance=2.0.*no class to go to.*label=0"),
        (
            lambda m, x: m.loss(x.index_fill(0, torch.tensor([1]), torch.nan), 0),
            ValueError,
            "NaN or infinity in sample 1, expected",
        ),
        (
            lambda m, x: ti.nn.Denoiser(lambda t, x: x, shape=3, interval=None).loss(x * torch.nan),
            ValueError,
            "NaN or infinity in sample 0",
        ),
    ],
)
def test_bad_input(call, error, words):
    own = ti.nn.Denoiser(lambda t, x, label: x, shape=3, classes=5)
    with pytest.raises(error, match=words):
        call(own, double(4, 3).clamp(-1, 1))


def test_classes_of_a_model_without_and_networks_of_another_shape():
    own = ti.nn.Denoiser(lambda t, x: x[:, :1], shape=3)
    with pytest.raises(ValueError, match=r"got classes for a model without; try Denoiser\(classes=...\)"):
        own.sample(2, label=1)
    with pytest.raises(ValueError, match="guidance=2"):
        own.sample(2, guidance=2)
    with pytest.raises(ValueError, match=r"the network returned \(2, 1\), expected \(2, 3\)"):
        own.sample(2)
