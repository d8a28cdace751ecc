"""Projections onto convex sets, exact, batched, and differentiable in the point and in the set's parameters.

Points are vectors in the last dimension; all dimensions before it are the batch. Parameters are shared, or one per
sample. Every function is written as: find which constraints are active, then compute the point from these by plain
differentiable operations. So first and higher derivatives, forward mode and `torch.func` transforms are autograd's own.

Four things hold for all of them.

- Where a projection has a kink, the derivative is an element of Clarke's subdifferential, never NaN: a constraint that
  is met with equality and pushes nothing counts as active, so that it is the one from outside of the set
  (`semidefinite_cone`, `box_section` and `isotonic` say more; `qp` and `nn.Convex` take the one from inside).
- A set without a point raises `ValueError`, naming the samples.
- The point is held against what it must satisfy, to the rounding of its own numbers. A sample that misses that, or is
  not finite, is told of by `on_failure`: "raise" (`ConvergenceError`), "warn" or "ignore"; not within the function of a
  solve, whose own report tells. One that is not finite comes out as NaN, touches no other, and adds nothing to any
  gradient.
- An entry of `-inf` is a mask wherever its answer is the limit however it goes there: zero on a simplex, without a
  gradient; its lower bound in a box, where that is finite. Elsewhere it is not finite.
"""

from torchimplicit.optim.projection.balls import box, l2_ball, linf_ball
from torchimplicit.optim.projection.cones import second_order_cone, semidefinite_cone
from torchimplicit.optim.projection.isotonic import isotonic
from torchimplicit.optim.projection.planes import affine, halfspace
from torchimplicit.optim.projection.section import box_section, capped_simplex
from torchimplicit.optim.projection.simplex import l1_ball, simplex, sparse_simplex
from torchimplicit.optim.projection.transport import birkhoff_polytope, transport_polytope

__all__ = [
    "affine",
    "birkhoff_polytope",
    "box",
    "box_section",
    "capped_simplex",
    "halfspace",
    "isotonic",
    "l1_ball",
    "l2_ball",
    "linf_ball",
    "second_order_cone",
    "semidefinite_cone",
    "simplex",
    "sparse_simplex",
    "transport_polytope",
]
