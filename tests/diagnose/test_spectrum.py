import math
import warnings

import pytest
import torch

import torchimplicit as ti
from torchimplicit import diagnose


def jordan(value, size, width):
    block = torch.zeros(width, width, dtype=torch.float64)
    block[:size, :size] = value * torch.eye(size) + torch.diag(torch.ones(size - 1), 1)
    basis = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
    return basis @ block @ basis.T


def rotation(angle, radius=0.9):
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def radius_of(layer, matrix, **options):
    batch, width = (matrix.shape[0] if matrix.dim() == 3 else 2), matrix.shape[-1]
    return diagnose.spectral_radius(layer, torch.ones(batch, width, dtype=matrix.dtype), **options)


@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "arnoldi"])
@pytest.mark.parametrize("angle", [0.1, 1.0, math.pi / 2, 3.0])
def test_rotations_have_their_true_radius(linear_layer, angle, dense):
    matrix = rotation(angle)
    vector = torch.ones(2, dtype=torch.float64)
    if angle == math.pi / 2:  # where a Rayleigh quotient fails
        assert abs(float(vector @ matrix @ vector)) < 1e-12
    torch.testing.assert_close(
        radius_of(linear_layer(matrix), matrix, dense=dense), torch.full((2,), 0.9, dtype=torch.float64)
    )


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "arnoldi"])
def test_defective_matrices_to_the_accuracy_that_rounding_leaves(linear_layer, size, dense):
    matrix = jordan(0.7, size, 20)
    radius = radius_of(linear_layer(matrix), matrix, dense=dense)
    torch.testing.assert_close(radius, torch.full_like(radius, 0.7), rtol=5 * 2.2e-16 ** (1 / size), atol=0)


@pytest.mark.parametrize(("kind", "rtol"), [("symmetric", 1e-5), ("random", 1e-2)])
def test_arnoldi_agrees_with_all_eigenvalues_of_large_matrices(linear_layer, kind, rtol):
    matrix = 0.7 * torch.randn(3, 200, 200, dtype=torch.float64) / 200**0.5
    if kind == "symmetric":
        matrix = (matrix + matrix.mT) / 2
    expected = torch.linalg.eigvals(matrix).abs().amax(1)
    layer = linear_layer(matrix)
    torch.testing.assert_close(radius_of(layer, matrix, dense=200), expected)
    torch.testing.assert_close(radius_of(layer, matrix), expected, rtol=rtol, atol=0)


def test_a_nonlinear_cell_at_its_solution_by_both_ways(make_layer, x):
    layer = make_layer().double()
    x = x.double()
    z = layer(x).detach()
    jacobian = torch.func.vmap(torch.func.jacrev(layer.cell))(z, x)
    expected = torch.linalg.eigvals(jacobian).abs().amax(1)
    for dense in (128, 0):
        radius = diagnose.spectral_radius(layer, x, dense=dense)
        torch.testing.assert_close(radius, expected.detach(), rtol=1e-6, atol=0)
        assert not radius.requires_grad


def test_nested_states_and_their_dtype():
    layer = ti.nn.DEQ(lambda z, x: (0.5 * z[1] + x[0], 0.5 * z[0] + x[1]))
    radius = diagnose.spectral_radius(layer, (torch.ones(3, 2), torch.ones(3, 2)))
    torch.testing.assert_close(radius, torch.full((3,), 0.5))


@pytest.mark.parametrize("dense", [128, 0], ids=["dense", "arnoldi"])
def test_a_sample_does_not_depend_on_its_batch_mates(linear_layer, dense):
    matrix = 0.5 * torch.randn(3, 30, 30, dtype=torch.float64) / 30**0.5
    x = torch.ones(3, 30, dtype=torch.float64)
    together = diagnose.spectral_radius(linear_layer(matrix), x, dense=dense)
    x[1] = torch.nan
    matrix = matrix.clone()
    matrix[1] = torch.nan
    beside = diagnose.spectral_radius(linear_layer(matrix, on_failure="ignore"), x, dense=dense)
    assert torch.equal(together[[0, 2]], beside[[0, 2]])
    assert beside[1].isnan()


def test_an_expanding_cell_has_its_radius_and_a_warning(linear_layer):
    matrix = 1.5 * torch.eye(2)
    with pytest.warns(ti.ConvergenceWarning, match="did not converge"):
        radius = radius_of(linear_layer(matrix, solver=ti.Picard(), on_failure="raise"), matrix)
    torch.testing.assert_close(radius, torch.full((2,), 1.5))


def test_an_estimate_that_has_not_settled_is_named(linear_layer):
    matrix = torch.diag(torch.linspace(0.1, 0.9, 300))
    with pytest.warns(ti.ConvergenceWarning, match=r"2 of 2 samples did not settle to rtol=1e-06"):
        radius_of(linear_layer(matrix), matrix, steps=5, restarts=1, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        radius_of(linear_layer(matrix), matrix)


@pytest.mark.parametrize("option", [{"steps": 1}, {"restarts": -1}, {"dense": 0.5}, {"rtol": 0.0}])
def test_impossible_options(linear_layer, option):
    (name,) = option
    with pytest.raises(ValueError, match=rf"spectral_radius\({name}=.*expected"):
        radius_of(linear_layer(torch.eye(2) / 2), torch.eye(2), **option)
