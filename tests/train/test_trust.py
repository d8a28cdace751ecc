"""A checkpoint is data: attacks on whoever reads one, each of which would leave a file behind if it worked."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import torchimplicit as ti
from torchimplicit.train import CheckpointError, load
from torchimplicit.train.command.catalogue import shipped
from torchimplicit.train.command.cli import main
from torchimplicit.train.modules import Classifier
from torchimplicit.train.networks import DigitsNetwork
from torchimplicit.train.trust import LARGEST, UntrustedError, build

SHORT = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
EVIL = """
from pathlib import Path
from torch import nn
Path("sentinel").touch()
class Network(nn.Module):
    classes = 10
    def __init__(self, *arguments, **options):
        super().__init__()
def run(*arguments, **options): ...
"""
TOUCH = {"command": "touch sentinel"}


@pytest.fixture(autouse=True)
def evil(tmp_path, monkeypatch):
    """A module that can be imported, but must not be: it touches a file."""
    (tmp_path / "evil_module.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("evil_module", None)


def spec(class_path, **arguments):
    return {"class_path": class_path, "init_args": arguments}


def classifier(**arguments):
    return spec("torchimplicit.train.modules.Classifier", recipe="digits", **arguments)


def network(**arguments):
    return spec("torchimplicit.train.networks.DigitsNetwork", **arguments)


def digits(**arguments):
    return {"model": classifier(network=network(width=8, **arguments))}


SYSTEM, IMPORT = spec("os.system", **TOUCH), spec("evil_module.Network")
COMMAND_LINE = spec(
    "torchimplicit.train.command.trainer_cli.RecipeCLI",
    args=["fit", "--config=digits", "--model.network=evil_module.Network"],
)
CONFIGS = {
    "a command as the model": {"model": SYSTEM},
    "a module as the model": {"model": IMPORT},
    "a command as the network": {"model": classifier(network=SYSTEM)},
    "a module as the network": {"model": classifier(network=IMPORT)},
    "a command as a solver": digits(solver=SYSTEM),
    "a module as a solver": digits(solver=IMPORT),
    "a solver's name": digits(solver="evil_module.Network"),
    "a solver's bare name": digits(solver="evil_module"),
    "deeper": digits(adjoint=spec("torchimplicit.Implicit", linear_solver=SYSTEM)),
    "in a list": {
        "model": classifier(network=spec("torchimplicit.train.networks.ConvolutionalODE", penalties=[IMPORT]))
    },
    "in options of no choice": {"model": classifier(network=network(), curriculum={"depth": SYSTEM})},
    "as the data": {**digits(), "data": SYSTEM},
    "in the data": {**digits(), "data": spec("torchimplicit.train.data.Digits", batch_size=IMPORT)},
    "in dict_kwargs": {"model": {**classifier(), "dict_kwargs": {"network": IMPORT}}},
    "through a module that ours imports": {"model": spec("torchimplicit.train.command.report.os.system", **TOUCH)},
    "through a module that a data module imports": {"model": spec("torchimplicit.train.data.base.os.system", **TOUCH)},
    "through a module that torch imports": {"model": spec("torch.nn.modules.module.sys.modules.os.system", **TOUCH)},
    "a stranger's class that torch imports": {"model": spec("torch.nn.modules.module.OrderedDict")},
    "a function of ours": {"model": spec("torchimplicit.train.load", path="evil.ckpt")},
    "a class of ours that runs commands": {
        "model": spec("torchimplicit.train.command.trainer_cli.RecipeCLI", args=["fit"])
    },
    "a class of ours that runs commands, where all is taken": {
        "model": classifier(network=spec("torch.nn.Linear", in_features=2, out_features=2, device=COMMAND_LINE))
    },
    "a module of torch that is not loaded": {"model": spec("torch.nn.evil_module.Network")},
    "a module beside torch.nn": {"model": spec("torch.nnevil.Network")},
    "torch.hub": {"model": spec("torch.hub.load", repo_or_dir=".", model="evil", source="local")},
    "eval": {"model": spec("builtins.eval", source="__import__('evil_module')")},
    "the parser of recipes": {"model": spec("jsonargparse.set_parsing_settings", import_path_allowlist=["os"])},
    "a name that is none": {"model": spec("torchimplicit.train..os.system", **TOUCH)},
    "a relative name": {"model": spec(".evil_module.Network")},
    "a tag of YAML": {"model": "!!python/object/apply:os.system ['touch sentinel']"},
    "YAML in a string": digits(solver="{class_path: os.system, init_args: {command: touch sentinel}}"),
    "a file to read": {"model": classifier(network="evil.yaml")},
    "a link": {**digits(), "link_arguments": [{"source": "evil_module.run", "target": "model.init_args.network"}]},
    "a class path that is a description": {"model": {"class_path": SYSTEM}},
    "a description with more": {"model": {**classifier(network=network()), "compute_fn": "evil_module.run"}},
    "no mapping": "os.system",
    "arguments that are none": {"model": {"class_path": "torch.nn.Linear", "init_args": "os.system"}},
    "another kind of model": {"model": spec("torch.nn.Identity")},
    "data as the model": {"model": spec("torchimplicit.train.data.Digits")},
}
HARMLESS = {"a link"}  # nobody looks at it


def nothing_ran():
    return not Path("sentinel").exists() and "evil_module" not in sys.modules


def save(path, config=None, **extra):
    module = Classifier(DigitsNetwork(width=8), recipe="digits")
    module.config = config
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content | extra, path)


@pytest.mark.parametrize("attack", CONFIGS)
def test_what_a_configuration_names_is_not_run(attack):
    Path("evil.yaml").write_text(yaml.safe_dump(SYSTEM))
    save("evil.ckpt", CONFIGS[attack])
    if attack in HARMLESS:
        load("evil.ckpt")
    else:
        with pytest.raises(CheckpointError, match=r"^evil.ckpt: (not built, for|cannot build its model again: )"):
            load("evil.ckpt")
    assert nothing_ran()


class Reduced:
    """Pickled as a call."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


PICKLES = {
    "a command": Reduced(os.system, "touch sentinel"),
    "an import": Reduced(__import__, "evil_module"),
    "a builtin": Reduced(exec, "import evil_module"),
    "a network": nn.Sequential(nn.ReLU()),
}
PLACES = ("hyper_parameters", "datamodule_hyper_parameters", "callbacks", "loops", "torchimplicit", "seed")
COMMANDS = {
    "report": ["report", "evil.ckpt"],
    "fit": ["fit", "--config", "digits", "--ckpt_path", "evil.ckpt", *SHORT],
    "validate": ["validate", "--config", "digits", "--ckpt_path", "evil.ckpt", *SHORT],
    "test": ["test", "--config", "digits", "--ckpt_path", "evil.ckpt", *SHORT],
    "predict": ["predict", "--config", "digits", "--ckpt_path", "evil.ckpt", *SHORT],
}


@pytest.mark.parametrize("pickle", PICKLES)
def test_pickled_calls_are_not_run(pickle):
    for place in PLACES:
        save("evil.ckpt", digits(), **{place: {"it": PICKLES[pickle]}})
        with pytest.raises(CheckpointError, match=r"evil.ckpt: cannot read this as a checkpoint"):
            load("evil.ckpt")
    assert nothing_ran()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_what_a_checkpoint_holds(command, capsys):
    save("evil.ckpt", digits(), hyper_parameters={"it": PICKLES["a command"]})
    assert main(COMMANDS[command]) == 1
    assert "evil.ckpt: cannot read this as a checkpoint" in capsys.readouterr().err
    # What only names things is read by `report` alone: the others build what the recipe says.
    save(
        "evil.ckpt",
        {"model": SYSTEM},
        hyper_parameters={"_instantiator": "evil_module.run", "_class_path": "os.system"},
    )
    Path("config.yaml").write_text(yaml.safe_dump({"model": IMPORT}))
    assert main(COMMANDS[command]) == 1, "another width, or a name that is not trusted"
    assert nothing_ran()


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")
def test_weights_are_loaded_as_data_whatever_the_command_line_says(monkeypatch):
    seen = []
    usual = torch.load

    def watch(*arguments, **options):
        seen.append(options.get("weights_only"))
        return usual(*arguments, **options)

    monkeypatch.setattr(torch, "load", watch)
    save("weights.ckpt", digits(), **{"pytorch-lightning_version": lightning.__version__})
    words = ["test", "--config", "digits", "--ckpt_path", "weights.ckpt", "--model.network.width", "8", *SHORT[:4]]
    assert main([*words, "--weights_only", "false"]) == 0
    assert seen == [True, True]


def test_a_module_that_is_trusted_may_be_named(capsys):
    save("mine.ckpt", {"model": classifier(network=IMPORT)})
    with pytest.raises(CheckpointError, match=r"names 'evil_module.Network', .*not trusted.*try --trust MODULE"):
        load("mine.ckpt")
    assert nothing_ran()
    assert main(["report", "mine.ckpt"]) == 1
    assert "try --trust MODULE" in capsys.readouterr().err
    assert nothing_ran()
    assert main(["report", "mine.ckpt", "--trust", "torch", "--trust", "evil_module"]) == 1
    assert "expected one of recipe 'digits' (Network)" in capsys.readouterr().err, (
        "it was built, and takes no such weights"
    )
    assert not nothing_ran()


def test_trust_is_for_modules_not_for_their_neighbours():
    for trust in (["evil"], ["evil_module.Network"], ["evil_module_too"]):
        with pytest.raises(UntrustedError, match=r"names 'evil_module\.Network'"):
            build(IMPORT, trust)
    with pytest.raises(ValueError, match=r"got trust='evil module', expected the name of a module"):
        build(IMPORT, ["evil module"])
    with pytest.raises(UntrustedError, match="expected a class"):
        build(spec("evil_module.run"), ["evil_module"])
    with pytest.raises(UntrustedError, match=r"names 'pathlib.*\.Path'"):
        build(spec("evil_module.Path"), ["evil_module"])


def test_what_would_take_for_ever_is_refused():
    bomb = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    with pytest.raises(UntrustedError, match=f"more than {LARGEST} values"):
        build(network(width=bomb))
    endless = network()
    endless["init_args"]["solver"] = endless
    with pytest.raises(UntrustedError, match=f"more than {LARGEST} values"):
        build(endless)
    with pytest.raises(UntrustedError, match="its configuration holds a Tensor, expected plain data"):
        build(network(width=torch.zeros(2)))


def own_data(name):
    """What a recipe that looks at its data is given to look at."""
    if name == "images":
        for kind in ("a", "b"):
            Path("photos", kind).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (90 * i, 9, 9)).save(f"photos/{kind}/{i}.png")
        return ["--data.path", "photos"]
    if name in ("text", "text-explicit"):
        Path("own.txt").write_text("a text of one's own")
        return ["--data.source", "own.txt"]
    if name in ("table", "table-regression"):
        Path("own.csv").write_text("x,y\n" + "".join(f"{i},{i % 2}\n" for i in range(9)))
        return ["--data.path", "own.csv"]
    return []


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_is_built_as_its_command_builds_it(name):
    from torchimplicit.train.command.trainer_cli import RecipeCLI

    class Builder(RecipeCLI):
        def _run_subcommand(self, subcommand):
            pass

    command = Builder(["fit", "--config", name, *own_data(name)])
    config = command.model.config
    torch.manual_seed(0)
    model, data = build(config["model"]), build(config["data"])
    assert repr(model) == repr(command.model)
    assert model.state_dict().keys() == command.model.state_dict().keys()
    assert model.curriculum == command.model.curriculum
    for built, expected in ((model, command.model), (data, command.datamodule)):
        options = {each: repr(value) for each, value in vars(expected).items() if not each.startswith("_")}
        options = {each: value for each, value in options.items() if each != "config" and " at 0x" not in value}
        assert {each: repr(getattr(built, each)) for each in options} == options


@pytest.mark.parametrize("control", [ti.Fixed(0.2), ti.PID(proportional=0.4)])
def test_options_of_several_kinds_are_told_apart_by_what_they_have(control):
    """As configurations are written: the options alone, without the name of their class."""
    assert build(spec("torchimplicit.Tsit5", control=asdict(control))) == ti.Tsit5(control=control)
