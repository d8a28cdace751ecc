"""The recipe sudoku9: boards with more shown, their symmetries, the network, its optimiser, training it on 4 x 4."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from torchimplicit.train.command.catalogue import shipped
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.data import ShownSudoku
from torchimplicit.train.data.boards import Boards, equivalent
from torchimplicit.train.modules import Completion
from torchimplicit.train.modules.proximal import ProximalMomentum
from torchimplicit.train.networks import BoardRelaxation

REAL = os.environ.get("TORCHIMPLICIT_DATA")
FULL = torch.tensor([[1, 2, 3, 4, 3, 4, 1, 2, 2, 3, 4, 1, 4, 1, 2, 3]])  # symmetries make 192 of it


def boards(count=120, blanks=10, seed=0):
    """Different full boards of 4 x 4, and the same with so many blanks, `(count, 16)`."""
    torch.manual_seed(seed)
    solutions = equivalent(FULL.repeat(2000, 1))[0].unique(dim=0)
    solutions = solutions[torch.randperm(len(solutions))[:count]]
    order = torch.rand(solutions.shape).argsort(1).argsort(1)
    return torch.where(order < blanks, 0, solutions), solutions


def groups(size):
    """Rows, columns and boxes of a board, `(3 * size, size)`."""
    cells, block = torch.arange(size * size).view(size, size), round(size**0.5)
    boxes = cells.view(block, block, block, block).transpose(1, 2).reshape(size, size)
    return torch.cat([cells, cells.T, boxes])


@pytest.fixture
def archive(tmp_path):
    puzzles, solutions = (each.view(-1, 4, 4).numpy().astype(np.uint8) for each in boards())
    path = tmp_path / "sudoku4_optnet10k.npz"
    np.savez(path, puzzles=puzzles, solutions=solutions)
    return path


def test_what_leads_from_board_to_board_keeps_every_rule():
    torch.manual_seed(0)
    row = torch.arange(9)
    full = ((row[:, None] * 3 + row[:, None] // 3 + row) % 9 + 1).flatten()
    solutions = full.repeat(64, 1)
    puzzles = torch.where(torch.rand(64, 81) < 0.5, solutions, 0)
    moved, found = equivalent(puzzles, solutions)
    lines = found[:, groups(9)]
    assert torch.equal(lines.sort(2).values, torch.arange(1, 10).expand_as(lines))
    assert len(found.unique(dim=0)) == 64
    assert torch.equal(moved, torch.where(moved > 0, found, 0))
    assert torch.equal((moved > 0).sum(1), (puzzles > 0).sum(1))


def test_as_many_cells_are_shown_as_was_asked_for():
    puzzles, solutions = boards()
    train = Boards(puzzles, solutions, (8, 12), symmetries=True)
    held = [Boards(puzzles, solutions, (9, 9), seed=1) for _ in range(2)]
    everything = list(range(120))
    first, again = (train.__getitems__(everything) for _ in range(2))
    counts = (first[0] > 0).sum(1)
    assert sorted(set(counts.tolist())) == [8, 9, 10, 11, 12]
    assert not torch.equal(first[0], again[0])
    assert torch.equal(first[0], torch.where(first[0] > 0, first[1], 0))
    (seen, right), (same, _) = (each.__getitems__(everything) for each in held)
    assert torch.equal(seen, same)
    assert torch.equal(right, solutions)
    assert (seen > 0).sum(1).tolist() == [9] * 120
    assert torch.equal(seen[puzzles > 0], puzzles[puzzles > 0])  # what the file gives stays given
    asis = Boards(puzzles, solutions)
    assert torch.equal(asis.__getitems__([3, 5])[0], puzzles[[3, 5]])
    assert torch.equal(asis[4][1], solutions[4])


def test_the_data_module_shows_by_split(archive):
    data = ShownSudoku(str(archive.parent), size=4, shown=(7, 7), evaluated=None, symmetries=False, batch_size=40)
    data.setup()
    puzzle, solution = next(iter(data.train_dataloader()))
    assert (puzzle > 0).sum(1).tolist() == [7] * 40
    assert torch.equal(puzzle, torch.where(puzzle > 0, solution, 0))
    assert set((next(iter(data.val_dataloader()))[0] > 0).sum(1).tolist()) == {6}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ShownSudoku(shown=(40, 30)), "the lower first"),
        (lambda: ShownSudoku(shown=(36, 81)), "below 81"),
        (lambda: ShownSudoku(size=4, shown=(7, 9), evaluated=36), "evaluated=36"),
        (lambda: BoardRelaxation(0), "size=0"),
        (lambda: BoardRelaxation(4, sharpness=0.0), r"sharpness=0\.0"),
        (lambda: BoardRelaxation(4, rank=1), "rank=1"),
        (lambda: Completion(BoardRelaxation(2), size=2, sparsity=-1.0), r"sparsity=-1\.0"),
        (lambda: Completion(BoardRelaxation(2), size=2, at_once=0), "at_once=0"),
        (lambda: Completion(BoardRelaxation(2), size=4), "the network has size 2"),
        (lambda: ProximalMomentum([torch.zeros(1)], lr=-1.0), r"lr=-1\.0"),
        (lambda: ProximalMomentum([torch.zeros(1)], momentum=1.0), r"momentum=1\.0"),
    ],
)
def test_impossible_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("board", "text"),
    [
        (torch.zeros(2, 4, 4).long(), r"boards \(2, 4, 4\) .*expected \(B, 16\)"),
        (torch.zeros(2, 16), r"of torch.float32.*try board"),
        (torch.full((2, 16), 5), "board 0 has 5 in cell 0, expected 1 to 4"),
        (torch.full((2, 16), -1), "board 0 has -1 in cell 0"),
    ],
)
def test_boards_that_are_none_are_refused(board, text):
    network = BoardRelaxation(4)
    for use in (network, network.fill):
        with pytest.raises(ValueError, match=text):
            use(board)
    with pytest.raises(ValueError, match="at_once=0"):
        network.fill(torch.zeros(1, 16).long(), 0)


def test_the_optimiser_moves_in_proportion_and_whatever_the_scale():
    moved = []
    for scale in (1.0, 1e-6):
        weight = torch.zeros(4, requires_grad=True)
        optimizer = ProximalMomentum([weight], lr=0.1)
        for _ in range(5):
            weight.grad = scale * torch.tensor([1.0, -2.0, 0.0, 3.0])
            optimizer.step()
        moved.append(weight.detach())
    root = (14 / 4) ** 0.5  # of the gradient's mean square
    assert torch.allclose(moved[0], -0.5 * torch.tensor([1.0, -2.0, 0.0, 3.0]) / root)
    assert torch.allclose(moved[0], moved[1])


def test_the_optimiser_holds_noise_at_zero_and_lets_signals_pass():
    torch.manual_seed(0)
    weight = torch.zeros(1000, requires_grad=True)
    optimizer = ProximalMomentum([weight], lr=1e-2, sparsity=1.0)
    signal = torch.zeros(1000)
    signal[:50] = 3.0
    for _ in range(50):
        weight.grad = torch.randn(1000) - signal
        optimizer.step()
    assert bool((weight[:50] > 0.1).all())
    weight = weight.detach()
    assert float((weight[50:] == 0).float().mean()) > 0.5
    assert float(weight[50:].abs().max()) < 0.5 * float(weight[:50].min())


def contradicting(network):
    """Sets the couplings to the rules: numbers of a cell, and equal ones in a row, column or box."""
    size, groups_ = network.size, groups(network.size)
    met = torch.zeros(size**2, size**2, dtype=torch.bool)
    for group in groups_:
        met[group[:, None], group] = True
    same_cell = torch.eye(size**2, dtype=torch.bool)[:, None, :, None]
    same_number = torch.eye(size, dtype=torch.bool)[None, :, None, :]
    rules = ((same_cell & ~same_number) | (met[:, None, :, None] & ~same_cell & same_number)).reshape(size**3, size**3)
    with torch.no_grad():
        network.layer.coupling[1:, 1:] = 0.15 * rules[network.order][:, network.order]


def test_with_the_true_rules_the_network_fills_boards():
    torch.manual_seed(0)
    network = BoardRelaxation(4, anchor=0.1, rtol=1e-3, max_steps=300, on_failure="raise")
    contradicting(network)
    puzzles, solutions = boards(40, blanks=8)
    cosines = network.cosines(puzzles)
    assert cosines.shape == (40, 16, 4)
    hot = torch.nn.functional.one_hot(solutions, 5)[..., 1:].float()
    assert torch.allclose(cosines[puzzles > 0], 2 * hot[puzzles > 0] - 1)
    assert torch.equal(network(puzzles), 80.0 * cosines)
    full = network.fill(puzzles, at_once=1)
    assert torch.equal(full[puzzles > 0], puzzles[puzzles > 0])
    assert float((full == solutions).all(1).float().mean()) > 0.9
    assert torch.equal(network.fill(solutions), solutions)


def test_it_learns_boards_of_four_by_four_and_is_reported(archive):
    words = ["fit", "--config", "sudoku9", "--data-dir", str(archive.parent), "--trainer.max_epochs", "30"]
    words += ["--data.size", "4", "--model.size", "4", "--model.network.size", "4", "--data.batch_size", "51"]
    words += ["--data.shown", "[8, 14]", "--data.evaluated", "8", "--trainer.enable_progress_bar", "false"]
    words += ["--data.validation", "0.1", "--trainer.check_val_every_n_epoch", "15", "--trainer.log_every_n_steps", "2"]
    words += ["--model.learning_rate", "1e-2"]
    assert main(words) == 0
    run = Path("runs/sudoku9/version_0")
    curves = read_curves(run)
    assert max(curves["train/forward_steps"][1]) >= 2
    assert "train/backward_steps" in curves
    assert curves["val/filled"][1][-1] >= 0.8
    assert main(["report", str(run / "checkpoints" / "best.ckpt"), "--data-dir", str(archive.parent)]) == 0
    assert "Could not be made" not in (run / "report.html").read_text()


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real boards to read")
def test_the_real_boards_are_shown():
    data = ShownSudoku(REAL)
    data.setup()
    assert sum(len(split) for split in data.splits) == 10_000
    puzzle, solution = data.splits.test.__getitems__(list(range(50)))
    assert (puzzle > 0).sum(1).tolist() == [36] * 50
    assert torch.equal(puzzle, torch.where(puzzle > 0, solution, 0))


def test_the_recipe_is_shipped():
    recipe = yaml.safe_load(shipped()["sudoku9"].read_text())
    assert recipe["data"]["init_args"]["evaluated"] == 36
