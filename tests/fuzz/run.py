"""The command: cases by seed, worker processes, a table, and how to repeat each fault."""

import argparse
import multiprocessing
import random
import time
from collections import Counter
from typing import NamedTuple

import torch

from tests.fuzz.dice import Dice
from tests.fuzz.families import FAMILIES, KNOWN
from tests.fuzz.watch import Fault
from torchimplicit.core.failures import forget_lines

WORDS = ("converged", "failed", "refused", "broken")


class Played(NamedTuple):
    """What became of one case."""

    family: str
    seed: int
    title: str
    word: str
    faults: list[Fault]
    seconds: float


def family_of(seed):
    """The family that a seed's case belongs to."""
    weights = [weight for _, weight in FAMILIES.values()]
    return random.Random(seed).choices(list(FAMILIES), weights)[0]


def play(family, seed, known=KNOWN):
    """One case; all that it is follows from the family and the seed."""
    began = time.monotonic()
    forget_lines()  # every case warns as the first one at its line
    generate, _ = FAMILIES[family]
    title, case = generate(Dice(f"{family} {seed}"), known)
    try:
        word, faults = case()
    except Exception as error:  # of the judge: the other cases go on
        word, faults = "broken", [Fault("exception", f"judging: {error!r}")]
    return Played(family, seed, title, word, faults, time.monotonic() - began)


def _work(job):
    family, seed, known = job
    return play(family, seed, known)


def _begin():
    torch.set_num_threads(1)


def main(arguments=None):
    """Runs the cases and prints; exits with 1 where there is a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--family", choices=list(FAMILIES), help="this one alone")
    parser.add_argument("--known", action="store_true", help="draw also what is known to be wrong: " + ", ".join(KNOWN))
    parser.add_argument("--show", type=int, default=20, help="faults of a family to print at most")
    chosen = parser.parse_args(arguments)
    known = {} if chosen.known else KNOWN
    seeds = range(chosen.seed, chosen.seed + chosen.cases)
    jobs = [(chosen.family or family_of(seed), seed, known) for seed in seeds]
    began = time.monotonic()
    if chosen.workers > 1 and len(jobs) > 1:
        with multiprocessing.get_context("fork").Pool(chosen.workers, _begin) as pool:
            played = told(pool.imap(_work, jobs, chunksize=8), chosen)
    else:
        _begin()
        played = told(map(_work, jobs), chosen)
    table(played)
    print(f"{len(played)} cases in {time.monotonic() - began:.0f} s")
    raise SystemExit(any(case.faults for case in played))


def told(cases, chosen):
    """The cases as a list; prints faults as they come, with the commands that repeat them."""
    played, shown = [], Counter()
    for case in cases:
        played.append(case)
        if case.faults or chosen.cases == 1:
            shown[case.family] += 1
            if shown[case.family] > chosen.show:
                continue
            known = " --known" if chosen.known else ""
            print(f"{case.family}: python -m tests.fuzz --family {case.family} --seed {case.seed} --cases 1{known}")
            print(f"    {case.title}")
            for fault in case.faults[:4]:
                print(f"    {fault.kind}: {fault.words}", flush=True)
    return played


def table(played):
    """What became of the cases, family by family."""
    kinds = ("silent", "exception")
    print(f"{'':16}" + "".join(f"{word:>11}" for word in ("cases", *WORDS, *kinds, "s a case")))
    for family in dict.fromkeys(case.family for case in played):
        mine = [case for case in played if case.family == family]
        counts = [len(mine), *(sum(case.word == word for case in mine) for word in WORDS)]
        counts += [sum(any(fault.kind == kind for fault in case.faults) for case in mine) for kind in kinds]
        seconds = sum(case.seconds for case in mine) / len(mine)
        print(f"{family:16}" + "".join(f"{count:11}" for count in counts) + f"{seconds:11.3f}")
