"""diffrax in a process of its own: the same problems, jitted, one thread. Nothing where it is not installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ode_cases import Case

FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def diffrax_times(case: Case) -> dict[str, tuple[float, float]]:
    """Medians forward and forward and backward, in milliseconds; nothing without diffrax or for other problems."""
    if case.in_jax is None or case.name.endswith((" 4", " 8")):
        return {}
    if importlib.util.find_spec("diffrax") is None:
        print("diffrax is not installed: pip install -e '.[peers]'")
        return {}
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.pt"
        torch.save((case.in_jax, case.y0, [p.detach() for p in case.field.parameters()], case.end, case.tol), file)
        environment = {**os.environ, "XLA_FLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
        run = subprocess.run([sys.executable, __file__, str(file)], env=environment, capture_output=True, text=True)
    if run.returncode:
        print("diffrax failed:", run.stderr.strip().splitlines()[-1])
        return {}
    ahead, back = map(float, run.stdout.split()[-2:])
    return {"diffrax, jitted": (ahead, back)}


def measure(file: str) -> None:
    """Prints both medians."""
    import statistics
    import time

    import diffrax
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

    for run in (jax.jit(solve), jax.jit(jax.grad(lambda p: (solve(p) ** 2).sum()))):
        jax.block_until_ready(run(parameters))
        times = []
        for _ in range(30):
            start = time.perf_counter()
            jax.block_until_ready(run(parameters))
            times.append(time.perf_counter() - start)
        print(1e3 * statistics.median(times))


if __name__ == "__main__":
    measure(sys.argv[1])
