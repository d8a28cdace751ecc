"""What all projections do with their arguments: shapes, dtype, empty sets, and samples that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from torchimplicit.core import transforms
from torchimplicit.core.public import public
from torchimplicit.core.status import OnFailure
from torchimplicit.optim.projection.verdict import tell

Scalar = float | Tensor


class Batch:
    """The points to project, ready to be worked on, and the way back.

    Half precision is carried in float32. A sample that is not finite, or has a parameter that is not, is computed on
    harmless numbers and comes out as NaN: it adds nothing to the gradients of what it shares with others, and is told.

    Args:
        name: the projection, for messages.
        x: points `(..., *event)`, real and floating.
        event: dimensions of one point: 1 for vectors, 2 for matrices.
        fault: what is wrong with a sample that is refused, for messages.
        masks: whether entries of `-inf` have an answer, "no", "some" (not where all entries are) or "all"; those that
            have one stay in `x`.
        on_failure: "raise", "warn" or "ignore" what `finish` finds.

    Raises:
        TypeError: `x` is not a real floating tensor.
        ValueError: it has too few dimensions, or points without entries.
    """

    def __init__(
        self,
        name: str,
        x: Tensor,
        event: int = 1,
        fault: str = "the set is empty",
        masks: Literal["no", "some", "all"] = "no",
        on_failure: OnFailure = "raise",
    ):
        if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
            got = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: got a point of {got}, expected a real floating tensor; try x.double()")
        if x.dim() < event or 0 in x.shape[x.dim() - event :]:
            expected = "(..., n)" if event == 1 else "(..., m, n)"
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected {expected} with at least one entry a point")
        self.name, self.event, self.dtype, self.fault = name, event, x.dtype, fault
        self.on_failure: OnFailure = on_failure
        self.shape = x.shape[: x.dim() - event]
        x = x.float() if x.dtype.itemsize < 4 else x
        size = x.detach().abs() if masks == "no" else x.detach()
        largest = size.amax(tuple(range(-event, 0)))
        self.nonfinite = ~((largest.abs() if masks == "some" else largest) < torch.inf)  # NaN is less than nothing
        self.x = x.masked_fill(self.spread(self.nonfinite), 0)

    def scalar(self, name: str, value: Scalar, at_least: float | None = None) -> Tensor:
        """A number per sample, or one for all, as `(..., 1)` or `(..., 1, 1)` beside the points.

        Raises:
            ValueError: it does not fit the batch, is too small, or a number that is not finite.
        """
        if at_least is not None and not isinstance(value, Tensor) and value < at_least:
            raise ValueError(f"{self.name}: {self.fault}, {name}={value}; expected {name} >= {at_least}")
        tensor = self.entry(name, value, self.shape)
        if isinstance(value, Tensor):
            if at_least is not None:
                self.refuse(tensor.detach() < at_least, f"{name} >= {at_least}", **{name: tensor})
            tensor = self.healthy(tensor, 0, 1.0)
        return self.spread(tensor)

    def step(self, step: Scalar) -> Tensor:
        """A step >= 0 for all, for every sample, or, of as many dimensions as the points, for every entry.

        Raises:
            ValueError: it does not fit, or is negative.
        """
        if not isinstance(step, Tensor) or step.dim() < len(self.shape) + self.event:
            return self.scalar("step", step, at_least=0)
        found = self.vector("step", step)
        self.refuse((found.detach() < 0).any(-1), "step >= 0")
        return found

    def vector(self, name: str, value: Scalar, infinite: bool = False, event: int = 1) -> Tensor:
        """A number per entry, or fewer that broadcast to the points' shape.

        Raises:
            ValueError: it does not fit, or is a number that is not finite.
        """
        tensor = self.entry(name, value, self.shape + self.x.shape[self.x.dim() - event :], infinite)
        if not isinstance(value, Tensor):
            return tensor
        return self.healthy(tensor, event if tensor.dim() else 0, 1.0, infinite)

    def matrix(self, name: str, value: Tensor) -> Tensor:
        """A matrix per sample or one for all, `(p, n)` or `(..., p, n)`.

        Raises:
            ValueError: it does not fit.
        """
        if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[-1] != self.x.shape[-1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name}: got {name} of {got}, expected (p, {self.x.shape[-1]}), or one per sample")
        return self.healthy(self.entry(name, value, self.shape + value.shape[-2:]), 2, 0.0)

    def entry(self, name: str, value: Scalar, shape: tuple[int, ...], infinite: bool = False) -> Tensor:
        """The value in the working dtype, refused unless it broadcasts to `shape`; as a number, unless it is finite."""
        if not isinstance(value, Tensor):
            if value != value or (abs(value) == torch.inf and not infinite):
                raise ValueError(f"{self.name}: got {name}={value}, expected a finite number")
            return torch.as_tensor(value, dtype=self.x.dtype, device=self.x.device)
        tensor = value.to(self.x.dtype)
        fits = len(tensor.shape) <= len(shape)
        fits = fits and all(a in (1, b) for a, b in zip(reversed(tensor.shape), reversed(shape), strict=False))
        if not fits:
            raise ValueError(
                f"{self.name}: got {name} of shape {tuple(tensor.shape)} for points of shape "
                f"{(*self.shape, *self.x.shape[self.x.dim() - self.event :])}, expected {tuple(shape)} or what "
                "broadcasts to it; samples come first"
            )
        return tensor

    @public
    def refuse(self, empty: Tensor, expected: str, **values: Tensor) -> None:
        """Refuses the samples set in `empty`, `()` or as the batch; of the first of them, the `values` are shown.

        Raises:
            ValueError: there is such a sample; it says which.
        """
        empty = empty & ~self.nonfinite
        everywhere = transforms.plain(empty)
        found = everywhere.nonzero()
        if not len(found):
            return
        first, shown = tuple(found[0].tolist()), ""
        if everywhere.dim() != empty.dim():  # under vmap: an index would not be the caller's
            where = f"{len(found)} of the samples"
        else:
            names = [str(index[0] if len(index) == 1 else tuple(index)) for index in found[:5].tolist()]
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            where = f"sample{'s' if len(found) > 1 else ''} {', '.join(names)}{more}" if empty.dim() else "the sample"
            plain = {name: transforms.plain(value.detach()).expand(empty.shape) for name, value in values.items()}
            shown = "".join(f", {name}={float(value[first]):.6g}" for name, value in plain.items())
        raise ValueError(f"{self.name}: {self.fault} in {where}{shown}; expected {expected}")

    def finish(self, y: Tensor, gap: Tensor | None = None, play: Tensor | float = 0.0) -> Tensor:
        """The result in the caller's dtype, NaN for what was not finite; tells of that, and of conditions not met.

        Args:
            y: the points.
            gap: by how much each misses its condition, `(...)` or `(..., 1)`; None where nothing can go wrong.
            play: how much of that is rounding.
        """
        nonfinite = self.nonfinite
        if self.dtype != y.dtype:  # numbers may be too large for half precision
            y = y.to(self.dtype)
            nonfinite = nonfinite | ~(y.detach().abs().amax(tuple(range(-self.event, 0))) < torch.inf)
        if tell(self.name, nonfinite, gap, play, self.on_failure):
            return y
        return y.masked_fill(self.spread(nonfinite), torch.nan)

    def healthy(self, tensor: Tensor, event: int, harmless: float, infinite: bool = False) -> Tensor:
        """A parameter with something harmless in the samples where it is not finite, which are noted."""
        value = tensor.detach()
        nonfinite = value.isnan() if infinite else ~(value.abs() < torch.inf)
        if event:
            nonfinite = nonfinite.flatten(-event).any(-1)
        self.nonfinite = self.nonfinite | nonfinite
        return tensor.masked_fill(nonfinite[(..., *[None] * event)], harmless)

    def check_masks(self, lower: Tensor) -> None:
        """Excludes samples that have an entry of `-inf` without a finite lower bound, to which it could go."""
        self.exclude((self.x.detach() == -torch.inf) & (lower.detach() == -torch.inf))

    def exclude(self, lost: Tensor) -> None:
        """Adds the samples of such entries to those that are not finite."""
        lost = lost.flatten(-self.event).any(-1)
        self.nonfinite, self.x = self.nonfinite | lost, self.x.masked_fill(self.spread(lost), 0)

    def spread(self, tensor: Tensor) -> Tensor:
        """What there is one of a sample, beside the points."""
        return tensor[(..., *[None] * self.event)]


def polar(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length `(..., 1)` and direction of vectors, and by how much the direction's length is not one.

    Neither squares of small nor of large entries are lost. Of zero both have no derivative, never 0 / 0.
    """
    scale = x.detach().abs().amax(-1, keepdim=True)
    usable = scale > 0
    scale = torch.where(usable, scale, 1)
    x = x / scale
    root = torch.where(usable, x.square().sum(-1, keepdim=True), 1).sqrt()
    x = x / root
    missed = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True).sub(1).abs()
    return (scale * root).masked_fill(~usable, 0), x, missed.masked_fill(~usable, 0)


def norm(x: Tensor) -> Tensor:
    """The length of vectors `(..., 1)`, of no derivative."""
    x = x.detach()
    scale = x.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    return scale * (x / scale).square().sum(-1, keepdim=True).sqrt()


class Label(Function):
    """Which piece of a piecewise formula holds: `function(*tensors)` of plain tensors, of no derivative."""

    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor) -> Any:
        """Calls the function; under `torch.vmap` with the whole batch at once."""
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Nothing is kept."""
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.inputs, ctx.outputs = len(inputs), len(outputs)
        ctx.mark_non_differentiable(*outputs)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        """There is no derivative."""
        return (None,) * ctx.inputs

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        """There is no derivative."""
        return (None,) * ctx.outputs if ctx.outputs > 1 else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, function: Callable[..., Any], *tensors: Tensor) -> tuple[Any, Any]:
        """The mapped dimension joins the batch."""
        front = (
            value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)
            for value, dim in zip(tensors, in_dims[1:], strict=True)
        )
        found: Any = Label.apply(function, *front)
        return found, (0,) * len(found) if isinstance(found, tuple) else 0
