"""What score models refuse before they compute, in words."""

import pytest
import torch
from torch import nn

import torchimplicit as ti

SCHEDULES = [ti.nn.EDM(), ti.nn.VP(), ti.nn.SubVP(), ti.nn.VE(), ti.nn.Straight()]


class Network(nn.Module):
    def __init__(self, classes=0):
        super().__init__()
        self.layer, self.label = nn.Linear(3, 2), nn.Embedding(classes + 1, 2)

    def forward(self, t, x, label=None):
        found = self.layer(torch.cat([x, t], 1))
        return found if label is None else found + self.label(label)


def model(*schedule, **options):
    return ti.nn.Denoiser(Network(options.get("classes", 0)), *schedule, shape=2, interval=None, **options)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_times_outside_of_the_schedule_are_refused(schedule):
    denoiser, x = model(schedule), torch.ones(2, 2)
    low, high = schedule.span
    for t in (low - 0.01, high * 1.01, torch.tensor([high, torch.nan])):
        for ask in (denoiser.score, denoiser.velocity, denoiser.denoised, denoiser):
            with pytest.raises(ValueError, match=r"expected them within \(.*those of the schedule"):
                ask(x, t)
    for t in (low, high):
        assert denoiser.score(x, t).isfinite().all()


@pytest.mark.parametrize("ask", ["loss", "log_prob"])
def test_samples_of_another_precision_are_refused(ask):
    with pytest.raises(TypeError, match=r"got torch.float64, expected torch.float32.*try \.to\(torch.float32\)"):
        getattr(model(), ask)(torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"got torch.float32, expected torch.float64"):
        getattr(model().double(), ask)(torch.ones(2, 2))
    flow = ti.nn.CNF(nn.Linear(2, 2), 2, autonomous=True)
    with pytest.raises(TypeError, match=r"flow_matching_loss: got torch.float64"):
        ti.nn.flow_matching_loss(flow, torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"CNF: got torch.float64"):
        flow.log_prob(torch.ones(2, 2, dtype=torch.float64))


def test_guidance_away_from_a_class_that_was_never_hidden_is_warned_of():
    with pytest.warns(UserWarning, match="label_dropout=0, whose loss hides no label"):
        model(classes=3, label_dropout=0).sample(2, seed=1, label=0, guidance=2.0)
    model(classes=3, label_dropout=0).sample(2, seed=1, label=0)
    model(classes=3).sample(2, seed=1, label=0, guidance=2.0)


def test_what_is_no_option_is_refused():
    with pytest.raises(ValueError, match=r"Denoiser\(shape=8.0\): expected the shape of one sample"):
        ti.nn.Denoiser(Network(), shape=8.0)
    with pytest.raises(ValueError, match=r"CNF\(shape='2'\): expected the shape of one sample"):
        ti.nn.CNF(nn.Linear(2, 2), "2", autonomous=True)
    with pytest.raises(TypeError, match="expected a distribution of log s"):
        model().loss(torch.ones(2, 2), levels=torch.distributions.Normal)
    with pytest.raises(TypeError, match=r"got the class Network, whose instance Network\(...\) is one"):
        ti.nn.Denoiser(Network, shape=2)
