"""What all layers have in common: the report, and warnings that say who failed, how often, and what to try."""

import copy
import inspect
import pickle
import re
import threading
import warnings

import pytest
import torch
from torch import nn

import torchimplicit as ti
from torchimplicit.nn.layer import ImplicitLayer


class Doubling(nn.Module):
    """A map that expands and has a fixed point; a step towards it fails."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, z, x):
        return self.weight * z + x


HASTY = {"solver": ti.Picard(max_steps=1), "adjoint": ti.Implicit(ti.Neumann(terms=1))}
X = torch.ones(3, 2, dtype=torch.float64)


def deq(**options):
    return ti.nn.DEQ(Doubling(), **(HASTY | options))


def caught(function, *args):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function(*args)
    assert all(one.category is ti.ConvergenceWarning for one in found)
    return found


def train(layer, steps):
    for _ in range(steps):
        layer(X).sum().backward()


def test_two_hundred_failures_make_four_warnings():
    """The first of each kind, the tenth and the hundredth of both; a loop of 42 steps makes three."""
    layer = deq()
    assert [kind_and_count(one) for one in caught(train, layer, 42)] == [
        ("forward", 1),
        ("backward", 1),
        ("backward", 5),
    ]
    assert [kind_and_count(one) for one in caught(train, layer, 58)] == [("backward", 50)]


def kind_and_count(warning):
    count, kind = re.search(r"Failure (\d+) of \d+ (\w+) solves", str(warning.message)).groups()
    return kind, int(count)


def test_the_first_backward_failure_is_told_whatever_failed_forward_before():
    layer = deq()
    with torch.no_grad():
        caught(lambda: [layer(X) for _ in range(4)])
    (only,) = caught(train, layer, 1)
    assert kind_and_count(only) == ("backward", 1)


def test_the_share_is_that_of_the_last_fifty_solves():
    layer = deq(solver=ti.Picard(max_steps=1))
    with torch.no_grad():
        for _ in range(40):
            layer(X, z0=-X)  # the fixed point itself
        found = caught(lambda: [layer(X) for _ in range(10)])
        found += caught(lambda: [layer(X) for _ in range(90)])
    shares = [
        re.search(r"Failure (\d+) of (\d+) forward solves; (\d+) % of the last (\d+)", str(f.message)) for f in found
    ]
    assert [tuple(map(int, share.groups())) for share in shares if share] == [
        (1, 41, 2, 41),
        (10, 50, 20, 50),
        (100, 140, 100, 50),
    ]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), deq())

    def forward(self, x):
        return self.body(x)


def test_a_warning_has_the_layers_path_the_users_line_and_the_advice():
    model = Model()
    forward, backward = caught(lambda: train(model, 1))
    for found in (forward, backward):
        assert found.filename == __file__
        message = str(found.message)
        assert "3 of 3 samples did not converge, in 'body.1' (DEQ of Doubling)." in message
        assert "nn.jacobian_penalty" in message
        assert "docs/guide.md" in message
    assert forward.lineno == inspect.getsourcelines(Model.forward)[1] + 1
    assert backward.lineno == inspect.getsourcelines(train)[1] + 2


def test_two_layers_count_apart():
    first, second = deq(), deq()
    assert len(caught(train, first, 2)) == 2
    assert len(caught(train, second, 2)) == 2


def test_an_error_names_the_layer_too():
    model = Model()
    model.body[1].on_failure = "raise"
    with pytest.raises(ti.ConvergenceError, match=r"in 'body.1' \(DEQ of Doubling\)"):
        model(X)
    assert model.body[1].report.failed.tolist() == [0, 1, 2]


def test_counts_are_copied_and_pickled_and_do_not_run_along():
    layer = deq()
    caught(train, layer, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.failures.counts["forward"].failures == 4
        assert len(caught(train, other, 5)) == 1  # the tenth of both
    assert layer.failures.counts["forward"].failures == 4


def test_threads_lose_no_count():
    layer = deq()

    def work():
        for _ in range(25):
            with torch.no_grad():
                layer(X)

    def run():
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(caught(run)) == 3
    assert layer.failures.counts["forward"].failures == 100


def test_a_line_of_the_users_counts_for_itself():
    def solve():
        return ti.fixed_point(Doubling(), torch.zeros_like(X), X, **HASTY, on_failure="warn")

    def loop():
        for _ in range(12):
            solve().value.sum().backward()

    found = caught(loop)
    assert len(found) == 4  # each line its first and its tenth
    assert {one.filename for one in found} == {__file__}
    assert len({one.lineno for one in found}) == 2  # the forward solve's, and the backward pass's
    other = caught(lambda: ti.fixed_point(Doubling(), torch.zeros_like(X), X, **HASTY, on_failure="warn"))
    assert len(other) == 1


def test_all_layers_share_the_mechanism():
    """Whoever has `on_failure` and a `report` is an `ImplicitLayer`, so that its failures are counted and named."""
    solves = [
        getattr(ti.nn, name)
        for name in ti.nn.__all__
        if isinstance(getattr(ti.nn, name), type) and "on_failure" in inspect.signature(getattr(ti.nn, name)).parameters
    ]
    some = {ti.nn.DEQ, ti.nn.NeuralODE, ti.nn.NeuralSDE, ti.nn.CNF, ti.nn.QP, ti.nn.Convex, ti.nn.MPC, ti.nn.MaxSAT}
    assert some <= set(solves)
    solves.remove(ti.nn.MDEQ)  # holds a DEQ that does
    assert all(issubclass(each, ImplicitLayer) for each in solves)


def _ode():
    field = nn.Linear(2, 2, dtype=torch.float64)
    return ti.nn.NeuralODE(field, autonomous=True, solver=ti.Tsit5(max_steps=1, rtol=1e-12, atol=1e-12)), X


def _sde():
    field = nn.Linear(2, 2, dtype=torch.float64)
    return ti.nn.NeuralSDE(field, field, autonomous=True, solver=ti.sde.EulerMaruyama(dt=0.1, max_steps=1)), X


def _qp():
    layer = ti.nn.QP(2, inequalities=1).double()
    return layer, torch.full_like(X, torch.nan)


def _maxsat():
    layer = ti.nn.MaxSAT(4, clauses=6, max_steps=1).double()
    return layer, X.new_ones(3, 4), torch.tensor([True, False, False, False]).expand(3, 4)


def _mpc():
    def step(x, u):
        return x + 0.1 * torch.sin(x) + u

    def cost(x, u):
        return (x.square() + u.square()).sum(-1).cosh()

    return ti.nn.MPC(step, cost, 5, controls=2, solver=ti.optim.BoxDDP(max_steps=1)), 3 * X


@pytest.mark.parametrize("make", [_ode, _sde, _qp, _maxsat, _mpc], ids=lambda make: make.__name__)
def test_every_kind_of_layer_warns_once_and_again_at_ten(make):
    torch.manual_seed(0)
    layer, *inputs = make()
    found = caught(lambda: [layer(*inputs) for _ in range(11)])
    assert len(found) == 2
    assert all(f"in {type(layer).__name__}" in str(one.message) for one in found)
