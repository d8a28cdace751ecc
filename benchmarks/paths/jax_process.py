"""diffrax in a process of its own: the same problems, jitted, one thread. Nothing where it is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.paths.cases import Case

FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Diffrax:
    """A process that solves when it is asked to, so that its runs are interleaved with those of the others.

    Args:
        script: what it runs.
        problem: what the script loads.
        like: what the last state looks like.
    """

    def __init__(self, script: str, problem: tuple, like: Tensor):
        import torch

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "case.pt"
            torch.save(problem, file)
            environment = {**os.environ, "XLA_FLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, script, str(file)], env=environment, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self.spent = 0.0  # seconds of CPU time
            self.like = like
            self.ask("forward")

    def ask(self, which: str) -> list[float]:
        """Solves, `forward` or `fwd + bwd`, and waits for it; gives what came out."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{which}\n")
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("diffrax: got no answer from its process, expected one; see its error above")
        seconds, found = json.loads(answer)
        self.spent += seconds
        return found

    def value(self, which: str = "value") -> Tensor:
        """The last state."""
        import torch

        return torch.tensor(self.ask(which), dtype=self.like.dtype).view_as(self.like)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def start_diffrax(case: Case) -> Diffrax | None:
    """Its process for a problem; None without diffrax and for other problems."""
    if case.in_jax is None:
        return None
    if importlib.util.find_spec("diffrax") is None:
        print("diffrax is not installed: pip install -e '.[peers]'")
        return None
    parameters = [p.detach() for p in case.field.parameters()]
    return Diffrax(__file__, (case.in_jax, case.y0, parameters, case.end, case.tol), case.y0)


def serve(runs: dict[str, Callable], inputs: Any) -> None:
    """Runs what it is asked to; says how long that took, and what came out where that is a state."""
    import jax

    for line in sys.stdin:
        start, which = time.process_time(), line.strip()
        found = jax.block_until_ready(runs[which](inputs))
        seconds = time.process_time() - start
        print(json.dumps((seconds, found.ravel().tolist() if which in ("value", "finer") else [])), flush=True)


def serve_fields(file: str) -> None:
    """Solves as often as it is asked to."""
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax
    import jax.numpy as jnp
    import torch

    jax.config.update("jax_enable_x64", True)
    kind, y0, parameters, end, tol = torch.load(file)
    y0, parameters = jnp.asarray(y0.numpy()), [jnp.asarray(p.numpy()) for p in parameters]

    def field(t, y, p):
        if kind == "lotka":
            both = y[:, 0] * y[:, 1]
            return jnp.stack((p[0][0] * y[:, 0] - p[0][1] * both, p[0][3] * both - p[0][2] * y[:, 1]), -1)
        if kind == "pol":
            x, v = y[:, :1], y[:, 1:]
            return jnp.concatenate((v, p[0] * (1 - x * x) * v - x), -1)
        for weight, bias in zip(p[0:4:2], p[1:4:2], strict=True):
            y = jnp.tanh(y @ weight.T + bias)
        return y @ p[4].T + p[5]

    control = diffrax.PIDController(rtol=tol, atol=tol)

    def solve(p):
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, end, None, y0, p, stepsize_controller=control, max_steps=4096
        )
        return found.ys[-1]

    forward = jax.jit(solve)
    runs = {"forward": forward, "value": forward, "fwd + bwd": jax.jit(jax.grad(lambda p: (solve(p) ** 2).sum()))}
    serve(runs, parameters)


if __name__ == "__main__":
    serve_fields(sys.argv[1])
