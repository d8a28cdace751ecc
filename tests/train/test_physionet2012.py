"""Stays in intensive care: the published protocol, and files that are broken."""

import zipfile

import pytest
import torch
from sklearn.model_selection import train_test_split

from tests.train.stays import record, some_stays, write_stays
from torchimplicit.train.data import DataError, PhysioNet2012
from torchimplicit.train.data.physionet2012 import VARIABLES, read_stays, scaled

AGE, HEIGHT, HR, TEMP = (VARIABLES.index(name) for name in ("Age", "Height", "HR", "Temp"))


@pytest.fixture
def folder(tmp_path):
    return some_stays(tmp_path / "physionet2012")


def test_a_record_is_read_as_published(tmp_path):
    rows = [
        ("00:02", "HR", 80),
        ("00:05", "HR", 90),
        ("00:08", "HR", 100),
        ("01:00", "Temp", 37.5),
        ("47:59", "HR", 70),
    ]
    folder = write_stays(tmp_path, {7: record(7, rows), 8: record(8, [("01:00", "HR", 60)])}, {7: 1, 8: 0})
    stays = read_stays(folder)
    assert stays.records == ("7", "8")
    assert stays.died.tolist() == [True, False]
    times, values, mask = stays.series.times[0], stays.series.values[0], stays.series.mask[0]
    assert times.tolist() == pytest.approx([0, 0.1, 1, 48])  # 00:02 rounds to 0, 00:05 and 00:08 to 0.1
    assert values[:, HR].tolist() == [80, 95, 0, 70]
    assert mask[:, HR].tolist() == [True, True, False, True]
    assert values[0, AGE] == 60
    assert values[0, HEIGHT] == -1  # unknown, and kept as published
    assert mask[0, HEIGHT]
    assert values[2, TEMP] == 37.5
    assert int(mask.sum()) == 5 + 4
    assert stays.series.lengths.tolist() == [4, 2]


def test_records_without_an_outcome_are_left_out(tmp_path):
    folder = write_stays(tmp_path, {7: record(7, []), 8: record(8, [])}, {8: 0})
    assert read_stays(folder).records == ("8",)


def test_times_are_rounded_to_what_is_asked_for(tmp_path):
    folder = write_stays(tmp_path, {7: record(7, [("00:25", "HR", 80), ("01:40", "HR", 60)])}, {7: 0})
    assert read_stays(folder, 1.0).series.times[0].tolist() == [0, 2]
    assert read_stays(folder, 1 / 60).series.times[0].tolist() == pytest.approx([0, 25 / 60, 100 / 60])


def test_values_are_scaled_by_the_largest_not_by_the_range(tmp_path):
    rows = [("01:00", "HR", 50), ("02:00", "HR", 200)]
    series = scaled(read_stays(write_stays(tmp_path, {7: record(7, rows)}, {7: 0})).series)
    assert series.values[0, :, HR].tolist() == pytest.approx([0, 0, 150 / 200])
    assert series.times[0].tolist() == pytest.approx([0, 1 / 48, 2 / 48])
    assert (series.values[~series.mask] == 0).all()


def test_splits_are_those_of_the_protocol_and_validation_is_of_the_training_stays(folder):
    series = scaled(read_stays(folder).series)
    data, other = (PhysioNet2012(str(folder), validation=6, seed=seed) for seed in (0, 1))
    data.setup()
    other.setup()
    rest, test = train_test_split(range(40), train_size=0.8, random_state=42, shuffle=True)
    for each in (data, other):
        assert [len(split) for split in each.splits] == [26, 6, 8]
        assert torch.equal(each.splits.test.series.values, series[test].values)
    known = series[rest].values.sum((1, 2)).sort().values
    both = torch.cat([split.series.values.sum((1, 2)) for split in data.splits[:2]]).sort().values
    assert torch.allclose(known, both)
    assert not torch.equal(data.splits.val.series.values.sum(), other.splits.val.series.values.sum())


def test_extrapolation_cuts_at_half_of_the_time_points_of_all(folder):
    data = PhysioNet2012(str(folder), validation=6)
    data.setup()
    series = scaled(read_stays(folder).series)
    points = series.times[series.present].unique()
    cut = points[len(points) // 2]
    for batch in data.test_dataloader():
        seen, target, label = batch
        assert float(seen.times.nan_to_num(0).max()) < float(cut) <= float(target.times.nan_to_num(9).min())
        assert label.tolist() == data.splits.test.label.tolist()
    parts = [split.__getitems__(list(range(len(split)))) for split in data.splits]
    divided = sum(int(part.observations.sum()) for seen, target, _ in parts for part in (seen, target))
    assert divided == int(series.observations.sum())


def test_interpolation_sees_a_share_and_the_start(folder):
    data = PhysioNet2012(str(folder), task="interpolation", seen=0.5, validation=6)
    data.setup()
    for split, fresh in zip(data.splits, (True, False, False), strict=True):
        rows = list(range(len(split)))
        one, other = split.__getitems__(rows), split.__getitems__(rows)
        assert torch.equal(one.target.values, split.series.values)
        assert torch.equal(one.seen.lengths, (split.series.lengths * 0.5).ceil().long())
        assert torch.equal(one.seen.times[:, 0], split.series.times[:, 0])
        same = one.seen.times.shape == other.seen.times.shape and torch.equal(
            one.seen.times.nan_to_num(9), other.seen.times.nan_to_num(9)
        )
        assert same != fresh


def test_everything_can_be_seen(folder):
    data = PhysioNet2012(str(folder), task="interpolation", seen=1.0, validation=6)
    data.setup()
    seen, target, _ = data.splits.test.__getitems__([0, 3])
    assert torch.equal(seen.values, target.values)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("01:00,Pulse,80", "record 7: variable 'Pulse', expected one of the 41"),
        ("01:00,HR,fast", "record 7: .*'fast'.*, expected lines of HH:MM,variable,value"),
        ("01:00,HR,nan", "record 7: a value that is not finite"),
        ("01:00,HR", "record 7: .*expected lines of HH:MM,variable,value"),
        ("one,HR,80", "record 7: .*expected lines of HH:MM,variable,value"),
    ],
)
def test_a_broken_line_is_named_with_its_record(tmp_path, line, said):
    folder = write_stays(tmp_path, {7: record(7, []) + line + "\n"}, {7: 0})
    with pytest.raises(DataError, match=said):
        read_stays(folder)


def test_broken_and_absent_files_are_refused_in_a_sentence(tmp_path, folder):
    with pytest.raises(DataError, match="no folder to look in"):
        PhysioNet2012().setup()
    with pytest.raises(DataError, match=r"looked for set-a\.zip in"):
        PhysioNet2012(str(tmp_path / "none")).setup()
    (folder / "set-a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read .*set-a\.zip"):
        PhysioNet2012(str(folder)).setup()
    (folder / "Outcomes-a.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*Outcomes-a\.txt"):
        PhysioNet2012(str(folder)).setup()


def test_an_archive_without_records_is_refused(tmp_path):
    folder = write_stays(tmp_path, {}, {7: 0})
    with pytest.raises(DataError, match="no record with an outcome"):
        read_stays(folder)
    with zipfile.ZipFile(folder / "set-a.zip") as archive:
        assert archive.namelist() == []


@pytest.mark.parametrize(
    "options", [{"quantization": 0}, {"task": "forecast"}, {"seen": 0}, {"seen": 1}, {"validation": 0}]
)
def test_impossible_options_are_refused(folder, options):
    name = next(iter(options))
    with pytest.raises((ValueError, DataError), match=f"PhysioNet2012\\({name}="):
        PhysioNet2012(str(folder), **options).setup()
