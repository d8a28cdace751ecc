"""Two gloo processes against one. Run as a script, this file is one of the processes."""

import faulthandler
import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchimplicit import GMRES, Anderson, Implicit
from torchimplicit.nn import DEQ
from torchimplicit.train.command.cli import main
from torchimplicit.train.networks import BottleneckCell, TanhCell

STEPS, BATCH = 10, 12
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
PROCESS = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}  # no lookup of the machine's own name


def network():
    torch.manual_seed(0)
    solver, adjoint = Anderson(rtol=1e-12, atol=1e-12, max_steps=200), Implicit(GMRES(rtol=1e-12))
    cells = (TanhCell(6), BottleneckCell(6, 4))
    layers = (DEQ(cell, solver, adjoint, on_failure="raise") for cell in cells)
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Linear(6, 3)).double()


def train(model, rank, world):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 4, dtype=torch.float64, generator=generator)
        y = torch.randn(BATCH, 3, dtype=torch.float64, generator=generator)
        loss = nn.functional.mse_loss(model(x[rank::world]), y[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def one_of_two(rank, folder, where):
    limit = timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=limit)
    model = DistributedDataParallel(network())
    train(model, rank, 2)
    torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
    # Freeing the process group can hang for ever, once in many runs: a thread of gloo and this one wait for each other.
    os._exit(0)


def test_two_processes_give_the_weights_of_one(tmp_path):
    where = f"tcp://127.0.0.1:{free_port()}"
    words = [[sys.executable, __file__, str(rank), str(tmp_path), where] for rank in (0, 1)]
    processes = [subprocess.Popen(each, env=os.environ | PROCESS) for each in words]
    alone = network()
    train(alone, 0, 1)
    assert [process.wait(110) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    start = network().state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert float((first[name] - tensor).abs().max()) < 1e-6, name
        assert not torch.equal(tensor, start[name]), f"{name} did not move"


def test_the_command_trains_in_two_processes():
    script = str(Path(sys.executable).with_name("torchimplicit"))
    words = [
        script,
        "fit",
        "--config",
        "digits",
        "--model.network.width",
        "8",
        "--trainer.enable_progress_bar",
        "false",
    ]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    words += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3", "--trainer.log_every_n_steps", "1"]
    words += ["--model.jacobian_penalty", "0.1", "--model.curriculum.unrolled_steps", "1"]  # with all parameters in use
    done = subprocess.run(words, env=os.environ | PROCESS, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert Path("runs/digits/version_0/checkpoints/last.ckpt").is_file()


DDP = ["--trainer.strategy", "ddp"]
FSDP = ["--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.data_parallel_size", "2"]
FSDP += ["--trainer.strategy.tensor_parallel_size", "1", "--trainer.strategy.save_distributed_checkpoint", "false"]
STRATEGIES = {"ddp": DDP, "fsdp": FSDP}
TRAINER = {
    "precision": "32-true", "max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1, "log_every_n_steps": 1,
    "enable_progress_bar": "false", "accelerator": "cpu", "num_sanity_val_steps": 0,
}  # fmt: skip
NETWORK = "--model.network"
TIGHT = [f"{NETWORK}.solver.rtol", "1e-6", f"{NETWORK}.adjoint.linear_solver.rtol", "1e-6"]
TIGHT += ["--model.jacobian_penalty", "0", "--model.warmup_steps", "0", "--model.learning_rate", "1e-3"]
RECIPES = {
    "cifar10": [f"{NETWORK}.channels", "8", f"{NETWORK}.inner", "8", "--data.validation", "8"],
    "text": [f"{NETWORK}.width", "16", f"{NETWORK}.heads", "2", f"{NETWORK}.vocabulary", "5"],
}
RECIPES["text"] += [f"{NETWORK}.length", "16", "--data.length", "8"]


def letters(folder):
    """A tiny text: 2000 letters at random."""
    (folder / "tinyshakespeare.txt").write_text("".join("abcde"[i] for i in torch.randint(0, 5, (2000,)).tolist()))


def colours(folder):
    """A tiny CIFAR-10: 5 x 16 + 10 images of random bytes."""
    folder = folder / "cifar-10-batches-bin"
    folder.mkdir()
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        records = torch.randint(0, 256, (16, 3073), dtype=torch.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(bytes(records.flatten().tolist()))


def command(recipe, folder, name, batch, *options):
    """The words that train a recipe for three steps."""
    words = ["fit", "--config", recipe, *RECIPES[recipe], *TIGHT, "--data.batch_size", str(batch), *options]
    words += [word for option, value in TRAINER.items() for word in (f"--trainer.{option}", str(value))]
    return [*words, "--trainer.logger.init_args.save_dir", str(folder / name), "--data-dir", str(folder)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with the runs of all recipes, alone and in two processes, which serve them all: imports are slow."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    colours(folder)
    letters(folder)
    commands = [
        command(recipe, folder, name, 4, *options, "--trainer.devices", "2")
        for recipe in RECIPES
        for name, options in STRATEGIES.items()
    ]
    place = PROCESS | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, __file__, "commands", json.dumps(commands)]
    processes = [subprocess.Popen(words, env=os.environ | place | {"LOCAL_RANK": rank}) for rank in "01"]
    for recipe in RECIPES:
        assert main(command(recipe, folder, "alone", 8, "--trainer.devices", "1")) == 0
    assert [process.wait(110) for process in processes] == [0, 0]
    return folder


def checkpoint_of(folder, name, recipe):
    return torch.load(folder / name / recipe / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_in_two_processes_gives_the_weights_of_one(recipe, strategy, trained):
    expected, got = (checkpoint_of(trained, name, recipe) for name in ("alone", strategy))
    assert got["global_step"] == expected["global_step"] == 3
    assert got["torchimplicit"]["network"] == expected["torchimplicit"]["network"]
    assert got["state_dict"].keys() == expected["state_dict"].keys()
    means = [each["optimizer_states"][0]["state"] for each in (expected, got)]  # of AdamW: sums of all gradients
    gaps = []
    for i, (name, tensor) in enumerate(expected["state_dict"].items()):
        one, other = (mean[i]["exp_avg"] for mean in means)
        assert float((one - other).norm()) < 1e-5 * float(one.norm()) + 1e-8, name
        gaps.append((got["state_dict"][name] - tensor).abs().flatten())
    # AdamW moves what has no gradient, such as a bias in front of a norm, by the sign of its rounding: a few weights.
    assert float(torch.cat(gaps).quantile(0.95)) < 1e-6
    assert float(torch.cat(gaps).max()) < 1e-3


if __name__ == "__main__":
    faulthandler.dump_traceback_later(100, exit=True)  # says where a process hangs before the test gives up on it
    torch.set_num_threads(1)
    if sys.argv[1] != "commands":
        one_of_two(int(sys.argv[1]), sys.argv[2], sys.argv[3])
    status = max(main(words) for words in json.loads(sys.argv[2]))
    sys.stdout.flush()
    os._exit(status)
