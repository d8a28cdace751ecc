"""Measuring: interleaved times, the slope of time over steps, the peak of allocated memory."""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

import torchimplicit as ti

Run = Callable[[], object]
ROUNDS = 3  # the fewest of which a median is taken


def now() -> float:
    """Seconds, when an accelerator, where there is one, has done all that it was asked to."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def interleaved(
    runs: Mapping[str, Run],
    seconds: float,
    inner: int = 1,
    clock: Callable[[], float] = now,
    of: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median time of each run in milliseconds, one run of each in every round.

    In another order every round, for who comes next finds in the caches what the last one has left there.

    Args:
        runs: what to time.
        seconds: start no further round after these, but make at least `ROUNDS`.
        inner: runs behind one reading of the clock, for runs that are short.
        clock: in seconds.
        of: what of the rounds' times is given.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warms up
    end = time.perf_counter() + seconds
    rounds, order, shuffled = 0, list(runs.items()), random.Random(0).shuffle
    while runs and (rounds < ROUNDS or time.perf_counter() < end):
        rounds += 1
        shuffled(order)
        for name, run in order:
            start = clock()
            for _ in range(inner):
                run()
            times[name].append((clock() - start) / inner)
    return {name: 1e3 * of(some) for name, some in times.items()}


def phases(
    runs: Mapping[str, tuple[Callable[[], ti.Solution], Callable[[ti.Solution], object]]], seconds: float
) -> dict[str, tuple[float, float]]:
    """Median times of solving and of then differentiating in milliseconds, interleaved as by `interleaved`.

    Args:
        runs: each solves, and differentiates what came out.
        seconds: see `interleaved`.
    """
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runs}
    for solve, differentiate in runs.values():
        differentiate(solve())  # warms up
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < ROUNDS or time.perf_counter() < end:
        rounds += 1
        for name, (solve, differentiate) in runs.items():
            start = now()
            solution = solve()
            middle = now()
            differentiate(solution)
            times[name][0].append(middle - start)
            times[name][1].append(now() - middle)
    return {name: (1e3 * statistics.median(a), 1e3 * statistics.median(b)) for name, (a, b) in times.items()}


def slopes(
    runs: Mapping[str, Callable[[int], Run]], steps: tuple[int, int], seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Time of one more step in microseconds: set-up and tear-down cancel in the difference of two lengths.

    Args:
        runs: each makes a run of so many steps.
        steps: a small and a larger number of steps.
        seconds: see `interleaved`.
        clock: see `interleaved`.
    """
    low, high = steps
    both = {f"{name} {k}": make(k) for name, make in runs.items() for k in steps}
    times = interleaved(both, seconds, 5, clock)
    return {name: 1e3 * (times[f"{name} {high}"] - times[f"{name} {low}"]) / (high - low) for name in runs}


def peak_memory(run: Run) -> int:
    """The most bytes that a run holds at a time, beyond those before it, by the allocator's own account; exact."""
    run()
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Drops what the profiler's C++ side says on standard error about its start and stop."""
    sys.stderr.flush()
    held = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(held, 2)
        os.close(held)
