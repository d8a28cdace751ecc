"""Bad input, as a hostile user gives it: every solver and adjoint ends in statuses, finite values and a message."""

import dataclasses
import sys
import warnings

import pytest
import torch

import torchimplicit as ti

INF = float("inf")
SOLVERS = [
    ti.Picard(),
    ti.Picard(damping=0.5),
    ti.Anderson(),
    ti.Anderson(window=1),
    ti.Anderson(window=20, period=1, ridge=0.0),
    ti.Anderson(check_every=7),
    ti.Broyden(),
    ti.Broyden(memory=1),
    ti.Broyden(halvings=4),
    ti.Newton(),
    ti.Newton(halvings=0),
    ti.Newton(linear_solver=ti.GMRES()),
    ti.Newton(linear_solver=ti.BiCGStab(), forcing=False),
    ti.PseudoTransient(),
    ti.PseudoTransient(dt=INF),
    ti.PseudoTransient(linear_solver=ti.GMRES()),
]
# The exact ones, at a tolerance that their gradients can be compared at.
EXACT = [
    ti.Implicit(ti.GMRES(rtol=1e-8)),
    ti.Implicit(ti.LU()),
    ti.Implicit(ti.BiCGStab(rtol=1e-8)),
    ti.Implicit(ti.CG(rtol=1e-8)),
    ti.Implicit(ti.GMRES(rtol=1e-8), precondition=True),
    ti.Implicit(ti.BiCGStab(rtol=1e-8), precondition=True),
]
BIASED = [
    ti.Implicit(ti.Neumann()),
    ti.Phantom(),
    ti.Phantom(steps=3, damping=0.5),
    ti.Shine(),
    ti.Shine(refine=3),
    ti.Unrolled(),
    ti.Unrolled(checkpoint=True),
]
LEARNS = ti.Broyden()  # goes with every adjoint
NAN = float("nan")


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


# Name: the map of one unknown, which of `x` adds to (0, but where it is the start), and the starts.
MAPS = {
    "several fixed points": (lambda z, x: torch.tanh(3 * z) + x, column(-1, 1e-3, 1, 0)),
    "none, a drift": (lambda z, x: z + 1 + x, column(0, 1, 5)),
    "none, a parabola": (lambda z, x: z + 1 + z**2 + x, column(0, 1, 5)),
    "none, a kink": (lambda z, x: z + 1 + z.abs() + x, column(7.7, -3.1, 0)),
    "one at infinity": (lambda z, x: z + torch.exp(-z) + x, column(0, 1, 5)),
    "everywhere": (lambda z, x: z + 0 * x, column(0.5, 0.1, 0)),
    "a double root": (lambda z, x: z - (z - x) ** 2, column(0.5, 0.1, 0)),
    "a triple root": (lambda z, x: z - (z - x) ** 3, column(0.5, 0.1, 0)),
    "nonhyperbolic": (lambda z, x: torch.sin(z - x) + x, column(0.5, 0.1, 0)),
    "a flip": (lambda z, x: torch.where(z > 0, -1.0, 1.0).to(z) + x, column(0.5, -0.1, 0)),
    "a jump": (lambda z, x: 0.5 * z + torch.sign(z) + x, column(0.5, -0.1, 0)),
    "a staircase": (lambda z, x: torch.floor(z) + 0.5 + x, column(0.7, -0.1, 0)),
    "a constant": (lambda z, x: 0 * z + 3 + x, column(7.7, -3.1, 0)),
    "no dependence": (lambda z, x: torch.ones_like(z), column(7.7, -3.1, 0)),
    "an infinite slope": (lambda z, x: torch.sqrt(z) - 0.2 + x, column(0.5, 0.1, 0)),
    "a pole": (lambda z, x: 1 / z + x, column(0.5, -2, 0)),
    "no value": (lambda z, x: torch.log(z) + x, column(0.5, 2, 0)),
    "overflow": (lambda z, x: torch.exp(z) + x, column(0, 1, 50)),
    "huge numbers": (lambda z, x: 0.5 * z + 1e300 + x, column(0, 1, -1e300)),
    "tiny numbers": (lambda z, x: 0.5 * z + 1e-310 + x, column(0, 1e-310, 1e-300)),
    "starts that are not finite": (lambda z, x: 0.5 * z + 1 + x, column(0, NAN, INF)),
    "float32": (lambda z, x: torch.cos(z) + x, column(0, 1e-3, 1e30, dtype=torch.float32)),
    "bfloat16": (lambda z, x: torch.cos(z) + x, column(0, 1e-3, 1e30, dtype=torch.bfloat16)),
    "float16": (lambda z, x: z * z + x, column(0, 1.5, 300, dtype=torch.float16)),
    "float16 out of range": (lambda z, x: 0.9 * z + 6500 + x, column(0, 1.5, 300, dtype=torch.float16)),
}
WITHOUT_FIXED_POINT = ["none, a drift", "none, a parabola", "none, a kink", "a flip"]
names = pytest.mark.parametrize("name", MAPS)
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=str)


def solve(name, **options):
    f, start = MAPS[name]
    x = torch.zeros_like(start).requires_grad_()
    return ti.fixed_point(f, start, x, **{"on_failure": "ignore", **options}), x


def check_message(message, report):
    """Every status with its samples and what to try."""
    for sample in report.failed.tolist():
        assert f"sample {sample} (step {int(report.steps[sample])}, residual" in message
    for status, remedy in report.remedies.items():
        assert f"{status.name.lower()}: " in message
        assert remedy in message
        assert "Try" in remedy or "try" in remedy or "look for" in remedy or "adds nothing" in remedy
    assert f"{len(report.failed)} of {len(report.status)} samples did not converge" in message


@names
@solvers
def test_every_solve_ends_in_true_statuses_finite_values_and_a_message(name, solver):
    f, start = MAPS[name]
    try:
        solution, x = solve(name, solver=solver, on_failure="raise")
        assert solution.report.converged
    except ti.ConvergenceError as error:
        solution, x = error.solution, torch.zeros_like(start)
        check_message(str(error), solution.report)
        assert not solution.report.converged
    status = [ti.Status(code) for code in solution.status.tolist()]
    assert len(status) == len(start)
    assert (solution.steps <= solver.max_steps).all()
    if name in WITHOUT_FIXED_POINT:
        assert ti.Status.CONVERGED not in status
    assert solution.value.dtype == start.dtype
    finite = start.isfinite().flatten()
    assert solution.value.isfinite().flatten()[finite].all()
    assert all(status[i] == ti.Status.NON_FINITE for i in torch.nonzero(~finite).flatten().tolist())
    # What has converged has a small residual, what has not is no worse than the start.
    with torch.no_grad():
        at_start, at_end = ((z - f(z, x)).abs().double() for z in (start, solution.value))
    size, eps = solution.value.detach().abs().double(), torch.finfo(start.dtype).eps
    play = 2 * eps * size if start.dtype.itemsize < 4 else 0  # of a residual that is evaluated in half precision
    arrived = (solution.status == ti.Status.CONVERGED)[:, None]
    assert (at_end <= 1.001 * (solver.absolute + solver.rtol * size) + play)[arrived].all()
    assert (at_end <= 1.0001 * at_start)[~arrived & at_start.isfinite()].all()


@names
@pytest.mark.parametrize("solver", [ti.Picard(), ti.Broyden(), ti.Newton()], ids=str)
def test_a_warning_says_what_the_error_says(name, solver):
    quiet, _ = solve(name, solver=solver)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve(name, solver=solver, on_failure="warn")
    assert len(caught) == (not quiet.report.converged)
    for one in caught:
        assert one.category is ti.ConvergenceWarning
        check_message(str(one.message), quiet.report)


@pytest.mark.parametrize("adjoint", [*EXACT, *BIASED], ids=str)
@names
def test_every_gradient_is_right_or_its_sample_is_reported(name, adjoint):
    solution, x = solve(name, solver=LEARNS, adjoint=adjoint)
    plain, start = solve(name, solver=LEARNS)[0], MAPS[name][1]
    assert torch.equal(solution.status, plain.status), "which adjoint is asked for changes nothing"
    assert torch.allclose(solution.value, plain.value, rtol=1e-4, equal_nan=True)
    assert solution.value.isfinite()[start.isfinite()].all()
    if not solution.value.requires_grad:  # nothing that was differentiated depends on `x`
        assert isinstance(adjoint, ti.Phantom | ti.Unrolled)
        assert name == "no dependence" or (isinstance(adjoint, ti.Unrolled) and not solution.steps.any())
        return
    solution.value.sum().backward()
    backward = solution.backward
    nonfinite = bool((solution.status == ti.Status.NON_FINITE).all())
    assert (backward is None) == (nonfinite or isinstance(adjoint, ti.Phantom))
    gradient = torch.zeros_like(x) if x.grad is None else x.grad
    arrived = solution.status == ti.Status.CONVERGED
    if backward is not None:
        assert backward.status.shape == solution.status.shape
        assert gradient.isfinite().all(), "what has no gradient has one of zero"
        arrived = arrived & (backward.status == ti.Status.CONVERGED)
    assert gradient[arrived].isfinite().all()
    if adjoint in EXACT:
        f, z, a = MAPS[name][0], solution.value.detach().requires_grad_(), torch.zeros_like(x).requires_grad_()
        value = f(z, a).sum() + 0 * (z + a).nan_to_num().sum()
        slope, push = torch.autograd.grad(value, (z, a))
        rtol = 0.02 if x.dtype.itemsize < 4 else 1e-4
        assert torch.allclose(gradient[arrived], (push / (1 - slope))[arrived], rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("adjoint", [*EXACT, *BIASED], ids=str)
@pytest.mark.parametrize("name", ["a double root", "none, a drift", "overflow", "everywhere"])
def test_backward_failures_are_raised_or_warned_of_as_asked(name, adjoint):
    options = {"solver": LEARNS, "adjoint": adjoint}
    quiet, _ = solve(name, **options)
    if not quiet.value.requires_grad:
        return
    quiet.value.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the forward solve
        warned, _ = solve(name, **options, on_failure="warn")
    if quiet.backward is None or quiet.backward.converged:
        warned.value.sum().backward()
        return
    with pytest.warns(ti.ConvergenceWarning, match="^backward solve: ") as caught:
        warned.value.sum().backward()
    check_message(str(caught[0].message), quiet.backward)


# The fixed point is where the solve starts, and there I - J is singular, wholly or along one of two directions.
SINGULAR = {
    "double": (lambda z, x: z - (z - x) ** 2, 1),
    "triple": (lambda z, x: z - (z - x) ** 3, 1),
    "identity": (lambda z, x: z + 0 * x, 1),
    "one direction": (lambda z, x: torch.cat([z[:, :1] + x[:, :1] ** 2, 0.5 * z[:, 1:] + x[:, 1:] / 2], 1), 2),
}


@pytest.mark.parametrize("adjoint", [*EXACT, ti.Implicit(ti.Neumann(terms=40))], ids=str)
@pytest.mark.parametrize("name", SINGULAR)
def test_a_singular_jacobian_at_the_solution_is_reported_by_the_backward_solve(name, adjoint):
    f, width = SINGULAR[name]
    x = torch.zeros(2, width, dtype=torch.float64).requires_grad_()
    solution = ti.fixed_point(f, x.detach(), x, solver=LEARNS, adjoint=adjoint)
    assert solution.status.tolist() == [ti.Status.CONVERGED] * 2, "the residual is zero there"
    if isinstance(adjoint.linear_solver, ti.Neumann) and name == "one direction":
        solution.value.sum().backward()  # the sum shrinks in the other direction; its residual tells
        assert solution.backward is not None
        assert (solution.backward.residual > 0.5).all()
        return
    with pytest.raises(ti.ConvergenceError, match="backward solve: 2 of 2 samples") as caught:
        solution.value.sum().backward()
    said = {ti.Status(code) for code in caught.value.report.status.tolist()}
    series = isinstance(adjoint.linear_solver, ti.Neumann)
    assert said <= ({ti.Status.DIVERGED} if series else {ti.Status.STAGNATED, ti.Status.NON_FINITE})


@pytest.mark.parametrize("solver", [ti.Newton(), ti.Newton(halvings=0), ti.PseudoTransient(dt=INF)], ids=str)
def test_a_singular_jacobian_on_the_way_is_reported_by_the_forward_solve(solver):
    start = column(0, 1)  # the parabola's slope is zero at its apex
    solution = ti.root(lambda z: z**2 - 4, start, solver=solver, on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.NON_FINITE, ti.Status.CONVERGED]
    assert torch.equal(solution.value[0], start[0]), "held at the last finite iterate"
    assert solution.value[1].isclose(torch.tensor(2.0).double(), rtol=1e-4)


class WrongSlope(torch.autograd.Function):
    """`z - 1`, whose derivative claims to fall."""

    @staticmethod
    def forward(z):
        return z - 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return -grad

    @staticmethod
    def vmap(info, in_dims, z):
        return WrongSlope.apply(z), in_dims[0]


NO_DESCENT = {
    "a minimum that is no root": lambda z: z**2 + 1,
    "a kink that is no root": lambda z: 1 + z.abs(),
    "a plateau": lambda z: torch.ones_like(z) + 0 * z,
    "a derivative of the wrong sign": WrongSlope.apply,
}


@pytest.mark.parametrize(
    "solver",
    [ti.Newton(), ti.Newton(halvings=60), ti.Newton(linear_solver=ti.GMRES()), ti.Broyden(halvings=10)],
    ids=str,
)
@pytest.mark.parametrize("name", NO_DESCENT)
def test_a_line_search_that_cannot_descend(name, solver):
    g, start = NO_DESCENT[name], column(0.5, -2, 3)
    solution = ti.root(g, start, solver=solver, on_failure="ignore")
    if isinstance(solver, ti.Broyden) and name == "a derivative of the wrong sign":
        assert solution.report.converged, "it does not ask for derivatives"
        return
    assert ti.Status.CONVERGED not in solution.status.tolist()
    assert solution.value.isfinite().all()
    assert (g(solution.value).abs() <= g(start).abs()).all()
    with pytest.raises(ti.ConvergenceError) as caught:
        ti.root(g, start, solver=solver)
    check_message(str(caught.value), solution.report)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ti.Anderson(), {"window": 0}),
        (ti.Anderson(), {"window": -1}),
        (ti.Anderson(), {"window": 2.5}),
        (ti.Anderson(), {"period": 0}),
        (ti.Anderson(), {"damping": NAN}),
        (ti.Anderson(), {"ridge": NAN}),
        (ti.Broyden(), {"memory": 0}),
        (ti.Broyden(), {"memory": None}),
        (ti.Broyden(), {"halvings": -1}),
        (ti.Picard(), {"damping": "half"}),
        (ti.Picard(), {"damping": NAN}),
        (ti.Picard(), {"rtol": NAN}),
        (ti.Picard(), {"atol": INF}),
        (ti.Picard(), {"max_steps": 1.5}),
        (ti.Newton(), {"linear_solver": ti.GMRES}),
        (ti.PseudoTransient(), {"dt": 0}),
        (ti.PseudoTransient(), {"dt": NAN}),
        (ti.GMRES(), {"restart": 0}),
        (ti.GMRES(), {"rtol": 1.0}),
        (ti.BiCGStab(), {"rtol": INF}),
        (ti.CG(), {"rtol": NAN}),
        (ti.Neumann(), {"terms": 0}),
        (ti.LU(), {"max_size": 0}),
        (ti.Phantom(), {"steps": 0}),
        (ti.Phantom(), {"damping": None}),
        (ti.Shine(), {"refine": -1}),
        (ti.Shine(), {"fallback": None}),
        (ti.Shine(), {"fallback": NAN}),
    ],
    ids=str,
)
def test_impossible_options_are_refused_when_they_are_given(config, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{type(config).__name__}\({name}=.*\): expected ") as caught:
        dataclasses.replace(config, **options)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("options", [{"no_such_option": 1}, {"tol": 1e-3}, {"m": 5}], ids=str)
@pytest.mark.parametrize(
    "kind", [ti.Picard, ti.Anderson, ti.Broyden, ti.Newton, ti.PseudoTransient, ti.GMRES, ti.Shine]
)
def test_unknown_options_are_refused(kind, options):
    with pytest.raises(TypeError, match=next(iter(options))):
        kind(**options)


@solvers
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_few_steps_suffice_for_a_status(solver, steps):
    solver = dataclasses.replace(solver, max_steps=steps)
    start = column(0.0, 0.2)
    solution = ti.fixed_point(torch.cos, start, solver=solver, on_failure="ignore")
    assert solution.value.isfinite().all()
    assert (solution.steps <= steps).all()
    if steps == 0:
        assert torch.equal(solution.value, start)
        assert solution.value is not start
        assert solution.status.tolist() == [ti.Status.MAX_STEPS] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@solvers
def test_half_precision_reaches_its_own_rounding_or_says_that_it_cannot(solver, dtype):
    x = torch.linspace(-1, 1, 12, dtype=dtype).view(3, 4).requires_grad_()
    solver = dataclasses.replace(solver, rtol=1e-8, atol=0.0, max_steps=200)

    def f(z, x):
        return torch.tanh(0.4 * z + x)

    solution = ti.fixed_point(f, torch.zeros_like(x), x, solver=solver, on_failure="ignore")
    assert solution.value.dtype == dtype
    exact = x.detach().double()
    for _ in range(60):
        exact = f(exact, x.detach().double())
    assert torch.allclose(solution.value.double(), exact, atol=4 * torch.finfo(dtype).eps)
    assert set(solution.status.tolist()) <= {ti.Status.CONVERGED, ti.Status.STAGNATED}
    if not solution.report.converged:
        assert "what this dtype can reach" in solution.report.remedies[ti.Status.STAGNATED]
    solution.value.sum().backward()
    slope = 1 - exact**2
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.allclose(x.grad.double(), slope / (1 - 0.4 * slope), rtol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("adjoint", [*EXACT, ti.Unrolled()], ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1, 1), ()], ids=str)
def test_states_of_one_element_and_their_gradients(shape, adjoint):
    x = torch.full(shape, 0.1, dtype=torch.float64, requires_grad=True)
    for solver in SOLVERS:
        unrollable = getattr(solver, "linear_solver", None) is None
        if (adjoint.wants_inverse and not solver.learns) or (isinstance(adjoint, ti.Unrolled) and not unrollable):
            continue
        solver = dataclasses.replace(solver, rtol=1e-10, atol=0.0, max_steps=200)
        options = {"solver": solver, "adjoint": adjoint, "batch_dims": len(shape[:1])}
        value = ti.fixed_point(lambda z, x: 0.5 * torch.cos(z) + x, torch.zeros_like(x), x, **options).value
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert value.shape == gradient.shape == shape
        assert torch.allclose(value, 0.5 * value.cos() + 0.1, atol=1e-9)
        assert torch.allclose(gradient, 1 / (1 + 0.5 * value.sin()), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "solver", "adjoint"),
    [
        ((10, 1_000_000), ti.Picard(max_steps=4), ti.Implicit(ti.BiCGStab(max_steps=2))),
        ((10, 1_000_000), ti.Anderson(max_steps=4), ti.Implicit(ti.GMRES(restart=3, max_steps=3))),
        ((1, 10_000_000), ti.Anderson(max_steps=4), ti.Unrolled()),
        ((1, 10_000_000), ti.Broyden(memory=3, max_steps=4), ti.Shine()),
        ((1, 10_000_000), ti.Newton(max_steps=1), ti.Implicit(ti.Neumann(terms=2))),
        ((10, 1_000_000), ti.PseudoTransient(dt=1e5, max_steps=1), ti.Phantom()),
    ],
    ids=str,
)
def test_ten_million_unknowns_need_memory_for_a_few_states_only(shape, solver, adjoint):
    resource = pytest.importorskip("resource")
    x = torch.ones(shape, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options = {"solver": solver, "adjoint": adjoint, "on_failure": "ignore"}
    solution = ti.fixed_point(lambda z, x: 0.1 * z + x, torch.zeros(shape), x, **options)
    solution.value.sum().backward()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 2.5e9
    assert solution.status.shape == (shape[0],)
    assert (solution.residual <= 1e-3).all()
    assert torch.allclose(solution.value[:, ::999_999].double(), torch.tensor(1 / 0.9).double(), rtol=1e-2)
    assert x.grad is not None
    assert torch.allclose(x.grad[:, ::999_999].double(), torch.tensor(1 / 0.9).double(), rtol=0.2)


def test_ten_million_unknowns_are_too_many_for_a_factorisation_which_says_so():
    z0 = torch.zeros(1, 10_000_000)
    with pytest.raises(ValueError, match=r"LU: got 10000000 unknowns per sample.*try GMRES\(\)"):
        ti.root(lambda z: 2 * z - 1, z0, solver=ti.Newton(linear_solver=ti.LU()))
