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

from torchimplicit.optim.quadprog.kkt import FAR, chosen, compact, crossed, with_others_far
from torchimplicit.optim.quadprog.prepare import Prepared

_ROUNDING = 1e-12
_SHIFT = 1e-10
_BLOCKS = 4  # rounds, after which rows change one at a time wherever it are not fewer and fewer that would
_FEWER = 4  # times as few programs go on alone

Found = tuple[Tensor, Tensor, Tensor]  # active bounds, rounds taken, whether these have led to an end


@dataclass
class Board:
    """What stays the same while rows come and go; vectors are columns `(B, r, 1)`, which products take as they are.

    Attributes:
        gram: `K`, `(B, r, r)`; its diagonal is overwritten where rows stay in their places.
        own: its diagonal.
        far: the same for rows that are not met.
        w: what rows reach without multipliers.
        lower: bounds.
        upper: bounds.
        idle: what stands for "not met" in place of a bound.
        floor: how far beyond a bound rounding may lead; equations are met whatever they reach.
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
        lower, upper = program.lower.unsqueeze(2), program.upper.unsqueeze(2)
        own = prepared.own.unsqueeze(2)
        reach = (own * prepared.energy).clamp_min_(1e-300).sqrt_()  # no row reaches more than this without multipliers
        idle = torch.add(w, reach, alpha=0.618)
        floor = torch.minimum(lower.abs(), upper.abs()).add_(reach).mul_(_ROUNDING)
        floor = floor.masked_fill_(program.locked.unsqueeze(2), -1.0)
        far = own.clamp_min(1 / FAR).mul_(FAR)
        gram = gram.clone() if prepared.in_place else gram
        return Board(gram, own, far, w, lower, upper, idle, floor, prepared.in_place)

    def take(self, index: Tensor) -> Board:
        """Some of the programs."""
        return Board(*(part[index] for part in self._parts()), in_place=self.in_place)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.gram, self.own, self.far, self.w, self.lower, self.upper, self.idle, self.floor

    def target(self, active: Tensor) -> Tensor:
        """The bounds that a guess `(B, r)` says are met, `idle` at the others."""
        active = active.unsqueeze(2)
        bound = torch.where(active > 0, self.upper, torch.where(active < 0, self.lower, torch.inf))
        return torch.where(bound.isfinite(), bound, torch.where(self.floor < 0, self.upper, self.idle))

    def active(self, target: Tensor) -> Tensor:
        """The inverse of `target`, `(B, r)`."""
        above = target == self.upper
        return (above.to(torch.int8) - ((target == self.lower) > above).to(torch.int8)).squeeze(2)

    def aim(self, reached: Tensor) -> Tensor:
        """The bounds that rows go beyond, `idle` at the others."""
        bound = torch.clamp(reached, self.lower, self.upper)
        return torch.where((reached - bound).abs_() > self.floor, bound, self.idle)

    def round(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds to meet next, and which matrices have no factor: not zero, `(B,)`."""
        on, right = target != self.idle, self.w - target
        if self.in_place:
            diagonal = self.gram.diagonal(dim1=1, dim2=2).unsqueeze(2)
            torch.where(on, self.own, self.far, out=diagonal)
            lower, info = torch.linalg.cholesky_ex(self.gram)
            return self.aim(torch.addcmul(target, torch.cholesky_solve(right, lower), diagonal)), info
        index, valid = compact(on.squeeze(2))
        rows = chosen(self.gram, index)
        system = with_others_far(crossed(rows, index), valid, self.own.squeeze(2).gather(1, index))[0]
        lower, info = torch.linalg.cholesky_ex(system)
        index, valid = index.unsqueeze(2), valid.unsqueeze(2)
        y = torch.cholesky_solve(right.gather(1, index).mul_(valid), lower).mul_(valid)
        multiplier = torch.zeros_like(right).scatter_(1, index, y).mul_(self.own)
        reached = torch.baddbmm(self.w, rows.mT, y, alpha=-1)
        return self.aim(torch.where(on, target + multiplier, reached)), info

    def shifted(self, failed: Tensor) -> bool:
        """Makes matrices that have no factor, `(B,)`, such that have one; whether there are any.

        Where more rows are met than there are unknowns, multipliers then run off along the weights by which these rows
        contradict each other, and their signs tell which of them to leave.
        """
        if not bool(failed.any()):
            return False
        self.own = torch.where(failed[:, None, None] > 0, self.own * (1 + _SHIFT), self.own)
        return True


def pivot(board: Board, active: Tensor | None, rounds: int, shift: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Looks for the bounds that are met with a multiplier.

    Args:
        board: the programs.
        active: a first guess, `(B, r)`; None starts with the bounds that the solution without rows violates.
        rounds: how many to make.
        shift: go on where more rows are met than can be; else such programs are left alone.

    Returns:
        The bound that every row meets, `(B, r)`: 1 the upper one, -1 the lower one, 0 none; the rounds that it took,
        but for the one that finds a guess right, `(B,)`; and whether these have led to an end, `(B,)`.
    """
    target = board.aim(board.w) if active is None else board.target(active)
    steps = torch.full((len(target),), 0 if active is not None else 1, device=target.device)
    fewest, whole = steps + target.shape[1], (target, steps, steps)
    index, every = None, board  # of those that go on, once it is not all of them
    for step in range(rounds):
        then, failed = board.round(target)
        if torch.equal(then, target):  # and without a factor nothing stays as it was
            whole = _kept(whole, index, (target, steps, torch.ones_like(steps, dtype=torch.bool)))
            break
        if shift and board.shifted(failed):
            then = torch.where(failed[:, None, None] > 0, target, then)
        changed = (then != target).squeeze(2)
        count = changed.sum(1)
        sound = failed == 0
        going = (count > 0) | ~sound if shift else (count > 0) & sound
        if step >= _BLOCKS:
            then = torch.where(((count < fewest).unsqueeze(1) | _last(changed)).unsqueeze(2), then, target)
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
