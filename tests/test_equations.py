"""The public functions: what goes in wrong comes out as a clear error, what goes wrong inside as a status."""

import dataclasses

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.core.tree import Layout

ZEROS = torch.zeros(3, 4)


def contraction(z, x):
    return torch.tanh(0.5 * z + x)


@pytest.mark.parametrize(
    ("z0", "f", "error", "says"),
    [
        (torch.zeros(3, 4, dtype=torch.int64), contraction, TypeError, r"try z0\.float"),
        (torch.zeros(()), contraction, ValueError, "z0\\[None\\]"),
        (torch.zeros(3, 0), contraction, ValueError, "at least one unknown"),
        ([], contraction, ValueError, "the state is empty"),
        ([torch.zeros(3, 4), torch.zeros(2, 4)], contraction, ValueError, "one batch size"),
        ([torch.zeros(3, 4), 1.0], contraction, TypeError, "holds a float"),
        (ZEROS, lambda z, x: z[:, :2], ValueError, r"shape \(3, 2\), expected the state's shape \(3, 4\)"),
        (ZEROS, lambda z, x: z.double(), TypeError, r"returned torch\.float64, expected the state's torch\.float32"),
        (ZEROS, lambda z, x: (z, z), ValueError, "returned the structure"),
        (ZEROS, lambda z, x: 1.0, TypeError, "returned a float"),
        (ZEROS, None, TypeError, "expected a callable"),
    ],
)
def test_wrong_states_and_functions(z0, f, error, says):
    with pytest.raises(error, match=says):
        ti.fixed_point(f, z0, torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"solver": ti.Anderson}, TypeError, r"try Anderson\(\)"),
        ({"solver": ti.GMRES()}, TypeError, "an instance of Solver"),
        ({"adjoint": "implicit"}, TypeError, "an instance of Adjoint"),
        ({"on_failure": "panic"}, ValueError, "'raise', 'warn' or 'ignore'"),
        ({"warm_start": ZEROS}, TypeError, "expected a Solution"),
        ({"batch_dims": 2}, ValueError, "batch_dims: got 2"),
        ({"tol": 1e-3}, TypeError, "tol"),
    ],
)
def test_wrong_options(options, error, says):
    with pytest.raises(error, match=says):
        ti.fixed_point(contraction, ZEROS, ZEROS, **options)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ti.Anderson, {"window": 0}),
        (ti.Anderson, {"period": 0}),
        (ti.Anderson, {"damping": 0.0}),
        (ti.Anderson, {"ridge": -1.0}),
        (ti.Picard, {"damping": 3.0}),
        (ti.Picard, {"rtol": -1e-3}),
        (ti.Picard, {"max_steps": -1}),
        (ti.Newton, {"halvings": -1}),
        (ti.GMRES, {"rtol": 0.0}),
        (ti.GMRES, {"restart": 0}),
        (ti.GMRES, {"opening": 2}),
        (ti.LU, {"max_size": 0}),
        (ti.Unrolled, {"checkpoint": 3}),
        (ti.CG, {"max_steps": 0}),
        (ti.Neumann, {"terms": 0}),
        (ti.Phantom, {"steps": 0}),
        (ti.Phantom, {"damping": 0.0}),
    ],
)
def test_impossible_values_say_what_was_got_and_expected(config, options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"{config.__name__}\({name}={value}.*\): expected"):
        config(**options)
    with pytest.raises(TypeError):
        config(**{name: 1}, no_such_option=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), name, value)


def test_implicit_refuses_what_is_no_linear_solver():
    with pytest.raises(TypeError, match="expected a LinearSolver"):
        ti.Implicit(ti.Anderson())


def test_captured_tensors_are_named():
    weight = torch.eye(4, requires_grad=True)
    encoded = 0.1 * weight
    linear = nn.Linear(4, 4)
    for function, name in (
        (lambda z: torch.tanh(z @ weight), "tensor 'weight'"),
        (lambda z: torch.tanh(z @ encoded), "tensor 'encoded'"),
        (lambda z: torch.tanh(linear(z)), "module 'linear'"),
    ):
        with pytest.raises(ti.CaptureError, match=name) as caught:
            ti.fixed_point(function, ZEROS)
        assert "(4, 4)" in str(caught.value)
        with torch.no_grad():
            ti.fixed_point(function, ZEROS, on_failure="ignore")
    with pytest.raises(ti.CaptureError):
        ti.fixed_point(lambda z: torch.tanh(z @ weight), ZEROS, adjoint=ti.Unrolled())


def test_captures_are_found_inside_transforms():
    def loss(weight):
        return ti.fixed_point(lambda z: torch.tanh(0.1 * z @ weight), ZEROS).value.sum()

    with pytest.raises(ti.CaptureError, match="weight"):
        torch.func.grad(loss)(torch.eye(4))


def test_modules_among_the_arguments_are_explicit():
    linear = nn.Linear(4, 4)
    ti.fixed_point(lambda z, m: torch.tanh(0.3 * m(z)), ZEROS, linear).value.sum().backward()
    assert linear.weight.grad is not None


def test_the_audit_costs_no_evaluation():
    calls = []
    x = torch.full((3, 4), 0.3, requires_grad=True)

    def counted(z, x):
        calls.append(1)
        return contraction(z, x)

    solution = ti.fixed_point(counted, ZEROS, x)
    assert len(calls) == solution.nfev == int(solution.steps.max()) + 1
    before = len(calls)
    solution.value.sum().backward()
    assert len(calls) == before + 1, "the backward pass evaluates the function once"


def test_failure_is_reported_as_asked():
    x = torch.full((3, 4), 0.3)
    short = ti.Picard(max_steps=2)
    with pytest.raises(ti.ConvergenceError, match="3 of 3 samples did not converge") as caught:
        ti.fixed_point(contraction, ZEROS, x, solver=short)
    assert caught.value.solution.steps.tolist() == [2, 2, 2]
    with pytest.warns(ti.ConvergenceWarning, match="max_steps: sample 0 \\(step 2"):
        ti.fixed_point(contraction, ZEROS, x, solver=short, on_failure="warn")
    assert not ti.fixed_point(contraction, ZEROS, x, solver=short, on_failure="ignore").report.converged


def test_backward_failure_is_reported_as_asked():
    weight = 0.3 * torch.randn(40, 40, generator=torch.Generator().manual_seed(0)) / 40**0.5
    x = torch.randn(3, 40, requires_grad=True)
    adjoint = ti.Implicit(ti.GMRES(rtol=1e-6, max_steps=1))

    def solve(on_failure):
        return ti.fixed_point(
            lambda z, x, w: torch.tanh(z @ w + x), torch.zeros(3, 40), x, weight, adjoint=adjoint, on_failure=on_failure
        )

    with pytest.raises(ti.ConvergenceError, match="backward solve: 3 of 3") as caught:
        solve("raise").value.sum().backward()
    assert caught.value.solution is None
    with pytest.warns(ti.ConvergenceWarning, match="backward solve"):
        solve("warn").value.sum().backward()
    solution = solve("ignore")
    assert solution.backward is None
    solution.value.sum().backward()
    assert solution.backward.status.tolist() == [ti.Status.MAX_STEPS] * 3


def test_divergence_has_its_status():
    def expand(z):
        return 3 * z + 1

    solution = ti.fixed_point(expand, ZEROS, solver=ti.Picard(), on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.DIVERGED] * 3
    assert int(solution.steps.max()) < 50, "a diverging sample does not use its steps up"
    assert (solution.value == 0).all(), "the best iterate, here the start, is returned"
    assert ti.fixed_point(expand, ZEROS, solver=ti.Newton()).value.allclose(torch.tensor(-0.5))


def test_overflow_is_held_at_the_last_finite_iterate():
    solution = ti.fixed_point(lambda z: z + torch.exp(z), 80 + ZEROS, solver=ti.Picard(), on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.NON_FINITE] * 3
    assert solution.value.isfinite().all()


def test_a_cycle_is_stagnation():
    solution = ti.fixed_point(lambda z: 1 - z, ZEROS, solver=ti.Picard(max_steps=500), on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.STAGNATED] * 3
    assert int(solution.steps.max()) < 50


def test_singular_jacobian_forward_and_backward():
    a = torch.full((2, 1), 1.0, requires_grad=True)
    solution = ti.root(lambda z, a: z**2 + a, torch.zeros(2, 1), a, on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.NON_FINITE] * 2
    for linear_solver in (ti.LU(), ti.GMRES(), ti.BiCGStab()):
        solution = ti.root(
            lambda z, a: (a - 1) * z, torch.ones(2, 1), a, adjoint=ti.Implicit(linear_solver), on_failure="ignore"
        )
        solution.value.sum().backward()
        assert not solution.backward.converged, linear_solver


def test_everything_is_nan():
    x = torch.full((3, 4), torch.nan, requires_grad=True)
    solution = ti.fixed_point(contraction, ZEROS, x, on_failure="ignore")
    assert solution.status.tolist() == [ti.Status.NON_FINITE] * 3
    solution.value.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("adjoint", [ti.Implicit(), ti.Unrolled(), ti.Phantom(steps=3)], ids=str)
def test_a_nan_sample_spares_the_shared_gradient_also_when_the_weight_has_the_batch_size(adjoint):
    generator = torch.Generator().manual_seed(0)
    weight = (0.2 * torch.randn(4, 4, generator=generator)).requires_grad_()
    x = torch.randn(4, 4, generator=generator)
    x[2] = torch.nan

    def gradient(x):
        z0 = torch.zeros_like(x)
        options = {"solver": ti.Anderson(rtol=1e-6), "adjoint": adjoint, "on_failure": "ignore"}
        value = ti.fixed_point(lambda z, w, x: torch.tanh(z @ w + x), z0, weight, x, **options).value
        return torch.autograd.grad(value.sum(), weight)[0]

    assert gradient(x).allclose(gradient(x[[0, 1, 3]]), atol=1e-5)


def test_second_derivatives_survive_a_nan_sample():
    weight = (0.2 * torch.eye(4)).requires_grad_()
    x = torch.ones(2, 4)
    x[1] = torch.nan
    value = ti.fixed_point(
        lambda z, w, x: torch.tanh(z @ w + x), torch.zeros(2, 4), weight, x, on_failure="ignore"
    ).value
    (first,) = torch.autograd.grad(value.sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    assert second.isfinite().all()
    assert second.abs().sum() > 0


def test_tolerances_and_limits_change_the_run():
    x = torch.full((3, 4), 0.3)
    steps = [
        int(ti.fixed_point(contraction, ZEROS, x, solver=ti.Picard(rtol=rtol, atol=0.0)).steps.max())
        for rtol in (1e-1, 1e-3, 1e-5)
    ]
    assert steps == sorted(set(steps))
    loose = ti.fixed_point(contraction, ZEROS, x, solver=ti.Picard(rtol=0.0, atol=1e-1))
    assert int(loose.steps.max()) < steps[1]


def test_options_of_anderson_change_the_run():
    eigenvalues = torch.linspace(-0.95, 0.95, 40, dtype=torch.float64)
    x = torch.linspace(1, 2, 40, dtype=torch.float64)[None]

    def steps(**options):
        solver = ti.Anderson(rtol=1e-8, max_steps=900, **options)
        return int(ti.fixed_point(lambda z: eigenvalues * z + x, torch.zeros_like(x), solver=solver).steps.max())

    base = steps()
    assert 3 * base < steps(window=1), "acceleration accelerates"
    others = [steps(window=3), steps(damping=0.5), steps(ridge=1e-2), steps(period=1)]
    assert base not in others


def test_undamped_residual_decides():
    x = torch.full((3, 4), 0.3)
    for damping in (1.0, 0.1):
        value = ti.fixed_point(contraction, ZEROS, x, solver=ti.Picard(damping=damping, rtol=1e-3, max_steps=300)).value
        residual = (contraction(value, x) - value).square().mean(1).sqrt()
        assert (residual <= 1e-6 + 1e-3 * value.square().mean(1).sqrt()).all()


def test_backtracking_saves_newton():
    def g(z):
        return torch.atan(z)

    start = torch.full((1, 1), 3.0)
    assert ti.root(g, start).value.abs() < 1e-4
    assert not ti.root(g, start, solver=ti.Newton(halvings=0), on_failure="ignore").report.converged


def test_newton_takes_gmres_for_large_states_and_refuses_to_unroll_it():
    start = torch.ones(1, 300, requires_grad=True)
    assert ti.root(lambda z: z**3 + z - 1, start.detach()).report.converged
    with pytest.raises(NotImplementedError, match=r"linear_solver=LU\(\)"):
        ti.root(lambda z: z**3 + z - 1, start, adjoint=ti.Unrolled())
    with pytest.raises(ValueError, match="try GMRES"):
        ti.root(lambda z: z**3 + z - 1, start.detach(), solver=ti.Newton(linear_solver=ti.LU(max_size=100)))


def test_forms_of_vmap_that_cannot_work_say_so():
    x = torch.full((2, 3, 4), 0.3)
    with pytest.raises(NotImplementedError, match=r"Unrolled does not work under torch\.vmap"):
        torch.vmap(lambda x: ti.fixed_point(contraction, ZEROS, x, adjoint=ti.Unrolled()).value)(x)
    y = x[0].clone().requires_grad_()
    value = ti.fixed_point(contraction, ZEROS, y).value
    with pytest.raises(NotImplementedError, match=r"try torch\.func\.jacrev"):
        torch.autograd.grad(value, y, torch.ones(2, 3, 4), is_grads_batched=True)


def test_unrolled_gives_the_start_a_gradient():
    start = torch.ones(3, 4, requires_grad=True)
    solver = ti.Picard(max_steps=2)
    options = {"solver": solver, "on_failure": "ignore"}
    value = ti.fixed_point(lambda z: 0.5 * z, start, adjoint=ti.Unrolled(), **options).value
    (grad,) = torch.autograd.grad(value.sum(), start)
    assert grad.allclose(torch.tensor(0.25))
    assert not ti.fixed_point(lambda z: 0.5 * z, start, **options).value.requires_grad


def test_memory_is_flat_in_the_number_of_steps():
    x = torch.full((3, 4), 0.3, requires_grad=True)

    def deep(z, x):
        return torch.tanh(0.5 * z.sin().cos().sin().cos() + x)

    def saved(steps, adjoint):
        kept = {}

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        solver = ti.Picard(rtol=0.0, atol=0.0, max_steps=steps)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = ti.fixed_point(deep, ZEROS, x, solver=solver, adjoint=adjoint, on_failure="ignore").value
            result = sum(kept.values())
        del value
        return result

    assert saved(2, ti.Implicit()) == saved(20, ti.Implicit())
    assert saved(8, ti.Unrolled()) > 2 * saved(2, ti.Unrolled())
    assert saved(8, ti.Unrolled(checkpoint=True)) < 0.7 * saved(8, ti.Unrolled())


def test_layout_round_trip():
    state = {"a": torch.randn(3, 2, 2), "b": (torch.randn(3), torch.randn(3, 1, dtype=torch.complex64))}
    layout = Layout(state)
    rows = layout.flatten(state)
    assert rows.shape == (3, layout.width) == (3, 4 + 1 + 2)
    back = layout.unflatten(rows)
    assert torch.equal(back["a"], state["a"])
    assert torch.equal(back["b"][1], state["b"][1])


def test_messages_survive_large_batches():
    solution = ti.fixed_point(
        contraction, torch.zeros(300, 2), torch.ones(300, 2), solver=ti.Picard(max_steps=1), on_failure="ignore"
    )
    with pytest.raises(ti.ConvergenceError) as caught:
        ti.fixed_point(contraction, torch.zeros(300, 2), torch.ones(300, 2), solver=ti.Picard(max_steps=1))
    assert "and 295 more" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "0/300 converged" in str(solution.report)


def test_a_sample_that_stalls_in_spells_does_not_depend_on_a_mate_that_has_stopped():
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(50, 50, generator=generator, dtype=torch.float64)
    weight = 1.2 * random / torch.linalg.eigvals(random).abs().max()
    x = torch.randn(1, 50, generator=generator, dtype=torch.float64)
    solver = ti.Anderson(window=20, rtol=1e-9, atol=1e-12, max_steps=300)

    def solve(mate):
        start = torch.zeros(2, 50, dtype=torch.float64)
        return ti.fixed_point(
            lambda z, x: z @ weight + x, start, torch.cat([x, mate]), solver=solver, on_failure="ignore"
        )

    twin, early = solve(x), solve(0 * x)
    assert early.steps[1] == 0
    assert early.status[0] == twin.status[0] == ti.Status.CONVERGED
    assert early.steps[0] == twin.steps[0]
    assert torch.equal(early.value[0], twin.value[0])


def test_a_function_that_writes_into_its_state_is_refused():
    with pytest.raises(ValueError, match="writes into its state"):
        ti.fixed_point(lambda z, x: z.mul_(0.5).add_(x), ZEROS.clone(), torch.ones(3, 4))


def test_captures_that_appear_only_away_from_the_start_are_found():
    weight = torch.full((4, 4), 0.1, requires_grad=True)
    x = torch.ones(3, 4, requires_grad=True)

    def shortcut(z, x):
        return torch.tanh(x + z @ weight) if bool((z != 0).any()) else torch.tanh(x)

    with pytest.raises(ti.CaptureError, match="weight"):
        ti.fixed_point(shortcut, ZEROS, x).value.sum().backward()


@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize("linear_solver", [ti.GMRES(), ti.LU(), ti.BiCGStab()], ids=str)
def test_gradients_of_any_size_come_back(scale, linear_solver):
    x = torch.full((3, 4), 0.3, requires_grad=True)
    value = ti.fixed_point(contraction, ZEROS, x, adjoint=ti.Implicit(linear_solver)).value
    (plain,) = torch.autograd.grad(value, x, torch.ones_like(value), retain_graph=True)
    (scaled,) = torch.autograd.grad(value, x, torch.full_like(value, scale))
    assert torch.allclose(scaled / scale, plain, rtol=1e-3)


def test_large_states_do_not_loosen_the_tolerance_to_infinity():
    x = torch.full((3, 4), 1e20)
    solution = ti.fixed_point(contraction_of_any_scale, torch.zeros(3, 4), x, solver=ti.Picard(), on_failure="ignore")
    assert (solution.status != ti.Status.CONVERGED).all() or torch.allclose(solution.value, 2 * x, rtol=1e-3)


def contraction_of_any_scale(z, x):
    return 0.5 * z + x


def test_healthy_samples_keep_their_gradient_where_the_solution_hides_a_weight():
    generator = torch.Generator().manual_seed(3)
    weight = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    weight[:, 1] = 0
    x = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    x[:, 1] = 0

    def gradients(x):
        w, x = weight.clone().requires_grad_(), x.clone().requires_grad_()
        options = {"solver": ti.Anderson(rtol=1e-12, atol=0.0), "on_failure": "ignore"}
        value = ti.fixed_point(lambda z, w, x: torch.tanh(z @ w) + x, torch.zeros_like(x), w, x, **options).value
        return torch.autograd.grad(value[[0, 2]].sum(), (w, x))

    nonfinite = x.clone()
    nonfinite[1, 0] = torch.nan
    (good_w, good_x), (w, x) = gradients(x), gradients(nonfinite)
    assert torch.allclose(w, good_w, atol=1e-3)
    assert torch.allclose(x[[0, 2]], good_x[[0, 2]], atol=1e-3)


def test_a_nonfinite_sample_that_cannot_be_kept_apart_is_reported():
    x = torch.ones(2, 3, 4)  # the batch is its second dimension
    x[0, 1] = torch.nan
    weight = (0.2 * torch.eye(4)).requires_grad_()

    def f(z, w, x):
        return torch.tanh(z @ w + x[0] + x[1])

    with pytest.warns(ti.ConvergenceWarning, match="batch in dimension 0"):
        ti.fixed_point(f, ZEROS, weight, x, on_failure="ignore")


def test_errors_travel_between_processes():
    import pickle

    with pytest.raises(ti.ConvergenceError) as caught:
        ti.fixed_point(contraction, ZEROS, torch.ones(3, 4), solver=ti.Picard(max_steps=1))
    copied = pickle.loads(pickle.dumps(caught.value))
    assert str(copied) == str(caught.value)
    assert torch.equal(copied.report.status, caught.value.report.status)


def test_warm_start_of_another_shape():
    first = ti.fixed_point(contraction, torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"warm_start has shape \(2, 4\)"):
        ti.fixed_point(contraction, ZEROS, ZEROS, warm_start=first)


class CountOperations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the tensor operations that reach a kernel or make a view."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("solver", "most"), [(ti.Picard, 8), (ti.Anderson, 10.7)])
def test_a_solver_step_is_lean(solver, most):
    generator = torch.Generator().manual_seed(0)
    weight = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    x = torch.randn(4, 20, generator=generator)

    def operations(steps):
        with CountOperations() as counter, torch.no_grad():
            options = solver(rtol=0.0, atol=0.0, max_steps=steps)
            ti.fixed_point(lambda z: 0.9 * z @ weight + x, torch.zeros(4, 20), solver=options, on_failure="ignore")
        return counter.count

    evaluation = 3  # of the map itself
    per_step = (operations(16) - operations(10)) / 6 - evaluation
    assert per_step <= most


def test_a_step_at_which_some_samples_arrive_is_lean():
    arrivals = torch.arange(1, 25)  # the step that each sample arrives at
    rates = (1e-6 ** (1 / (arrivals - 0.5))).unsqueeze(1).double()
    start = torch.ones(24, 3, dtype=torch.float64)

    def operations(tolerance):
        with CountOperations() as counter, torch.no_grad():
            solver = ti.Picard(rtol=0.0, atol=tolerance, max_steps=24)
            solution = ti.fixed_point(lambda z: rates * z, start, solver=solver, on_failure="ignore")
        return counter.count, solution

    eventful, solution = operations(1e-6 * (1 - 1e-6 ** (1 / 23.5)))
    assert len(solution.steps.unique()) > 12
    uneventful, _ = operations(0.0)
    assert (eventful - uneventful) / 24 <= 12  # beyond the 8 of a step without an event


@pytest.mark.parametrize(
    ("adjoint", "most"),
    [(ti.Implicit(), 600), (ti.Implicit(ti.LU()), 380), (ti.Phantom(), 310), (ti.Unrolled(), 720)],
)
def test_a_solve_and_its_gradient_are_lean(adjoint, most):
    generator = torch.Generator().manual_seed(0)
    weight = (0.5 * torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]).requires_grad_()
    x = torch.randn(4, 8, generator=generator)

    with CountOperations() as counter:
        solution = ti.fixed_point(lambda z, w: torch.tanh(z @ w + x), torch.zeros(4, 8), weight, adjoint=adjoint)
        solution.value.sum().backward()
    assert solution.report.converged
    assert counter.count <= most
