"""Language data, language models, and the memory between segments."""

import math
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DistributedSampler

import torchimplicit as ti
from torchimplicit.train import load
from torchimplicit.train.checkpoint import CheckpointError
from torchimplicit.train.command import catalogue
from torchimplicit.train.command.cli import main
from torchimplicit.train.data import BytePairs, Characters, DataError, Text
from torchimplicit.train.data.text import Streams
from torchimplicit.train.data.vocabulary import UnknownCharacterError
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import LanguageModel
from torchimplicit.train.networks import DEQTransformer, DEQTrellis, TransformerNetwork

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists", "ignore:Be aware that when using .ckpt_path"
)

LINE = "the cat sat on the mat, the dog lay on the log. "
SMALL = {"width": 8, "heads": 2, "length": 16}


@pytest.fixture
def folder(tmp_path):
    """A tiny text, which a model can learn by heart."""
    place = tmp_path / "sets" / "text"
    place.mkdir(parents=True)
    (place / "tinyshakespeare.txt").write_text(LINE * 40)
    return place


def data(folder, **options):
    return Text(data_dir=str(folder), **{"length": 8, "batch_size": 4, **options})


# data


@pytest.mark.parametrize("whole", [True, False])
def test_batch_after_batch_a_row_goes_on(whole):
    streams = Streams(torch.arange(54), rows=4, length=5, whole=whole)  # 13 tokens a row: 5, 5, and 3
    batches = [streams.__getitems__(list(range(i, i + 4))) for i in range(0, len(streams), 4)]
    assert [len(seen[0]) for seen, _ in batches] == ([5, 5] if whole else [5, 5, 3])
    seen, said = (torch.cat(parts, 1) for parts in zip(*batches, strict=True))
    assert seen.tolist() == [list(range(13 * row, 13 * row + seen.shape[1])) for row in range(4)]
    assert torch.equal(said, seen + 1)


def test_processes_have_rows_of_their_own():
    streams = Streams(torch.arange(41), rows=4, length=5, whole=True)
    rows = []
    for rank in (0, 1):
        order = list(DistributedSampler(streams, 2, rank, shuffle=False))
        first, second = (streams.__getitems__(order[i : i + 2])[0] for i in (0, 2))
        assert torch.equal(second[:, 0], first[:, -1] + 1)
        rows += first[:, 0].tolist()
    assert sorted(rows) == [0, 10, 20, 30]


def test_a_file_is_cut_into_three(folder, monkeypatch):
    direct, above = data(folder), data(folder.parent)
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(folder.parent))
    variable = Text(length=8, batch_size=4)
    for each in (direct, above, variable):
        each.setup()
        assert [split.seen.numel() for split in each.splits] == [1724, 92, 92]
        assert each.vocabulary == len(set(LINE))
    text = LINE * 40
    train, val, test = direct.splits
    decode = direct.symbols.decode
    assert decode(train.seen.flatten()) == text[:1724]
    assert decode(val.seen.flatten()) == text[1728 : 1728 + 92]
    assert decode(test.seen.flatten()) == text[1824 : 1824 + 92]
    assert direct.characters_per_token == {"train": 1, "val": 1, "test": 1}


def test_three_files_are_taken_as_they_are(tmp_path):
    place = tmp_path / "text" / "wikitext-2"
    place.mkdir(parents=True)
    for name in ("train", "valid"):
        (place / f"{name}.txt").write_text(LINE * 4)
    with pytest.raises(DataError, match=r"wikitext-2 has no test\.txt, expected train\.txt, valid\.txt, test\.txt"):
        data(tmp_path, source="wikitext-2").setup()
    (place / "test.txt").write_text(LINE)
    each = data(tmp_path, source="wikitext-2")
    each.setup()
    assert [len(split.seen[0]) for split in each.splits] == [(len(LINE) * count - 1) // 4 for count in (4, 4, 1)]


def test_characters_and_pairs_come_back():
    characters, pairs, twin = Characters(LINE), BytePairs(LINE * 20, 270), BytePairs(LINE * 20, 270)
    for each in (characters, pairs):
        assert each.decode(each.encode(LINE)) == LINE
    assert pairs.tokens == twin.tokens
    assert len(pairs.tokens) == 270
    assert len(pairs.encode(LINE)) < len(LINE) == len(characters.encode(LINE))
    assert pairs.decode(pairs.encode("Zürich ✓")) == "Zürich ✓"
    with pytest.raises(UnknownCharacterError, match=r"got \['Z', 'u'\], expected the 16 characters"):
        characters.encode("Zeus")


def test_pairs_of_a_text_know_how_many_characters_they_are(folder):
    each = data(folder, tokens="pairs", pairs=270, batch_size=1)
    each.setup()
    assert each.vocabulary == 270
    tokens = each.symbols.encode((LINE * 40)[1728:1824])
    assert each.characters_per_token["val"] == 96 / len(tokens) > 1.3


def test_it_says_what_is_missing(tmp_path, folder):
    with pytest.raises(DataError, match=r"looked in .*nowhere.*no such folder.*--data-dir"):
        data(tmp_path / "nowhere").setup()
    with pytest.raises(DataError, match=r"found no wikitext-2"):
        data(folder, source="wikitext-2").setup()
    with pytest.raises(DataError, match=r"train has 1728 tokens, expected at least 32001, for 4 streams"):
        data(folder, length=8000).setup()
    (folder / "tinyshakespeare.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"cannot read .*UTF-8"):
        data(folder).setup()


@pytest.mark.parametrize("wrong", [{"length": 0}, {"tokens": "words"}, {"pairs": 10}])
def test_impossible_data_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        data(folder, **wrong)


@pytest.mark.parametrize(
    ("source", "where"),
    [
        ("shakespeare", {"path": "karpathy/tiny_shakespeare", "revision": "refs/convert/parquet"}),
        ("wikitext-2", {"path": "Salesforce/wikitext", "name": "wikitext-2-v1"}),
    ],
)
def test_it_comes_from_the_hub_where_there_is_no_folder(monkeypatch, source, where):
    asked = []

    def load_dataset(split, **rest):
        asked.append(split)
        assert rest == where
        return {"text": [LINE * (4 if split == "train" else 1), "end"]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    each = Text(source, length=8, batch_size=4)
    each.setup()
    assert asked == ["train", "validation", "test"]
    assert each.splits.train.seen.numel() == 192  # of 195

    def refuse(**rest):
        raise OSError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refuse))
    with pytest.raises(DataError, match=f"could not get {where['path']}.*no route.*--data-dir"):
        Text(source).prepare_data()


# networks


def network(kind=DEQTransformer, **options):
    torch.manual_seed(0)
    sizes = {"width": 8} if kind is DEQTrellis else dict(SMALL)
    if kind is not TransformerNetwork:
        sizes["solver"] = ti.Anderson(rtol=1e-4, max_steps=50)
    else:
        sizes["layers"] = 3
    return kind(**{"vocabulary": len(set(LINE)), **sizes, **options})


KINDS = [DEQTransformer, TransformerNetwork, DEQTrellis]


@pytest.mark.parametrize("kind", KINDS)
def test_two_segments_with_memory_are_one_without(kind):
    each = network(kind).double()
    for layer in each.modules():
        if isinstance(layer, ti.nn.DEQ):
            layer.solver = ti.Anderson(rtol=1e-11, atol=1e-12, max_steps=200)
    tokens = torch.randint(16, (2, 12))
    whole, _ = each(tokens)
    first, memory = each(tokens[:, :6])
    second, _ = each(tokens[:, 6:], memory)
    assert (whole - torch.cat((first, second), 1)).abs().max() < 1e-9
    assert not any(part.requires_grad for part in memory)
    assert (each(tokens[:, 6:])[0] - second).abs().max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_adaptive_head_is_a_distribution(kind):
    each = network(kind, width=16, cutoffs=[5, 10])
    tokens = torch.randint(16, (2, 6))
    features, _ = each(tokens)
    scores = each.log_probabilities(features)
    assert torch.allclose(scores.exp().sum(-1), torch.ones(2, 6), atol=1e-5)
    assert torch.allclose(each.losses(features, tokens), -scores.gather(2, tokens[..., None]).flatten(), atol=1e-5)
    with pytest.raises(ValueError, match="cutoffs"):
        network(kind, cutoffs=[10, 5])
    with pytest.raises(ValueError, match=r"width=8.*at least 16"):
        network(kind, cutoffs=[5, 10])


def recipe(name):
    return yaml.safe_load(catalogue.shipped()[name].read_text())["model"]["init_args"]["network"]["init_args"]


def test_the_rivals_of_the_recipes_have_as_many_parameters_and_the_equilibrium_a_third_of_the_memory():
    sizes = {key: value for key, value in recipe("text").items() if key not in ("solver", "adjoint")}
    ours, theirs = DEQTransformer(**sizes), TransformerNetwork(**recipe("text-explicit"))
    counts = [sum(weight.numel() for weight in each.parameters()) for each in (ours, theirs)]
    assert abs(counts[0] / counts[1] - 1) < 0.02
    tokens, saved = torch.randint(65, (1, 128)), []
    for each in (ours, theirs):
        weights, sizes = {weight.untyped_storage().data_ptr() for weight in each.parameters()}, {}
        _, memory = each(tokens)

        def pack(tensor, weights=weights, sizes=sizes):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features, _ = each(tokens, memory)
            loss = each.losses(features, tokens).mean()
        saved.append(sum(sizes.values()))
        loss.backward()
    assert saved[0] <= saved[1] / 3


# modules


class Interrupted(Exception):  # noqa: N818
    """By a user."""


class Watch(pl.Callback):
    """Notes the loss of every training batch, and may interrupt."""

    def __init__(self, at=None):
        self.losses, self.at = {}, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses[trainer.current_epoch, batch_idx] = float(outputs["loss"].detach())

    def on_after_backward(self, trainer, pl_module):
        if self.at == (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx):
            raise Interrupted


def run(folder, at=None, resume=None, epochs=2, accumulate=1, kind=DEQTransformer, **options):
    pl.seed_everything(0, verbose=False)
    watch = Watch(at)
    module = LanguageModel(network(kind), recipe="t", learning_rate=1e-2, **options)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_train_batches=7, accumulate_grad_batches=accumulate,
        callbacks=[watch, ModelCheckpoint(".", filename="last", save_on_exception=True, enable_version_counter=False)],
    )  # fmt: skip
    with suppress(Interrupted):
        trainer.fit(module, datamodule=data(folder), ckpt_path=resume, weights_only=bool(resume) or None)
    return module, trainer, watch.losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_interrupted_run_remembers(folder, kind, accumulate):
    expected, _, losses = run(folder, accumulate=accumulate, kind=kind)
    run(folder, at=(1, 4), accumulate=accumulate, kind=kind)
    got, _, rest = run(folder, resume="last.ckpt", accumulate=accumulate, kind=kind)
    assert min(rest) == (1, 4 if accumulate == 1 else 3)
    assert rest == {place: losses[place] for place in rest}
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), expected.parameters(), strict=True))


def test_the_memory_goes_from_batch_to_batch_and_no_further(folder, monkeypatch):
    seen = []
    forward = DEQTransformer.forward

    def watched(self, tokens, memory=None):
        features, after = forward(self, tokens, memory)
        seen.append((self.training, memory, after))
        return features, after

    monkeypatch.setattr(DEQTransformer, "forward", watched)
    run(folder, epochs=2)
    for training, starts in ((True, 2), (False, 3)):  # a few batches of validation come first, to see that it works
        calls = [(memory, after) for mode, memory, after in seen if mode is training]
        assert sum(memory is None for memory, _ in calls) == starts
        for (_, after), (memory, _) in pairwise(calls):
            assert memory is None or memory[0] is after[0]
    seen.clear()
    run(folder, epochs=1, remember=False)
    assert all(memory is None for _, memory, _ in seen)


def test_perplexity_and_bits_are_of_the_mean_loss(folder):
    module, trainer, _ = run(folder, epochs=1)
    each = data(folder, tokens="characters")
    figures = trainer.test(module, datamodule=each, verbose=False)[0]
    memory, total, count = None, 0.0, 0
    module.eval()
    with torch.no_grad():
        for tokens, said in each.test_dataloader():
            features, memory = module.network(tokens, memory)
            losses = module.network.losses(features, said)
            total, count = total + float(losses.sum()), count + losses.numel()
    assert count == 92
    assert figures["test/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert figures["test/bits_per_character"] == pytest.approx(total / count / math.log(2), rel=1e-4)


def test_bits_of_pairs_are_by_the_character(folder):
    each = data(folder, tokens="pairs", pairs=270, batch_size=2)
    each.setup()
    module = LanguageModel(network(vocabulary=270))
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    figures = trainer.test(module, datamodule=each, verbose=False)[0]
    bits = math.log2(figures["test/perplexity"]) / each.characters_per_token["test"]
    assert figures["test/bits_per_character"] == pytest.approx(bits, rel=1e-4)


def test_data_and_network_must_fit_before_anything_is_trained(folder):
    def fit(module, **options):
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, datamodule=data(folder, **options))

    with pytest.raises(UsageError, match=r"vocabulary of 65 tokens, the data one of 16.*vocabulary 16"):
        fit(LanguageModel(network(vocabulary=65)))
    with pytest.raises(UsageError, match=r"segments of 9 tokens and as many to remember.*room for 16.*length 18"):
        fit(LanguageModel(network()), length=9)
    with pytest.raises(UsageError, match=r"segments of 17 tokens, but the network has room for 16"):
        fit(LanguageModel(network(), remember=False), length=17)


def test_a_checkpoint_of_another_vocabulary_is_refused(folder):
    run(folder, epochs=1)
    (folder / "tinyshakespeare.txt").write_text(LINE.replace("c", "k") * 40)
    with pytest.raises(CheckpointError, match=r"another vocabulary.*token 4: got 'c', expected 'd'"):
        run(folder, resume="last.ckpt")


def test_what_it_says_begins_with_the_prompt(folder):
    module, *_ = run(folder, epochs=1)
    symbols = Characters(LINE)
    prompt = symbols.encode("the cat sat on the mat")
    said = module.eval().say(prompt, 5)
    assert torch.equal(said[:-5], prompt)
    assert len(symbols.decode(said)) == 27
    scores = module.network.log_probabilities(module.network(prompt[None, -16:])[0][:, -1:])
    assert module.say(prompt, 1, temperature=1e-4)[-1] == scores.argmax()


@pytest.mark.filterwarnings("ignore::torchimplicit.ConvergenceWarning")
@pytest.mark.parametrize("name", ["text", "text-explicit"])
def test_the_recipes_train(folder, name):
    words = [
        "fit", "--config", name, "--data-dir", str(folder), "--data.length", "16", "--data.batch_size", "4",
        "--model.network.vocabulary", "16", "--model.network.width", "16", "--model.network.heads", "2",
        "--model.network.hidden", "32", "--model.network.length", "32", "--trainer.max_epochs", "3",
        "--model.warmup_steps", "5", "--model.learning_rate", "1e-2", "--trainer.enable_progress_bar", "false",
        "--trainer.log_every_n_steps", "5", "--trainer.precision", "32",
    ]  # fmt: skip
    words += ["--model.network.layers", "2"] if name == "text-explicit" else []
    assert main(words) == 0
    best = Path("runs") / name / "version_0" / "checkpoints" / "best.ckpt"
    module, _ = load(best)
    assert module.recipe == name
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    figures = trainer.test(module, datamodule=data(folder, length=16), verbose=False)[0]
    assert figures["test/perplexity"] < 12  # of 16
