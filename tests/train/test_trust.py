"""A checkpoint is data: none of these runs anything, and each is refused with the name of what it wanted."""

import sys
from pathlib import Path

import pytest
import torch

from torchimplicit.train import CheckpointError, load
from torchimplicit.train.cli import main
from torchimplicit.train.modules import Classifier
from torchimplicit.train.networks import DigitsNetwork
from torchimplicit.train.trust import UntrustedError, examine

NETWORKS = "torchimplicit.train.networks.DigitsNetwork"
COMMAND = "touch sentinel"
MODULE = """
from pathlib import Path
from torchimplicit.train.networks import DigitsNetwork
Path("sentinel").touch()
class Mine(DigitsNetwork):
    pass
def make(width: int = 8) -> DigitsNetwork:
    return DigitsNetwork(width)
"""


def spec(path, **arguments):
    return {"class_path": path, "init_args": arguments}


def model(network, **options):
    return {"model": spec("torchimplicit.train.modules.Classifier", recipe="digits", network=network, **options)}


def digits(**options):
    return model(spec(NETWORKS, width=8, **options))


def itself():
    config = digits()
    config["model"]["init_args"]["again"] = config
    return config


def doubled(times=40):
    many: list = []
    for _ in range(times):
        many = [many, many]
    return digits(solver=many)


ATTACKS = {
    "a function in the place of a network": (model(spec("os.system", command=COMMAND)), "'os.system'"),
    "a function in the place of an option": (digits(solver=spec("os.system", command=COMMAND)), "'os.system'"),
    "a class of the standard library": (model(spec("subprocess.Popen", args=COMMAND, shell=True)), "subprocess.Popen"),
    "the model itself": ({"model": spec("subprocess.Popen", args=COMMAND, shell=True)}, "subprocess.Popen"),
    "the data module": (digits() | {"data": spec("evil.Mine")}, "'evil.Mine'"),
    "a module to import": (model(spec("evil.Mine")), "'evil.Mine'"),
    "a bare text for a class": (model("evil.Mine"), "'evil.Mine'"),
    "a factory": (model(spec("evil.make")), "'evil.make'"),
    "a text with spaces": (model(" evil.Mine "), "evil.Mine"),
    "a key with dots": (digits() | {"model.class_path": "evil.Mine"}, "'evil.Mine'"),
    "a short name": (model(spec("Mine")), "'Mine'"),
    "in a list": (digits(solver=[spec("evil.Mine")]), "'evil.Mine'"),
    "in arguments by name": (
        {"model": {"class_path": "torchimplicit.train.modules.Classifier", "dict_kwargs": {"x": spec("evil.Mine")}}},
        "'evil.Mine'",
    ),
    "through another's import": (
        model(spec("torch.nn.modules.module.warnings")),
        "warnings', a module",
    ),
    "a class of another's, by import": (model(spec("torch.nn.modules.module.OrderedDict")), "a class of collections"),
    "a module below an import": (model(spec("torch.nn.modules.module.torch.hub.load")), "does not exist"),
    "a trusted function": (model(spec("torch.nn.init.ones_")), "a function, expected a class"),
    "a like name": (model(spec("torchimplicit_evil.Mine")), "not trusted"),
    "YAML in a text": (model("{class_path: evil.Mine}"), "cannot build"),
    "YAML in a text, escaped": (model('{"class\\u005fpath": "evil.Mine"}'), "cannot build"),
    "a file": (model("more.yaml"), "the file 'more.yaml'"),
    "a file for the whole": ({"model": "more.yaml"}, "the file 'more.yaml'"),
    "no text": (model({"class_path": ["evil.Mine"]}), "expected the dotted path of a class"),
    "a number": ({"model": 3}, "cannot build"),
    "a list": ([1, 2], "cannot build"),
    "a text": ("evil.Mine", "'evil.Mine'"),
    "one that holds itself": (itself(), "not built|cannot build"),
    "one that doubles": (doubled(), "more than 100000 values"),
}


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """Writes a checkpoint with a configuration; a module that leaves a trace can be imported."""
    (tmp_path / "evil.py").write_text(MODULE)
    (tmp_path / "torchimplicit_evil.py").write_text(MODULE)
    (tmp_path / "more.yaml").write_text("class_path: evil.Mine\n")
    monkeypatch.syspath_prepend(tmp_path)

    def write(config, path="hostile.ckpt"):
        module = Classifier(DigitsNetwork(width=8), recipe="digits")
        module.config = config
        content = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(content)
        torch.save(content, path)
        return path

    yield write
    for name in ("evil", "torchimplicit_evil"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("kind", ATTACKS)
def test_nothing_runs_and_it_says_what_was_named(kind, hostile):
    config, words = ATTACKS[kind]
    with pytest.raises(CheckpointError, match=rf"hostile.ckpt: (?s:.*)({words})"):
        load(hostile(config))
    assert not Path("sentinel").exists()
    assert not {"evil", "torchimplicit_evil"} & sys.modules.keys()


def test_a_short_name_of_a_loaded_class_is_none_of_ours(hostile):
    import evil  # pyright: ignore[reportMissingImports]

    Path("sentinel").unlink()
    with pytest.raises(CheckpointError, match=r"evil.Mine|cannot build"):
        load(hostile(model(evil.Mine.__name__)))


def test_what_the_user_trusts_is_built(hostile):
    path = hostile(model(spec("evil.Mine", width=8)))
    with pytest.raises(CheckpointError, match=r"names 'evil.Mine', whose module is not trusted.*try --trust MODULE"):
        load(path, trust=("evi", "torchimplicit_evil"))
    module = Classifier(DigitsNetwork(width=8), recipe="digits")
    import evil  # pyright: ignore[reportMissingImports]

    module = Classifier(evil.Mine(width=8), recipe="digits")
    module.config = model(spec("evil.Mine", width=8))
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    assert type(load(path, trust=("evil",))[0].network) is evil.Mine
    assert type(load(path, trust="evil")[0].network) is evil.Mine
    assert main(["report", path, "--trust", "evil", "--output", "report.html"]) == 0
    assert Path("report.html").is_file()


def test_report_refuses_in_one_line(hostile, capsys):
    assert main(["report", hostile(ATTACKS["a function in the place of a network"][0])]) == 1
    error = capsys.readouterr().err
    assert "hostile.ckpt: not built, for it names 'os.system', whose module is not trusted" in error
    assert not Path("sentinel").exists()


class Payload:
    """What a hostile pickle does where it is loaded as one."""

    def __reduce__(self):
        return Path.touch, (Path("sentinel"),)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "report"])
def test_pickles_are_not_run(command, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    torch.save({"state_dict": {}, "optimizer_states": [Payload()]}, "pickle.ckpt")
    words = ["report", "pickle.ckpt"] if command == "report" else [command, "--config", "digits", "--ckpt_path"]
    assert main([*words, *([] if command == "report" else ["pickle.ckpt"])]) == 1
    assert "pickle.ckpt: cannot read this as a checkpoint" in capsys.readouterr().err
    assert not Path("sentinel").exists()


@pytest.mark.parametrize(
    "config",
    [
        digits(solver=spec("torchimplicit.Newton")),
        {"file": "boards.npz", "data_dir": "/data/sets.v2", "source": "wikitext-2", "rate": 1e-3, "none": None},
        {"optimizer": spec("torch.optim.AdamW", lr=0.1), "schedule": spec("torch.optim.lr_scheduler.StepLR")},
        spec("torch.nn.Sequential"),
    ],
)
def test_honest_configurations_pass(config):
    examine(config)


def test_a_data_file_of_the_folder_is_no_configuration(tmp_path):
    (tmp_path / "boards.npz").write_bytes(b"PK\3\4\0\0")
    examine({"file": "boards.npz"})
    (tmp_path / "boards.npz").write_text("class_path: os.system")
    with pytest.raises(UntrustedError, match=r"'file' names the file 'boards.npz'"):
        examine({"file": "boards.npz"})
