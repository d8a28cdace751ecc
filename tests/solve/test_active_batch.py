"""Going on without the samples that have arrived: the same answers from fewer rows, and only where that is sound."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.solve import samples

BATCH, WIDTH = 64, 4
OPTIONS = {"rtol": 1e-9, "atol": 1e-9, "max_steps": 400}
SOLVERS = [
    ti.Picard(**OPTIONS),
    ti.Picard(damping=0.7, **OPTIONS),
    ti.Anderson(**OPTIONS),
    ti.Anderson(period=1, **OPTIONS),
    ti.Anderson(window=2, period=2, **OPTIONS),
    ti.Broyden(**OPTIONS),
    ti.Broyden(memory=2, halvings=2, **OPTIONS),
    ti.Newton(linear_solver=ti.LU(), halvings=1, **OPTIONS),
    ti.Newton(linear_solver=ti.GMRES(rtol=1e-3), **OPTIONS),
    ti.PseudoTransient(dt=0.2, **OPTIONS),
    ti.PseudoTransient(dt=0.2, linear_solver=ti.GMRES(rtol=1e-3), **OPTIONS),
    ti.Polyalgorithm(after=10, **OPTIONS),
]


@pytest.fixture(autouse=True)
def _every_batch_is_large(monkeypatch):
    monkeypatch.setattr(samples, "SMALL", 1)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tail(batch=BATCH):
    """Rates of contraction: a tenth of the samples is slow, and of these some slower still."""
    rate = torch.full((batch, 1), 0.2, dtype=torch.float64)
    rate[::10] = torch.linspace(0.8, 0.93, len(rate[::10])).double().unsqueeze(1)
    return rate


X, RATE = rand(BATCH, WIDTH), tail()
X[::10] *= 0.1  # where sine and hyperbolic tangent are steep
WEIGHT = torch.linalg.qr(rand(WIDTH, WIDTH, seed=2))[0]
ZEROS = torch.zeros(BATCH, WIDTH, dtype=torch.float64)


class Counting:
    """A function that notes how many samples it sees."""

    def __init__(self, f):
        self.f, self.batches = f, []

    def __call__(self, z, *args):
        self.batches.append(len(z if isinstance(z, torch.Tensor) else z["u"]))
        return self.f(z, *args)

    @property
    def rows(self):
        return sum(self.batches)


def elementwise(z, x, rate):
    return rate * torch.sin(z) + x


def mixing(z, x, rate, weight):
    return rate * torch.tanh(z @ weight) + x


def both(f, *args, batched=(0, 1), solver=SOLVERS[2], z0=ZEROS, solve=ti.fixed_point, **options):
    """The solutions with and without `batched_args`, and what the function saw."""
    runs = []
    for positions in (batched, None):
        counting = Counting(f)
        solution = solve(counting, z0, *args, solver=solver, batched_args=positions, trace=True, **options)
        runs.append((solution, counting))
    return runs


def agree(narrowed, whole, tolerance=0.0):
    for name in ("status", "steps"):
        assert torch.equal(getattr(narrowed, name), getattr(whole, name)), name
    for name in ("value", "residual", "trace"):
        got, expected = getattr(narrowed, name), getattr(whole, name)
        if tolerance:
            assert torch.allclose(got, expected, rtol=0.0, atol=tolerance, equal_nan=True), name
        else:
            assert torch.equal(got.nan_to_num(-1.0), expected.nan_to_num(-1.0)), name


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_an_elementwise_map_gives_the_same_bits(solver):
    (narrowed, few), (whole, all_) = both(elementwise, X, RATE, solver=solver)
    agree(narrowed, whole)
    assert min(all_.batches) == BATCH
    assert min(few.batches) < BATCH // 4


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_a_map_that_mixes_unknowns_gives_the_same_but_for_rounding(solver):
    (narrowed, few), (whole, _) = both(mixing, X, RATE, WEIGHT, solver=solver)
    agree(narrowed, whole, 1e-12)
    assert min(few.batches) < BATCH // 4 or isinstance(solver, ti.Newton), "there all arrive together"


def test_a_long_tail_costs_less_than_half_the_rows():
    (narrowed, few), (whole, all_) = both(elementwise, X, RATE, solver=SOLVERS[0])
    slow = whole.steps[::10].double().mean()
    assert slow > 5 * whole.steps.double().median(), "a long tail, as it should be"
    assert few.rows < 0.5 * all_.rows
    sizes = sorted(set(few.batches), reverse=True)
    assert len(sizes) >= 3, "the batch shrinks more than once"
    assert all(later <= before / 2 for before, later in pairwise(sizes))
    assert narrowed.nfev == len(few.batches), "every evaluation is counted"
    assert narrowed.nfev <= whole.nfev + 8, "a proof for every halving"


def test_small_batches_stay_whole(monkeypatch):
    monkeypatch.setattr(samples, "SMALL", BATCH * WIDTH + 1)
    (_, few), _ = both(elementwise, X, RATE)
    assert min(few.batches) == BATCH
    monkeypatch.setattr(samples, "SMALL", BATCH * WIDTH)
    (_, few), _ = both(elementwise, X, RATE)
    assert min(few.batches) < BATCH


def test_nested_states_and_arguments():
    def f(z, inputs, weight):
        u = inputs["rate"] * torch.tanh(z["u"] @ weight) + inputs["x"][0] + 0.1 * z["v"].mean((1, 2)).unsqueeze(1)
        return {"u": u, "v": 0.5 * torch.sin(z["v"]) + inputs["x"][1].view(-1, 2, 2)}

    zeros = {"u": ZEROS, "v": ZEROS.view(-1, 2, 2)}
    inputs = {"rate": RATE, "x": [X, rand(BATCH, WIDTH, seed=4)]}
    (narrowed, few), (whole, _) = both(f, inputs, WEIGHT, batched=(0,), z0=zeros)
    assert min(few.batches) < BATCH // 2
    assert torch.equal(narrowed.steps, whole.steps)
    for name in zeros:
        assert narrowed.value[name].shape == zeros[name].shape
        assert torch.allclose(narrowed.value[name], whole.value[name], atol=1e-12)


def test_roots_and_energies():
    g = lambda z, x, rate: z - rate * torch.sin(z) - x  # noqa: E731
    (narrowed, few), (whole, _) = both(g, X, RATE, solve=ti.root, solver=ti.Picard(**OPTIONS))
    agree(narrowed, whole)
    assert min(few.batches) < BATCH // 2
    energy = lambda z, x, rate: (z.square() / 2 + rate * torch.cos(z) - x * z).sum(1)  # noqa: E731
    (narrowed, few), (whole, _) = both(energy, X, RATE, solve=ti.argmin, solver=ti.Picard(**OPTIONS))
    agree(narrowed, whole)
    assert min(few.batches) < BATCH // 2


def test_samples_that_fail_fail_alike():
    x, rate = X.clone(), RATE.clone()
    x[3, 1], rate[7], rate[20] = torch.nan, 50.0, -3.0  # one without a number, one chaotic, one that cycles
    x[50] = torch.inf
    f = lambda z, x, rate: torch.where(rate > 10, rate * (z + 1), rate * torch.sin(z) + x)  # noqa: E731
    for solver in (ti.Picard(**OPTIONS), ti.Anderson(**OPTIONS), ti.Broyden(**OPTIONS)):
        (narrowed, few), (whole, _) = both(f, x, rate, solver=solver, on_failure="ignore")
        agree(narrowed, whole)
        assert narrowed.status[3] == ti.Status.NON_FINITE
        assert len(set(narrowed.status.tolist())) >= 3 or not isinstance(solver, ti.Picard)
        assert narrowed.value.isfinite().all()
        assert min(few.batches) < BATCH // 4


@pytest.mark.parametrize("limit", [1, 8, 12, 25])
def test_the_limit_of_steps_holds(limit):
    solver = ti.Picard(rtol=1e-9, atol=1e-9, max_steps=limit)
    (narrowed, _), (whole, all_) = both(elementwise, X, RATE, solver=solver, on_failure="ignore")
    agree(narrowed, whole)
    assert int(narrowed.steps.max()) == limit
    mixed = bool((whole.status == ti.Status.CONVERGED).any())  # and some have failed: one look at what is returned
    assert len(all_.batches) == limit + 1 + mixed


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[2], SOLVERS[5]], ids=str)
def test_trajectories_go_through(solver):
    steps = [0, 3, 10, 13, 20, 21, 35, 1000]
    (narrowed, few), (whole, _) = both(elementwise, X, RATE, solver=solver, save_steps=steps)
    assert min(few.batches) < BATCH // 4
    for ours, theirs in zip(narrowed.trajectory, whole.trajectory, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(narrowed.trajectory[0], ZEROS)
    assert torch.equal(narrowed.trajectory[-1], narrowed.value)


@pytest.mark.parametrize("every", [2, 5])
def test_looks_may_be_rare(every):
    solver = ti.Anderson(window=3, check_every=every, **OPTIONS)
    (narrowed, few), (whole, _) = both(elementwise, X, RATE, solver=solver)
    agree(narrowed, whole)
    assert min(few.batches) < BATCH // 4


@pytest.mark.parametrize("memory", [5, 40])
def test_what_broyden_has_learnt_goes_through(memory):
    solver = ti.Broyden(memory=memory, **OPTIONS)
    (narrowed, few), (whole, _) = both(mixing, X, RATE, WEIGHT, solver=solver)
    assert min(few.batches) < BATCH // 4
    assert torch.allclose(narrowed.state.inverse().dense(ZEROS), whole.state.inverse().dense(ZEROS), atol=1e-5)
    quick = whole.steps < whole.steps.max()
    ours, theirs = (solution.state.inverse().dense(ZEROS)[quick] for solution in (narrowed, whole))
    assert torch.allclose(ours, theirs, atol=1e-6)
    again = ti.fixed_point(mixing, ZEROS, X + 0.01, RATE, WEIGHT, solver=solver, warm_start=narrowed)
    cold = ti.fixed_point(mixing, ZEROS, X + 0.01, RATE, WEIGHT, solver=solver)
    assert again.nfev < cold.nfev


@pytest.mark.parametrize(
    ("adjoint", "solver"),
    [
        (ti.Implicit(ti.LU()), SOLVERS[2]),
        (ti.Phantom(steps=2), SOLVERS[0]),
        (ti.Shine(), ti.Broyden(memory=6, **OPTIONS)),
        (ti.Implicit(ti.GMRES(rtol=1e-12), precondition=True), ti.Broyden(memory=6, **OPTIONS)),
        (ti.Unrolled(), SOLVERS[0]),
    ],
    ids=str,
)
def test_gradients_are_the_same(adjoint, solver):
    args = [tensor.clone().requires_grad_() for tensor in (X, RATE, WEIGHT)]
    grads = []
    for solution, _ in both(mixing, *args, solver=solver, adjoint=adjoint):
        grads.append(torch.autograd.grad(solution.value.sin().sum(), args))
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_a_map_that_couples_samples_is_solved_whole():
    def coupled(z, x, rate):
        return rate * torch.sin(z) + 0.05 * z.mean(0) + x

    for solver in SOLVERS[::2]:
        (narrowed, few), (whole, _) = both(coupled, X, RATE, solver=solver)
        agree(narrowed, whole)
        assert narrowed.nfev <= whole.nfev + 1, "one look, and no more"
        assert sum(batch < BATCH for batch in few.batches) <= max(narrowed.nfev - whole.nfev, 1)


def test_weak_coupling_is_seen_too():
    coupled = lambda z, x, rate: rate * torch.sin(z) + 1e-6 * z.mean(0) + x  # noqa: E731
    rate = torch.where(torch.arange(BATCH) % 2 > 0, 0.1, 0.9).double().unsqueeze(1)
    (narrowed, few), (whole, _) = both(coupled, 0.1 * X, rate, solver=SOLVERS[0])
    agree(narrowed, whole)
    assert min(few.batches) < BATCH, "it was looked at"


MISLABELLED = {
    "a weight with as many rows as there are samples": (
        lambda z, x, rate, weight: rate * torch.tanh(z @ weight.T[:, :WIDTH]) + x,
        (X, RATE, torch.linalg.qr(rand(BATCH, BATCH))[0][:, :WIDTH]),
        (0, 1, 2),
    ),
    "a table that all samples read": (
        lambda z, x, rate, table: rate * torch.sin(z) + x + table[:4].sum() + 0 * table[3],
        (X, RATE, rand(BATCH, 1, seed=8)),
        (0, 1, 2),
    ),
    "an argument of the samples that is not named": (elementwise, (X, RATE), (0,)),
    "nothing named at all": (elementwise, (X, RATE), ()),
    "an argument that would broadcast": (
        lambda z, x, rate: rate[:, :1] * torch.sin(z) + x,
        (X, torch.cat([torch.full((BATCH - 1, 1), 0.1), torch.full((1, 1), 0.9)]).double()),
        (0,),
    ),
}


@pytest.mark.parametrize("name", MISLABELLED)
def test_a_wrong_label_is_found_out(name):
    f, args, batched = MISLABELLED[name]
    (narrowed, few), (whole, _) = both(f, *args, batched=batched, solver=SOLVERS[0], on_failure="ignore")
    agree(narrowed, whole)
    assert sum(batch < BATCH for batch in few.batches) == 1, "one look, and no more"


def test_equal_rows_that_broadcast_are_found_out_by_their_shape():
    x = torch.full((BATCH, WIDTH), 0.3, dtype=torch.float64)
    rate = torch.full((BATCH, 1), 0.2, dtype=torch.float64)
    start = ZEROS.clone()
    start[-1] = 1e9  # alone in taking long: a batch of one, and what has all rows broadcasts with it
    f = lambda z, x, rate: rate * z + x  # noqa: E731
    (narrowed, _), (whole, _) = both(f, x, rate, batched=(), solver=SOLVERS[0], z0=start)
    agree(narrowed, whole)


@pytest.mark.parametrize(
    ("batched", "options", "says"),
    [
        ((2,), {}, r"got \(2,\), expected a tuple of positions among the 2"),
        ((-1,), {}, r"each of 0\.\.1"),
        (0, {}, r"got 0, expected a tuple.*try batched_args=\(0,\)"),
        ("x", {}, "expected a tuple"),
        ((0,), {"batch_dims": 0}, "one coupled problem"),
        ((1,), {}, r"argument 1 with a tensor of shape \(3,\), expected the batch of 64"),
    ],
)
def test_impossible_labels_are_refused(batched, options, says):
    with pytest.raises(ValueError, match=says):
        ti.fixed_point(lambda z, x, y: z / 2, ZEROS, X, torch.zeros(3), batched_args=batched, **options)


class Cell(nn.Module):
    """A cell with buffers, whose inputs decide how slow a sample is."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(WIDTH, dtype=torch.float64)
        nn.init.orthogonal_(self.linear.weight)
        self.batches = []

    def forward(self, z, x, rate=None):
        self.batches.append(len(z))
        rate = 0.2 + 0.7 * x[:, :1].clamp(0, 1) if rate is None else rate
        return rate * torch.tanh(self.linear(self.norm(z))) + x


@pytest.mark.filterwarnings("ignore:DEQ. the cell's 'norm' is a BatchNorm1d")
@pytest.mark.parametrize("rated", [False, True])
def test_a_layer_does_it_by_itself_where_it_can(rated):
    torch.manual_seed(0)
    cell = Cell().eval()
    x = X.clone()
    x[:, 0] = torch.where(RATE[:, 0] > 0.5, 1.0, -1.0)
    inputs = (x, RATE) if rated else (x,)

    def run(batched):
        layer = ti.nn.DEQ(cell, ti.Picard(**OPTIONS), ti.Implicit(ti.LU()), batched_args=batched)
        cell.batches.clear()
        cell.zero_grad()
        value = layer(*inputs)
        value.sum().backward()
        return value, cell.linear.weight.grad.clone(), min(cell.batches), layer.report

    value, grad, fewest, report = run(None)
    assert (fewest == BATCH) == rated, "the default knows of x alone"
    named, named_grad, fewest, named_report = run((0, 1) if rated else (0,))
    assert fewest < BATCH // 2
    assert torch.allclose(value, named, atol=1e-12)
    assert torch.allclose(grad, named_grad, atol=1e-10)
    assert torch.equal(report.steps, named_report.steps)
    never, *_, whole_report = run(())
    assert torch.allclose(never, named, atol=1e-12)
    assert torch.equal(whole_report.steps, named_report.steps)


@pytest.mark.parametrize(
    "x", [torch.tensor(0.3).double(), rand(WIDTH), {"x": X, "shared": rand(3)}, [X, rand(WIDTH)]], ids=str
)
def test_a_layer_s_input_need_not_carry_the_batch(x):
    def cell(z, x):
        given = x["x"] if isinstance(x, dict) else x[0] + x[1] if isinstance(x, list) else x
        return 0.5 * torch.sin(z) + given

    layer = ti.nn.DEQ(cell, init=lambda x: ZEROS)
    assert layer(x).shape == (BATCH, WIDTH)
    assert layer.report.converged


def test_a_real_batch_without_touching_the_threshold(monkeypatch):
    monkeypatch.undo()
    batch, width = 512, 64
    x, rate = rand(batch, width), tail(batch)
    x[::10] *= 0.1
    assert x.numel() >= samples.SMALL > 1
    (narrowed, few), (whole, all_) = both(
        elementwise, x, rate, z0=torch.zeros_like(x), solver=ti.Picard(rtol=1e-6, atol=1e-6, max_steps=300)
    )
    agree(narrowed, whole)
    assert few.rows < 0.5 * all_.rows


class Dropping(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.dropout = torch.nn.Linear(width, width), ti.nn.VariationalDropout(0.2)

    def forward(self, z, x, gain):
        return gain * self.dropout(torch.tanh(0.5 * self.linear(z) + x))


def test_what_goes_by_the_place_in_the_batch_is_found_at_every_narrowing():
    torch.manual_seed(0)
    cell, x, gain = Dropping(1024), torch.randn(64, 1024), torch.full((64, 1), 0.1)
    gain[:32], gain[1:32:2] = 1.2, 1.75  # the first narrowing keeps the first samples, and their masks; the second not
    values = []
    for batched in (None, (0, 1)):
        torch.manual_seed(3)
        solution = ti.fixed_point(
            cell, torch.zeros_like(x), x, gain, solver=ti.Picard(max_steps=200), batched_args=batched
        )
        values.append(solution.value.detach())
    assert torch.allclose(*values, atol=1e-5)
