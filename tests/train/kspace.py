"""A small head with three coils, and its files."""

import h5py
import numpy as np
import torch

from torchimplicit import imaging

SIZE = (24, 20)


def coils():
    """Smooth sensitivities `(3, 24, 20)` of length one."""
    rows, columns = torch.linspace(-1, 1, SIZE[0])[:, None], torch.linspace(-1, 1, SIZE[1])[None]
    found = torch.stack([1 + 0.8 * rows + 0 * columns, 1 - 0.8 * columns + 0 * rows, 1 + 0.5 * (columns - rows)])
    found = found * torch.exp(1j * torch.stack([columns + 0 * rows, rows + 0 * columns, rows - columns]))
    return (found / found.norm(dim=0)).to(torch.complex64)


def heads(count=2):
    """Images `(count, 24, 20)`, complex."""
    rows, columns = torch.linspace(-1, 1, SIZE[0])[:, None], torch.linspace(-1, 1, SIZE[1])[None]
    inside = (rows**2 + columns**2 < 0.8).float()
    return torch.stack(
        [inside * (2 + torch.cos((3 + i) * rows) * columns) * torch.exp(1j * rows) for i in range(count)]
    )


def kspace(count=2):
    """All of it, `(count, 3, 24, 20)`."""
    return imaging.fftc(coils() * heads(count)[:, None]).to(torch.complex64)


def fastmri(path, *, mask=None, cut=None, **arrays):
    """Writes a file of fastMRI, with some of its bytes left out at the end."""
    with h5py.File(path, "w") as file:
        file["kspace"] = arrays.pop("kspace", kspace().numpy())
        for name, value in arrays.items():
            file[name] = value
        if mask is not None:
            file["mask"] = np.asarray(mask, np.float32)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path
