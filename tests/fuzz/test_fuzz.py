"""A few hundred cases of the fuzzer, the same ones every time; `make fuzz` runs ten thousand."""

import pytest

from tests.fuzz.families import FAMILIES, KNOWN
from tests.fuzz.run import play

CASES, PARTS = 24, 2  # of a family


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_verdict_is_wrong_in_silence_and_nothing_breaks(family, part):
    played = [play(family, seed) for seed in range(part, CASES, PARTS)]
    faults = [(f"--family {case.family} --seed {case.seed} --cases 1", case.title, case.faults) for case in played]
    faults = [fault for fault in faults if fault[2]]
    assert not faults, "\n".join(f"python -m tests.fuzz {command}: {title}: {what}" for command, title, what in faults)
    assert sum(case.word == "converged" for case in played) >= len(played) // 3


MENDED = [
    ("qp", 2000978),
    ("degenerate", 10008354),
    *(("sparse", seed) for seed in (2139, 2828, 5262, 5343, 4001015)),
    *(("fixed_point", seed) for seed in (6002541, 6008897, 7000628, 8002725, 8003802)),
    *(("root", seed) for seed in (6003776, 6008242, 8000307, 12000910)),
    ("argmin", 12000710),
    *(("sets", seed) for seed in (6001373, 10003761)),
]


@pytest.mark.parametrize(("family", "seed"), MENDED)
def test_what_was_wrong_once_is_right(family, seed):
    assert not play(family, seed).faults


def test_a_seed_repeats_a_case():
    for family in FAMILIES:
        first, again = play(family, 7), play(family, 7)
        assert first.title == again.title
        assert first.word == again.word


def test_known_faults_have_words():
    assert all(KNOWN.values())
