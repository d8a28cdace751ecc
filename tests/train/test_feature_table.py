"""A user's own table: features and a target."""

from pathlib import Path

import pytest
import torch

from torchimplicit.train.data import DataError, FeatureTable
from torchimplicit.train.data.csv_rows import lines_of

HEAD = "length,sex,weight,kind\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def rows(count=20):
    return HEAD + "".join(f"{i},{'f' if i % 3 else 'm'},{2.5 * i - 7},{'ab'[i % 2]}\n" for i in range(count))


def test_numbers_are_standardised_and_words_are_features(write):
    data = FeatureTable(write(rows()))
    data.setup()
    assert data.target == "kind"
    assert data.words == {"sex": ["f", "m"]}
    assert data.sizes() == {"features": 4, "outputs": 2, "classes": 2}
    assert [len(split) for split in data.splits] == [12, 4, 4], "of ten lines a class, two each"
    x, y = data.splits.train[list(range(len(data.splits.train)))]
    torch.testing.assert_close(x[:, [0, 3]].mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, [0, 3]].square().mean(0), torch.ones(2), atol=1e-5, rtol=0)
    assert (x[:, 1] + x[:, 2] == 1).all()
    assert set(y.tolist()) == {0, 1}


def test_numbers_of_the_target_come_back_in_their_units(write):
    data = FeatureTable(write(rows()), target="weight", task="regression", columns=["length"])
    data.setup()
    assert data.sizes() == {"features": 1, "outputs": 1}
    x, y = data.splits.val[list(range(len(data.splits.val)))]
    length = x * data.std["length"] + data.mean["length"]
    torch.testing.assert_close(data.decode(y), 2.5 * length - 7, rtol=1e-4, atol=1e-4)


def test_splits_follow_the_seed_and_the_test_split_is_always_the_same(write):
    path = write(rows(40))
    first, again, other = (FeatureTable(path, seed=seed) for seed in (1, 1, 2))
    for each in (first, again, other):
        each.look()
    assert first._lines == again._lines
    assert first._lines["train"] != other._lines["train"]
    assert first._lines["test"] == other._lines["test"]
    places = [line.place for part in first._lines.values() for line in part]
    assert len(set(places)) == len(places) == 40


def test_a_checkpoint_needs_no_file_to_know_what_was_found(write):
    data = FeatureTable(write(rows()))
    data.look()
    again = FeatureTable("gone", **data.found())
    line = data._lines["test"][0]
    assert torch.equal(again.encode(line), data.encode(line))
    assert again.sizes() == data.sizes()


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (rows() + "nan,f,1,a\n", {}, r"line 22, column 'length': 'nan', expected a finite number"),
        (rows() + ",f,1,a\n", {}, r"line 22, column 'length': '', expected a finite number"),
        (rows() + "1,f,1\n", {}, r"line 22: 3 fields, expected 4"),
        (rows() + "1,f,1,\n", {}, r"line 22, column 'kind': nothing, expected a class"),
        (rows() + "1,f,1,c\n", {}, r"1 lines of a class, expected 3 at least"),
        (rows(), {"target": "species"}, r"no column 'species', but length, sex, weight, kind; try --data.target"),
        (rows(), {"columns": ["height"]}, r"no column 'height'.*--data.columns"),
        (rows(), {"columns": ["kind"]}, r"the target 'kind' among the features"),
        (rows(), {"labels": ["a"]}, r"line 3, column 'kind': class 'b', expected one of those that were trained, a"),
        (rows(60), {"target": "weight"}, r"'weight' has 60 different values.*--config table-regression"),
        (rows(), {"target": "sex", "task": "regression"}, r"column 'sex': '[mf]', expected a finite number"),
        (HEAD, {}, r"no lines below the first"),
        ("", {}, r"the columns nothing, expected two"),
        ("a,a\n1,2\n", {}, r"the column 'a' twice"),
        (HEAD + "".join(f"1,name{i},2,{'ab'[i % 2]}\n" for i in range(60)), {}, r"'sex' has 60 different words"),
        (HEAD + "".join(f"{i},f,2,a\n" for i in range(9)), {}, r"'kind' has 1 different values"),
    ],
)
def test_what_is_wrong_is_named_by_its_line(write, text, options, said):
    with pytest.raises(DataError, match=said):
        FeatureTable(write(text), **options).setup()


def test_fields_may_be_parted_by_semicolons_or_tabs(write):
    for mark in ";\t":
        lines = list(lines_of(Path(write(f"a{mark}b\n1,5{mark}2\n"))))
        assert lines[0].fields == {"a": "1,5", "b": "2"}


@pytest.mark.parametrize("wrong", [{"validation": 0.0}, {"test": 1.0}, {"task": "ranking"}])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureTable("table.csv", **wrong)
