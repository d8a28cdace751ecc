"""Ordinary differential equations against torchdiffeq, torchode and diffrax: speed, error, evaluations, memory.

python -m benchmarks.paths              everything; rewrites benchmarks/ODE.md
python -m benchmarks.paths --quick      tiny sizes, nothing compiled, writes nothing
python -m benchmarks.paths --only outputs        some of it, writes nothing
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

import torchimplicit as ti
from benchmarks.kit.measure import interleaved
from benchmarks.kit.table import Table, at_least, at_most, write_page
from benchmarks.paths.cases import Case, cases, mixed, pol
from benchmarks.paths.jax_process import Diffrax, start_diffrax
from benchmarks.paths.memory import memory
from torchimplicit.core.compiled.kernel import CompileError
from torchimplicit.ode import Dopri5

try:
    from torchdiffeq import odeint as torchdiffeq  # pyright: ignore[reportMissingImports]
except ImportError:
    torchdiffeq = None
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchode  # pyright: ignore[reportMissingImports]
except ImportError:
    torchode = None

HOW = (
    "Rewritten by `python -m benchmarks.paths`: the libraries of torch in one process, diffrax in one of its own, "
    "asked over a pipe, one thread each, medians over interleaved repeats. The machine was shared with other work, so "
    "times are CPU times, and even these are to be compared within a problem only."
)
BARS = {
    ("Lotka-Volterra", "eager"): (3.5, 1.5), ("Lotka-Volterra", "compiled"): (10, 7),
    ("van der Pol mu 2", "eager"): (3.5, 1.5), ("van der Pol mu 2", "compiled"): (10, 7),
    ("MLP, B 16", "best"): (4, 2.5), ("MLP, B 512", "best"): (2.3, 1.3),
}  # fmt: skip
BARS_OF_JAX = (3, 1.5)  # time of ours, compiled, over that of diffrax, on the problems that have a bar compiled


def ours(case: Case, compile: bool) -> Callable[[], Tensor]:
    solver = Dopri5(rtol=case.tol, atol=case.tol, max_steps=100_000)
    ts = torch.tensor([0.0, case.end], dtype=case.y0.dtype)
    stepping = "joint" if case.joint else "per-sample"
    return lambda: ti.odeint(case.field, case.y0, ts, solver=solver, stepping=stepping, compile=compile).value[-1]


def theirs(case: Case) -> Callable[[], Tensor]:
    peer = torchdiffeq
    assert peer is not None
    ts = torch.tensor([0.0, case.end], dtype=case.y0.dtype)
    return lambda: peer(case.field, case.y0, ts, rtol=case.tol, atol=case.tol, method="dopri5")[-1]


def batched(case: Case) -> Callable[[], Tensor]:
    assert torchode is not None
    term = torchode.ODETerm(_Plain(case.field), with_stats=False)
    control = torchode.IntegralController(atol=case.tol, rtol=case.tol, term=term)
    adjoint = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
    zeros = torch.zeros(len(case.y0), dtype=case.y0.dtype)
    problem = torchode.InitialValueProblem(y0=case.y0, t_start=zeros, t_end=zeros + case.end)
    return lambda: adjoint.solve(problem).ys[:, -1]


class _Plain(torch.nn.Module):
    def __init__(self, field: torch.nn.Module):
        super().__init__()
        self.field = field

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(t, y)


def both(run: Callable[[], Tensor], case: Case) -> dict[str, Callable[[], object]]:
    """A run forward, and one forward and backward."""

    def forward() -> object:
        with torch.no_grad():
            return run()

    return {
        "forward": forward,
        "fwd + bwd": lambda: torch.autograd.grad(run().square().sum(), list(case.field.parameters())),
    }


def evaluations(case: Case, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """How often a run evaluates the field, and what it finds."""
    count = 0

    def hook(*_: object) -> None:
        nonlocal count
        count += 1

    handle = case.field.register_forward_hook(hook)
    with torch.no_grad():
        value = run()
    handle.remove()
    return count, value


def reference(case: Case) -> Tensor:
    """The last state to 1e-12, in double precision."""
    field = case.field.double()
    exact = Dopri5(rtol=1e-12, atol=1e-12, max_steps=1_000_000)
    ts = torch.tensor([0.0, case.end], dtype=torch.float64)
    with torch.no_grad():
        found = ti.odeint(field, case.y0.double(), ts, solver=exact, stepping="joint", on_failure="warn").value[-1]
    field.to(case.y0.dtype)
    return found


def speed(problems: list[Case], seconds: float, compile: bool) -> Table:
    """Time of a solve against torchdiffeq's, for the last state alone (T = 2)."""
    note = (
        "dopri5 everywhere, relative and absolute tolerance equal, one step size for the batch (torchode: one for each "
        "sample). Ratios are torchdiffeq's time over the library's. Floor: as many evaluations of the field as ours, "
        "and vector-Jacobian products of them, without a solver. True error: the largest, against a solve at 1e-12. "
        "The bars of diffrax are of our compiled time over its own."
    )
    table = Table("Speed", note, ["problem", "library", "ms", "ms fwd + bwd", "forward", "fwd + bwd", "bars", "verdict",
                                  "NFE", "true error"])  # fmt: skip
    for case in problems:
        jitted = None if seconds == 0 else start_diffrax(case)
        _compare(table, case, seconds, compile, jitted)
        if jitted is not None:
            jitted.close()
    return table


def _compare(table: Table, case: Case, seconds: float, compile: bool, jitted: Diffrax | None) -> None:
    """Adds the rows of one problem."""
    truth = reference(case)
    runs: dict[str, Callable[[], Tensor]] = {"torchdiffeq": theirs(case), "eager": ours(case, False)}
    if compile and compiles(case):
        runs["compiled"] = ours(case, True)
    if torchode is not None and not case.name.startswith("CNF"):
        runs["torchode"] = batched(case)
    seen = {name: evaluations(case, run) for name, run in runs.items() if name != "compiled"}
    nfev = seen["eager"][0]
    timed = {f"{name} {part}": each for name, run in runs.items() for part, each in both(run, case).items()}
    timed |= {f"floor {part}": each for part, each in floor(case, nfev).items()}
    if jitted is not None:
        for part in ("forward", "fwd + bwd"):
            timed[f"diffrax, jitted {part}"] = lambda part=part: jitted.ask(part)
    times = interleaved(timed, seconds, clock=cpu_time(jitted))

    def cells(name: str) -> tuple[tuple[float, float], list[str]]:
        pair = times[f"{name} forward"], times[f"{name} fwd + bwd"]
        ratios = times["torchdiffeq forward"] / pair[0], times["torchdiffeq fwd + bwd"] / pair[1]
        return ratios, [f"{ms:.2f}" for ms in pair] + [f"{ratio:.2f}x" for ratio in ratios]

    for name, run in runs.items():
        with torch.no_grad():
            count, value = seen.get(name) or (nfev, run())
        ratios, written = cells(name)
        error = float((value - truth).abs().max())
        table.add(case.name, name, *written, *_verdict(case.name, name, ratios), str(count), f"{error:.1e}")
    table.add(case.name, "floor", *cells("floor")[1], "", "", str(nfev), "")
    if jitted is not None:
        ratios, written = cells("diffrax, jitted")
        verdict = ("", "")
        if "compiled" in runs and (case.name.split(",")[0], "compiled") in BARS:
            compiled = cells("compiled")[0]
            verdict = _joined(
                at_most(theirs / ours, bar) for theirs, ours, bar in zip(ratios, compiled, BARS_OF_JAX, strict=True)
            )
        error = float((jitted.value() - truth).abs().max())
        table.add(case.name, "diffrax, jitted", *written, *verdict, "", f"{error:.1e}")


def cpu_time(jitted: Diffrax | None = None) -> Callable[[], float]:
    """A clock that runs while this process works, and its diffrax: other work on the machine does not count."""
    return lambda: time.process_time() + (0 if jitted is None else jitted.spent)


def floor(case: Case, nfev: int) -> dict[str, Callable[[], None]]:
    """As many evaluations, and vector-Jacobian products of them, without a solver."""
    clock, y = torch.zeros((), dtype=case.y0.dtype), case.y0.detach().clone().requires_grad_()
    wanted = [y, *case.field.parameters()]

    def forward() -> None:
        with torch.no_grad():
            for _ in range(nfev):
                case.field(clock, case.y0)

    def back() -> None:
        for _ in range(nfev):
            torch.autograd.grad(case.field(clock, y), wanted, case.y0, allow_unused=True)

    return {"forward": forward, "fwd + bwd": back}


def compiles(case: Case) -> bool:
    """Whether our steps compile for a problem, forward and backward; says so where not."""
    try:
        for each in both(ours(case, True), case).values():
            each()
    except CompileError as error:
        print(f"{case.name}: {error}")
        return False
    return True


def _verdict(case: str, name: str, ratios: tuple[float, float]) -> tuple[str, str]:
    for (start, kind), bars in BARS.items():
        if case.startswith(start) and name in ((kind,) if kind != "best" else ("eager", "compiled")):
            return _joined(at_least(ratio, bar) for ratio, bar in zip(ratios, bars, strict=True))
    return "", ""


def _joined(verdicts: Iterable[tuple[str, str]]) -> tuple[str, str]:
    bars, words = zip(*verdicts, strict=True)
    return " / ".join(bars), " / ".join(words)


def unlike(quick: bool, seconds: float, compile: bool) -> Table:
    """A batch of oscillators of which few are stiff."""
    y0, mu = mixed(quick)
    end, tol = (1.0 if quick else 10.0), 1e-6
    ts = torch.tensor([0.0, end], dtype=torch.float64)
    solver = Dopri5(rtol=tol, atol=tol, max_steps=100_000)
    case = Case("mixed", _Mixed(mu), y0, end, tol)

    def run(compile: bool) -> Callable[[], Tensor]:
        return lambda: ti.odeint(pol, y0, ts, mu, solver=solver, batched_args=(0,), compile=compile).value[-1]

    runs: dict[str, Callable[[], Tensor]] = {"torchdiffeq": theirs(case), "eager": run(False)}
    if compile:
        runs["compiled"] = run(True)
    if torchode is not None:
        runs["torchode"] = batched(case)
    exact = Dopri5(rtol=1e-12, atol=1e-12, max_steps=1_000_000)
    with torch.no_grad():
        times = interleaved(runs, seconds, clock=cpu_time())
        truth = ti.odeint(pol, y0, ts, mu, solver=exact, batched_args=(0,)).value[-1]
        errors = {name: float((solve() - truth).abs().max()) for name, solve in runs.items()}
    note = (
        f"van der Pol, B {len(mu)}, mu from 0.1 to 16, forward to {end:g} at {tol:g}; ours goes on without who "
        "arrived. torchdiffeq has one step size for all."
    )
    table = Table("An unlike batch", note, ["library", "ms", "ratio", "bar", "verdict", "true error"])
    for name, ms in times.items():
        ratio = times["torchdiffeq"] / ms
        verdict = at_least(ratio, 15) if name == "compiled" else ("", "")
        table.add(name, f"{ms:.1f}", f"{ratio:.2f}x", *verdict, f"{errors[name]:.1e}")
    return table


class _Mixed(torch.nn.Module):
    def __init__(self, mu: Tensor):
        super().__init__()
        self.mu = mu

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return pol(t, y, self.mu)


def outputs(quick: bool, seconds: float) -> Table:
    """Backward time over the number of outputs."""
    case = cases(True)[0]
    if not quick:
        case.y0, case.end = 1 + 0.5 * torch.rand(512, 2, dtype=torch.float64), 10.0
    counts = (2, 11, 41) if quick else (2, 101, 1601)
    table = Table(
        "Many outputs",
        f"Lotka-Volterra, B {len(case.y0)}, forward and backward through all outputs, eager, milliseconds; the growth "
        f"from {counts[1]} to {counts[2]} outputs is of the backward pass, time forward taken off.",
        ["library", *(f"T = {count}" for count in counts), "growth of backward", "bar", "verdict"],
    )
    solver = Dopri5(rtol=case.tol, atol=case.tol)
    peer = torchdiffeq
    assert peer is not None
    libraries: dict[str, Callable[[Tensor], Tensor]] = {
        "torchdiffeq": lambda ts: peer(case.field, case.y0, ts, rtol=case.tol, atol=case.tol, method="dopri5"),
        "torchimplicit": lambda ts: ti.odeint(case.field, case.y0, ts, solver=solver, stepping="joint").value,
    }
    for name, solve in libraries.items():
        runs: dict[str, Callable[[], object]] = {}
        for count in counts:
            ts = torch.linspace(0, case.end, count, dtype=torch.float64)
            for part, each in both(lambda ts=ts, solve=solve: solve(ts), case).items():
                runs[f"{count} {part}"] = each
        times = interleaved(runs, seconds, clock=cpu_time())
        backward = [times[f"{count} fwd + bwd"] - times[f"{count} forward"] for count in counts]
        growth = backward[2] / backward[1]
        cells = [f"{times[f'{count} fwd + bwd']:.1f}" for count in counts]
        table.add(name, *cells, f"{growth:.1f}x", *(at_most(growth, 20) if name == "torchimplicit" else ("", "")))
    return table


def sections(quick: bool) -> dict[str, Callable[[], Table]]:
    """What there is to measure, by name; `quick` makes it tiny and compiles nothing."""
    seconds = 0 if quick else 4
    return {
        "speed": lambda: speed(cases(quick), seconds, not quick),
        "unlike": lambda: unlike(quick, seconds, not quick),
        "outputs": lambda: outputs(quick, seconds),
        "memory": lambda: memory(4, 8, (5, 10, 20)) if quick else memory(256, 128, (100, 400, 1600)),
    }


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(sections(True)))
    options = parser.parse_args()
    if torchdiffeq is None:
        print("torchdiffeq, the peer, is not installed: pip install -e '.[bench]'")
        return
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    tables = [each() for name, each in sections(options.quick).items() if name in (options.only or [name])]
    if not options.quick and not options.only:
        write_page(
            Path(__file__).parents[1] / "ODE.md",
            tables,
            1,
            HOW,
            ("torchimplicit", "torchdiffeq", "torchode", "diffrax", "jax"),
        )


if __name__ == "__main__":
    main()
