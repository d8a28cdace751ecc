"""The spectral radius of a layer's cell at its fixed point."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import ConvergenceWarning
from torchimplicit.core.problem import FixedPoint
from torchimplicit.core.tree import norm
from torchimplicit.diagnose.probe import require_layer, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.linear import IdentityMinus, Jacobian, LinearOperator
from torchimplicit.nn import DEQ


def spectral_radius(
    layer: DEQ,
    x: Any,
    *args: Any,
    dense: int = 128,
    steps: int = 40,
    restarts: int = 5,
    rtol: float = 1e-3,
    seed: int = 0,
) -> Tensor:
    r"""The largest modulus among the eigenvalues of $J = \partial\,\mathrm{cell} / \partial z$ at the fixed point.

    Below one the fixed point attracts Picard's iteration, at that rate; near one, solves are slow and gradients large
    ($(I - J)^{-1}$ in the backward solve); above one, only solvers such as `Newton` or `Anderson` find the point.

    States of at most `dense` unknowns get their Jacobian and all its eigenvalues. Larger ones get a restarted Arnoldi
    process on Jacobian-vector products: an orthonormal basis $Q$ of the Krylov space and the eigenvalues of the small
    $H = Q^\top J Q$, restarted from the real part of the leading Ritz vector. Complex pairs are found, so a rotation
    has its true radius, where a Rayleigh quotient $v^\top J v$ gives zero.

    Accuracy, dense: that of the eigenvalues themselves, so rounding for normal matrices and about $\epsilon^{1/k}$ for
    a defective eigenvalue of index $k$ ($\epsilon$ the rounding of the state's dtype). Arnoldi, measured with up
    to 1000 unknowns: 1e-5 for symmetric matrices, mostly 1e-4 and at worst 1e-2 for random ones (many eigenvalues on
    one circle); but for matrices far from normal it sees the pseudospectrum, and came out up to a half too large for
    random triangular ones. There raise `dense`, or read it as an upper estimate.
    A sample whose estimate has not settled to `rtol` is named in a warning.

    Args:
        layer: the layer.
        x: its input, `(B, ...)`, or a nest of such.
        *args: further arguments of the cell.
        dense: most unknowns per sample for which the whole Jacobian is built; 0 always takes Arnoldi.
        steps: Arnoldi vectors between restarts; memory is `steps + 1` states per sample.
        restarts: most restarts; the cost is at most `steps * (restarts + 1)` products.
        rtol: a sample is done when the Ritz pair's residual, relative to its modulus, is below this.
        seed: of the start vector, the same one for every sample.

    Returns:
        The spectral radius of every sample, `(B,)`; NaN where the Jacobian is not finite. Where the solve did not
        converge, that at the point reached, with a `ConvergenceWarning` (not when the layer ignores failures).

    Raises:
        TypeError: `layer` is no `DEQ`.
        ValueError: an impossible option, an empty batch, or a cell that returns another shape than the state's.

    Example:
        >>> import torch
        >>> from torchimplicit import diagnose, nn
        >>> quarter_turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
        >>> layer = nn.DEQ(lambda z, x: z @ quarter_turn.T + x)
        >>> diagnose.spectral_radius(layer, torch.ones(1, 2))
        tensor([0.9000])
    """
    layer = require_layer(layer, "spectral_radius")
    for name, value, least in (("dense", dense, 0), ("steps", steps, 2), ("restarts", restarts, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"spectral_radius({name}={value!r}): expected an integer >= {least}")
    if not rtol > 0:
        raise ValueError(f"spectral_radius(rtol={rtol!r}): expected a number > 0")
    on_failure = "ignore" if layer.on_failure == "ignore" else "warn"
    with untouched(layer, (x, *args), seed), torch.no_grad():
        z0 = layer._start(x, args)
        value = fixed_point(layer.cell, z0, x, *args, solver=layer.solver, on_failure=on_failure).value
        problem = FixedPoint(layer.cell, value, (x, *args))
        z = problem.layout.flatten(value)
        with problem.bind(problem.explicit.take_tensors()) as residual:
            operator = IdentityMinus(Jacobian(residual, z))
            if z.shape[1] <= dense:
                return _radius(_dense(operator, z)).to(z.dtype)
            return _restarted(operator, z, min(steps, z.shape[1]), restarts, rtol).to(z.dtype)


def _dense(operator: IdentityMinus, z: Tensor) -> Tensor:
    """`(B, n, n)`; from the transposed products, which vectorise."""
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    return eye - operator.operator.dense(z)


def _restarted(operator: LinearOperator, z: Tensor, steps: int, restarts: int, rtol: float) -> Tensor:
    """Largest modulus by restarted Arnoldi, `(B,)`; a sample's result is frozen once it has settled."""
    start = torch.randn(z.shape[1], dtype=torch.float64).to(z).expand_as(z)  # drawn on the CPU: the same on any device
    radius = z.new_full(z.shape[:1], torch.nan, dtype=torch.float64)
    change = torch.full_like(radius, torch.inf)
    running = torch.ones_like(radius, dtype=torch.bool)
    for _ in range(restarts + 1):
        basis, hessenberg = _arnoldi(operator, start, steps)
        found, vector = _largest(hessenberg[:, :steps])
        error = hessenberg[:, steps, steps - 1].double() * vector[:, -1].abs()
        change = torch.where(running, (found - radius).abs() / found, change)
        radius = torch.where(running, found, radius)
        running = running & (error > rtol * found)  # NaN ends a sample, too
        if not bool(running.any()):
            break
        ritz = torch.bmm(vector.real.unsqueeze(1).to(z.dtype), basis[:, :steps]).squeeze(1)
        start = torch.where((norm(ritz) > 0).unsqueeze(1), ritz, start)
    unsettled = torch.nonzero(running & (change > rtol)).flatten().tolist()
    if unsettled:
        listed = ", ".join(f"{i} (last change {float(change[i]):.1e})" for i in unsettled[:5])
        more = f" and {len(unsettled) - 5} more" if len(unsettled) > 5 else ""
        warnings.warn(
            ConvergenceWarning(
                f"spectral_radius: {len(unsettled)} of {len(radius)} samples did not settle to rtol={rtol:g}: "
                f"samples {listed}{more}. Try: more steps or restarts, or a looser rtol."
            ),
            stacklevel=3,
        )
    return radius


def _arnoldi(operator: LinearOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis `(B, steps + 1, n)` and Hessenberg matrix `(B, steps + 1, steps)`; zeros once exhausted."""
    batch, width = start.shape
    basis = start.new_zeros(batch, steps + 1, width)
    hessenberg = start.new_zeros(batch, steps + 1, steps)
    basis[:, 0] = start / norm(start).unsqueeze(1)
    for j in range(steps):
        w = operator.matvec(basis[:, j])
        size = norm(w)
        known = basis[:, : j + 1]
        for _ in range(2):  # orthogonalising twice is enough
            part = torch.bmm(known, w.unsqueeze(2))
            w = w - torch.bmm(part.mT, known).squeeze(1)
            hessenberg[:, : j + 1, j] += part.squeeze(2)
        length = norm(w)
        length = torch.where(length <= 10 * torch.finfo(w.dtype).eps * size, 0, length)
        hessenberg[:, j + 1, j] = length
        basis[:, j + 1] = torch.where((length == 0).unsqueeze(1), 0, w / length.unsqueeze(1))
    return basis, hessenberg


def _radius(matrices: Tensor) -> Tensor:
    """The largest modulus of an eigenvalue, in double precision, `(B,)`; NaN for a matrix that is not finite."""
    finite = matrices.isfinite().flatten(1).all(1)
    values = torch.linalg.eigvals(torch.where(finite[:, None, None], matrices, 0).double())
    return torch.where(finite, values.abs().amax(1), torch.nan)


def _largest(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest modulus of an eigenvalue `(B,)` and its unit eigenvector `(B, n)`, in double precision."""
    finite = matrices.isfinite().flatten(1).all(1)
    values, vectors = torch.linalg.eig(torch.where(finite[:, None, None], matrices, 0).double())
    radius, index = values.abs().max(dim=1)
    vector = vectors.gather(2, index[:, None, None].expand(-1, vectors.shape[1], 1)).squeeze(2)
    return torch.where(finite, radius, torch.nan), vector
