"""K-space for training: from every kind of file, undersampled as asked, in slabs that are problems of their own."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.imaging.test_files import acquisitions as write_ismrmrd
from tests.train.kspace import SIZE, coils, fastmri, heads, kspace
from torchimplicit import imaging
from torchimplicit.train.data import DataError, KSpace, read_scan
from torchimplicit.train.data.acquisitions import acquired, together

DATA = Path(os.environ.get("TORCHIMPLICIT_DATA", "nowhere")) / "mri"
OPTIONS = {"acceleration": 2.0, "center_fraction": 0.25, "slab": 8, "samples": 6, "masks": 3, "noise": 0.0}


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "scan.npz"
    np.savez(path, kspace=kspace().numpy(), maps=coils().numpy())
    return path


def test_every_kind_of_file_is_read(tmp_path, archive):
    full, maps = kspace(), coils()
    np.save(tmp_path / "one.npy", full[0].numpy())
    np.save(tmp_path / "maps.npy", maps.numpy())
    one = read_scan(tmp_path / "one.npy")
    assert torch.equal(one.kspace, full[:1])
    assert one.maps is None
    assert bool(one.mask.all())
    both = read_scan(archive)
    assert torch.equal(both.kspace, full)
    assert torch.equal(both.maps_of(1), maps)
    columns = np.arange(SIZE[1]) % 2 == 0
    volume = read_scan(fastmri(tmp_path / "volume.h5", mask=columns), tmp_path / "maps.npy")
    assert torch.equal(volume.kspace, full)
    assert torch.equal(volume.mask, torch.from_numpy(columns).expand(2, *SIZE))
    assert torch.equal(read_scan(fastmri(tmp_path / "with.h5", maps=maps.numpy())).maps_of(0), maps)
    assert torch.equal(read_scan(tmp_path / "volume.h5", slices=slice(1, 2)).kspace, full[1:])


def test_ismrmrd_is_read(tmp_path):
    """Six lines of eight, of which two were taken; see `tests/imaging/test_files.py`."""
    values = np.arange(16, dtype=np.float32).reshape(2, 8) + 1j
    write_ismrmrd(tmp_path / "raw.h5", [(1, values, 4, 0, {}), (2, values, 4, 0, {})])
    scan = read_scan(tmp_path / "raw.h5")
    assert scan.kspace.shape == (1, 2, 6, 8)
    assert scan.mask[0].sum(1).tolist() == [0, 0, 8, 8, 0, 0]


def test_files_of_bart_are_read(tmp_path):
    full, maps = kspace(), coils()  # (slice, coil, row, column) are BART's 13, 3, 0, 1
    slices = full.permute(2, 3, 1, 0)
    imaging.write_cfl(tmp_path / "scan", slices.reshape(*SIZE, 1, 3, *(1,) * 9, 2))
    imaging.write_cfl(tmp_path / "one", slices[..., 1].unsqueeze(2))
    imaging.write_cfl(tmp_path / "maps", maps.permute(1, 2, 0).unsqueeze(2))
    scan = read_scan(tmp_path / "scan.cfl", tmp_path / "maps.cfl")
    assert torch.equal(scan.kspace, full)
    assert torch.equal(scan.maps_of(1), maps)
    assert torch.equal(read_scan(tmp_path / "one.cfl").kspace, full[1:])
    assert torch.equal(read_scan(tmp_path / "scan.cfl", slices=slice(1, 2)).kspace, full[1:])
    imaging.write_cfl(tmp_path / "two", torch.stack((maps, maps), -1).permute(1, 2, 0, 3).unsqueeze(2))
    with pytest.raises(DataError, match=r"2 along dimension 4, expected slices in 13, .*try bart slice"):
        read_scan(tmp_path / "scan.cfl", tmp_path / "two.cfl")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"kspace": None}, r"no array 'kspace', but maps.npy"),
        ({"kspace": np.ones((3, 4), np.complex64)}, r"k-space \(3, 4\), expected \(C, H, W\)"),
        ({"kspace": np.ones((3, 24, 20), np.float32)}, "float32, expected numbers"),
        ({"kspace": np.full((3, 24, 20), np.nan, np.complex64)}, "k-space with 1440 values that are NaN"),
        ({"kspace": np.zeros((3, 24, 20), np.complex64)}, "k-space of zeros alone in slice 0"),
        ({"mask": np.zeros((24, 20), bool)}, "nothing was sampled of slice 0"),
        ({"mask": np.ones((24, 19), bool)}, r"a mask \(24, 19\) beside k-space"),
        ({"maps": coils()[:, :, :-1].numpy()}, r"maps \(1, 3, 24, 19\) beside k-space \(2, 3, 24, 20\)"),
        ({"maps": np.zeros((3, 24, 20), np.complex64)}, "maps of zeros alone in slice 0"),
        ({"maps": np.full((3, 24, 20), np.inf, np.complex64)}, "maps with 1440 values that are NaN or infinite"),
    ],
)
def test_bad_files_are_refused(tmp_path, arrays, said):
    path = tmp_path / "bad.npz"
    given = {"kspace": kspace().numpy(), "maps": coils().numpy()} | arrays
    np.savez(path, **{name: value for name, value in given.items() if value is not None})
    with pytest.raises(DataError, match=rf"read_scan: cannot read {path}: .*{said}.*\. Expected"):
        read_scan(path)


def test_broken_files_are_refused(tmp_path, archive):
    cut = fastmri(tmp_path / "cut.h5", cut=3000)
    with pytest.raises(DataError, match=f"cannot read {cut}: .*Expected"):
        read_scan(cut)
    with pytest.raises(DataError, match="no such file"):
        read_scan(tmp_path / "absent.h5")
    with pytest.raises(DataError, match=r"absent.npy: no such file. Expected coil sensitivities"):
        read_scan(archive, tmp_path / "absent.npy")
    (tmp_path / "scan.dcm").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=r"ends in \.dcm, expected .npy, .npz"):
        read_scan(tmp_path / "scan.dcm")
    import h5py

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["voxels"] = np.ones(3)
    with pytest.raises(DataError, match="neither 'kspace' nor 'dataset', but 'voxels'"):
        read_scan(tmp_path / "other.h5")


def test_maps_that_cannot_be_estimated_are_asked_for(tmp_path):
    full = kspace() * imaging.cartesian(24, 8, center_fraction=0.1).mT
    np.save(tmp_path / "scan.npy", full.numpy())
    with pytest.raises(
        DataError, match=r"slice 1: no maps are given, and none can be estimated: .*try maps of a prescan"
    ):
        read_scan(tmp_path / "scan.npy").maps_of(1)
    np.save(tmp_path / "full.npy", kspace().numpy())
    found = read_scan(tmp_path / "full.npy").maps_of(0, crop=0.5)
    assert (found.conj() * coils()).sum(0).abs()[heads()[0].abs() > 0].min() > 0.95


@pytest.mark.parametrize("kind", ["random", "equispaced", "poisson", "radial"])
@pytest.mark.parametrize("axis", [-2, -1])
def test_as_much_is_sampled_as_was_asked_for(archive, kind, axis):
    data = KSpace(str(archive), kind=kind, axis=axis, **OPTIONS)
    test = data.load().test
    assert len(test) == 6  # of two slices
    masks = [each.mask for each in test.acquisitions]
    for mask in masks:
        assert float(mask.float().mean()) == pytest.approx(0.5, abs=0.06 if kind == "radial" else 0.01)
    assert not any(torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i]) or kind == "equispaced"
    lines = {"random", "equispaced"}
    assert {each.axis for each in test.acquisitions} == ({axis} if kind in lines else {None})


def test_an_acquisition_is_what_its_operator_measures(archive):
    splits = KSpace(str(archive), **OPTIONS).load()
    for index in range(6):
        y, op, target, _ = splits.test.__getitems__([index])
        assert torch.allclose(op.A(target), y, atol=1e-5)
        assert float(op.A_adjoint(y).abs().max()) == pytest.approx(1, rel=1e-5)  # the scale
        scale = splits.test.acquisitions[index].scale
        assert torch.allclose(target * scale, heads()[index // 3].to(target), atol=1e-5)


def test_slabs_are_problems_of_their_own(archive):
    for axis in (-2, -1):
        splits = KSpace(str(archive), axis=axis, **OPTIONS).load()
        torch.manual_seed(0)
        y, op, target, _ = splits.train.__getitems__([0, 1, 2])
        assert y.shape == ((3, 3, 24, 8) if axis == -2 else (3, 3, 8, 20))
        assert torch.allclose(op.A(target), y, atol=1e-5)
        assert torch.equal(op.take(torch.tensor([1])).A(target[1:2]), op.A(target)[1:2])
        assert not torch.equal(y[0], y[1])
    whole = KSpace(str(archive), **(OPTIONS | {"slab": None})).load().train.__getitems__([0])
    assert whole.y.shape == (1, 3, *SIZE)


def test_noise_and_masks_are_those_of_the_numbers(archive):
    noisy, other = (KSpace(str(archive), seed=seed, **(OPTIONS | {"noise": 0.05})).load() for seed in (0, 1))
    clean = KSpace(str(archive), **OPTIONS).load()
    for i in range(6):
        a, b, c = (each.test.acquisitions[i] for each in (noisy, other, clean))
        assert torch.equal(a.y, b.y)  # the seed is that of the slabs
        off = (a.y * a.scale - c.y * c.scale)[:, a.mask.expand(a.y.shape[1:])]
        assert float(off.abs().square().mean().sqrt()) == pytest.approx(0.05, rel=0.1)
    assert torch.equal(noisy.val.acquisitions[0].y, noisy.test.acquisitions[0].y)  # what was trained on is tested first


def test_k_space_is_taken_as_it_was_acquired(tmp_path):
    mask = imaging.cartesian(20, 4, center_fraction=0.2)
    path = fastmri(tmp_path / "volume.h5", kspace=(kspace() * mask).numpy(), maps=coils().numpy(), mask=mask[0])
    splits = KSpace(str(path), kind="acquired", acceleration=1.0, center_fraction=0.0).load()
    assert len(splits.test) == 2
    y, op, target, _ = splits.test.__getitems__([0, 1])
    assert target is None
    assert op.coil.dims == (-1,)
    assert torch.allclose(op.A_adjoint(y)[0].abs().amax(), torch.tensor(1.0))
    with pytest.raises(DataError, match=r"with 25.0% of k-space sampled in slice 0, .* Try kind: acquired"):
        KSpace(str(path), axis=-1, **OPTIONS).load()


def test_files_that_are_held_out_are_tested_alone(tmp_path):
    for name in ("a", "b", "c"):
        np.savez(tmp_path / f"{name}.npz", kspace=kspace(1).numpy(), maps=coils().numpy())
    splits = KSpace(str(tmp_path), held_out=1, **OPTIONS).load()
    assert [each.name[:5] for each in splits.test.acquisitions] == ["c.npz"] * 3
    assert [each.name[:5] for each in splits.val.acquisitions] == ["a.npz", "b.npz"]
    with pytest.raises(DataError, match="got 3 files, expected more"):
        KSpace(str(tmp_path), held_out=3, **OPTIONS).load()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "spiral"}, "kind='spiral'"),
        ({"axis": 0}, "axis=0"),
        ({"acceleration": 0.5}, "acceleration=0.5"),
        ({"center_fraction": 0.25}, "less than 1 / acceleration, 0.25"),
        ({"noise": float("nan")}, "noise=nan"),
        ({"masks": 0}, "masks=0"),
        ({"slab": 1}, "slab=1"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        KSpace(**options)


def test_places_without_k_space_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHIMPLICIT_DATA", raising=False)
    with pytest.raises(DataError, match="no folder to look in"):
        KSpace().load()
    with pytest.raises(DataError, match=f"no k-space in {tmp_path}"):
        KSpace(str(tmp_path)).load()


def test_batches_of_different_sizes_are_refused():
    mask = imaging.cartesian(24, 2, center_fraction=0.25).mT
    one = acquired("one", kspace()[0] * mask, coils(), mask)
    other = acquired("other", kspace()[0] * mask.mT[:, :20], coils(), mask.mT[:, :20])
    with pytest.raises(DataError, match=r"a batch of one .* and other .*Try batch_size: 1"):
        together([one, other])


@pytest.mark.skipif(not DATA.exists(), reason="TORCHIMPLICIT_DATA has no folder mri")
def test_the_real_head():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = KSpace(str(DATA.parent)).load()
    y, op, target, _ = splits.test.__getitems__([0, 4])
    assert y.shape == (2, 8, 230, 180)
    assert op.coil.mask.flatten(1).sum(1).tolist() == [58, 58]
    scale = splits.test.acquisitions[0].scale
    assert float(target[0].abs().max()) * scale == pytest.approx(1.285, abs=1e-3)
    # The scale is that of the noisy zero-filled image; noise is of the file's units, 0.002.
    off = (y - op.A(target))[0][:, op.coil.mask[0, :, 0]]
    assert float(off.abs().square().mean().sqrt()) * scale == pytest.approx(0.002, rel=0.02)
