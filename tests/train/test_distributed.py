"""Two gloo processes against one. Run as a script, this file is one of the processes."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchimplicit import GMRES, Anderson, Implicit
from torchimplicit.nn import DEQ
from torchimplicit.train.networks import BottleneckCell, TanhCell

STEPS, BATCH = 10, 12


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


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(network())
    train(model, rank, 2)
    torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_weights_of_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(each, env=environment) for each in words]
    alone = network()
    train(alone, 0, 1)
    assert [process.wait(180) for process in processes] == [0, 0]
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
    done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    assert Path("runs/digits/version_0/checkpoints/last.ckpt").is_file()


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), sys.argv[2])
