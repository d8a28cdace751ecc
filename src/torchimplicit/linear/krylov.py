"""Krylov methods: GMRES, BiCGStab, conjugate gradients. Batched, every sample on its own, never a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimplicit.core.options import is_number, require, require_count
from torchimplicit.core.tree import norm
from torchimplicit.linear.solver import PLAY, LinearResult, LinearSolver, Product, Progress

SWEEPS = 3  # how often BiCGStab and CG start at most
# GMRES goes on with its opening while residuals stay below PLAY_OPEN times a sequence that falls by STRICT a step for
# the first LOOK steps, and by LENIENT from then on: what contracts slowly leaves early, nothing is sent off late.
STRICT, LENIENT, LOOK, PLAY_OPEN = 0.65, 0.75, 6, 1.3
SMALL = 512  # unknowns per sample up to which the products are taken to be cheap
LITTLE = 0.999  # a GMRES cycle that leaves more than this of the residual counts as stagnation


@dataclass(frozen=True, kw_only=True)
class _Krylov(LinearSolver):
    rtol: float = 1e-4
    max_steps: int = 100

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        # At 1 the start x = 0 would do, and every gradient would be zero.
        require(self, "rtol", is_number(self.rtol) and 0 < self.rtol < 1, "a number in (0, 1)")
        require_count(self, "max_steps")

    def tolerance(self, b: Tensor) -> Tensor:
        """See `LinearSolver.tolerance`."""
        return self.rtol * norm(b)

    def progress(self, b: Tensor, rtol: Tensor | None) -> Progress:
        """The start of a solve whose tolerances are at least this solver's own."""
        return Progress(b, self.rtol if rtol is None else rtol.clamp_min(self.rtol))


def _dot(u: Tensor, v: Tensor) -> Tensor:
    """Inner product of every sample's vectors, as a column `(B, 1)`."""
    return torch.bmm(u.unsqueeze(1), v.unsqueeze(2)).squeeze(2)


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """A quotient that is zero where the denominator is."""
    return torch.where(denominator == 0, 0, numerator / denominator)


@dataclass(frozen=True, kw_only=True)
class GMRES(_Krylov):
    """Restarted GMRES with reorthogonalised Arnoldi vectors, for any nonsingular operator. The default.

    Smallest residual over the Krylov space, one product a step; never breaks down before the solution is reached. It
    opens with Richardson steps, `x <- x + (b - A x)`, and stays with them for the samples that they contract by about
    0.65 a step: up to 40 % more products there (measured), and none of the other work, which is most of the time
    for small states. A sample that they do not contract leaves them after a step or two, with what it has gained.
    Source: Y. Saad and M. Schultz, SIAM J. Sci. Stat. Comput. 7 (1986) 856.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`.
        restart: steps between restarts; memory is `restart + 1` vectors per sample.
        max_steps: limit of steps, of one product each: of the opening, and again of the cycles.
        opening: whether to open with Richardson steps; None does for up to 512 unknowns per sample.
    """

    restart: int = 10
    opening: bool | None = None

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        super().__post_init__()
        require_count(self, "restart")
        require(self, "opening", self.opening is None or isinstance(self.opening, bool), "True, False or None")

    def run(self, product: Product, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """Richardson steps from `x = 0` while they contract, then cycles of Arnoldi steps."""
        progress = self.progress(b, rtol)
        x, residual, products = torch.zeros_like(b), b, 0
        # Richardson's residual is a recursion, whose rounding a tolerance this near to it would not see.
        opening = b.shape[1] <= SMALL if self.opening is None else self.opening
        if opening and self.rtol >= 5 * torch.finfo(b.dtype).eps:
            x, residual, products = _open(product, progress, x, residual, self.max_steps)
        done = 0
        while progress.going and done < self.max_steps:
            before = progress.running
            cycle = _Cycle(residual, progress, min(self.restart, self.max_steps - done, b.shape[1]))
            while cycle.going and cycle.steps < cycle.length:
                if cycle.advance(product) or cycle.steps == cycle.length:
                    cycle.judge(progress, done)
            trial = torch.where(before.unsqueeze(1), x + cycle.correction(), x)
            done, products = done + cycle.steps, products + cycle.steps
            doubtful = before & ~progress.running & cycle.doubtful(trial, progress.target)
            if progress.going or bool(doubtful.any()):
                residual = b - product(trial)
                products += 1
                size = norm(residual)
                progress.revoke(doubtful & ~(size <= PLAY * progress.target), size)
                # A step so long that its rounding is as large as what it gains comes from a singular system.
                useless = cycle.doubtful(trial, cycle.beta) & (size > 0.1 * cycle.beta)
                worse = progress.running & (~(size <= cycle.beta) | useless)
                trial = torch.where(worse.unsqueeze(1), x, trial)
                size = torch.where(worse, cycle.beta, size)
                progress.update(done, size, size > LITTLE * cycle.beta)
            x = trial
        return progress.result(x, products)


def _open(product: Product, progress: Progress, x: Tensor, r: Tensor, limit: int) -> tuple[Tensor, Tensor, int]:
    """Richardson steps, for every sample as long as its residual falls fast enough.

    Returns:
        Every sample's `x` and residual when it left, and the products used. The steps are noted in `progress`.
    """
    bound, step = PLAY_OPEN * progress.residual, 0
    active = progress.running
    taken, all_active = torch.zeros_like(progress.steps), bool(active.all())
    while step < limit and (all_active or bool(active.any())):
        step += 1
        bound = (STRICT if step <= LOOK else LENIENT) * bound
        new = r - product(r)
        size = norm(new)
        if all_active and torch.equal(size.clamp(progress.target, bound), size):
            x, r, progress.residual = x + r, new, size
            continue
        accepted = active & (size <= bound)
        column = accepted.unsqueeze(1)
        x, r = torch.where(column, x + r, x), torch.where(column, new, r)
        progress.update(step, torch.where(accepted, size, progress.residual))
        taken = torch.where(active, step, taken)
        active = accepted & progress.running
        all_active = bool(active.all())
    progress.before, progress.step = torch.where(active, step, taken), 0
    return x, r, step


class _Cycle:
    """One cycle of GMRES: an Arnoldi basis, the Hessenberg matrix, and the residual norm of every sample.

    The residual norm follows from the vector `null` that is orthogonal to the Hessenberg matrix's columns: it is
    `beta / |null|` when `null[0] = 1`. One dot product a step replaces the usual sequence of Givens rotations, and
    `|null|^2` need only be compared with a limit to know whether anything happened.
    All shapes of the final solve are those of the full cycle, so that a sample's rounding does not depend on when
    others stop.
    """

    def __init__(self, residual: Tensor, progress: Progress, length: int):
        batch, width = residual.shape
        self.length, self.steps = length, 0
        self.info = torch.finfo(residual.dtype)
        self.beta = norm(residual)
        self.basis = residual.new_zeros(batch, length + 1, width)
        torch.div(residual, self.beta.clamp_min(self.info.tiny).unsqueeze(1), out=self.basis[:, 0])
        self.hessenberg = residual.new_zeros(batch, length + 1, length)
        self.null = residual.new_zeros(batch, length + 1)
        self.null[:, 0] = 1
        self.null_square = torch.ones_like(self.beta)
        self.limit = (self.beta / progress.target.clamp_min(self.info.tiny)).square().clamp_max(self.info.max)
        self.taken = torch.zeros_like(progress.steps)  # steps of each sample in this cycle
        self.active = progress.running
        self.going, self.all_active = True, bool(progress.running.all())

    def advance(self, product: Product) -> bool:
        """One Arnoldi step; returns whether some sample may have converged or used its Krylov space up."""
        j = self.steps
        self.steps += 1
        basis = self.basis[:, : j + 1]
        w = product(self.basis[:, j]).unsqueeze(1)
        column = torch.bmm(w, basis.mT)
        w = torch.baddbmm(w, column, basis, alpha=-1)
        again = torch.bmm(w, basis.mT)  # twice is enough
        w = torch.baddbmm(w, again, basis, alpha=-1).squeeze(1)
        column = (column + again).squeeze(1)
        length = norm(w)
        # An exhausted space gives a zero vector here, not NaN; `judge` sees to what that means.
        torch.div(w, length.clamp_min(self.info.tiny).unsqueeze(1), out=self.basis[:, j + 1])
        self.hessenberg[:, : j + 1, j] = column
        self.hessenberg[:, j + 1, j] = length
        null = (self.null[:, : j + 1] * column).sum(1) / -length
        self.null[:, j + 1] = null
        self.null_square = torch.addcmul(self.null_square, null, null)
        if self.all_active:
            return not torch.equal(self.null_square.clamp_max(self.limit), self.null_square)
        return not bool(((self.null_square < self.limit) | ~self.active).all())

    def judge(self, progress: Progress, done: int) -> None:
        """Stops what has converged; what has used its Krylov space up waits for its true residual after the cycle."""
        j = self.steps - 1
        exhausted = self.hessenberg[:, j + 1, j] <= 4 * self.info.eps * norm(self.hessenberg[:, : j + 1, j])
        estimate = self.beta * self.null_square.rsqrt()
        estimate = torch.where(self.active & ~exhausted, estimate, progress.residual)
        progress.update(done + self.steps, estimate)
        self.taken = torch.where(self.active, self.steps, self.taken)
        self.active = self.active & progress.running & ~exhausted
        self.all_active, self.going = bool(self.active.all()), bool(self.active.any())

    def correction(self) -> Tensor:
        """The step `(B, n)` that reaches every sample's smallest residual, over the steps that it has taken."""
        columns = torch.arange(self.length, device=self.taken.device)
        # Columns that a sample did not reach become unit vectors below its own block: their weights come out as zero.
        units = torch.eye(self.length + 1, dtype=self.beta.dtype, device=self.taken.device)[:, 1:]
        hessenberg = torch.where((columns < self.taken.unsqueeze(1)).unsqueeze(1), self.hessenberg, units)
        q, r = torch.linalg.qr(hessenberg)
        target = q[:, 0].unsqueeze(2) * self.beta[:, None, None]
        weights = torch.linalg.solve_triangular(r, target, upper=True).mT
        return torch.bmm(weights.nan_to_num(0, 0, 0), self.basis[:, :-1]).squeeze(1)

    def doubtful(self, x: Tensor, target: Tensor) -> Tensor:
        """Where rounding, about `eps |A| |x|`, may hide that the estimate of the residual is too small, `(B,)`."""
        size = self.hessenberg.abs().amax((1, 2)) * norm(x)
        return ~(10 * self.info.eps * size <= target)


@dataclass(frozen=True, kw_only=True)
class _Drifting(_Krylov):
    """A method whose running residual drifts from the true one by rounding, and so starts again from the true one."""

    def run(self, product: Product, b: Tensor, rtol: Tensor | None = None) -> LinearResult:
        """Sweeps from `x = 0`, until no sample's claim is refuted or `SWEEPS` are over."""
        progress = self.progress(b, rtol)
        x, r, products = torch.zeros_like(b), b, 0
        for _ in range(SWEEPS):
            x, used = self.sweep(product, progress, x, r)
            r = b - product(x)
            products += used + 1
            if not progress.reopen(norm(r)):
                break
        progress.give_up()
        return progress.result(x, products)

    def sweep(self, product: Product, progress: Progress, x: Tensor, r: Tensor) -> tuple[Tensor, int]:
        """Iterates from `x`, whose residual is `r`, while samples run; the new `x` and the products used."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class BiCGStab(_Drifting):
    """Stabilised bi-conjugate gradients: any operator in a few vectors of memory, two products a step.

    Less smooth than `GMRES` and able to break down (reported as stagnated): for states too large for a Krylov basis.
    Source: H. van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992) 631.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`; checked against the true residual at the end.
        max_steps: limit of steps, of two products each.
    """

    def sweep(self, product: Product, progress: Progress, x: Tensor, r: Tensor) -> tuple[Tensor, int]:
        """See `_Drifting.sweep`."""
        shadow = p = r
        rho = _dot(shadow, r)
        start = progress.step
        while progress.going and progress.step < self.max_steps:
            v = product(p)
            alpha = _over(rho, _dot(shadow, v))
            s = r - alpha * v
            t = product(s)
            omega = _over(_dot(t, s), _dot(t, t))
            x = progress.hold(x + alpha * p + omega * s, x)
            r = s - omega * t
            rho, previous = _dot(shadow, r), rho
            beta = _over(rho, previous) * _over(alpha, omega)
            p = r + beta * (p - omega * v)
            broken = ((alpha == 0) | (omega == 0)).squeeze(1)
            progress.update(progress.step + 1, norm(r), broken)
        return x, 2 * (progress.step - start)


@dataclass(frozen=True, kw_only=True)
class CG(_Drifting):
    """Conjugate gradients, for symmetric positive definite (or negative definite) operators only.

    The Hessian of an energy at a minimum, or `I - J` of a gradient map. On other operators it fails, and says so: the
    claimed residual is checked against the true one.
    Source: M. Hestenes and E. Stiefel, J. Res. Natl. Bur. Stand. 49 (1952) 409.

    Args:
        rtol: a sample has converged when `|b - A x| <= rtol |b|`.
        max_steps: limit of steps, of one product each.
    """

    def sweep(self, product: Product, progress: Progress, x: Tensor, r: Tensor) -> tuple[Tensor, int]:
        """See `_Drifting.sweep`."""
        p, rho = r, _dot(r, r)
        start = progress.step
        while progress.going and progress.step < self.max_steps:
            w = product(p)
            curvature = _dot(p, w)
            alpha = _over(rho, curvature)
            x = progress.hold(x + alpha * p, x)
            r = r - alpha * w
            rho, previous = _dot(r, r), rho
            p = r + _over(rho, previous) * p
            progress.update(progress.step + 1, norm(r), (curvature == 0).squeeze(1))
        return x, progress.step - start
