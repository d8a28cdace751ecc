"""A condition that the solution must satisfy: a residual that vanishes, in the flat form that solvers work on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchimplicit.core import transforms
from torchimplicit.core.autocast import Autocast
from torchimplicit.core.explicit import Bound, Explicit, check_captures, is_module_class, words_of
from torchimplicit.core.status import CaptureError
from torchimplicit.core.tree import Layout


class Residual:
    """The residual `r(z)` of a bound problem, a matrix `(B, n)` for a matrix `(B, n)`; counts its evaluations.

    Args:
        evaluate: `(z, out) -> r`; `out` is a buffer to write into, or None.
        eps: the rounding of the function's dtype, below which relative residuals mean nothing.
        narrow: `rows -> Residual` of those samples alone; None where it is not known how.

    Attributes:
        comparable: whether the residual is in the units of the state, as that of a fixed point.
        aside: `z -> value` of `evaluate`, for looks that are no steps of the solve, where steps are checkpointed.
        jacobian: where it was last linearised by such a look, and its Jacobian there; a step from there may take it.
        bound: the user's function and arguments as the solve has them, plain tensors whatever transform surrounds the
            call; None under `torch.vmap`, where a row is no sample of theirs.
    """

    comparable: bool = True
    aside: Callable[[Tensor], Any] | None = None
    jacobian: tuple[Tensor, Any] | None = None
    bound: Bound | None = None

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor | None], Tensor],
        eps: float,
        narrow: Callable[[Tensor], Residual] | None = None,
    ):
        self.evaluate, self.eps, self.narrow = evaluate, eps, narrow
        self.nfev = 0

    def __call__(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """The residual at `z`, in `out` where that is given."""
        self.nfev += 1
        return self.evaluate(z, out)

    def look(self, z: Tensor) -> Tensor:
        """The residual at `z`, where no step of the solve is taken."""
        return self(z) if self.aside is None else self.aside(z)

    def take_jacobian(self, z: Tensor) -> Any:
        """The Jacobian that a look has left at this very iterate; None where there is none."""
        known, self.jacobian = self.jacobian, None
        return None if known is None or known[0] is not z or torch.is_grad_enabled() else known[1]


class Slope(Residual):
    """The gradient of an energy as a residual, for solvers that go down: it tells the energy, too.

    Args:
        evaluate: `(z, out) -> (gradient, energy)`, `(B, n)` and `(B,)`.
        eps: see `Residual`.
        narrow: see `Residual`.
        terms: `z -> (B, m)`, of whose squares the energy is half the sum; None where it is not one.

    Attributes:
        energy: `(B,)` where it was last evaluated.
    """

    comparable = False
    energy: Tensor

    def __init__(
        self,
        evaluate: Callable[[Tensor, Tensor | None], Any],
        eps: float,
        narrow: Callable[[Tensor], Residual] | None = None,
        terms: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__(evaluate, eps, narrow)
        self.terms = terms

    def __call__(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """The gradient at `z`, in `out` where that is given."""
        gradient, energy = super().__call__(z, out)
        self.energy = energy.detach()
        return gradient

    def look(self, z: Tensor) -> Tensor:
        """See `Residual.look`."""
        return self(z) if self.aside is None else self.aside(z)[0]


class Problem:
    """A residual `r(z, *tensors)` that shall vanish, its tensors explicit, its state flat.

    Subclasses say how the residual follows from the user's function. The sign is chosen such that for a fixed point
    `dr/dz = I - J`, so that a Neumann series of it converges for a contraction.

    Args:
        f: the user's function of the state and `args`.
        z0: the initial state, nested; gives structure, shapes and dtypes.
        args: further arguments of `f`.
        batch_dims: 1 when dimension 0 of the state is the batch, 0 for one coupled problem.
        batched_args: positions of those `args` that carry the batch in dimension 0, the others being the same for all
            samples; None when that is not known.
        begins: whether this is a new solve, with its own random masks, or a look at the last one.
        layout: of the state, where it is at hand.
    """

    form: ClassVar[str] = "f(z, *args)"
    comparable: ClassVar[bool] = False  # whether the residual is in the units of the state
    slopes: ClassVar[bool] = False  # whether the residual is a `Slope`
    squares: ClassVar[bool] = False  # and one with terms

    def __init__(
        self, f: Callable, z0: Any, args: tuple, batch_dims: int = 1, batched_args: Sequence[int] | None = None,
        begins: bool = True, layout: Layout | None = None,
    ):  # fmt: skip
        """Makes function and state explicit; evaluates nothing."""
        if not callable(f) or is_module_class(f):
            raise TypeError(f"f: got {words_of(f)}, expected a callable {self.form}")
        self.f, self.batch_dims = f, batch_dims
        self.layout = Layout(z0, batch_dims) if layout is None else layout
        self.explicit = Explicit(f, args, begins)
        self.autocast = Autocast(self.layout.device.type)
        self.eps = max(self.layout.eps, self.autocast.eps)
        self.batched_args = batched_args
        if batched_args is not None:
            _check_batched(batched_args, args, self.layout, batch_dims)

    @property
    def scalars(self) -> int:
        """The `B` of a state of shape `(B,)`, whose every entry is a sample: easily meant otherwise. Else 0."""
        lined_up = self.batch_dims == 1 and all(len(shape) == 1 for shape in self.layout.shapes)
        return self.layout.batch if lined_up else 0

    def residual(self, z: Tensor, value: Tensor, out: Tensor | None) -> Tensor:
        """The residual from the state and the function's value there, both `(B, n)`, in `out` where that is given."""
        raise NotImplementedError

    def check(self, value: Any) -> None:
        """Refuses what the user's function must not return."""
        self.layout.check(value, cast=self.autocast.enabled)

    def check_captures(self, value: Any, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
        """Refuses a value whose graph leads to other tensors; see `explicit.check_captures`."""
        check_captures(self.f, value, tensors)

    @contextmanager
    def bind(
        self, tensors: list[Tensor] | tuple[Tensor, ...], audit: bool = False, keep_buffers: bool = False
    ) -> Iterator[Residual]:
        """The residual as a function of the flat state, with these tensors in place, for one solve.

        Args:
            tensors: in the order that `Explicit.take_tensors` gave them.
            audit: refuse captured tensors, see `Explicit.bind`.
            keep_buffers: see `Explicit.bind`.
        """
        if audit:
            tensors = [tensor.detach() for tensor in tensors]
        layout = self.layout

        def evaluate_first(z: Tensor, out: Tensor | None) -> Any:
            residual.evaluate = evaluate
            given = [tensor for tensor in tensors[self.explicit.shared :] if tensor.is_floating_point()]
            versions = [transforms.version(tensor) for tensor in given]
            value = self.evaluate_first(lambda: function(layout.unflatten(z)), z)
            if versions != [transforms.version(tensor) for tensor in given]:
                raise ValueError(
                    "the function writes into one of its arguments, and so is another one at every evaluation; try an "
                    "out-of-place operation, or clone the argument inside the function first"
                )
            return evaluate(z, out, value)

        with self.explicit.bind(tensors, keep_buffers, audit) as bound, self.autocast.off():
            function = self.autocast.around(bound)
            residual = self._bound(function, layout, tensors, self._narrower(bound, layout))
            evaluate: Callable[..., Any] = residual.evaluate
            residual.bound = bound
            residual.evaluate = evaluate_first
            yield residual

    @property
    def user_layout(self) -> Layout:
        """Of the state that the user's function sees, for messages."""
        return self.layout

    def evaluate_first(self, function: Callable[[], Any], z: Tensor) -> Any:
        """The first value of the user's function, looked at closely.

        Args:
            function: evaluates at the state.
            z: the state, flat.
        """
        version = transforms.version(z)
        try:
            value = function()
        except CaptureError:
            raise
        except Exception as error:
            where = f"(while evaluating the function {self.form} at a state of {self.user_layout.describe()}"
            error.add_note(f"{where}{self._other_weights()})")
            raise
        if transforms.version(z) != version:
            raise ValueError("the function writes into its state; try an out-of-place operation, or clone it first")
        self.check(value)
        return value

    def _other_weights(self) -> str:
        """That weights of the function's modules have another dtype than the state; nothing where they have not."""
        found = {each.dtype for member in self.explicit.family.members for each in member.module.parameters(False)}
        others = {dtype for dtype in found if dtype.is_floating_point} - set(self.user_layout.dtypes)
        if not others:
            return ""
        words, own = ", ".join(map(str, others)), self.user_layout.dtypes[0]
        return f", with weights of {words}; try .to({words}) on what is given, or .to({own}) on the module"

    def _bound(
        self,
        function: Callable,
        layout: Layout,
        tensors: Sequence[Tensor] = (),
        narrow: Callable[[Tensor], Residual] | None = None,
    ) -> Residual:
        """The residual of a function of the state alone; its `evaluate` also takes a third argument.

        That is the function's value at `z`, where it is known. `tensors` are those that are in place, where the
        residual is to be differentiated by them.
        """

        def evaluate(z: Tensor, out: Tensor | None, value: Any = None) -> Tensor:
            value = function(layout.unflatten(z)) if value is None else value
            return self.residual(z, layout.flatten(value), out)

        residual = Residual(evaluate, self.eps, narrow)
        residual.comparable = self.comparable
        return residual

    def _narrower(self, bound: Bound, layout: Layout) -> Callable[[Tensor], Residual] | None:
        """How to get the residual of some samples; None where it is not known which arguments are theirs."""
        batched = self.batched_args
        if batched is None or torch.is_grad_enabled():
            return None

        def narrow(rows: Tensor) -> Residual:
            some, smaller = bound.take(rows, batched), layout.of_batch(len(rows))
            return self._bound(self.autocast.around(some), smaller, narrow=self._narrower(some, smaller))

        return narrow


class FixedPoint(Problem):
    """`f(z) = z`, with the residual `z - f(z)`."""

    comparable = True

    def residual(self, z: Tensor, value: Tensor, out: Tensor | None) -> Tensor:
        """`z - f(z)`."""
        return torch.sub(z, value, out=out)


class Root(Problem):
    """`g(z) = 0`, with the residual `g(z)`."""

    def residual(self, z: Tensor, value: Tensor, out: Tensor | None) -> Tensor:
        """`g(z)`."""
        return value if out is None else out.copy_(value)


def _check_batched(batched_args: Any, args: tuple, layout: Layout, batch_dims: int) -> None:
    positions = list(range(len(args)))
    if not isinstance(batched_args, list | tuple) or not all(i in positions for i in batched_args):
        raise ValueError(
            f"batched_args: got {batched_args!r}, expected a tuple of positions among the {len(args)} further "
            f"arguments of the function, each of 0..{len(args) - 1}; try batched_args=(0,) for fixed_point(f, z0, x)"
        )
    if batch_dims == 0:
        raise ValueError("batched_args: got batch_dims=0, one coupled problem; expected batch_dims=1")
    for i in batched_args:
        for leaf in pytree.tree_leaves(args[i]):
            if isinstance(leaf, Tensor) and (leaf.dim() == 0 or len(leaf) != layout.batch):
                raise ValueError(
                    f"batched_args: got argument {i} with a tensor of shape {tuple(leaf.shape)}, expected the batch of "
                    f"{layout.batch} in dimension 0"
                )
