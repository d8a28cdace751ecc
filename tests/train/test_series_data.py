"""A user's own tables of observations, lynx and hare, and what a model sees of them."""

import pytest
import torch

from torchimplicit.train.data import DataError, LongTable, LynxHare, read_long

HEAD = "id,time,variable,value\n"


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def table(tmp_path):
    lines = [
        f"{who},{day},{name},{10 * who + day + (name == 'b')}"
        for who in range(12)
        for day in range(1, 7)
        for name in ("a", "b")
        if (who + day) % 3 or name == "a"
    ]
    return write(tmp_path / "table.csv", HEAD + "\n".join(lines) + "\n")


def test_lines_in_any_order_make_the_same_series(table, tmp_path):
    one = read_long(table)
    lines = table.read_text().splitlines()[1:]
    other = read_long(write(tmp_path / "other.csv", HEAD + "\n".join(sorted(lines, key=hash)) + "\n"))
    assert one.variables == other.variables == ("a", "b")
    order = [other.ids.index(name) for name in one.ids]
    for name in ("times", "values", "mask"):
        assert torch.equal(getattr(one.series, name), getattr(other.series[order], name))
    assert one.ids == tuple(map(str, range(12)))
    assert one.series.values[1, :, 0].tolist() == [11, 12, 13, 14, 15, 16]
    assert one.series.mask[1, :, 1].tolist() == [True, False, True, True, False, True]
    assert int(one.series.observations.sum()) == len(lines)


def test_columns_have_names_of_ones_own_and_others_are_not_read(tmp_path):
    path = write(tmp_path / "t.csv", "what,who,note,when,much\nx,p,hm,2.5,1\ny,p,,0.5,-1e3\n")
    table = read_long(path, ("y", "x"), ("who", "when", "what", "much"))
    assert table.variables == ("y", "x")
    assert table.series.times.tolist() == [[0.5, 2.5]]
    assert table.series.values.tolist() == [[[-1000, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + "p,1,a,2\np,1,c,2\n", "line 3: variable 'c', expected one of a, b"),
        (HEAD + "p,1,a,80,5\n", "line 2: 5 fields, expected 4"),
        (HEAD + "p,1,a,2\np,1,a,3\n", "line 3: series 'p' has variable 'a' at time 1 twice"),
        (HEAD + "p,1,a,nan\n", "line 2: value 'nan', expected a finite number"),
        (HEAD + "p,1,a,\n", "line 2: value '', expected a finite number"),
        (HEAD + "p,1,a\n", "line 2: 3 fields, expected 4"),
        (HEAD + "p,soon,a,1\n", "line 2: time 'soon', expected a finite number"),
        (HEAD + "p,inf,a,1\n", "line 2: time 'inf', expected a finite number"),
        (HEAD, "no lines"),
        ("", "no column 'id', but nothing"),
        ("id,time,name,value\n", "no column 'variable', but id, time, name, value"),
    ],
)
def test_a_broken_table_is_refused_with_the_line(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        read_long(write(tmp_path / "t.csv", text), ("a", "b"))


def test_an_absent_table_and_one_of_few_series_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none\.csv"):
        LongTable(str(tmp_path / "none.csv")).setup()
    path = write(tmp_path / "t.csv", HEAD + "".join(f"{i},{t},a,1\n" for i in range(4) for t in (0, 1)))
    with pytest.raises(DataError, match="has 4 series, expected 5 at least"):
        LongTable(str(path)).setup()


def test_a_series_of_which_nothing_is_seen_is_named(table):
    table.write_text(table.read_text() + "late,6,a,1\n")
    with pytest.raises(DataError, match=r"series 'late', and 0 more of 13, have no observation before the time 0\.6"):
        LongTable(str(table)).setup()


def test_a_table_is_split_and_standardised_by_its_training_series(table):
    data = LongTable(str(table))
    data.setup()
    assert [len(split) for split in data.splits] == [9, 1, 2]
    assert data.variables == ("a", "b")
    train = data.splits.train.series
    for channel in range(2):
        known = train.values[..., channel][train.mask[..., channel]].double()
        assert float(known.mean()) == pytest.approx(0, abs=1e-5)
        assert float(known.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    assert sorted(train.times.unique().tolist()) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    seen, target, label = data.splits.test.__getitems__([0, 1])
    assert seen.times.tolist() == pytest.approx(torch.tensor([[0, 0.2, 0.4]] * 2))
    assert target.times.tolist() == pytest.approx(torch.tensor([[0.6, 0.8, 1]] * 2))
    assert label.isnan().all()


@pytest.fixture
def pelts(tmp_path):
    lines = [f"{1900 + i}, {4.0 + i % 5}, {30.0 + 7 * (i % 4)}" for i in range(10)]
    (tmp_path / "timeseries").mkdir()
    return write(tmp_path / "timeseries" / "hudson_bay_lynx_hare.csv", "# from\nYear, Lynx, Hare\n" + "\n".join(lines))


def test_lynx_and_hare_are_cut_at_the_last_years(pelts):
    data = LynxHare(str(pelts.parent.parent), held=3, steps=5)
    data.setup()
    seen, target, _ = data.splits.test.__getitems__([0])
    assert seen.times[0].tolist() == pytest.approx([0.1 * i for i in range(7)])
    assert target.times[0].tolist() == pytest.approx([0.7, 0.8, 0.9])
    known = torch.tensor([[4.0 + i % 5, 30.0 + 7 * (i % 4)] for i in range(10)]).log()
    mean, std = known[:7].mean(0), known[:7].std(0)
    assert torch.allclose(torch.cat((seen.values, target.values), 1)[0], (known - mean) / std, atol=1e-6)
    assert len(data.splits.train) == 5
    train = data.splits.train.__getitems__([4])
    assert torch.equal(train.seen.values, seen.values)  # and nothing of the years that the test predicts
    assert torch.equal(train.target.values, seen.values)


def test_broken_pelts_are_refused(pelts):
    with pytest.raises(DataError, match=r"LynxHare\(held=9\): expected at most 8"):
        LynxHare(str(pelts.parent), held=9).setup()
    with pytest.raises(DataError, match="no folder to look in"):
        LynxHare().setup()
    with pytest.raises(DataError, match="looked for hudson"):
        LynxHare(str(pelts.parent / "none")).setup()
    for line in ("1900, 1, 1", "1950, 0, 1", "1950, many, 1"):
        text = pelts.read_text()
        pelts.write_text(f"{text}\n{line}\n")
        with pytest.raises(DataError, match="cannot read"):
            LynxHare(str(pelts.parent)).setup()
        pelts.write_text(text)


def test_spaces_behind_commas_belong_to_nothing(tmp_path):
    table = read_long(write(tmp_path / "t.csv", HEAD.replace(",", ", ") + "p, 1, a, 2\np, 2, a, 3\n"))
    assert (table.ids, table.variables) == (("p",), ("a",))
    assert table.series.values.flatten().tolist() == [2.0, 3.0]
