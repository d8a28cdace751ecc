"""What torch does by private names only, most of it about its function transforms: all in this file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._functorch.utils import unwrap_dead_wrappers
from torch._functorch.vmap import lazy_load_decompositions  # pyright: ignore[reportPrivateImportUsage]
from torch.autograd import Function, forward_ad
from torch.autograd.graph import _engine_run_backward
from torch.utils import _pytree as pytree

SMALL = 2**16  # numbers in a tensor that is kept for the next who asks

P = ParamSpec("P")
R = TypeVar("R")
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def active() -> bool:
    """Whether any transform surrounds the caller."""
    return torch._C._are_functorch_transforms_active()


def differentiating(tensors: Iterable[Tensor]) -> bool:
    """Whether somebody may ask for a derivative by one of these tensors."""
    if not torch.is_grad_enabled():
        return False
    return active() or forward_ad._current_level >= 0 or any(tensor.requires_grad for tensor in tensors)


def wants_gradient(tensor: Tensor) -> bool:
    """Whether a derivative is wanted by this very tensor, by whichever transform; a constant among others is none."""
    if not torch.is_grad_enabled():
        return False
    while not tensor.requires_grad and forward_ad.unpack_dual(tensor).tangent is None:
        if level(tensor) < 0:
            return False
        tensor = _functorch.get_unwrapped(tensor)
    return True


def level(value: Any) -> int:
    """The innermost transform that a tensor belongs to; -1 for a plain tensor and for anything else."""
    return _functorch.maybe_get_level(value) if isinstance(value, Tensor) else -1


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 where that is not counted (inference mode, transforms)."""
    return 0 if tensor.is_inference() or level(tensor) >= 0 else tensor._version


def recording(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """A function's value with grad enabled: `torch.enable_grad()` takes longer than many a function."""
    outer = torch.is_grad_enabled()
    if outer:
        return function(*args, **kwargs)
    torch._C._set_grad_enabled(True)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._set_grad_enabled(outer)


def is_mapped(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch that `torch.vmap` hides."""
    return _functorch.is_batchedtensor(tensor)


def hides_batch(tensor: Tensor) -> bool:
    """Whether behind any of its wrappers a tensor stands for a batch that `torch.vmap` hides."""
    return is_mapped(unwrapped(tensor))


def unwrapped(tensor: Tensor) -> Tensor:
    """The plain tensor behind the wrappers of transforms that only differentiate."""
    while level(tensor) >= 0 and not is_mapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def plain(tensor: Tensor) -> Tensor:
    """The plain tensor behind all wrappers; what `torch.vmap` hides is then among its dimensions."""
    while level(tensor) >= 0:
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def saved(ctx: Any) -> list[Tensor]:
    """What a function has saved, without the wrappers of transforms that are over.

    Forward mode here is reverse mode of reverse mode; a function within the first is asked for its gradient by the
    second, when the first one's level is gone, and PyTorch fails where two such tensors meet.
    """
    return [_functorch.unwrap_if_dead(tensor) for tensor in ctx.saved_tensors]


def is_mapped_by_autograd(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch that `is_grads_batched` hides, in a form that functions cannot meet."""
    return _functorch.is_legacy_batchedtensor(tensor)


class ForwardOnce(Function):
    """A function with a derivative of its own, which refuses forward mode inside of forward mode.

    PyTorch switches forward mode off while it asks such a `jvp`: the outer derivative of what that returns would be
    zero, without a word. Reverse mode over forward mode, and forward mode over reverse mode, are right.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """See `Function.apply`.

        Raises:
            RuntimeError: forward mode surrounds forward mode.
        """
        if not active():  # as torch does there, but for a look at the signature of `forward`
            plain: Any = super(Function, cls)
            return plain.apply(*unwrap_dead_wrappers(args))
        if len(_forward_levels(args)) > 1:
            raise RuntimeError(
                "got forward mode inside of forward mode (jvp of jvp, jacfwd of jacfwd), whose outer derivative "
                "PyTorch loses in a function with a derivative of its own, expected one of them in reverse mode; try "
                "torch.func.hessian(f), which is jacfwd(jacrev(f)), or for a path adjoint=Direct()"
            )
        return super().apply(*args)

    @classmethod
    def held(cls, *args: Any) -> Any:
        """`apply` to what nobody differentiates, whatever surrounds it."""
        return super().apply(*args)


def _forward_levels(args: Iterable[Any]) -> set[int]:
    """The levels of forward mode that tensors belong to."""
    modes = {each.level() for each in _functorch.get_interpreter_stack() if each.key() == _functorch.TransformType.Jvp}
    found: set[int] = set()
    if len(modes) < 2:
        return found
    for tensor in args:
        while (own := level(tensor)) >= 0:
            found.add(own)
            tensor = _functorch.get_unwrapped(tensor)
    return found & modes


def vjp_of_graph(value: Tensor, by: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    """What `torch.autograd.grad` gives for one value of one tensor, which keeps its graph; zero where none leads there.

    That function's looks at what it is given take half as long again as a small layer's product.
    """
    found = _engine_run_backward((value,), (v,), True, create_graph, (by,), True, accumulate_grad=False)[0]
    return torch.zeros_like(by) if found is None else found


def vjps_of_graph(
    values: Sequence[Tensor], by: Sequence[Tensor], v: Sequence[Tensor], keep: bool = False
) -> Sequence[Tensor | None]:
    """What `torch.autograd.grad` gives for values of tensors; None where none leads there. `keep` spares the graph."""
    return _engine_run_backward(tuple(values), tuple(v), keep, False, tuple(by), True, accumulate_grad=False)


def for_rows(function: Callable[[Tensor], Tensor], rows: Tensor, dim: int) -> Tensor:
    """`torch.vmap` of a function of one tensor, over its first dimension, the results side by side in dimension `dim`.

    That function's looks at what it is given take more than a small Jacobian's products.
    """
    lazy_load_decompositions()
    level = _functorch._vmap_increment_nesting(len(rows), "error")
    try:
        value = function(_functorch._add_batch_dim(rows, 0, level))
        return _functorch._remove_batch_dim(value, level, len(rows), dim)
    finally:
        _functorch._vmap_decrement_nesting()


def outside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What a function of plain values gives where no transform is active: such as random numbers of a seed."""
    with temporarily_clear_interpreter_stack():
        return function(*args, **kwargs)


def watched() -> bool:
    """Whether somebody looks on: tensors made now are not to be kept."""
    return active() or torch.is_inference_mode_enabled() or torch._C._len_torch_dispatch_stack() > 0


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """A function that makes tensors of plain values, which keeps them for the next who asks; nobody may write to them.

    Not where somebody looks on: tensors made there are the transform's own, or are none, and outlive it.
    """
    kept = lru_cache(maxsize=16)(function)

    @wraps(function)
    def asked(*args: P.args, **kwargs: P.kwargs) -> R:
        return (function if watched() else kept)(*args, **kwargs)

    return asked


def remembered_if_small(
    function: Callable[[torch.Size, torch.dtype, torch.device], Tensor],
) -> Callable[[torch.Size, torch.dtype, torch.device], Tensor]:
    """As `remembered`, of a shape, a dtype and a device; large tensors are made anew."""
    kept = remembered(function)

    @wraps(function)
    def asked(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return (kept if shape.numel() <= SMALL else function)(shape, dtype, device)

    return asked


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """A function that solves, whose every call is made outside of inference mode; see `without_inference_mode`."""

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        return without_inference_mode(partial(function, **normal(kwargs)), *args)

    return outside


def without_inference_mode(function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls a function of nested tensors without grad, in place of in inference mode, where nothing has a derivative.

    A function may be one itself (a Hamiltonian's field, a trace, a Newton step): there it would be zero without a word.
    """
    with torch.inference_mode(False), torch.no_grad():
        return function(*normal(inputs))


def normal(tree: Any) -> Any:
    """Nested tensors, those made in inference mode as copies that can be differentiated."""
    if type(tree) is tuple and all(leaf is None or type(leaf) is Tensor for leaf in tree):  # a walk takes far longer
        return tuple(map(_normal, tree))
    return pytree.tree_map(_normal, tree)


def _normal(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Whatever random numbers are drawn inside, the global states are afterwards what they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
