"""Cells compiled by torch.compile."""

from __future__ import annotations

from torch import nn
from torch._functorch import config

from torchimplicit.nn import DEQ
from torchimplicit.train.errors import UsageError


def compile_cell(layer: DEQ, backend: str = "inductor") -> None:
    """Compiles a layer's cell in place; its parameters keep their names.

    For all batch sizes at once, as a solve narrows its batch while samples arrive: otherwise every size would be
    compiled anew. Four variants are compiled, seconds each, for what is and is not differentiated, and three more
    when first evaluated. Products of a backward solve with the Jacobian take the compiled derivative; second
    derivatives do not exist. Measure before you use it: on a CPU, convolutions gain little.

    Args:
        layer: whose cell to compile.
        backend: of `torch.compile`.

    Raises:
        UsageError: the cell is a plain function, or there is no C++ compiler for inductor.
    """
    if not isinstance(layer.cell, nn.Module):
        raise UsageError(f"compile_cells: got a cell that is a {type(layer.cell).__name__}, expected a module.")
    if backend == "inductor":
        _need_compiler()
    # Else a compiled backward may use its saved tensors up, and the solve evaluates it once a step.
    config.donated_buffer = False
    layer.cell.compile(backend=backend, dynamic=True)


def _need_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds to import: not where nothing is compiled
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        raise UsageError(
            "compile_cells: found no C++ compiler, expected one, as torch.compile needs it. Try to install g++, or "
            "--model.compile_cells false."
        ) from error
