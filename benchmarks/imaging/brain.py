"""What docs/recipes/register-brain.md says, measured on slices of four brains; draws its pictures.

python -m benchmarks.imaging.brain slices                      writes slices and tissues as PNG into a folder
python -m benchmarks.imaging.brain slices --measure            and registers them
python -m benchmarks.imaging.brain slices --pictures docs/recipes

All want TORCHIMPLICIT_DATA and scikit-learn.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kit.table import Table
from torchimplicit.imaging import draw_alignment, draw_deformation, read_nifti, register, write_png
from torchimplicit.train.command.register.order import KINDS, Order
from torchimplicit.train.command.register.run import register as run

SUBJECTS = ("r16", "r27", "r30", "r62")
LEVEL = 82  # of the template's axial slices, the one that shows what the subjects' do
TISSUES = (1, 2, 3)  # fluid, grey matter, white matter
NOTE = (
    "Each subject's slice fixed, the template's moving. Dice of three tissues, means over tissues and four subjects; "
    "the tissues are those of k-means of each image's own values, so no image knows the other's. Folds: pixels."
)


def write(folder: Path) -> None:
    """The template's slice, those of the subjects, and their tissues.

    Raises:
        SystemExit: the data is not there.
    """
    from PIL import Image

    root = os.environ.get("TORCHIMPLICIT_DATA")
    data = Path(root or ".") / "brain"
    if root is None or not data.exists():
        raise SystemExit(f"TORCHIMPLICIT_DATA={root}: expected a folder with brain")
    folder.mkdir(parents=True, exist_ok=True)
    template = read_nifti(data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz").data[:, :, LEVEL]
    slices = {"template": template.float().T.flip(0) / 255}
    for name in SUBJECTS:
        with Image.open(data / f"{name}slice.jpg") as picture:
            pixels = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
            slices[name] = pixels.view(picture.height, picture.width).float() / 255
    for name, image in slices.items():
        write_png(folder / f"{name}.png", image)
        write_png(folder / f"{name}-tissues.png", tissues(image).float() / 255)


def tissues(image: Tensor) -> Tensor:
    """Labels 1, 2, 3 of what is dark, grey and bright within the head, by k-means of the values; 0 outside."""
    from sklearn.cluster import KMeans

    inside = image > 0.08  # the photographs' black is not quite zero
    found = KMeans(len(TISSUES), random_state=0, n_init=4).fit(image[inside][:, None].numpy())
    order = torch.from_numpy(found.cluster_centers_[:, 0].argsort().argsort())
    labels = torch.zeros(image.shape, dtype=torch.int64)
    labels[inside] = 1 + order[torch.from_numpy(found.labels_).long()]
    return labels


def order(folder: Path, subject: str, kind: str, **files: Any) -> Order:
    """As the command would be given it."""
    return Order(
        folder / f"{subject}.png",
        folder / "template.png",
        kind,
        "centers",
        labels=folder / "template-tissues.png",
        fixed_labels=folder / f"{subject}-tissues.png",
        **files,
    )


def measure(folder: Path) -> None:
    """Every kind on every subject."""
    header = ("kind", "before", "after", "fluid", "grey", "white", "folds", "SD log J", "converged", "CPU s each")
    table = Table("register-brain", NOTE, header)
    for kind in KINDS:
        found = [run(order(folder, subject, kind)) for subject in SUBJECTS]
        before, after = (torch.stack(each) for each in zip(*(one.overlaps()[1:] for one in found), strict=True))
        bends = [register.sd_log_jacobian(one.result.displacement().float()) for one in found]
        table.add(
            kind,
            *(f"{float(each.mean()):.3f}" for each in (before, after, *after.unbind(1))),
            f"{sum(int(one.result.folds()) for one in found)}",
            f"{float(torch.cat(bends).mean()):.3f}",
            f"{sum(all(stage.report.converged for stage in one.stages) for one in found)} of {len(found)}",
            f"{sum(stage.seconds for one in found for stage in one.stages) / len(found):.2f}",
        )


def draw(folder: Path, target: Path) -> None:
    """The pictures of one subject."""
    found = run(order(folder, SUBJECTS[0], "velocity"))
    fixed, result = found.fixed[0, 0], found.result
    images = {"before": found.before.warp(found.moving)[0, 0]}
    for kind in ("affine", "velocity"):
        one = found if kind == "velocity" else run(order(folder, SUBJECTS[0], kind))
        images[kind] = one.result.warp(one.moving)[0, 0]
    draw_alignment(fixed, images, target=target / "register-brain.png")
    u = result.displacement()[0].float()
    draw_deformation(u, image=fixed, lines=40, linear=False, target=target / "register-brain-grid.png")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks.imaging.brain", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write(options.folder)
    if options.measure:
        measure(options.folder)
    if options.pictures is not None:
        draw(options.folder, options.pictures)


if __name__ == "__main__":
    main()
