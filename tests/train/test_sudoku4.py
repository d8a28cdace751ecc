"""The recipe sudoku4: boards from files, the program with learned rules, training it."""

import os
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from torchimplicit.train.command.catalogue import shipped
from torchimplicit.train.command.cli import main
from torchimplicit.train.command.curves import read_curves
from torchimplicit.train.data import DataError, Sudoku
from torchimplicit.train.errors import UsageError
from torchimplicit.train.modules import Puzzle
from torchimplicit.train.networks import BoardPerceptron, BoardProgram

REAL = os.environ.get("TORCHIMPLICIT_DATA")
GROUPS = [
    *([(row, column) for column in range(4)] for row in range(4)),
    *([(row, column) for row in range(4)] for column in range(4)),
    *([(row + i, column + j) for i, j in product((0, 1), (0, 1))] for row, column in product((0, 2), (0, 2))),
]


def grids():
    """All 288 full boards, `(288, 4, 4)`."""
    rows, found = list(permutations((1, 2, 3, 4))), []
    for top, second in product(rows, rows):
        blocks = {*top[:2], *second[:2]}, {*top[2:], *second[2:]}
        if any(len(block) < 4 for block in blocks):
            continue
        for third, last in product(rows, rows):
            board = np.array((top, second, third, last))
            if all(len({board[place] for place in group}) == 4 for group in GROUPS[4:]):
                found.append(board)
    return np.stack(found)


def blanked(solutions, blanks):
    """The same with so many random cells at 0."""
    order = np.random.default_rng(0).random((len(solutions), 16)).argsort(1).argsort(1)
    return np.where((order < blanks).reshape(-1, 4, 4), 0, solutions)


@pytest.fixture(scope="module")
def boards():
    """288 boards with five blanks, and their solutions."""
    solutions = grids()
    return blanked(solutions, 5), solutions


@pytest.fixture
def archive(tmp_path, boards):
    path = tmp_path / "sets" / "sudoku" / "sudoku4_optnet10k.npz"
    path.parent.mkdir(parents=True)
    puzzles, solutions = (each.astype(np.uint8) for each in boards)
    np.savez(path, puzzles=puzzles, solutions=solutions)
    return path


def rules():
    """The 64 equations of a Sudoku of 4 x 4: every cell has one number, every group every number once."""
    cells = [[(cell // 4, cell % 4, number) for number in range(4)] for cell in range(16)]
    groups = [[(*place, number) for place in group] for group, number in product(GROUPS, range(4))]
    A = torch.zeros(64, 4, 4, 4)
    for row, places in zip(A, cells + groups, strict=True):
        row[tuple(torch.tensor(places).T)] = 1
    return A.flatten(1)


def test_boards_are_read_and_the_splits_share_no_solution(archive, boards, monkeypatch):
    assert len(boards[1]) == 288
    monkeypatch.setenv("TORCHIMPLICIT_DATA", str(archive.parents[1]))
    for data in (Sudoku(size=4), Sudoku(str(archive.parent), size=4, seed=1)):
        data.setup()
        assert [len(split) for split in data.splits] == [245, 14, 29]
        seen = [{tuple(board) for board in split.tensors[1].tolist()} for split in data.splits]
        assert len(set.union(*seen)) == sum(map(len, seen)) == 288
    other = Sudoku(size=4)
    other.setup()
    assert torch.equal(data.splits.test.tensors[0], other.splits.test.tensors[0])
    assert not torch.equal(data.splits.val.tensors[0], other.splits.val.tensors[0])
    puzzle, solution = next(iter(other.train_dataloader()))
    assert puzzle.shape == solution.shape == (64, 16)
    assert puzzle.dtype == solution.dtype == torch.int64
    assert bool(((puzzle == 0) | (puzzle == solution)).all())
    assert (puzzle == 0).sum(1).tolist() == [5] * 64


def test_the_published_tensors_are_read(tmp_path, archive, boards):
    folder = tmp_path / "published"
    folder.mkdir()
    for name, each in zip(("features.pt", "labels.pt"), boards, strict=True):
        hot = torch.nn.functional.one_hot(torch.from_numpy(each), 5)[..., 1:].float()
        torch.save(hot, folder / name)
    one, other = Sudoku(str(folder), size=4), Sudoku(str(archive.parent), size=4)
    for data in (one, other):
        data.setup()
    for split, same in zip(one.splits, other.splits, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(split.tensors, same.tensors, strict=True))
    (folder / "labels.pt").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"cannot read .*published/labels.pt: .*Try to fetch both again"):
        Sudoku(str(folder), size=4).setup()


def test_it_says_what_is_wrong_with_the_files(tmp_path, archive, boards):
    with pytest.raises(DataError, match=r"no folder to look in. Try to fetch features.pt .*--data-dir"):
        Sudoku(size=4).setup()
    with pytest.raises(DataError, match=r"looked for sudoku9_norvig10k.npz in .*sudoku. Try to save boards as"):
        Sudoku(str(archive.parent)).setup()
    with pytest.raises(DataError, match=r"has puzzles \(288, 4, 4\), .* expected \(N, 9, 9\) of both"):
        Sudoku(str(archive.parent), size=9, file=archive.name).setup()
    puzzles, solutions = (each.copy() for each in boards)
    solutions[3] = 1
    np.savez(archive, puzzles=puzzles, solutions=solutions)
    with pytest.raises(DataError, match=r"board 3 of .*agrees with what is given"):
        Sudoku(str(archive.parent), size=4).setup()
    np.savez(archive, puzzles=boards[0][:3], solutions=boards[1][:3])
    with pytest.raises(DataError, match="3 different solutions, too few"):
        Sudoku(str(archive.parent), size=4).setup()
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read .*sudoku4_optnet10k.npz: .*Try to fetch or make it again"):
        Sudoku(str(archive.parent), size=4).setup()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sudoku(size=6), "size=6.*4 or 9"),
        (lambda: Sudoku(validation=0.0), "validation=0"),
        (lambda: Sudoku(test=0.95, validation=0.1), "test=0.95"),
        (lambda: BoardProgram(4, rules=64), "rules=64"),
        (lambda: BoardProgram(0), "size=0"),
    ],
)
def test_impossible_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="the network has size 2"):
        Puzzle(BoardProgram(2, rules=4), size=4)


def test_the_rival_answers_in_the_same_form(boards):
    module = Puzzle(BoardPerceptron(width=8))
    board = torch.from_numpy(boards[0][:3]).flatten(1)
    assert module(board).shape == (3, 16, 4)
    filled = module.predict_step((board, board), 0)
    assert (int(filled.min()), int(filled.max())) == (1, 4)
    assert module.reports() == []


def test_with_the_true_rules_the_program_solves_boards(boards):
    torch.manual_seed(0)
    network = BoardProgram().double()
    _, values, basis = torch.linalg.svd(rules().double())
    assert int((values > 1e-9).sum()) == 40
    with torch.no_grad():
        network.program.A.copy_(torch.randn(40, 40, dtype=torch.float64) @ basis[:40])
        network.program.inside.fill_(np.log(np.expm1(0.25)))  # all numbers alike meet the rules
    board, solution = (torch.from_numpy(each).flatten(1)[::18] for each in boards)
    scores = network(board)
    assert scores.shape == (16, 16, 4)
    assert network.program.report.converged
    assert torch.allclose(scores.sum(-1), torch.ones(()).double(), atol=1e-9)
    assert bool((scores > -1e-9).all())
    assert float((scores.argmax(-1) + 1 == solution).all(1).double().mean()) > 0.95


def test_a_step_moves_the_rules_and_their_right_sides(boards):
    torch.manual_seed(0)
    module = Puzzle(BoardProgram(rules=8))
    board, solution = (torch.from_numpy(each).flatten(1)[:4] for each in boards)
    loss = module.evaluate("train", (board, solution))
    hot = torch.nn.functional.one_hot(solution - 1, 4)
    assert loss.item() == pytest.approx((module(board) - hot).square().mean().item())
    loss.backward()
    gradients = {name: float(each.grad.abs().max()) for name, each in module.network.named_parameters()}
    assert set(gradients) == {"program.A", "program.inside"}
    assert min(gradients.values()) > 1e-6
    module.count("train", solution.clone().index_fill(1, torch.tensor(0), 1) - 1, solution - 1)
    metrics = module.metrics["train_metrics"].compute()
    right = int((solution[:, 0] == 1).sum())
    before = (module(board).argmax(-1) == solution - 1).float()
    assert float(metrics["train/solved"]) == pytest.approx((right + float(before.all(1).sum())) / 8)
    assert float(metrics["train/cells"]) == pytest.approx((60 + right + float(before.sum())) / 128)


def test_it_learns_the_only_rule_of_boards_of_four_cells():
    """A square of two by two, both numbers in every line: one given cell tells the others."""
    torch.manual_seed(0)
    solutions = torch.tensor([[1, 2, 2, 1], [2, 1, 1, 2]])
    solution = solutions.repeat_interleave(4, 0)
    board = solution * torch.eye(4, dtype=torch.long).repeat(2, 1)
    module = Puzzle(BoardProgram(2, rules=7), size=2)
    optimizer = torch.optim.Adam(module.parameters(), 3e-2)
    solved = []
    for _ in range(80):
        loss = module.evaluate("train", (board, solution))
        solved.append(int((module.predict_step((board, solution), 0) == solution).all(1).sum()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert solved[0] < 4
    assert solved[-1] == 8


def test_the_recipe_trains_logs_its_solves_and_is_reported(archive):
    words = ["fit", "--config", "sudoku4", "--data-dir", str(archive.parent), "--trainer.max_epochs", "3"]
    words += ["--data.batch_size", "49", "--trainer.log_every_n_steps", "5", "--trainer.enable_progress_bar", "false"]
    assert main(words) == 0
    run = Path("runs/sudoku4/version_0")
    curves = read_curves(run)
    assert max(curves["train/forward_residual"][1]) < 1e-8
    assert curves["train/backward_unconverged"][1] == [0.0] * 3
    losses = curves["val/loss"][1]
    assert losses[-1] < 0.9 * losses[0]
    assert main(["report", str(run / "checkpoints" / "best.ckpt"), "--data-dir", str(archive.parent)]) == 0
    page = (run / "report.html").read_text()
    assert "<h2>boards</h2>" in page
    assert "Could not be made" not in page


@pytest.mark.skipif(not REAL, reason="TORCHIMPLICIT_DATA is unset: no real boards to read")
def test_the_real_boards_are_there():
    data = Sudoku(REAL, size=4)
    data.setup()
    assert sum(len(split) for split in data.splits) == 10_000
    assert sum(len(split.tensors[1].unique(dim=0)) for split in data.splits) == 288


def test_the_recipe_is_shipped():
    recipe = yaml.safe_load(shipped()["sudoku4"].read_text())
    assert recipe["model"]["init_args"]["network"]["init_args"]["rules"] == 40
