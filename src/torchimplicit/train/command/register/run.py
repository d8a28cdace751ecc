"""`torchimplicit register`: where a moving image has what a fixed one shows, from files to files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchimplicit.core.outcome import Status
from torchimplicit.imaging import Image, read_transform, write_displacement, write_transform
from torchimplicit.imaging.register import Chain, Linear, Registration, align, target_error
from torchimplicit.train.command.register.found import Found, Stage, displacement, warped, warped_labels
from torchimplicit.train.command.register.order import Order
from torchimplicit.train.command.register.page import page
from torchimplicit.train.command.register.volumes import (
    Scene,
    read_field,
    read_labels,
    read_mask,
    read_scene,
    write_scene,
)
from torchimplicit.train.errors import UnconvergedError

HOPELESS = (Status.NON_FINITE, Status.INFEASIBLE)  # there is nothing to write then
SHEAR = 1e-3  # cosine of two axes, beyond which ITK refuses a file
ADVICE = "Look at the --report. Try more --max-steps, another --initial, or another --kind."


def register(order: Order) -> Found:
    """Reads, registers, and writes what was asked for.

    Raises:
        DataError: a file cannot be read.
        UsageError: files that do not belong together, or an impossible option.
        UnconvergedError: nothing can be told of the images, and nothing was written; or, after everything was written,
            some solve did not converge; or there is no inverse.
    """
    order.check()
    fixed, moving = read_scene(order.fixed), read_scene(order.moving)
    labels = None if order.labels is None else read_labels(order.labels, moving, "moving")
    truth = None if order.fixed_labels is None else read_labels(order.fixed_labels, fixed, "fixed")
    _prepare(order, fixed)
    masks: dict[str, Any] = {}
    if order.fixed_mask is not None:
        masks["fixed_mask"] = read_mask(order.fixed_mask, fixed, "fixed")
    if order.moving_mask is not None:
        masks["moving_mask"] = read_mask(order.moving_mask, moving, "moving")
    result, stages = _solve(order, fixed, moving, _start(order, fixed), masks)
    found = Found(order, fixed, moving, result, stages, labels, truth)
    print(f"folds: {int(result.folds())} of {torch.Size(result.fixed.size).numel()} voxels", flush=True)
    if truth is not None:
        _, before, after = found.overlaps()
        print(f"Dice: {float(before.nanmean()):.3f} before, {float(after.nanmean()):.3f} after, mean over labels")
    failures = [f"{each.name} ended {each.status.name.lower()}" for each in stages if each.status != Status.CONVERGED]
    if order.inverse is not None:
        found, words = _inverted(found)
        failures += words
    _write(found)
    if failures:
        raise UnconvergedError(f"register: {'; '.join(failures)}. What was written is as far as it came. {ADVICE}")
    return found


def _prepare(order: Order, fixed: Scene) -> None:
    """Folders for what will be written, so that they fail before work starts."""
    for path in (order.out, order.out_labels, order.field, order.inverse, order.transform, order.report):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(fixed, Image):
        axes = fixed.affine[:3, :3] / fixed.affine[:3, :3].norm(dim=0)
        if float((axes.mT @ axes - torch.eye(3)).abs().max()) > SHEAR:
            print(f"note: the axes of {order.fixed} are not at right angles; ITK and ANTs read no files on its grid")


def _start(order: Order, fixed: Scene) -> Any:
    """Where to start, as `align` takes it."""
    if order.from_field:
        return read_field(Path(order.initial), fixed, "fixed")
    return order.initial if order.initial in ("world", "centers") else read_transform(order.initial)


@torch.no_grad()
def _solve(
    order: Order, fixed: Scene, moving: Scene, initial: Any, masks: dict[str, Any]
) -> tuple[Registration, list[Stage]]:
    """Stage by stage, with a word on each."""
    stages = []
    for name, kind in order.stages().items():
        start = time.process_time()
        if order.max_steps is not None:
            kind = replace(kind, solver=replace(kind.usual(), max_steps=order.max_steps))
        with _progress(name) as progress:
            found = align(fixed, moving, kind, initial=initial, on_failure="ignore", progress=progress, **masks)
        stages.append(Stage(name, found.report, time.process_time() - start))
        print(f"{name}: {', '.join(stages[-1].describe())}", flush=True)
        if stages[-1].status in HOPELESS:
            words = found.report.advice.replace("initial='centers'", "--initial centers")
            raise UnconvergedError(
                f"register: {name} ended {stages[-1].status.name.lower()}, nothing was written. {words}"
            )
        initial = found
    return found, stages


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A line on the terminal that tells the level and the time, and goes when work ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda level, levels: bars.update(
            task, description=f"{name}, resolution {level + 1} of {levels}", completed=level, total=levels, refresh=True
        )


def _inverted(found: Found) -> tuple[Found, list[str]]:
    """With the inverse, and what is wrong with it."""
    with torch.no_grad():
        back = found.result.inverse(on_failure="ignore")
        if back.stages and not back.report.converged:  # without there was nothing to solve
            status = Status(int(back.report.status[0])).name.lower()
            return found, [f"--inverse ended {status} and was not written. {back.report.advice}".rstrip(" .")]
        points = found.result.moving.points(torch.zeros((), dtype=torch.float64))[None]
        there, known = points, torch.ones(points.shape[1], dtype=torch.bool)
        for part in back.transform.parts if isinstance(back.transform, Chain) else (back.transform,):
            # Beyond the fixed grid a field is what it is at the border, which has no inverse.
            known &= isinstance(part, Linear) | found.result.fixed.contains(there[0])
            there = part(there)
        known &= found.result.fixed.contains(there[0])
        away = target_error(found.result.transform(there), points)[0][known]
    rms, most = (float(away.square().mean().sqrt()), float(away.max())) if len(away) else (float("nan"), float("nan"))
    print(f"inverse: there and back ends {rms:.1e} mm from the start by RMS, {most:.1e} mm at most", flush=True)
    return replace(found, back=(back, rms, most)), []


def _write(found: Found) -> None:
    """Everything that was asked for."""
    order, result = found.order, found.result
    if order.out is not None:
        write_scene(order.out, warped(result, found.moving))
        print(f"image: {order.out}")
    if order.out_labels is not None and found.labels is not None:
        write_scene(order.out_labels, warped_labels(result, found.labels))
        print(f"labels: {order.out_labels}")
    if order.field is not None:
        write_displacement(order.field, displacement(result))
        print(f"field: {order.field}")
    if order.inverse is not None and found.back is not None:
        write_displacement(order.inverse, displacement(found.back[0]))
        print(f"inverse: {order.inverse}")
    if order.transform is not None and isinstance(result.transform, Linear):
        write_transform(order.transform, result.transform)
        print(f"transform: {order.transform}")
    if order.report is not None:
        order.report.write_text(page(found))
        print(f"report: {order.report}")
