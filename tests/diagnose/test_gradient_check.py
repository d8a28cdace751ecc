import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchimplicit as ti
from torchimplicit import diagnose

TIGHT = {"solver": ti.Anderson(rtol=1e-10, atol=1e-12), "adjoint": ti.Implicit(ti.GMRES(rtol=1e-10))}


def test_a_right_gradient_is_right_to_the_tolerances_of_the_solves(make_layer, x):
    loose = diagnose.check_gradient(make_layer(), x)
    tight = diagnose.check_gradient(make_layer(**TIGHT), x)
    assert loose.ok
    assert tight.ok
    assert tight.reference < 1e-7
    assert tight.unrolled < 1e-8 < loose.unrolled < 1e-3
    assert tight.finite_difference < 1e-7
    assert set(tight.tensors) == {"cell.linear.weight", "cell.linear.bias", "x"}
    assert loose.report.backward.converged
    assert "right" in str(tight)
    assert "Try" not in str(tight)


def test_a_phantom_gradient_is_off_by_what_its_series_leaves_out(make_layer, x):
    check = diagnose.check_gradient(make_layer(adjoint=ti.Phantom()), x)
    assert not check.ok
    assert 0.01 < check.unrolled < 0.7 + 1e-6  # the bound rho^steps, with |J| <= 0.7
    more = diagnose.check_gradient(make_layer(adjoint=ti.Phantom(steps=4)), x)
    assert more.unrolled < check.unrolled / 2
    assert "OFF" in str(check)
    assert "Try: Phantom" in str(check)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": ti.Picard(max_steps=2)}, "did not converge for 5 of 5 samples"),
        ({"adjoint": ti.Implicit(ti.Neumann(terms=1))}, "truncates the backward solve"),
        ({"adjoint": ti.Implicit(ti.GMRES(max_steps=1))}, "the backward solve did not converge"),
        ({"solver": ti.Picard(rtol=0.2)}, "tighten the solves"),
        ({"solver": ti.Picard(rtol=0.2), "adjoint": ti.Unrolled()}, "Unrolled differentiates"),
    ],
)
def test_the_cause_of_a_wrong_gradient_is_named(make_layer, x, options, words):
    check = diagnose.check_gradient(make_layer(gain=0.9, **options), x)
    assert not check.ok
    assert check.reference < 1e-6
    assert words in str(check)


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, 0.5]))

    def forward(self, z, x):
        return torch.tanh(self.weight * z.detach() + x) + 0.1 * z


def test_a_cell_that_cuts_its_own_graph_is_found_by_finite_differences():
    check = diagnose.check_gradient(ti.nn.DEQ(Cut(), **TIGHT), torch.randn(4, 2))
    assert check.unrolled < 1e-6  # unrolling is blind to it
    assert check.finite_difference > 0.05
    assert check.reference > 0.05
    assert not check.ok
    assert "detach()" in str(check)


def test_a_map_that_expands_gets_its_reference_by_newton(linear_layer):
    matrix = torch.tensor([[1.8, 0.5], [-0.3, -2.2]])
    layer = linear_layer(matrix, solver=ti.Newton(), adjoint=ti.Implicit(ti.LU()))
    check = diagnose.check_gradient(layer, torch.randn(3, 2))
    assert check.ok
    assert check.unrolled < 1e-10


def test_no_fixed_point_means_no_reference():
    layer = ti.nn.DEQ(lambda z, x: z + 1 + x.square(), on_failure="ignore")
    check = diagnose.check_gradient(layer, torch.ones(2, 2))
    assert not check.ok
    assert "no reference" in str(check)


def test_the_layer_stays_untouched(make_layer, x):
    layer = make_layer(warm_start=True)
    layer.cell.register_buffer("unused", torch.ones(2))
    layer(x)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    report, last, state = layer.report, layer._last, torch.get_rng_state()
    check = diagnose.check_gradient(layer, x)
    assert layer.report is report
    assert layer._last is last
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in layer.parameters())
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert check.unrolled < 1e-3


def test_a_parametrised_cell(make_layer, x):
    layer = make_layer()
    parametrizations.spectral_norm(layer.cell.linear)
    before = layer.cell.linear.parametrizations.weight[0]._u.clone()
    check = diagnose.check_gradient(layer.eval(), x)
    assert check.ok
    assert torch.equal(layer.cell.linear.parametrizations.weight[0]._u, before)


def test_modules_bound_methods_and_nests_among_the_arguments():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def step(self, z, x, gate):
            return {"h": torch.tanh(0.4 * self.linear(z["h"]) + gate(x["h"]))}

    with torch.no_grad():  # a surrounding no_grad does not matter
        check = diagnose.check_gradient(ti.nn.DEQ(Model().step), {"h": torch.randn(2, 3)}, nn.Linear(3, 3))
    names = {"cell.linear.weight", "cell.linear.bias", "args[1].weight", "args[1].bias", "x['h']"}
    assert set(check.tensors) == names
    assert check.ok


def test_complex_states():
    layer = ti.nn.DEQ(lambda z, x: 0.5j * z.sin() + x, **TIGHT)
    check = diagnose.check_gradient(layer, torch.randn(2, 3, dtype=torch.complex64))
    assert check.unrolled < 1e-7
    assert check.finite_difference < 1e-6


def test_more_directions_and_another_seed_change_the_run(make_layer, x):
    layer = make_layer()
    one, two = (diagnose.check_gradient(layer, x, directions=n) for n in (1, 2))
    assert one.unrolled == two.unrolled
    assert one.finite_difference != two.finite_difference
    assert diagnose.check_gradient(layer, x, seed=1).unrolled != one.unrolled
    assert not diagnose.check_gradient(layer, x, tolerance=1e-9).ok


@pytest.mark.parametrize("option", [{"directions": 0}, {"directions": 1.5}, {"tolerance": 0.0}])
def test_impossible_options(make_layer, x, option):
    with pytest.raises(ValueError, match=r"check_gradient\(.*expected"):
        diagnose.check_gradient(make_layer(), x, **option)


def test_nothing_to_differentiate_by():
    layer = ti.nn.DEQ(lambda z, x: 0.5 * z + x, init=lambda x: torch.zeros(2, 3))
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        diagnose.check_gradient(layer, torch.ones(2, 3, dtype=torch.int64))
