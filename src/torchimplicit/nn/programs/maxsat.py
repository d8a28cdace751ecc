"""A layer that learns which variables contradict each other, and completes an assignment accordingly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchimplicit.core.call import Call
from torchimplicit.core.options import is_count, require, require_count
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure, Report, react
from torchimplicit.nn.layer import ImplicitLayer
from torchimplicit.optim.maxsat import Descent, Equilibrium


class MaxSAT(ImplicitLayer):
    r"""Completes a partial assignment by the low-rank semidefinite relaxation of a learned MAXSAT problem.

    Every variable is a unit vector $v_i \in \mathbb{R}^k$, and $v_0$ stands for *true*: a variable's value is
    $z_i = \arccos(-v_i^\top v_0) / \pi$. Given variables are held at their values; the others, and auxiliary ones that
    nobody sees, take the equilibrium of

    $$ E(V) = \tfrac12 \langle S^\top S, V^\top V \rangle + \sum_i (v_0 + \alpha\, a_i)^\top v_i,
    \qquad v_i = -\frac{g_i}{|g_i|}, \quad g_i = v_0 + \alpha\, a_i + \sum_{j \ne i} (S^\top S)_{ij} v_j . $$

    The diagonal of $S^\top S$ does not matter, for the vectors have unit length; and every symmetric $C$ is such a
    product but for its diagonal. So where no number of clauses is asked for, the layer learns $C$ itself: its
    first-order response to data is then linear in the parameters, and entries that nothing speaks for can be held at
    zero by a sparsity penalty. The force $v_0$ keeps a variable false while nothing speaks for it, and is the unit of
    the others: equilibria do not change with the energy's scale. The anchors $a_i$, fixed directions at right angles to
    $v_0$, make the equilibrium isolated: without them it is one of a whole orbit of rotations, and at $C = 0$ there is
    none to differentiate but the pole. $\alpha$ is learned as its logarithm. At $\alpha \to 0$ it is the relaxation,
    slow to solve and hard to train; where $\alpha$ is far above the couplings' sums it is nearly linear in them.

    Solver and derivative are in `optim.maxsat`: descent by blocks, and one symmetric linear solve backward. First
    derivatives only.

    In the spirit of SATNet (P.-W. Wang, P. L. Donti, B. Wilder, J. Z. Kolter, ICML 2019, arXiv 1905.12149, equations
    2-5), from which the anchors, the common force, the coupling without clauses, the block steps and the backward solve
    differ. Not for problems whose clauses are known (use a solver), nor for ones that need search: it is one
    relaxation.

    Args:
        variables: that are seen, given or asked for.
        auxiliary: that are not.
        clauses: rows of $S$; None learns $C$ itself, from zero.
        rank: $k$. The relaxation is exact from $\sqrt{2 n}$ on; a few dimensions do as well for most.
        anchor: $\alpha$ at the start.
        blocks: of variables that move at once; fewer are quicker a sweep, more need fewer sweeps.
        rtol: a sample has converged when the RMS length of its free vectors' last moves is at most this.
        max_steps: sweeps at most.
        backward_rtol: of the backward solve's residual, relative to the incoming gradient.
        backward_max_steps: products with the Hessian at most.
        on_failure: "warn" (default), "raise" or "ignore" samples that do not converge, forward and backward.

    Attributes:
        report: how the last solve went, and in `report.backward` the last backward solve; None before the first.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> layer = ti.nn.MaxSAT(3)
        >>> with torch.no_grad():  # the first two cannot both be true
        ...     _ = layer.coupling[1, 2].fill_(20.0)
        >>> x, given = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, False, False]])
        >>> z = layer(x, given)
        >>> bool(z[0, 1] < z[0, 2])
        True
    """

    report: Report | None

    def __init__(
        self,
        variables: int,
        auxiliary: int = 0,
        clauses: int | None = None,
        rank: int = 4,
        anchor: float = 0.7,
        blocks: int = 10,
        rtol: float = 1e-3,
        max_steps: int = 100,
        backward_rtol: float = 1e-2,
        backward_max_steps: int = 50,
        on_failure: OnFailure = "warn",
    ):
        """Draws the anchors, and the clauses where there are any."""
        super().__init__()
        self.variables, self.auxiliary, self.clauses, self.rank = variables, auxiliary, clauses, rank
        require_count(self, "variables")
        require_count(self, "auxiliary", least=0)
        require(self, "clauses", clauses is None or is_count(clauses), "None or an integer >= 1")
        require_count(self, "rank", least=2)
        if not 0 < anchor < math.inf:
            raise ValueError(f"MaxSAT(anchor={anchor!r}): expected a finite number > 0; try a small one for none")
        self.descent = Descent(blocks, rtol, max_steps, backward_rtol, backward_max_steps, on_failure)
        total = 1 + variables + auxiliary
        self.coupling = nn.Parameter(
            torch.zeros(total, total) if clauses is None else torch.randn(clauses, total) / math.sqrt(total * clauses)
        )
        self.log_anchor = nn.Parameter(torch.tensor(math.log(anchor)))
        directions = nn.functional.normalize(torch.randn(total, rank - 1), dim=1)
        self.directions: Tensor
        self.register_buffer("directions", nn.functional.pad(directions, (1, 0)))

    @property
    def on_failure(self) -> OnFailure:
        """See the class; one of the options of `descent`."""
        return self.descent.on_failure

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Values of all variables that are seen.

        Args:
            x: values in [0, 1], `(B, variables)`, 1 for true; those that are not given do not count.
            given: which ones are, `(B, variables)` bool.

        Returns:
            `(B, variables)` in [0, 1]: the given ones as they are. A variable at exactly 0 or 1 has no finite slope;
            losses that want bounded ones take `cosine`.

        Raises:
            TypeError: `x` is not floating like the parameters, or `given` not bool.
            ValueError: other shapes, or a given value outside [0, 1].
            ConvergenceError: a sample did not converge, with `on_failure="raise"`.
        """
        inside = 1 - torch.finfo(x.dtype).eps if x.is_floating_point() else 1.0
        cosine = self.cosine(x, given).clamp(-inside, inside)
        return torch.where(given, x, torch.arccos(-cosine) / math.pi)

    @public
    def cosine(self, x: Tensor, given: Tensor) -> Tensor:
        """As `forward`, but $v_i^T v_0$, 1 for true and -1 for false: smooth, with bounded slopes."""
        self._check(x, given)
        known = torch.where(given, x, 0.0).T.unsqueeze(2)
        true = torch.zeros_like(self.directions[0])
        true[0] = 1.0
        force = true + self.log_anchor.exp() * self.directions
        seen = slice(1, 1 + self.variables)
        rest = -nn.functional.normalize(force.detach(), dim=1)
        start = torch.cat([true[None], rest[1:]]).unsqueeze(1).expand(-1, len(x), -1)
        # On the arc from false over the anchor's direction to true.
        arc = torch.sin(math.pi * known) * self.directions[seen, None] - torch.cos(math.pi * known) * true
        start = torch.cat([start[:1], torch.where(given.T.unsqueeze(2), arc, start[seen]), start[seen.stop :]])
        hidden = given.new_ones(len(x), self.auxiliary)
        free = torch.cat([given.new_zeros(len(x), 1), ~given, hidden], 1).T
        call = Call(on_failure=self.counted())
        value = Equilibrium.apply(self.matrix(), force, start, free, self.descent, call)
        assert call.record.report is not None
        self.report = call.record.report
        react(self.report, call.on_failure)
        return value[seen, :, 0].T

    def matrix(self) -> Tensor:
        """The couplings in force, symmetric with a diagonal of zeros, `(n, n)`, the truth first, auxiliaries last."""
        coupling = self.coupling
        coupling = (coupling + coupling.T) / 2 if self.clauses is None else coupling.T @ coupling
        return coupling - torch.diag(coupling.diagonal())

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.variables}, auxiliary={self.auxiliary}, clauses={self.clauses}, rank={self.rank}"

    def _check(self, x: Tensor, given: Tensor) -> None:
        dtype = self.directions.dtype
        if x.dtype != dtype:
            raise TypeError(f"MaxSAT: got values of {x.dtype}, expected {dtype} like the parameters; try x.to({dtype})")
        if given.dtype != torch.bool:
            raise TypeError(f"MaxSAT: given is {given.dtype}, expected torch.bool: which variables are given")
        if x.dim() != 2 or x.shape[1] != self.variables or given.shape != x.shape:
            raise ValueError(
                f"MaxSAT: got values {tuple(x.shape)} and given {tuple(given.shape)}, expected (B, {self.variables}) "
                "of both"
            )
        wrong = given & ~((x >= 0) & (x <= 1))
        if bool(wrong.any()):
            sample, variable = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"MaxSAT: sample {sample} has the given value {float(x[sample, variable])} of variable {variable}, "
                "expected one in [0, 1]; a variable that is not known is not given"
            )
