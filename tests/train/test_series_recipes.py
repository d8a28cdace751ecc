"""The recipes `physionet`, `physionet-mortality` and `lynx-hare`: they train, say what they reach, and draw it."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from tests.train.stays import some_stays
from tests.train.test_series_data import HEAD, pelts
from torchimplicit.nn import Series
from torchimplicit.train import load, write_report
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import LynxHare, PhysioNet2012
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Forecaster, Prognosis, StochasticForecaster
from torchimplicit.train.modules.forecaster import unseen
from torchimplicit.train.networks import GRUD, LatentODENetwork, LatentSDENetwork, ODERNNNetwork
from torchimplicit.train.networks.series.last_values import straight_lines

__all__ = ["pelts"]
SHORT = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.log_every_n_steps 1"
SHORT += " --trainer.check_val_every_n_epoch 1"
QUIET = "--trainer.enable_progress_bar false --trainer.accelerator cpu"
STAYS = "--data.validation 10 --data.batch_size 8"
SMALL = f"{STAYS} --model.network.latent 4 --model.network.width 5 --model.network.hidden 6"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(tmp_path))
    return some_stays(tmp_path / "physionet2012")


def run(capsys, recipe, options):
    """Trains and tests; what the test says, by name."""
    assert main(f"fit --config {recipe} {QUIET} {SHORT} {options}".split()) == 0
    assert main(f"test --config {recipe} {QUIET} {options}".split()) == 0
    printed = capsys.readouterr().out
    return {name: float(value) for name, value in re.findall(r"(test/\w+)\W+(-?[\d.]+(?:e-?\d+)?)", printed)}


def test_physionet_trains_and_says_both_errors_beside_those_of_the_baselines(capsys, folder):
    figures = run(capsys, "physionet", SMALL)
    for whose in ("", "last_value_", "mean_"):
        published, plain = (figures[f"test/{whose}mse_{count}"] for count in ("as_latent_ode", "over_observations"))
        assert 0 < published < plain  # most variables are not observed at all
    data = PhysioNet2012(batch_size=8, validation=10)
    data.setup()
    seen, target, _ = data.splits.test.__getitems__(list(range(8)))
    units = LatentODENetwork(41).units
    units.settle(data.splits.train.series)
    squares = (units.mean - target.values).square()[target.mask]
    assert figures["test/mean_mse_over_observations"] == pytest.approx(float(squares.mean()), rel=1e-3)
    assert len(seen) == 8


@pytest.mark.parametrize("rival", ["GRUD", "ODERNNNetwork"])
def test_rivals_train_with_the_same_recipe(capsys, folder, rival):
    options = f"{STAYS} --model.network {rival} --model.network.width 5 --model.network.hidden 6"
    figures = run(capsys, "physionet", options)
    assert figures["test/mse_as_latent_ode"] > 0


def test_interpolation_is_an_option(capsys, folder):
    figures = run(capsys, "physionet", f"{SMALL} --data.task interpolation --data.seen 0.5")
    data = PhysioNet2012(batch_size=8, validation=10, task="interpolation", seen=0.5)
    data.setup()
    seen, target, _ = data.splits.test.__getitems__(list(range(len(data.splits.test))))
    hidden = unseen(seen, target)
    assert seen.observations.sum() + hidden.observations.sum() == target.observations.sum()
    for whose in ("", "last_value_", "mean_", "linear_"):
        assert figures[f"test/{whose}mse_over_observations"] > 0
        assert figures[f"test/hidden_{whose.replace('_value', '')}over_observations"] > 0
    share = float(hidden.observations.sum() / target.observations.sum())  # lines are right where they begin and end
    expected = share * figures["test/hidden_linear_over_observations"]
    assert figures["test/linear_mse_over_observations"] == pytest.approx(expected, rel=1e-3)


def test_straight_lines_are_those_of_numpy():
    draw = torch.Generator().manual_seed(0)
    series = Series.of(
        (torch.rand(count, generator=draw).sort().values, torch.randn(count, 3, generator=draw),
         torch.rand(count, 3, generator=draw) < 0.5)
        for count in (5, 1, 8)
    )  # fmt: skip
    ts = torch.cat((series.times, 1.4 * torch.rand(3, 6, generator=draw) - 0.2), 1)  # also outside of all
    found = straight_lines(series, ts, torch.tensor([7.0, 8, 9]))
    for row in range(3):
        at = ~ts[row].isnan()
        for channel in range(3):
            mask = series.mask[row, :, channel]
            known = series.times[row, mask].numpy(), series.values[row, mask, channel].numpy()
            expected = np.interp(ts[row, at].numpy(), *known) if mask.any() else np.full(int(at.sum()), 7.0 + channel)
            assert found[row, at, channel].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_mortality_trains_and_says_the_area_under_the_curve(capsys, folder):
    figures = run(capsys, "physionet-mortality", SMALL)
    assert 0 <= figures["test/auc"] <= 1


def test_what_decides_the_label_is_learned(folder):
    torch.manual_seed(0)
    data = PhysioNet2012(str(folder), task="interpolation", seen=1.0, batch_size=22, validation=10)
    module = Prognosis(GRUD(41, width=16, hidden=16), learning_rate=2e-2)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=30, enable_model_summary=False, **options)
    trainer.fit(module, datamodule=data)
    assert trainer.test(module, datamodule=data, verbose=False)[0]["test/auc"] > 0.9  # fast hearts die


def test_lynx_and_hare_train_and_the_spread_is_told(capsys, pelts, monkeypatch):
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(pelts.parent.parent))
    options = "--data.steps 4 --data.held 3 --model.network.hidden 6 --model.network.draws 20"
    figures = run(capsys, "lynx-hare", options)
    assert 0 < figures["test/diffusion_variance"] < 1
    assert figures["test/data_variance"] == pytest.approx(6 / 7, rel=1e-4)  # of seven, which have deviation 1
    assert 0 <= figures["test/coverage"] <= 1


def test_reports_have_pictures(folder, pelts):
    for recipe, options in (("physionet", SMALL), ("lynx-hare", "--data.steps 2 --model.network.draws 20")):
        place = folder.parent if recipe == "physionet" else pelts.parent.parent
        assert main(f"fit --config {recipe} {QUIET} {SHORT} {options} --data-dir {place}".split()) == 0
        best = Path(f"runs/{recipe}/version_0/checkpoints/best.ckpt")
        text = write_report(best, data_dir=str(place)).read_text()
        assert "Could not be made" not in text
        assert "<h2>series</h2>" in text
        module, _ = load(best)
        assert not module.training


def test_a_table_of_ones_own_trains_with_the_recipe(capsys, tmp_path):
    lines = [f"{who},{day},{name},{who + day}" for who in range(20) for day in range(6) for name in "ab"]
    path = tmp_path / "own.csv"
    path.write_text(HEAD + "\n".join(lines) + "\n")
    options = f"--data LongTable --data.path {path} --data.batch_size 4 --model.network.latent 4"
    figures = run(capsys, "physionet", options)
    assert figures["test/mse_over_observations"] > 0, "the network takes the number of variables from the table"
    assert main(f"fit --config physionet {QUIET} {SHORT} {options} --model.network.channels 3".split()) == 1
    assert "--model.network.channels 3: the data has 2" in capsys.readouterr().err


def test_bad_tables_end_in_one_line_before_training(capsys, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(HEAD + "p,0,a,nan\n")
    assert main(f"fit --config physionet {QUIET} --data LongTable --data.path {path}".split()) == 1
    said = capsys.readouterr().err
    assert "line 2: value 'nan', expected a finite number" in said
    assert not Path("runs").exists()


def test_a_label_is_asked_of_data_and_networks_that_have_one(folder, pelts):
    data = PhysioNet2012(str(folder), validation=10)
    data.setup()
    batch = data.splits.val.__getitems__([0, 1])
    with pytest.raises(UsageError, match=r"ODERNNNetwork says nothing of a label\. Try LatentODENetwork"):
        Prognosis(ODERNNNetwork(41)).evaluate("train", batch)
    with pytest.raises(UsageError, match=r"the data has no labels\. Try --data PhysioNet2012"):
        Prognosis(GRUD(41)).evaluate("train", batch._replace(label=torch.full((2,), torch.nan)))


def test_the_divergence_is_weighed_as_asked_for():
    module = Forecaster(GRUD(41), kl_wait_epochs=2, kl_rate=0.5, kl_most=0.2)
    weights = []
    for epoch in range(4):
        module._trainer = SimpleNamespace(current_epoch=epoch)  # type: ignore[assignment]
        weights.append(module.kl_weight("train"))
        assert module.kl_weight("val") == 0.2
    assert weights == [0, 0, 0.1, pytest.approx(0.15)]


def test_bands_hold_what_they_say(pelts):
    torch.manual_seed(0)
    module = StochasticForecaster(LatentSDENetwork(2, latent=2, hidden=4))
    data = LynxHare(str(pelts.parent), held=3)
    data.setup()
    seen, target, _ = data.splits.test.__getitems__([0])
    low, high = module.band(seen, target.times)
    expected = module.network.predict(seen, target.times)
    assert (low < expected).all()
    assert (expected < high).all()
    wide = 2 * 1.645 * module.network.likelihood.std
    assert ((high - low) > 0.8 * wide).all()


@pytest.mark.parametrize("options", [{"kl_wait_epochs": -1}, {"kl_rate": 2.0}, {"kl_most": -1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=rf"Forecaster\({next(iter(options))}="):
        Forecaster(GRUD(41), **options)
