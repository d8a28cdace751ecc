"""Projected and proximal gradients, FISTA and ADMM: maps under the usual solvers and adjoints."""

import pickle

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.optim import ADMM, ProjectedGradient, ProximalGradient, curvature_bound, projection, prox, quadratic

EXACT = ti.Implicit(ti.LU())


def options(tolerance=1e-12, steps=5000):
    return {"rtol": tolerance, "atol": tolerance, "max_steps": steps}


def squares(z, A, b):
    return 0.5 * ((A @ z.unsqueeze(2)).squeeze(2) - b).square().sum(1)


def threshold(v, step, weight):
    return prox.l1(v, step * weight)


def data(batch=3, rows=12, width=8, condition=10.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    left, right = torch.linalg.qr(rand(batch, rows, width))[0], torch.linalg.qr(rand(batch, width, width))[0]
    A = left * torch.linspace(1, condition**-0.5, width, dtype=torch.float64) @ right.mT
    return A, rand(batch, rows)


def lasso(step=None):
    return ProximalGradient(squares, threshold, step, prox_args=(2,))


def optimal(z, A, b, weight):
    """How far the lasso's condition, that minus the slope is the weight times a sign, is from holding."""
    slope = (A.mT @ ((A @ z.unsqueeze(2)).squeeze(2) - b).unsqueeze(2)).squeeze(2)
    return torch.where(z == 0, (slope.abs() - weight).clamp_min(0), (slope + weight * z.sign()).abs()).amax(1)


@pytest.mark.parametrize("solver", [ti.Picard(**options()), ti.FISTA(**options()), ti.Anderson(**options())], ids=str)
@pytest.mark.parametrize("step", [None, 0.7])
def test_the_lassos_solution_and_gradients(solver, step):
    A, b = (tensor.requires_grad_() for tensor in data(1, 4, 3, condition=2.0))
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(1, 3, dtype=torch.float64)

    def solution(A, b, weight):
        return ti.fixed_point(lasso(step), start, A, b, weight, solver=solver, adjoint=EXACT).value

    z = solution(A, b, weight)
    exact = lasso(0.7)(z, A, b, weight)  # entries that are zero are so to the last bit
    assert (optimal(exact, A, b, weight) < 1e-9).all()
    assert (exact == 0).any()
    assert (exact != 0).any()
    assert torch.autograd.gradcheck(solution, (A, b, weight), eps=1e-5, atol=1e-5)


def test_fista_takes_far_fewer_steps_than_proximal_gradients_on_an_ill_conditioned_lasso():
    A, b = data(4, 30, 20, condition=300)
    weight = torch.tensor(1e-2, dtype=torch.float64)
    start = torch.zeros(4, 20, dtype=torch.float64)
    steps = {}
    for solver in (
        ti.Picard(**options(1e-7, 10_000)),
        ti.FISTA(**options(1e-7, 10_000)),
        ti.FISTA(restart=False, **options(1e-7, 10_000)),
    ):
        found = ti.fixed_point(lasso(), start, A, b, weight, solver=solver, on_failure="ignore")
        steps[solver] = found.steps.double().mean()
        if getattr(solver, "restart", True):
            assert found.report.converged
            assert (optimal(lasso(0.7)(found.value, A, b, weight), A, b, weight) < 1e-5).all()
    plain, restarted, rippling = steps.values()
    assert restarted < plain / 8
    assert restarted < rippling


def test_samples_restart_on_their_own_and_one_that_is_not_finite_touches_no_other():
    A, b = data(3, condition=100.0)
    weight = torch.tensor(0.05, dtype=torch.float64)
    worse = b.clone()
    worse[1, 0] = torch.nan

    def run(b, rows=slice(None)):
        b = b[rows].clone().requires_grad_()
        solution = ti.fixed_point(
            lasso(), torch.zeros(len(b), 8, dtype=torch.float64), A[rows], b, weight, solver=ti.FISTA(**options(1e-9)),
            on_failure="ignore",
        )  # fmt: skip
        solution.value.sin().sum().backward()
        return solution, b.grad

    (one, grad_one), (two, grad_two) = run(b), run(worse)
    for name in ("value", "status", "steps", "residual"):
        assert torch.equal(getattr(one, name)[[0, 2]], getattr(two, name)[[0, 2]]), name
    assert torch.equal(grad_one[[0, 2]], grad_two[[0, 2]])
    assert two.status[1] == ti.Status.NON_FINITE
    assert (grad_two[1] == 0).all()
    for i in range(3):
        torch.testing.assert_close(run(b, slice(i, i + 1))[0].value[0], one.value[i])


def cost(z, Q, q):
    return 0.5 * (z.unsqueeze(1) @ Q @ z.unsqueeze(2)).flatten() + (q * z).sum(1)


def program(batch=3, width=6):
    generator = torch.Generator().manual_seed(1)
    Q = torch.randn(batch, width, width, dtype=torch.float64, generator=generator)
    Q = Q @ Q.mT / width + 0.3 * torch.eye(width, dtype=torch.float64)
    return Q, torch.randn(batch, width, dtype=torch.float64, generator=generator)


MAPS = {
    "projected": ProjectedGradient(cost, projection.simplex),
    "admm": ADMM(quadratic, lambda v, step: projection.simplex(v)),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_quadratic_program_on_the_simplex_agrees_with_qp(name):
    Q, q = (tensor.requires_grad_() for tensor in program())
    start = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    split = MAPS[name]
    v = ti.fixed_point(split, start, Q, q, solver=ti.Anderson(**options()), adjoint=EXACT).value
    z = v if name == "projected" else split.output(v, Q, q)[1]
    ones = torch.ones(1, dtype=torch.float64)
    exact = ti.qp(Q, q, A=ones.expand(1, 6), b=ones, l=torch.zeros(6, dtype=torch.float64)).value
    torch.testing.assert_close(z, exact, rtol=1e-8, atol=1e-8)
    way = torch.linspace(-1, 1, 6, dtype=torch.float64)
    got, wanted = (torch.autograd.grad((value @ way).sin().sum(), (Q, q)) for value in (z, exact))
    wanted = (0.5 * (wanted[0] + wanted[0].mT), wanted[1])
    torch.testing.assert_close((0.5 * (got[0] + got[0].mT), got[1]), wanted, rtol=1e-6, atol=1e-8)


def test_parameters_of_the_set_get_gradients():
    point = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
    radius = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    split = ProjectedGradient(lambda z, p: (z - p).square().sum(1), projection.simplex, project_args=(1,))

    def value(radius):
        start = torch.zeros(1, 3, dtype=torch.float64)
        return ti.fixed_point(split, start, point, radius, solver=ti.Picard(**options()), adjoint=EXACT).value

    torch.testing.assert_close(value(radius), torch.tensor([[1.25, 0.25, 0.0]], dtype=torch.float64))
    assert torch.autograd.gradcheck(value, radius)


def test_a_module_as_energy_and_second_derivatives():
    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.center = nn.Parameter(torch.tensor([0.3, -0.4], dtype=torch.float64))

        def forward(self, z, x):
            return torch.cosh(z - self.center * x).sum(1)

    split = ProjectedGradient(Bowl(), lambda v: projection.l2_ball(v, 0.5))
    x = torch.tensor([[1.0, 0.5], [2.0, 2.0]], dtype=torch.float64, requires_grad=True)

    def value(x):
        return ti.fixed_point(split, torch.zeros_like(x), x, solver=ti.Anderson(**options(1e-13)), adjoint=EXACT).value

    z = value(x)
    assert z.norm(dim=1)[0] < 0.5 - 1e-3, "one inside, one on the sphere"
    torch.testing.assert_close(z.norm(dim=1)[1], torch.tensor(0.5, dtype=torch.float64))
    z.sum().backward()
    assert split.energy.center.grad.abs().min() > 1e-3
    x.grad = None
    assert torch.autograd.gradgradcheck(value, x)


def test_steps_of_each_sample_are_those_of_its_own_curvature():
    bends = torch.tensor([[1.0, 2.0, 4.0], [10.0, 300.0, 20.0]], dtype=torch.float64)

    def bowl_of(z, bends):
        return 0.5 * (bends * (z - 1).square()).sum(1)

    start = torch.zeros(2, 3, dtype=torch.float64)
    torch.testing.assert_close(curvature_bound(bowl_of, start, bends), bends.amax(1))
    assert (curvature_bound(bowl_of, start, bends, products=1) > 0).all()
    split = ProjectedGradient(bowl_of, lambda v: v)
    one = ti.fixed_point(split, start, bends, solver=ti.Picard(**options(1e-10)))
    torch.testing.assert_close(split.safe_step, 1 / bends.amax(1))
    scaled = ti.fixed_point(split, start, 1e6 * bends, solver=ti.Picard(**options(1e-10)))
    assert torch.equal(one.steps, scaled.steps), "the energy's scale does not matter"
    coupled = ti.fixed_point(
        ProjectedGradient(lambda z, bends: bowl_of(z, bends).sum(), lambda v: v), start, bends, batch_dims=0,
        solver=ti.Picard(**options(1e-10)),
    )  # fmt: skip
    torch.testing.assert_close(coupled.value, one.value)
    with pytest.raises(RuntimeError, match="chooses its step when a solve begins"):
        ProjectedGradient(bowl_of, lambda v: v)(start, bends)


@pytest.mark.parametrize("step", [None, 0.3])
def test_unrolling_and_inference_mode_agree_with_implicit_differentiation(step):
    Q, q = program()
    start = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    split = ProjectedGradient(cost, projection.simplex, step)
    grads = []
    for adjoint in (EXACT, ti.Unrolled(), ti.Unrolled(checkpoint=True)):
        leaf = q.clone().requires_grad_()
        for solver in (ti.FISTA(**options(1e-11)), ti.Picard(**options(1e-11))):
            value = ti.fixed_point(split, start, Q, leaf, solver=solver, adjoint=adjoint).value
            grads.append(torch.autograd.grad(value.sin().sum(), leaf)[0])
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-7, atol=1e-8)
    with torch.inference_mode():
        inferred = ti.fixed_point(split, start, Q, q.clone(), solver=ti.Picard(**options(1e-11))).value
    torch.testing.assert_close(inferred, value.detach())


def test_within_a_layer_whose_batches_change_size():
    class Pull(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 6, dtype=torch.float64)

        def forward(self, z, x):
            return (z - self.linear(x)).square().sum(1) + 0.1 * z.pow(4).sum(1)

    split = ProjectedGradient(Pull(), projection.simplex)
    layer = ti.nn.DEQ(split, solver=ti.FISTA(rtol=1e-8), init=lambda x: x.new_full((len(x), 6), 1 / 6))
    generator = torch.Generator().manual_seed(0)
    for batch in (3, 5):
        x = torch.randn(batch, 4, dtype=torch.float64, generator=generator)
        out = layer(x)
        torch.testing.assert_close(out.sum(1), torch.ones(batch, dtype=torch.float64))
        (out**2).sum().backward()
    assert split.energy.linear.weight.grad.abs().sum() > 1e-3
    assert set(layer.state_dict()) == {"cell.energy.linear.weight", "cell.energy.linear.bias"}


def test_a_step_that_is_too_large_is_named_with_its_samples():
    A, b = data(3)
    scaled = A * torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)[:, None, None]
    weight = torch.tensor(0.01, dtype=torch.float64)
    start = torch.zeros(3, 8, dtype=torch.float64)
    with pytest.raises(ti.ConvergenceError, match=r"step is too large .*\(sample 1: 0\.9, expected < 0\.5\)"):
        ti.fixed_point(lasso(0.9), start, scaled, b, weight, solver=ti.Picard(max_steps=500))
    with pytest.warns(ti.ConvergenceWarning, match="step is too large"):
        report = ti.fixed_point(
            lasso(0.9), start, scaled, b, weight, solver=ti.Picard(max_steps=500), on_failure="warn"
        ).report
    assert report.status[1] != ti.Status.CONVERGED
    assert "sample 1" in report.advice
    short = ti.fixed_point(lasso(0.4), start, scaled, b, weight, solver=ti.Picard(max_steps=3), on_failure="ignore")
    assert short.report.advice == "", "three steps are too few, which the step is not to blame for"


def denoised(y, weight, solver, step=2.0):
    """Total variation denoising by ADMM; and how its solve went."""
    width = y.shape[1]
    identity = torch.eye(width, dtype=y.dtype)
    split = ADMM(quadratic, threshold, step, linear=lambda x, P, q, A: x @ A.mT, g_args=(3,))
    args = (identity, -y, torch.diff(identity, dim=0), weight)
    start = torch.zeros(len(y), width - 1, dtype=y.dtype)
    solution = ti.fixed_point(split, start, *args, solver=solver, adjoint=EXACT)
    return split.output(solution.value, *args), solution


def test_admm_with_a_linear_map_denoises():
    generator = torch.Generator().manual_seed(0)
    y = torch.linspace(-1, 1, 12, dtype=torch.float64).sign() + 0.2 * torch.randn(
        2, 12, dtype=torch.float64, generator=generator
    )
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (x, z), solution = denoised(y, weight, ti.Anderson(**options()))
    torch.testing.assert_close(x, prox.total_variation(y, weight), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x.diff(dim=1), z, rtol=0, atol=1e-9)
    gap = (x.diff(dim=1) - z).square().mean(1).sqrt().detach()
    torch.testing.assert_close(solution.residual, gap, atol=1e-12, rtol=0.1)
    plain = denoised(y, weight, ti.Picard(**options()))[1]
    assert (solution.steps < plain.steps).all()
    assert not torch.equal(denoised(y, weight, ti.Picard(**options()), step=0.5)[1].steps, plain.steps)

    def value(y, weight):
        return denoised(y, weight, ti.Anderson(**options()))[0][0]

    assert torch.autograd.gradcheck(value, (y.requires_grad_(), weight), atol=1e-5)


def test_quadratic_is_the_minimiser_it_says():
    Q, q = program()
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    v = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    for step in (0.5, torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)):
        x = quadratic(v, step, Q, q, A).requires_grad_()
        distance = (x @ A.mT - v).square().sum(1) / (2 * step)
        (slope,) = torch.autograd.grad((cost(x, Q, q) + distance).sum(), x)
        assert slope.abs().max() < 1e-10
    shared = quadratic(v, 0.5, Q[0], q[0], A)
    torch.testing.assert_close(shared[1], quadratic(v[1:2], 0.5, Q[:1], q[:1], A)[0])


def test_forward_mode_vmap_and_pickle():
    Q, q = program()
    start = torch.full((3, 6), 1 / 6, dtype=torch.float64)
    split = pickle.loads(pickle.dumps(ProjectedGradient(cost, projection.simplex, 0.3)))

    def value(q):
        return ti.fixed_point(split, start, Q, q, solver=ti.Picard(**options()), adjoint=EXACT).value

    mapped = torch.vmap(value)(torch.stack([q, -q]))
    torch.testing.assert_close(mapped, torch.stack([value(q), value(-q)]))
    torch.testing.assert_close(torch.func.jacfwd(value)(q), torch.func.jacrev(value)(q))
    automatic = ProjectedGradient(cost, projection.simplex)
    with pytest.raises(NotImplementedError, match=r"cannot choose a step within torch\.func transforms"):
        torch.vmap(lambda q: ti.fixed_point(automatic, start, Q, q).value)(torch.stack([q, q]))


@pytest.mark.parametrize("step", [None, 0.5])
def test_captured_tensors_are_refused(step):
    start, captured = torch.zeros(2, 3), torch.ones(3, requires_grad=True)
    for split in (
        ProximalGradient(lambda z: (z - captured).square().sum(1), prox.l1, step),
        ProjectedGradient(lambda z: z.square().sum(1), lambda v: v.clamp_max(captured), step),
    ):
        with pytest.raises(ti.CaptureError, match=r"shape \(3,\)"):
            ti.fixed_point(split, start)


def bowl(z):
    return z.square().sum(1)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ProximalGradient(3, prox.l1), TypeError, r"ProximalGradient\(energy=...\): got a int"),
        (lambda: ProjectedGradient(bowl, 3), TypeError, r"ProjectedGradient\(project=...\): got a int"),
        (lambda: ProximalGradient(bowl, prox.l1, 0.0), ValueError, r"step=0\.0\): expected a finite number > 0"),
        (lambda: ProximalGradient(bowl, prox.l1, prox_args=1), ValueError, r"prox_args=1\): expected positions"),
        (lambda: ProjectedGradient(bowl, bowl, project_args=(-1,)), ValueError, r"project_args=\(-1,\)"),
        (lambda: ADMM(3, prox.l1), TypeError, r"ADMM\(f=...\)"),
        (lambda: ADMM(prox.l1, prox.l1, linear=3), TypeError, r"ADMM\(linear=...\)"),
        (lambda: ADMM(prox.l1, prox.l1, -1), ValueError, r"ADMM\(step=-1\)"),
        (lambda: ADMM(prox.l1, prox.l1, g_args=[0.5]), ValueError, r"g_args=\[0\.5\]"),
        (lambda: curvature_bound(bowl, torch.zeros(1, 2), products=0), ValueError, r"products=0"),
        (lambda: quadratic(torch.ones(1, 2), 1.0, torch.eye(3), torch.ones(2)), ValueError, r"\(3, 3\)"),
    ],
)
def test_wrong_options(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("split", "start", "args", "error", "says"),
    [
        (ProximalGradient(lambda z: z.square(), prox.l1, 0.1), torch.zeros(2, 3), (), ValueError, r"shape \(2, 3\)"),
        (ProximalGradient(lambda z: torch.ones(2), prox.l1, 0.1), torch.zeros(2, 3), (), ValueError, "does not depend"),
        (ProximalGradient(bowl, prox.l1, 0.1), (torch.zeros(2, 3),), (), TypeError, "one real floating tensor"),
        (ProximalGradient(bowl, threshold, 0.1, prox_args=(0,)), torch.zeros(2, 3), (), ValueError, "at position 0"),
        (ADMM(prox.l1, threshold, g_args=(0,)), torch.zeros(2, 3), (), ValueError, "at position 0"),
        (ADMM(prox.l1, prox.l1, linear=lambda x: x[:, :2]), torch.zeros(2, 3), (), ValueError, r"A x of shape"),
    ],
)  # fmt: skip
def test_wrong_problems(split, start, args, error, says):
    with pytest.raises(error, match=says):
        ti.fixed_point(split, start, *args)
