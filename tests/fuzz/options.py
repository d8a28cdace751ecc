"""Options of the public functions of points, drawn from all that are allowed."""

import torch

import torchimplicit as ti


def tolerances(dice, form, size=1.0):
    """rtol, atol, max_steps: most of them reachable in the form's dtype, atol in the unknowns' units or off."""
    reach = max(dice.power(-10, -2), 10 * form.eps)
    rtol = dice.power(-12, -2) if dice.chance(0.1) else min(reach, 0.03)
    atol = dice.weighted({None: 4, 0.0: 1, 1e-6: 1, size * dice.power(-10, -4): 2})
    steps = dice.weighted({dice.pick(0, 1, 3): 1, 20: 1, 50: 2, 200: 8, 1000: 8})
    return {"rtol": rtol, "atol": atol, "max_steps": steps}


def linear_solver(dice, form):
    rtol = dice.power(-10, -2)
    options = {
        "gmres": ti.GMRES(
            rtol=rtol,
            restart=dice.between(1, 12),
            max_steps=dice.pick(2, 20, 100, 400),
            opening=dice.pick(None, True, False),
        ),
        "lu": ti.LU(),
        "bicgstab": ti.BiCGStab(rtol=rtol, max_steps=dice.pick(5, 100)),
        "cg": ti.CG(rtol=rtol, max_steps=dice.pick(5, 100)),
    }
    return options[dice.weighted({"gmres": 5, "lu": 4, "bicgstab": 2, "cg": 1})]


def adjoint(dice, form, solver):
    """An adjoint that goes with the solver."""
    weights = {"default": 3, "implicit": 8, "neumann": 1, "phantom": 1}
    if isinstance(solver, ti.Broyden):
        weights |= {"shine": 4, "precondition": 4}
    if unrolls(solver):
        weights["unrolled"] = 3
    kind = dice.weighted(weights)
    if kind == "default":
        return ti.Implicit()
    if kind == "neumann":
        return ti.Implicit(ti.Neumann(terms=dice.between(1, 30)))
    if kind == "phantom":
        return ti.Phantom(steps=dice.between(1, 4), damping=dice.pick(1.0, 0.5))
    if kind == "shine":
        return ti.Shine(refine=dice.between(0, 4))
    if kind == "unrolled":
        checkpoint = dice.chance(0.3) and not isinstance(solver, ti.Newton | ti.PseudoTransient)
        return ti.Unrolled(checkpoint=checkpoint)
    linear = linear_solver(dice, form)
    return ti.Implicit(linear, precondition=kind == "precondition" and not isinstance(linear, ti.CG))


def unrolls(solver):
    """Whether every step can be differentiated."""
    if isinstance(solver, ti.Newton | ti.PseudoTransient):
        return isinstance(solver.linear_solver, ti.LU)
    return isinstance(solver, ti.Picard | ti.Anderson | ti.Broyden | ti.SteadyState)


MAPS = {"picard": 2, "anderson": 4, "steady": 1}  # these take the residual for a step
EQUATIONS = {"broyden": 3, "newton": 6, "transient": 2, "polyalgorithm": 2}


def equation_solver(dice, form, size=1.0, kinds=MAPS | EQUATIONS):
    """A solver of fixed points and roots."""
    common = tolerances(dice, form, size)
    kind = dice.weighted(kinds)
    if kind == "picard":
        return ti.Picard(damping=dice.pick(1.0, 0.5, 1.5), check_every=dice.pick(1, 1, 4), **common)
    if kind == "anderson":
        return ti.Anderson(
            window=dice.between(1, 8),
            period=dice.between(1, 4),
            damping=dice.pick(1.0, 1.0, 0.7),
            ridge=dice.pick(1e-10, 0.0, 1e-4),
            check_every=dice.pick(1, 1, 3),
            **common,
        )
    if kind == "broyden":
        return ti.Broyden(memory=dice.between(1, 12), halvings=dice.pick(0, 0, 3), **common)
    if kind == "newton":
        linear = dice.pick(None, ti.LU(), linear_solver(dice, form))
        return ti.Newton(linear_solver=linear, halvings=dice.pick(10, 10, 0, 3), forcing=dice.chance(0.7), **common)
    if kind == "polyalgorithm":
        then = dice.pick(ti.Broyden(memory=20), ti.Newton(), ti.Anderson(damping=0.7))
        return ti.Polyalgorithm(
            first=dice.pick(ti.Anderson(), ti.Picard()), then=then, after=dice.between(0, 20), **common
        )
    if kind == "transient":
        return ti.PseudoTransient(dt=dice.power(-2, 3), linear_solver=dice.pick(None, ti.LU(), ti.GMRES()), **common)
    return ti.SteadyState(**common)


def around(dice, form, solver, own):
    """The options with a solver: an adjoint that goes with it, and what does not matter for the answer."""
    options = {
        "solver": solver,
        "adjoint": adjoint(dice, form, solver),
        "batch_dims": form.batch_dims,
        "trace": dice.chance(0.15),
        "on_failure": dice.weighted({"ignore": 3, "warn": 1, "raise": 1}),
    }
    if form.batch_dims and dice.chance(0.3):
        options["batched_args"] = tuple(range(own))
    if dice.chance(0.1):
        options["save_steps"] = [0, dice.between(1, 5)]
    return options


def cotangent(dice, form, shape):
    """What flows back, of any size that the sums over it can take; now and then nothing for a sample."""
    wide = form.dtype != torch.float16 and dice.chance(0.3)
    g = dice.normal(*shape) * (dice.power(-12, 12) if wide else 1.0)
    if dice.chance(0.1):
        g[dice.between(0, len(g) - 1)] = 0
    return g if dice.chance(0.95) else torch.zeros_like(g)
