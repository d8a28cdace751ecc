"""The satisfiability layer: its equilibrium, its derivative, what it learns, what it refuses."""

import math

import pytest
import torch

import torchimplicit as ti
from torchimplicit.core.status import ConvergenceError, ConvergenceWarning, Status
from torchimplicit.nn import MaxSAT

EXACT = {"rtol": 1e-12, "max_steps": 2000, "backward_rtol": 1e-12, "backward_max_steps": 500, "on_failure": "raise"}


def drawn(clauses=None, seed=0, batch=4, **options):
    """A layer of 6 variables and 2 hidden ones with random couplings, values and a mask, in float64."""
    torch.manual_seed(seed)
    layer = MaxSAT(6, 2, clauses, rank=3, blocks=3, **{**EXACT, **options}).double()
    with torch.no_grad():
        layer.coupling.copy_(0.6 * torch.randn_like(layer.coupling))
    return layer, torch.rand(batch, 6).double(), torch.rand(batch, 6) < 0.5


def parts(layer, x, given):
    """The map of Jacobi's method on the free vectors of one sample, by its definition, in plain tensors."""
    true = torch.eye(layer.rank).double()[0]
    force = true + layer.log_anchor.exp() * layer.directions
    free = torch.cat([torch.tensor([False]), ~given, torch.ones(layer.auxiliary, dtype=torch.bool)])
    arc = torch.sin(math.pi * x)[:, None] * layer.directions[1:7] - torch.cos(math.pi * x)[:, None] * true
    held = torch.cat([true[None], arc, torch.zeros(layer.auxiliary, layer.rank).double()])

    def step(z, coupling, force, held):
        v = held.index_put((free,), z[0])
        g = coupling @ v + force
        return -torch.nn.functional.normalize(g, dim=1)[free][None]

    return step, force, held, free


@pytest.mark.parametrize("clauses", [None, 5])
def test_gradients_agree_with_finite_differences(clauses):
    layer, x, given = drawn(clauses, batch=2, rtol=1e-10, backward_rtol=1e-9)
    x.requires_grad_()

    def values(x, coupling, log_anchor):
        weights = {"coupling": coupling, "log_anchor": log_anchor}
        return torch.func.functional_call(layer, weights, (x, given))

    assert torch.autograd.gradcheck(values, (x, layer.coupling, layer.log_anchor), atol=1e-6, fast_mode=True)
    layer(x, given).sum().backward()
    assert layer.report.converged
    assert layer.report.backward.converged
    if clauses is None:
        assert not bool(layer.coupling.grad.diagonal().any())  # no vector pushes itself


def test_value_and_gradient_are_those_of_the_general_fixed_point():
    layer, x, given = drawn(seed=1)
    value = layer.cosine(x, given)
    value.square().sum().backward()
    total = torch.zeros_like(layer.coupling)
    for sample in range(4):
        step, force, held, free = parts(layer, x[sample], given[sample])
        coupling = layer.matrix().detach().requires_grad_()
        # From where the layer is: Jacobi's method alone may circle around.
        start = -torch.nn.functional.normalize(force, dim=1)[free].detach()[None]
        found = ti.fixed_point(
            step,
            start,
            coupling,
            force.detach(),
            held,
            solver=ti.Picard(damping=0.3, rtol=1e-12, atol=1e-13, max_steps=5000),
            adjoint=ti.Implicit(ti.GMRES(rtol=1e-12)),
        ).value[0]
        cosine = held.index_put((free,), found)[1:7, 0]
        assert torch.allclose(cosine, value[sample], atol=1e-9)
        cosine.square().sum().backward()
        total += coupling.grad
    symmetric = (total + total.T) / 2
    symmetric.fill_diagonal_(0)
    assert torch.allclose(symmetric, layer.coupling.grad, atol=1e-8)


def test_no_sweep_raises_the_energy():
    layer, x, given = drawn(seed=2)
    energies = []
    for sweeps in range(1, 12):
        layer.descent = type(layer.descent)(blocks=3, rtol=1e-12, max_steps=sweeps, on_failure="ignore")
        with torch.no_grad():
            value, matrix, force = vectors(layer, x, given)
        energies.append((value * (matrix @ value / 2 + force)).sum((1, 2)))
    falls = torch.stack(energies).diff(dim=0)
    assert float(falls.max()) < 1e-12
    assert float(falls[0].min()) < -1e-3


def vectors(layer, x, given):
    """All unit vectors `(B, n, k)` of the layer's equilibrium, the couplings and the forces."""
    from torchimplicit.optim.maxsat import Equilibrium

    kept = []
    apply = Equilibrium.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Equilibrium, "apply", lambda *args: kept.append(apply(*args)) or kept[-1])
        layer.cosine(x, given)
    force = torch.eye(layer.rank).double()[0] + layer.log_anchor.exp() * layer.directions
    return kept[0].movedim(1, 0), layer.matrix(), force


def test_an_equilibrium_is_one_and_lies_on_the_spheres():
    layer, x, given = drawn(seed=3)
    with torch.no_grad():
        value, matrix, force = vectors(layer, x, given)
    assert torch.allclose(value.norm(dim=2), torch.ones(()).double())
    pull = -torch.nn.functional.normalize(matrix @ value + force, dim=2)
    free = torch.cat([torch.zeros(4, 1, dtype=torch.bool), ~given, torch.ones(4, 2, dtype=torch.bool)], 1)
    assert torch.allclose(value[free], pull[free], atol=1e-9)
    z = layer(x, given)
    assert torch.equal(z[given], x[given])
    assert bool(((z >= 0) & (z <= 1)).all())
    cosine = layer.cosine(x, given)
    assert torch.allclose(cosine, -torch.cos(math.pi * z), atol=1e-9)


def test_a_sample_does_not_notice_its_mates():
    layer, x, given = drawn(seed=4, batch=5)
    given[0] = True  # nothing to solve but the hidden ones: done before the others
    together = layer(x, given)
    steps = layer.report.steps
    alone = [layer(x[i : i + 1], given[i : i + 1]) for i in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    assert len(set(steps.tolist())) > 2  # they do stop at different sweeps
    layer(x[2:3], given[2:3])
    assert layer.report.steps.tolist() == steps[2:3].tolist()


def test_what_is_not_given_does_not_count():
    layer, x, given = drawn(seed=5)
    other = torch.where(given, x, torch.full_like(x, torch.nan))
    assert torch.equal(layer(other, given), layer(x, given))


def test_failure_is_told_forward_and_backward():
    layer, x, given = drawn(seed=6, max_steps=3, on_failure="warn")
    with pytest.warns(ConvergenceWarning, match="MaxSAT: 4 of 4 samples did not converge"):
        layer(x, given)
    assert layer.report.status.tolist() == [Status.MAX_STEPS] * 4
    layer, x, given = drawn(seed=6, backward_max_steps=1)
    with pytest.raises(ConvergenceError, match="backward solve: 4 of 4 samples did not converge, in MaxSAT"):
        layer(x, given).sum().backward()


def test_a_nan_in_the_incoming_gradient_stays_with_its_sample():
    layer, x, given = drawn(seed=7, on_failure="ignore")
    weight = torch.ones(4, 6).double()
    weight[1] = torch.nan
    (layer.cosine(x, given) * weight).sum().backward()
    assert layer.report.backward.status.tolist() == [0, Status.NON_FINITE, 0, 0]
    broken, layer.coupling.grad = layer.coupling.grad, None
    keep = torch.tensor([0, 2, 3])
    layer.cosine(x[keep], given[keep]).sum().backward()
    assert torch.allclose(broken, layer.coupling.grad, atol=1e-10)


def test_weights_that_are_not_finite_are_told():
    layer, x, given = drawn(seed=8)
    with torch.no_grad():
        layer.coupling[2, 3] = torch.nan
    with pytest.raises(ConvergenceError, match="non_finite"):
        layer(x, given)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"variables": 0}, "variables=0"),
        ({"variables": 3, "auxiliary": -1}, "auxiliary=-1"),
        ({"variables": 3, "clauses": 0}, "clauses=0"),
        ({"variables": 3, "rank": 1}, "rank=1"),
        ({"variables": 3, "anchor": 0.0}, r"anchor=0\.0.*try a small one"),
        ({"variables": 3, "blocks": 0}, "blocks=0"),
        ({"variables": 3, "rtol": 0.0}, r"rtol=0\.0"),
        ({"variables": 3, "on_failure": "no"}, "on_failure: got 'no', expected"),
    ],
)
def test_impossible_options(options, text):
    with pytest.raises(ValueError, match=text):
        MaxSAT(**options)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda x, given: (x.float(), given), TypeError, r"values of torch.float32, expected torch.float64"),
        (lambda x, given: (x, given.long()), TypeError, r"given is torch.int64, expected torch.bool"),
        (lambda x, given: (x[:, :5], given), ValueError, r"values \(4, 5\) and given \(4, 6\), expected \(B, 6\)"),
        (lambda x, given: (x + 1.5, given | True), ValueError, r"sample 0 has the given value 1\.\d+ of variable 0"),
        (lambda x, given: (x * torch.nan, given | True), ValueError, r"sample 0 has the given value nan of variable 0"),
    ],
)
def test_bad_input_is_refused(change, error, text):
    layer, x, given = drawn()
    with pytest.raises(error, match=text):
        layer(*change(x, given))


@pytest.mark.parametrize("clauses", [None, 8])
def test_it_learns_that_two_variables_exclude_each_other(clauses):
    """One of three is true, one is given: the others follow when the given one is true."""
    torch.manual_seed(0)
    layer = MaxSAT(3, clauses=clauses, rank=3, blocks=2, on_failure="raise", rtol=1e-5)
    x = torch.eye(3)[torch.arange(6) % 3]
    given = torch.zeros(6, 3, dtype=torch.bool)
    given[torch.arange(6), torch.arange(6) % 3] = True
    given[3:] = ~given[3:]  # two given as false: the third is true
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(80):
        loss = (layer.cosine(x, given) - (2 * x - 1)).square()[~given].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    assert torch.equal(layer(x, given) > 0.5, x > 0.5)
