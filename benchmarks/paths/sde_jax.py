"""diffrax's stochastic steps in a process of its own, jitted, one thread; see `jax_process`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.paths.jax_process import Diffrax
    from benchmarks.paths.sde_cases import Case


def start(case: Case, method: str) -> Diffrax | None:
    """Its process for a problem; None without diffrax, and for methods that it has no equal of."""
    import importlib.util

    from benchmarks.paths.jax_process import Diffrax

    if method not in ("Euler", "Heun") or importlib.util.find_spec("diffrax") is None:
        return None
    parameters = [p.detach() for p in case.equation.parameters()]
    return Diffrax(__file__, (case.in_jax, method, case.y0, parameters, case.steps), case.y0)


def serve_steps(file: str) -> None:
    """Solves as often as it is asked to; its noise is a virtual tree, for what is unsafe has no gradient."""
    import diffrax  # pyright: ignore[reportMissingImports]
    import jax
    import jax.numpy as jnp
    import lineax  # pyright: ignore[reportMissingImports]
    import torch
    from jax_process import serve

    kind, method, y0, parameters, steps = torch.load(file)
    y0, parameters = jnp.asarray(y0.numpy()), [jnp.asarray(p.numpy()) for p in parameters]

    def network(p, y):
        return jnp.tanh(y @ p[0].T + p[1]) @ p[2].T + p[3]

    fields = {
        "gbm": (lambda t, y, p: 0.1 * y, lambda t, y, p: 0.2 * y),
        "ou": (lambda t, y, p: -y, lambda t, y, p: jnp.full_like(y, 0.3)),
        "net": (lambda t, y, p: network(p[:4], y), lambda t, y, p: jax.nn.sigmoid(network(p[4:], y))),
    }
    drift, diffusion = fields[kind]
    solver = {"Euler": diffrax.Euler, "Heun": diffrax.Heun}[method]()

    def solve(inputs, finer=1):
        start, p = inputs
        size = jax.ShapeDtypeStruct(start.shape, start.dtype)
        tree = diffrax.VirtualBrownianTree(0.0, 1.0, tol=1 / steps / 32, shape=size, key=jax.random.PRNGKey(0))
        control = diffrax.ControlTerm(lambda t, y, p: lineax.DiagonalLinearOperator(diffusion(t, y, p)), tree)
        found = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), control), solver, 0.0, 1.0, 1 / steps / finer, start, p,
            max_steps=steps * finer + 1,
        )  # fmt: skip
        return found.ys[-1]

    def scanned(inputs):
        start, p = inputs
        noise = (1 / steps) ** 0.5 * jax.random.normal(jax.random.PRNGKey(0), (steps, *start.shape))

        def step(y, w):
            return y + drift(0.0, y, p) / steps + diffusion(0.0, y, p) * w, None

        return jax.lax.scan(step, start, noise)[0]

    runs = {
        "scan forward": jax.jit(scanned),
        "scan fwd + bwd": jax.jit(jax.grad(lambda inputs: scanned(inputs).sum())),
        "forward": jax.jit(solve),
        "value": jax.jit(solve),
        "finer": jax.jit(lambda inputs: solve(inputs, 16)),
        "fwd + bwd": jax.jit(jax.grad(lambda inputs: solve(inputs).sum())),
    }
    serve(runs, (y0, parameters))


if __name__ == "__main__":
    serve_steps(sys.argv[1])
