"""`torchimplicit report`: what is known about a trained model, as one HTML file with its pictures inside."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch
import torch
import yaml

from torchimplicit import diagnose
from torchimplicit.core.status import ImplicitError
from torchimplicit.nn import DEQ
from torchimplicit.train.checkpoint import load
from torchimplicit.train.command import runs
from torchimplicit.train.command.curves import plot_curves, read_curves
from torchimplicit.train.command.page import PAGE, as_picture
from torchimplicit.train.data.measurement import first

if TYPE_CHECKING:
    pass


def write_report(
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    data_dir: str | None = None,
    samples: int = 64,
    trust: Sequence[str] = (),
) -> Path:
    """Writes the report of a checkpoint.

    Metrics on the test split, the curves of the run where its log (TensorBoard's, or in CSV) is beside the checkpoint,
    pictures of predictions where the module draws some, and for every `DEQ` layer on test samples: convergence,
    spectral radius, certificate, gradient check, memory, and the saved graph.
    A part that cannot be made says why in its place.

    Args:
        checkpoint: a file that `torchimplicit fit` wrote.
        output: the HTML file; None writes `report.html` into the folder of the run.
        data_dir: folder of the data sets.
        samples: how many test samples the layers are diagnosed on.
        trust: modules of your own whose classes the checkpoint may build; see `load`.

    Returns:
        The path of the report.

    Raises:
        CheckpointError: the checkpoint is absent, unreadable or not written by the command.
        DataError: the recipe's data is absent or unreadable.
    """
    module, data = load(checkpoint, trust)
    if data_dir is not None and hasattr(data, "data_dir"):
        data.data_dir = data_dir  # type: ignore[union-attr]
    run = runs.of_checkpoint(Path(checkpoint))
    path = Path(output) if output is not None else run / "report.html"
    parts = [_heading(module, checkpoint)]
    parts.append(_section("Test split", lambda: _metrics(module, data)))
    parts.append(_section("Training", lambda: _curves(run)))
    if data is not None:
        batch = first(next(iter(data.test_dataloader())), samples)
        parts.extend(_pictures(module, batch))
        for name, (layer, inputs) in _inputs_of_layers(module, batch).items():
            parts.extend(_diagnoses(name, layer, inputs))
    title = f"{html.escape(str(getattr(module, 'recipe', 'model')))}: report of a trained model"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(title=title, body="\n".join(parts)))
    return path


def _heading(module: Any, checkpoint: str | Path) -> str:
    count = sum(p.numel() for p in module.parameters())
    config = yaml.safe_dump(module.config, sort_keys=False, default_flow_style=False)
    return (
        f"<p>{html.escape(str(checkpoint))}: {count:,} parameters; torch {torch.__version__}</p>"
        f"<details><summary>Configuration</summary>{_text(config)}</details>"
    )


def _section(title: str, make: Callable[[], Iterator[str] | str]) -> str:
    """A heading and what `make` gives, or why it gives nothing. Missing data stops the whole report."""
    try:
        made = make()
        body = made if isinstance(made, str) else "\n".join(made)
    except ImplicitError:
        raise
    except Exception as error:
        body = f'<p class="failed">Could not be made: {html.escape(f"{type(error).__name__}: {error}")}</p>'
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def _metrics(module: Any, data: Any) -> str:
    if data is None:
        return "<p>The recipe names no data module.</p>"
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    metrics = trainer.test(module, datamodule=data, verbose=False)[0]
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in metrics.items())
    return f"<table>{rows}</table>"


def _curves(run: Path) -> str:
    curves = read_curves(run)
    return as_picture(plot_curves(curves)) if curves else f"<p>No log in {html.escape(str(run))}.</p>"


def _pictures(module: Any, batch: Any) -> Iterator[str]:
    """What the network makes of some test samples, where its module draws that."""
    with torch.no_grad():
        figures = module.pictures(batch) if hasattr(module, "pictures") else {}
    for name, figure in figures.items():
        yield _section(name, lambda figure=figure: as_picture(figure))


def _inputs_of_layers(module: Any, batch: Any) -> dict[str, tuple[DEQ, tuple]]:
    """Every `DEQ` layer by its name, with what reaches it when the model sees a batch."""
    found: dict[str, tuple[DEQ, tuple]] = {}
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, DEQ)]
    if not layers:  # a module without may want more than its inputs
        return found
    handles = [layer.register_forward_pre_hook(_keep(found, name)) for name, layer in layers]
    try:
        with torch.no_grad():
            module(*module.inputs(batch))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _keep(found: dict[str, tuple[DEQ, tuple]], name: str) -> Callable[[Any, tuple], None]:
    def hook(layer: DEQ, inputs: tuple) -> None:
        found[name] = (layer, inputs)

    return hook


def _diagnoses(name: str, layer: DEQ, inputs: tuple) -> Iterator[str]:
    """The sections about one layer."""
    few = first(inputs, 8)
    yield _section(f"{name}: convergence", lambda: _table_and_picture(diagnose.convergence(layer, *inputs)))
    yield _section(f"{name}: spectral radius", lambda: _spectrum(layer, inputs))
    yield _section(f"{name}: certificate", lambda: _table_and_picture(diagnose.certify(layer, *inputs)))
    yield _section(f"{name}: gradient", lambda: _text(str(diagnose.check_gradient(layer, *few))))
    yield _section(f"{name}: memory", lambda: _table_and_picture(diagnose.memory(layer, *inputs)))
    yield _section(f"{name}: saved graph", lambda: as_picture(diagnose.gradient_graph(layer(*few)).plot()))


def _table_and_picture(diagnosis: Any) -> Iterator[str]:
    yield _text(f"{diagnosis}\n\n{diagnosis.table()}")
    yield as_picture(diagnosis.plot())


def _spectrum(layer: DEQ, inputs: tuple) -> str:
    radius = diagnose.spectral_radius(layer, *inputs).double()
    worst = float(radius.max())
    verdict = "the cell contracts there" if worst < 1 else "the cell expands there: plain iteration would not find it"
    digits = math.ceil(math.log(1e4) / -math.log(worst)) if 0 < worst < 1 else None
    rate = f", {digits} plain iterations for four digits" if digits else ""
    return _text(
        f"spectral radius of the cell's Jacobian at the solution, over {radius.numel()} samples:\n"
        f"median {float(radius.median()):.3f}, largest {worst:.3f}: {verdict}{rate}"
    )


def _text(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"
