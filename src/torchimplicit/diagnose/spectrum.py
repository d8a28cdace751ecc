"""The spectral radius of a layer's cell at its fixed point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchimplicit.core import ConvergenceWarning
from torchimplicit.core.failures import warn
from torchimplicit.core.options import require_count
from torchimplicit.diagnose.arnoldi import largest_modulus, leading
from torchimplicit.diagnose.probe import linearised, require_layer, untouched
from torchimplicit.equations import fixed_point
from torchimplicit.linear import IdentityMinus
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

    Examples:
        >>> import torch
        >>> from torchimplicit import diagnose, nn
        >>> quarter_turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])
        >>> layer = nn.DEQ(lambda z, x: z @ quarter_turn.T + x)
        >>> diagnose.spectral_radius(layer, torch.ones(1, 2))
        tensor([0.9000])
    """
    layer = require_layer(layer, "spectral_radius")
    require_count("spectral_radius", least=0, dense=dense, restarts=restarts)
    require_count("spectral_radius", least=2, steps=steps)
    if not rtol > 0:
        raise ValueError(f"spectral_radius(rtol={rtol!r}): expected a number > 0")
    on_failure = "ignore" if layer.on_failure == "ignore" else "warn"
    with untouched(layer, (x, *args), seed), torch.no_grad():
        value = fixed_point(
            layer.cell, layer.initial_state(x, *args), x, *args, solver=layer.solver, on_failure=on_failure
        ).value
        with linearised(layer, value, x, args) as (jacobian, z):
            if z.shape[1] <= dense:
                # From the transposed products, which vectorise.
                return largest_modulus(torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - jacobian.dense(z)).to(
                    z.dtype
                )
            radius, change = leading(IdentityMinus(jacobian), z, steps, restarts, rtol)
    _warn_of_unsettled(change, rtol)
    return radius.to(z.dtype)


def _warn_of_unsettled(change: Tensor, rtol: float) -> None:
    unsettled = torch.nonzero(change > rtol).flatten().tolist()
    if unsettled:
        listed = ", ".join(f"{i} (last change {float(change[i]):.1e})" for i in unsettled[:5])
        more = f" and {len(unsettled) - 5} more" if len(unsettled) > 5 else ""
        warn(
            ConvergenceWarning(
                f"spectral_radius: {len(unsettled)} of {len(change)} samples did not settle to rtol={rtol:g}: "
                f"samples {listed}{more}. Try: more steps or restarts, or a looser rtol."
            )
        )
