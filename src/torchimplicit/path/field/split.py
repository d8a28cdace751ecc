"""A vector field in two parts, for methods that treat them differently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Split(nn.Module):
    r"""The vector field $f(t, y) = f_E(t, y) + f_I(t, y)$: a part that is not stiff and one that is.

    `KenCarp4` steps the first explicitly and the second implicitly: only the Jacobian of the second is needed, which
    pays where that is simple (diffusion, relaxation, linear decay) and the first is not. Every other solver takes the
    sum. Parameters of both parts, where they are modules or methods of modules, are found and get gradients.

    Args:
        explicit: `f_E(t, y, *args)`.
        implicit: `f_I(t, y, *args)`, of the same structure and shapes.

    Raises:
        TypeError: one of them cannot be called.

    Examples:
        >>> import torch, torchimplicit as ti
        >>> field = ti.Split(lambda t, y: torch.cos(t), lambda t, y: -1000.0 * y)
        >>> ti.odeint(
        ...     field, torch.ones(2, 1), torch.tensor([0.0, 1.0]), solver=ti.KenCarp4()
        ... ).value.shape
        torch.Size([2, 2, 1])
    """

    def __init__(self, explicit: Callable, implicit: Callable):
        super().__init__()
        for name, part in (("explicit", explicit), ("implicit", implicit)):
            if not callable(part):
                raise TypeError(f"Split({name}): got a {type(part).__name__}, expected a callable f(t, y, *args)")
        self.explicit, self.implicit = explicit, implicit
        owners = (getattr(part, "__self__", None) for part in (explicit, implicit))
        self.owners = nn.ModuleList(owner for owner in owners if isinstance(owner, nn.Module))

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        """The sum of both parts.

        Raises:
            ValueError: they differ in structure or shapes.
        """
        (one, spec), (other, other_spec) = (
            pytree.tree_flatten(part(t, y, *args)) for part in (self.explicit, self.implicit)
        )
        shapes = [[tuple(leaf.shape) for leaf in leaves] for leaves in (one, other)]
        if spec != other_spec or shapes[0] != shapes[1]:
            raise ValueError(
                f"Split: got parts of shapes {shapes[0]} and {shapes[1]}, expected the structure and shapes of the "
                "state from both; try a broadcast, such as value.expand_as(y)"
            )
        return pytree.tree_unflatten([a + b for a, b in zip(one, other, strict=True)], spec)
