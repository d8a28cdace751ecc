"""Stays in intensive care: set-a of the PhysioNet/Computing in Cardiology Challenge 2012."""

from __future__ import annotations

import csv
import zipfile
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchimplicit.files import read_bytes, reading, require_size
from torchimplicit.nn import Series
from torchimplicit.train.data.base import DATA_VARIABLE, DataError, Splits, permutation
from torchimplicit.train.data.series import SeriesData

ARCHIVE, OUTCOMES, FOLDER = "set-a.zip", "Outcomes-a.txt", "physionet2012"
SOURCE = "https://physionet.org/content/challenge-2012/1.0.0/"
HINT = f"Try to fetch {ARCHIVE} and {OUTCOMES} again from {SOURCE}."
HOURS = 48
VARIABLES = (
    "Age", "Gender", "Height", "ICUType", "Weight", "Albumin", "ALP", "ALT", "AST", "Bilirubin", "BUN", "Cholesterol",
    "Creatinine", "DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "Mg", "MAP", "MechVent",
    "Na", "NIDiasABP", "NIMAP", "NISysABP", "PaCO2", "PaO2", "pH", "Platelets", "RespRate", "SaO2", "SysABP", "Temp",
    "TroponinI", "TroponinT", "Urine", "WBC",
)  # fmt: skip
NUMBERS = {name: number for number, name in enumerate(VARIABLES)}


class Stays(NamedTuple):
    """What was measured in intensive care.

    Attributes:
        records: the numbers of the records, in their order.
        series: 41 variables; times in hours.
        died: in hospital, `(N,)` bool.
    """

    records: tuple[str, ...]
    series: Series
    died: Tensor


class PhysioNet2012(SeriesData):
    """4,000 stays of two days in intensive care, 41 variables, as the protocol of latent ODEs has them.

    Times are rounded to `quantization` hours and what was measured of a variable within one is averaged; every stay has
    a row at its admission, where the descriptors (age, ICU type, ...) stand. Values are `(x - min) / max` with the
    extremes over all stays, 0 where nothing was measured; times are divided by 48 hours. A fifth of the stays, drawn
    with scikit-learn's `train_test_split(random_state=42)` from the records in their order, is the test split: the
    published code draws from the order in which a disk lists the files, so its split is not to be had. Nor is its
    second half of the data, set-b, whose outcomes are not asked for here.

    Source: Y. Rubanova, R. T. Q. Chen, D. Duvenaud, arXiv 1907.03907, and the protocol of its published code; I. Silva
    et al., Computing in Cardiology 2012.

    Args:
        data_dir: folder with `set-a.zip` and `Outcomes-a.txt`, or with a folder `physionet2012` that has them. None
            looks at the environment variable `TORCHIMPLICIT_DATA`.
        task: see `SeriesData`.
        seen: see `SeriesData`.
        quantization: of times, in hours.
        batch_size: samples a batch, in every process.
        seed: of the training/validation split and of the shuffling. The test split is always the same.
        validation: stays held out of the training set.

    Attributes:
        variables: names of the channels.
    """

    variables = VARIABLES

    def __init__(
        self, data_dir: str | None = None, task: str = "extrapolation", seen: float = 0.5, quantization: float = 0.1,
        batch_size: int = 50, seed: int = 0, validation: int = 400,
    ):  # fmt: skip
        """Loads nothing yet."""
        super().__init__(task, seen, batch_size, seed)
        self.data_dir, self.quantization, self.validation = data_dir, quantization, validation
        if not 0 < quantization <= HOURS:
            raise ValueError(f"PhysioNet2012(quantization={quantization!r}): expected hours, more than 0; try 0.1")
        self.save_hyperparameters(ignore="data_dir")  # a checkpoint says nothing about somebody's disk

    def load(self) -> Splits:
        """The splits.

        Raises:
            DataError: the files are absent or broken, or too few for the splits.
        """
        from sklearn.model_selection import train_test_split

        stays = read_stays(self._place(), self.quantization)
        series, died = scaled(stays.series), stays.died.float()
        count = len(series)
        if count < 5 or not 0 < self.validation < count - count // 5 - 1:
            raise DataError(
                f"PhysioNet2012(validation={self.validation}): expected more than 0, and less than the training split "
                f"of the {count} stays"
            )
        rest, test = (torch.tensor(each) for each in train_test_split(range(count), train_size=0.8, random_state=42))
        rest = rest[permutation(len(rest), self.seed)]
        val, train = rest[: self.validation], rest[self.validation :]
        return self.divided(series, died, (train, val, test), stays.records)

    def _place(self) -> Path:
        folder = self.folder()
        places = [] if folder is None else [folder, folder / FOLDER]
        for place in places:
            if (place / ARCHIVE).is_file():
                return place
        looked = f"looked for {ARCHIVE} in {' and '.join(map(str, places))}" if places else "no folder to look in"
        raise DataError(
            f"PhysioNet2012: {looked}. Try to fetch {ARCHIVE} and {OUTCOMES} from {SOURCE}, and --data-dir (or the "
            f"variable {DATA_VARIABLE}) with their folder."
        )


def scaled(series: Series) -> Series:
    """Values `(x - min) / max` by the extremes of every variable over all series, and times over 48 hours."""
    low = series.values.where(series.mask, torch.inf).amin((0, 1)).nan_to_num(posinf=0.0)
    high = series.values.where(series.mask, -torch.inf).amax((0, 1)).nan_to_num(neginf=0.0)
    values = (series.values - low) / high.where(high != 0, 1.0)
    return Series(series.times / HOURS, values, series.mask)


def read_stays(folder: Path, quantization: float = 0.1) -> Stays:
    """Every stay that has an outcome.

    Args:
        folder: with the two files as published.
        quantization: of times, in hours.

    Raises:
        DataError: a file is absent or broken; an unknown variable, or a value that is none, is named with its record.
    """
    with reading("PhysioNet2012", folder / OUTCOMES, HINT):
        rows = csv.DictReader(StringIO(read_bytes(folder / OUTCOMES).decode()))
        died = {row["RecordID"]: int(row["In-hospital_death"]) for row in rows}
    stays, records = [], []
    with reading("PhysioNet2012", folder / ARCHIVE, HINT), zipfile.ZipFile(folder / ARCHIVE) as archive:
        require_size(sum(member.file_size for member in archive.infolist()))
        for name in sorted(archive.namelist()):
            record = Path(name).stem
            if name.endswith(".txt") and record in died:
                records.append(record)
                stays.append(_stay(record, archive.read(name).decode(), quantization))
        if not stays:
            raise ValueError("no record with an outcome, expected set-a/*.txt")
    outcomes = torch.tensor([bool(died[record]) for record in records])
    return Stays(tuple(records), Series.of(stays), outcomes)


def _stay(record: str, text: str, quantization: float) -> tuple[Tensor, Tensor, Tensor]:
    """Times `(T,)`, values and mask `(T, 41)` of one record: lines of HH:MM, variable, value."""
    rows = [line.split(",") for line in text.splitlines()[1:] if line]
    rows = [row for row in rows if row[1:2] not in (["RecordID"], [""])]
    try:
        channel = np.array([NUMBERS[name] for _, name, _ in rows], np.int64)
        value = np.array([float(each) for *_, each in rows])
        hours = np.array([int(time[:-3]) + int(time[-2:]) / 60 for time, *_ in rows])
    except KeyError as error:
        raise ValueError(f"record {record}: variable {error}, expected one of the {len(VARIABLES)}") from error
    except ValueError as error:
        raise ValueError(f"record {record}: {error}, expected lines of HH:MM,variable,value") from error
    if not np.isfinite(value).all():
        raise ValueError(f"record {record}: a value that is not finite, expected numbers")
    slot, place = np.unique(np.append(0, np.rint(hours / quantization).astype(np.int64)), return_inverse=True)
    at, shape = (place[1:], channel), (len(slot), len(VARIABLES))
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, at, value)
    np.add.at(count, at, 1)
    values = total / np.maximum(count, 1)
    return torch.from_numpy(slot * quantization).float(), torch.from_numpy(values).float(), torch.from_numpy(count > 0)
