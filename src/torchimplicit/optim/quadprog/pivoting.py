r"""Which bounds programs with a definite `Q` meet, by block principal pivoting: a Cholesky factor a round, no more.

With $K = R Q^{-1} R^\top$, multipliers $y$ reach $w - K y$. A round solves for the multipliers at the bounds that are
taken to be met, and then takes those to be met that are violated, or pull the right way (J. J. Judice, F. M. Pires,
Computers & Operations Research 21(5), 1994; M. Hintermueller, K. Ito, K. Kunisch, SIAM J. Optim. 13(3), 2002). Few
rounds do, unless many rows meet where few unknowns are: then $K$ has no factor, and an interior point goes further.

Rows that are not met get a huge number for their entry of the diagonal. So programs of one batch have matrices of one
shape, and the one solve says both how far such a row is from its bounds and what the others' multipliers are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.optim.quadprog.kkt import FAR, chosen, compact, crossed, solved, with_others_far
from torchimplicit.optim.quadprog.prepare import Prepared
from torchimplicit.optim.quadprog.program import times_transposed

_ROUNDING = 1e-12
_BLOCKS = 4  # rounds, after which rows change one at a time wherever it are not fewer and fewer that would
_FEWER = 4  # times as few programs go on alone

Found = tuple[Tensor, Tensor, Tensor]  # active bounds, rounds taken, whether these have led to an end


@dataclass
class Board:
    """What stays the same while rows come and go.

    Attributes:
        gram: `K`, `(B, r, r)`.
        own: its diagonal, `(B, r)`.
        far: the same for rows that are not met, `(B, r)`.
        w: what rows reach without multipliers, `(B, r)`.
        lower: bounds, `(B, r)`.
        upper: bounds, `(B, r)`.
        idle: what stands for "not met" in place of a bound, `(B, r)`.
        floor: how far beyond a bound rounding may lead, `(B, r)`; equations are met whatever they reach.
        in_place: whether rows that are not met stay in the matrices.
    """

    gram: Tensor
    own: Tensor
    far: Tensor
    w: Tensor
    lower: Tensor
    upper: Tensor
    idle: Tensor
    floor: Tensor
    in_place: bool

    @staticmethod
    def of(prepared: Prepared) -> Board:
        """Sets up programs."""
        program, gram, w = prepared.program, prepared.gram, prepared.w
        lower, upper = program.lower, program.upper
        own = gram.diagonal(dim1=1, dim2=2).clone()
        energy = (program.q * prepared.free).sum(1, keepdim=True).abs()
        reach = (own * energy).clamp_min(1e-300).sqrt()  # no row reaches more than this without multipliers
        floor = _ROUNDING * (reach + torch.minimum(lower.abs(), upper.abs()))
        floor = floor.masked_fill(program.locked, -1.0)
        idle = torch.add(w, reach, alpha=0.618)
        far = FAR * own.clamp_min(1 / FAR)
        return Board(gram, own, far, w, lower, upper, idle, floor, prepared.in_place)

    def take(self, index: Tensor) -> Board:
        """Some of the programs."""
        return Board(*(part[index] for part in self._parts()), in_place=self.in_place)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.gram, self.own, self.far, self.w, self.lower, self.upper, self.idle, self.floor

    def target(self, active: Tensor) -> Tensor:
        """The bounds that a guess says are met, `idle` at the others, `(B, r)`."""
        bound = torch.where(active > 0, self.upper, torch.where(active < 0, self.lower, torch.inf))
        return torch.where(bound.isfinite(), bound, torch.where(self.floor < 0, self.upper, self.idle))

    def active(self, target: Tensor) -> Tensor:
        """The inverse of `target`, `(B, r)`."""
        above = target == self.upper
        return above.to(torch.int8) - ((target == self.lower) > above).to(torch.int8)

    def aim(self, reached: Tensor) -> Tensor:
        """The bounds that rows go beyond, `idle` at the others, `(B, r)`."""
        bound = torch.clamp(reached, self.lower, self.upper)
        return torch.where((reached - bound).abs() > self.floor, bound, self.idle)

    def round(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds to meet next, and which matrices have a factor, `(B,)`."""
        on, right = target != self.idle, self.w - target
        if self.in_place:
            diagonal = torch.where(on, self.own, self.far)
            lower, info = torch.linalg.cholesky_ex(self.gram.diagonal_scatter(diagonal, dim1=1, dim2=2))
            y = solved(lower, right)
            return self.aim(torch.addcmul(target, y, diagonal)), info == 0
        index, valid = compact(on)
        rows = chosen(self.gram, index)
        lower, info = torch.linalg.cholesky_ex(with_others_far(crossed(rows, index), valid)[0])
        y = solved(lower, right.gather(1, index) * valid) * valid
        multiplier = torch.zeros_like(right).scatter_(1, index, y) * self.own
        return self.aim(torch.where(on, target + multiplier, self.w - times_transposed(rows, y))), info == 0


def pivot(board: Board, active: Tensor | None, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Looks for the bounds that are met with a multiplier.

    Args:
        board: the programs.
        active: a first guess, `(B, r)`; None starts with the bounds that the solution without rows violates.
        rounds: how many to make.

    Returns:
        The bound that every row meets, `(B, r)`: 1 the upper one, -1 the lower one, 0 none; the rounds that it took,
        but for the one that finds a guess right, `(B,)`; and whether these have led to an end, `(B,)`.
    """
    target = board.aim(board.w) if active is None else board.target(active)
    steps = torch.full((len(target),), 0 if active is not None else 1, device=target.device)
    fewest, whole = steps + target.shape[1], (target, steps, steps)
    index, every = None, board  # of those that go on, once it is not all of them
    for step in range(rounds):
        then, sound = board.round(target)
        changed = then != target
        count = changed.sum(1)
        going = (count > 0) & sound
        if step >= _BLOCKS:
            then = torch.where((count < fewest).unsqueeze(1) | _last(changed), then, target)
            fewest = torch.minimum(fewest, count)
        target, steps = then, steps + going
        left = int(going.sum())
        few = _FEWER * left <= len(going)
        if few or step == rounds - 1:
            whole = _kept(whole, index, (target, steps, (count == 0) & sound))
        if not left:
            break
        if few:  # go on with those alone
            at = torch.nonzero(going).flatten()
            index, board = at if index is None else index[at], board.take(at)
            target, steps, fewest = target[at], steps[at], fewest[at]
    target, steps, ended = whole
    return every.active(target), steps, ended


def _kept(whole: Found, index: Tensor | None, parts: Found) -> Found:
    """What was found of all programs, with that of some of them in its place."""
    if index is None:
        return parts
    target, steps, ended = (mine.index_copy(0, index, its) for mine, its in zip(whole, parts, strict=True))
    return target, steps, ended


def _last(changed: Tensor) -> Tensor:
    """The last of the rows that would change: one at a time they can go round in no circle."""
    return changed & (changed.flip(1).cumsum(1).flip(1) == 1)
