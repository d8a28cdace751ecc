"""ISMRMRD: acquisitions of a scanner, line by line, put into Cartesian k-space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

from torchimplicit.files import require_size
from torchimplicit.imaging.files import hdf5

HINT = "Expected ISMRMRD: HDF5 with a group that holds `xml` and `data`, of a Cartesian acquisition in two dimensions."
# Bits of the flags, counted from 1 as ISMRMRD does: noise, navigators, calibration of phases and the like are no image.
OTHER = sum(1 << (bit - 1) for bit in (19, 23, 24, 26, 27, 28))
REPEATED = ("kspace_encode_step_2", "contrast", "phase", "repetition", "set")


def read_ismrmrd(path: str | Path, group: str = "dataset") -> tuple[Tensor, Tensor]:
    """K-space of the slices, and which of it was acquired.

    Lines go where their counters say, the centre of k-space in the middle. What was acquired several times (averages,
    segments) is averaged. Oversampled readouts stay so.

    Args:
        path: of the file.
        group: that holds the acquisitions.

    Returns:
        `(S, C, rows, columns)` complex64, rows of the phase encoding, columns of the readout; and a mask `(S, rows,
        columns)` bool.

    Raises:
        DataError: the file is absent, cut short or something else; is not Cartesian; or has several contrasts,
            repetitions, phases or sets, or a third dimension.
        ImportError: h5py is not installed.
    """
    import numpy as np

    path = Path(path)
    with hdf5.opened("read_ismrmrd", path, HINT) as file:
        xml = hdf5.text(file, f"{group}/xml")
        if xml is None:
            raise ValueError(f"no text {group + '/xml'!r}, but {', '.join(map(repr, list(file)[:8])) or 'nothing'}")
        layout = _layout(xml)
        acquisitions = hdf5.dataset(file, f"{group}/data")
        names = acquisitions.dtype.names or ()
        if acquisitions.ndim != 1 or not {"head", "data"} <= set(names):
            raise ValueError(f"'{group}/data' has fields {names}, expected head and data of every acquisition")
        require_size(acquisitions.id.get_storage_size())
        heads = acquisitions["head"]
        chosen = np.flatnonzero((heads["flags"].astype(np.uint64) & np.uint64(OTHER)) == 0)
        if not len(chosen):
            raise ValueError("no acquisition of an image")
        heads, samples = heads[chosen], acquisitions["data"][chosen]
        return _sorted(layout, heads, samples)


class _Layout(NamedTuple):
    rows: int
    columns: int
    centre: int  # the counter of the line in the middle


def _layout(xml: str) -> _Layout:
    """The encoded matrix."""
    # No entities are defined in such a header; expat would otherwise unfold them without bounds.
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise ValueError("an XML header with definitions of its own")
    root = ElementTree.fromstring(xml)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    trajectory = root.findtext("encoding/trajectory", "").strip()
    if trajectory != "cartesian":
        raise ValueError(f"a trajectory {trajectory!r}, expected 'cartesian'; such data needs a gridding operator")
    columns, rows, depth = (
        int(root.findtext(f"encoding/encodedSpace/matrixSize/{axis}", "0")) for axis in ("x", "y", "z")
    )
    if min(rows, columns, depth) < 1 or depth > 1:
        raise ValueError(f"an encoded matrix of {columns} x {rows} x {depth}, expected two dimensions")
    centre = root.findtext("encoding/encodingLimits/kspace_encoding_step_1/center")
    return _Layout(rows, columns, rows // 2 if centre is None else int(centre))


def _sorted(layout: _Layout, heads: Any, samples: Any) -> tuple[Tensor, Tensor]:
    """Lines of the acquisitions, in their places."""
    import numpy as np

    counters = heads["idx"]
    for name in REPEATED:
        found = np.unique(counters[name])
        if len(found) > 1:
            raise ValueError(f"{len(found)} values of {name}, expected one image a slice")
    coils = np.unique(heads["active_channels"])
    if len(coils) != 1 or coils[0] < 1:
        raise ValueError(f"acquisitions of {coils.tolist()} channels, expected one number")
    rows, columns, centre = layout
    slices = int(counters["slice"].max()) + 1
    shape = (slices, int(coils[0]), rows, columns)
    require_size(8 * int(np.prod(shape, dtype=object)))
    total, count = np.zeros(shape, np.complex64), np.zeros((slices, rows, columns), np.int64)
    for head, values in zip(heads, samples, strict=True):
        length, row = int(head["number_of_samples"]), int(head["idx"]["kspace_encode_step_1"]) - centre + rows // 2
        first = columns // 2 - int(head["center_sample"])
        if len(values) != 2 * shape[1] * length or not np.isfinite(values).all():
            raise ValueError(f"a line of {len(values)} numbers, expected 2 x {shape[1]} x {length} finite ones")
        if not 0 <= row < rows or first < 0 or first + length > columns:
            raise ValueError(f"line {row}, columns {first} to {first + length} outside of {rows} x {columns}")
        at = int(head["idx"]["slice"]), row, slice(first, first + length)
        line = np.ascontiguousarray(values, np.float32).view(np.complex64).reshape(shape[1], length)
        total[at[0], :, at[1], at[2]] += line
        count[at] += 1
    return torch.from_numpy(total / np.maximum(count, 1)[:, None]), torch.from_numpy(count > 0)
