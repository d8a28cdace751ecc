"""Every operator against its dense matrix: adjoint, Gram operator, norm, least squares, proximal operator."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchimplicit as ti
from tests.imaging.physics.dense import matrix, normal
from torchimplicit.testing import check_operator

im, D, C = ti.imaging, torch.float64, torch.complex128
MASK = torch.tensor([[True, False, True, True, False]])
GRID = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.6
MAPS = normal(3, 4, 5, dtype=C, seed=2)
KERNEL = normal(3, 3, seed=3)
SEEN, REST = im.Inpainting(GRID.flatten()), im.Inpainting(torch.arange(20) >= 20 - int(GRID.sum()))
COILS, LINES = im.Sense(MAPS, GRID), im.Fourier(MASK)
OPERATORS = {
    "sense": (COILS, (4, 5), C),
    "sense-lines": (im.Sense(MAPS, MASK), (4, 5), C),
    "sense-rows": (im.Sense(MAPS, MASK[:, :4].T), (4, 5), C),
    "sense-hybrid": (im.Sense(MAPS, MASK, dims=(-1,)), (4, 5), C),
    "sense-other-axis": (im.Sense(MAPS, MASK, dims=(-2,)), (4, 5), C),
    "sense-full": (im.Sense(MAPS), (4, 5), C),
    "sense-one-coil": (im.Sense(MAPS[:1], GRID), (4, 5), C),
    "fourier": (im.Fourier(GRID), (4, 5), C),
    "fourier-lines": (LINES, (4, 5), C),
    "fourier-channels": (im.Fourier(MASK), (2, 4, 5), C),
    "inpainting": (im.Inpainting(GRID), (4, 5), D),
    "inpainting-complex": (im.Inpainting(GRID[0], (2, 5)), (2, 5), C),
    "greyscale": (im.Greyscale(), (3, 2, 2), D),
    "greyscale-complex": (im.Greyscale((1.0, 2.0)), (2, 3), C),
    "valid": (im.Blur(KERNEL), (2, 5, 4), D),
    "valid-complex": (im.Blur(normal(3, 1, dtype=C)), (1, 5, 4), C),
    "one-tap": (im.Blur(torch.full((1, 1), 2.0, dtype=D)), (1, 3, 4), D),
    "circular": (im.Blur(KERNEL, "circular"), (2, 5, 4), D),
    "circular-channels": (im.Blur(normal(2, 3, 5), "circular"), (2, 5, 6), C),
    "circular-complex": (im.Blur(normal(3, 3, dtype=C), "circular"), (1, 4, 5), C),
    "reflect": (im.Blur(normal(5, 3), "reflect"), (1, 5, 4), D),
    "reflect-channels": (im.Blur(normal(2, 3, 5), "reflect"), (2, 3, 4), C),
    "radon": (im.Radon(5, torch.tensor([0.0, 33.0, 90.0, 140.0], dtype=D)), (5, 5), D),
    "radon-complex": (im.Radon(4, torch.tensor([10.0, 75.0, 250.0], dtype=D)), (2, 4, 4), C),
    "downsample": (im.Downsample(2), (2, 4, 6), D),
    "downsample-complex": (im.Downsample(3), (3, 6), C),
    "compose": (im.Blur(KERNEL[:1]) @ im.Blur(KERNEL, "circular"), (2, 5, 4), D),
    "compose-seen": (SEEN @ (2.0 * im.Inpainting(torch.ones(20, dtype=torch.bool))), (20,), D),
    "compose-masked": (im.Fourier(MASK) @ im.Fourier(GRID), (4, 5), C),
    "sum": (SEEN + REST, (20,), D),
    "sum-complex": (LINES + 0.5j * im.Fourier(GRID), (4, 5), C),
    "scaled": (-3 * COILS, (4, 5), C),
    "scaled-complex": ((1 + 2j) * LINES, (4, 5), C),
    "scaled-tensor": (torch.tensor(0.3 - 1j, dtype=C) * LINES, (4, 5), C),
    "stack": (im.Stack(SEEN, 2 * REST, SEEN), (20,), D),
    "stack-complex": (im.Stack(LINES, 2j * im.Fourier(GRID)), (4, 5), C),
    "adjoint": (COILS.H, (3, 4, 5), C),
    "adjoint-twice": (COILS.H.H, (4, 5), C),
    "all": (im.Stack(LINES @ (COILS.H @ COILS), -1j * LINES + im.Fourier(GRID)), (4, 5), C),
}
CASES = pytest.mark.parametrize(("operator", "shape", "dtype"), OPERATORS.values(), ids=OPERATORS)
SOLVER = ti.CG(rtol=1e-12, max_steps=500)


@CASES
def test_against_the_dense_matrix(operator, shape, dtype):
    A, x = matrix(operator, shape, dtype), normal(2, *shape, dtype=dtype)
    y = operator.A(x)
    other = normal(*y.shape, dtype=y.dtype, seed=4)
    size = torch.linalg.matrix_norm(A, 2)
    scale = 1e-12 * max(float(size), 1) ** 2
    assert torch.allclose(y.flatten(1), x.flatten(1).to(A) @ A.T, rtol=0, atol=scale)
    assert torch.allclose(operator.A_adjoint(other).flatten(1).to(A), other.flatten(1) @ A.conj(), rtol=0, atol=scale)
    assert torch.allclose(operator.gram(x).flatten(1).to(A), x.flatten(1).to(A) @ (A.mH @ A).T, rtol=0, atol=scale)
    assert torch.equal(operator.gram(x).isfinite(), torch.ones_like(x, dtype=torch.bool))
    assert torch.allclose(operator.norm(x, rtol=1e-14, max_steps=200), size.expand(2), rtol=1e-12)
    if operator.coisometry is not None:
        assert torch.allclose(A @ A.mH, operator.coisometry * torch.eye(len(A), dtype=A.dtype), atol=1e-12)


@CASES
def test_systems_against_the_dense_matrix(operator, shape, dtype):
    A, z = matrix(operator, shape, dtype), normal(2, *shape, dtype=dtype, seed=5)
    y = operator.A(normal(2, *shape, dtype=dtype))
    y = y + 0.1 * normal(*y.shape, dtype=y.dtype, seed=6)
    back, unit = y.flatten(1).to(A) @ A.conj(), torch.eye(A.shape[1], dtype=A.dtype)
    for tau in (0.7, torch.tensor([0.2, 3.0], dtype=D).reshape(2, *[1] * len(shape))):
        found = operator.prox(z, y, tau, solver=SOLVER, on_failure="raise")
        for i, step in enumerate(torch.as_tensor(tau, dtype=D).expand(2, *[1] * len(shape)).flatten().tolist()):
            expected = torch.linalg.solve(unit + step * A.mH @ A, z[i].flatten() + step * back[i])
            assert torch.allclose(found[i].flatten().to(A), expected, rtol=0, atol=1e-9)
    found = operator.A_dagger(y, damping=0.3, solver=SOLVER, on_failure="raise")
    expected = torch.linalg.solve(0.3 * unit + A.mH @ A, back.T).T
    assert torch.allclose(found.flatten(1).to(A), expected, rtol=0, atol=1e-9)
    smallest = y.flatten(1).to(A) @ torch.linalg.pinv(A, rtol=1e-9).T
    found = operator.A_dagger(y, solver=ti.CG(rtol=1e-10, max_steps=500), on_failure="raise")
    assert torch.allclose(found.flatten(1).to(A), smallest, rtol=0, atol=1e-6 * float(smallest.abs().max()))


@CASES
def test_the_public_contract_holds(operator, shape, dtype):
    check_operator(operator, torch.zeros(2, *shape, dtype=dtype))


@CASES
def test_gradients_by_images(operator, shape, dtype):
    x = normal(2, *shape, dtype=dtype).requires_grad_()
    y = operator.A(x).detach().requires_grad_()
    assert gradcheck(operator.A, x, fast_mode=True)
    assert gradcheck(operator.A_adjoint, y, fast_mode=True)
    assert gradcheck(operator.gram, x, fast_mode=True, check_forward_ad=True)


GRADIENTS = {
    "maps": (lambda maps: im.Sense(maps, GRID), MAPS, (4, 5), C),
    "maps-lines": (lambda maps: im.Sense(maps, MASK), MAPS, (4, 5), C),
    "valid": (lambda kernel: im.Blur(kernel), KERNEL, (1, 5, 4), D),
    "circular": (lambda kernel: im.Blur(kernel, "circular"), KERNEL, (1, 5, 4), D),
    "reflect": (lambda kernel: im.Blur(kernel, "reflect"), normal(2, 3, 3), (2, 3, 4), D),
    "factor": (lambda c: c * LINES, torch.tensor(0.3 - 1j, dtype=C), (4, 5), C),
    "angles": (lambda angles: im.Radon(4, angles), torch.tensor([3.0, 33.3, 140.2], dtype=D), (2, 4, 4), D),
    "angles-complex": (lambda angles: im.Radon(4, angles), torch.tensor([71.0, 200.2], dtype=D), (4, 4), C),
    "sigma": (lambda s: im.Blur(im.gaussian_kernel(3, s), "reflect"), torch.tensor(0.8, dtype=D), (1, 3, 4), D),
}


@pytest.mark.parametrize(("make", "made_of", "shape", "dtype"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_by_what_operators_are_made_of(make, made_of, shape, dtype):
    x = normal(2, *shape, dtype=dtype).requires_grad_()
    z = normal(2, *shape, dtype=dtype, seed=7).requires_grad_()
    y = make(made_of).A(x).detach().requires_grad_()
    made_of = made_of.clone().requires_grad_()
    tau = torch.tensor(0.7, dtype=D, requires_grad=True)

    def prox(made_of, z, y, tau):
        return make(made_of).prox(z, y, tau, solver=SOLVER, on_failure="raise")

    def dagger(made_of, y):
        return make(made_of).A_dagger(y, damping=0.5, solver=SOLVER, on_failure="raise")

    assert gradcheck(lambda made_of, x: make(made_of).A(x), (made_of, x), fast_mode=True, check_forward_ad=True)
    assert gradcheck(lambda made_of, y: make(made_of).A_adjoint(y), (made_of, y), fast_mode=True)
    assert gradcheck(lambda made_of, x: make(made_of).gram(x), (made_of, x), fast_mode=True)
    assert gradgradcheck(lambda made_of, x: make(made_of).gram(x), (made_of, x), fast_mode=True)
    assert gradcheck(prox, (made_of, z, y, tau), fast_mode=True)
    assert gradcheck(dagger, (made_of, y), fast_mode=True)


@pytest.mark.parametrize(
    "name", ["sense", "valid", "circular", "reflect", "inpainting", "stack-complex", "all", "radon"]
)
def test_transforms(name):
    operator, shape, dtype = OPERATORS[name]
    x, v = normal(3, 2, *shape, dtype=dtype), normal(2, *shape, dtype=dtype, seed=1)
    assert torch.allclose(torch.vmap(operator.gram)(x), torch.stack([operator.gram(each) for each in x]))
    value, moved = torch.func.jvp(operator.A, (x[0],), (v,))
    assert torch.allclose(moved, operator.A(v))
    assert torch.equal(value, operator.A(x[0]))


def test_implicit_gradients_of_an_identity_and_of_a_subspace():
    """Where other libraries' least squares fail: a filter that does nothing, and an operator that is zero somewhere."""
    y = normal(2, 1, 3, 3).requires_grad_()
    one = im.Blur(torch.ones(1, 1, dtype=D))
    assert gradcheck(lambda y: one.A_dagger(y, solver=SOLVER, on_failure="raise"), y, fast_mode=True)
    assert torch.allclose(one.A_dagger(y), y)
    seen = im.Compose(im.Inpainting(GRID), im.Inpainting(torch.ones(4, 5, dtype=torch.bool)).H)  # no closed form
    y = normal(2, int(GRID.sum())).requires_grad_()
    z = normal(2, 20).requires_grad_()
    assert gradcheck(lambda z, y: seen.prox(z, y, 2.0, solver=SOLVER, on_failure="raise"), (z, y), fast_mode=True)
    found = torch.autograd.grad(seen.A_dagger(y, solver=SOLVER, on_failure="raise").square().sum(), y)[0]
    assert torch.allclose(found, 2 * y)


def test_the_axis_that_is_undersampled_alone_gives_the_same_numbers():
    """`gram` transforms along it alone; and so does hybrid space."""
    x, plain = normal(2, 4, 5, dtype=C), im.Sense(MAPS, MASK)
    whole = plain.A_adjoint(plain.A(x))
    assert plain.coil.varying == (-1,)
    assert torch.allclose(plain.gram(x), whole, atol=1e-14)
    hybrid = im.Sense(MAPS, MASK, dims=(-1,))
    assert torch.allclose(im.ifftc(plain.A(x), (-2,)), hybrid.A(x), atol=1e-14)
    slab = im.Sense(MAPS[:, 1:3], MASK, dims=(-1,))
    assert torch.allclose(slab.A(x[:, 1:3]), hybrid.A(x)[:, :, 1:3], atol=1e-14)
    spelt_out = im.Sense(MAPS, MASK.expand(4, 5))
    assert spelt_out.coil.varying == (-1,)
    assert torch.equal(spelt_out.A(x), plain.A(x))


def test_operators_of_the_samples_own():
    """Samples with masks, maps and kernels of their own are what they are alone; `take` narrows to some."""
    masks = im.cartesian(5, 2, 0.2, seed=range(3))
    maps, scans = normal(3, 2, 4, 5, dtype=C), normal(3, 4, 5, dtype=C, seed=1)
    kernels, images = normal(3, 1, 3, 3), normal(3, 2, 5, 5)
    rows = torch.tensor([2, 0])
    first = im.Fourier(masks[0])
    cases = [
        (im.Sense(maps, masks), lambda i: im.Sense(maps[i], masks[i])),
        (im.Sense(maps[0], masks), lambda i: im.Sense(maps[0], masks[i])),
        (im.Sense(maps, masks[0]), lambda i: im.Sense(maps[i], masks[0])),
        (im.Fourier(masks), lambda i: im.Fourier(masks[i])),
        (im.Blur(kernels), lambda i: im.Blur(kernels[i, 0])),
        (im.Blur(kernels, "circular"), lambda i: im.Blur(kernels[i, 0], "circular")),
        (2 * (im.Fourier(masks) + first), lambda i: 2 * (im.Fourier(masks[i]) + first)),
    ]
    for all_, one in cases:
        x = images if isinstance(all_, im.Blur) else scans
        y = all_.A(x)
        for i in range(3):
            assert torch.allclose(y[i], one(i).A(x[i : i + 1])[0], atol=1e-13)
        assert torch.equal(all_.take(rows).A(x[rows]), y[rows])
        assert torch.equal(all_.take(rows).gram(x[rows]), all_.gram(x)[rows])
        assert torch.equal(all_.take(rows).A_adjoint(y[rows]), all_.A_adjoint(y)[rows])


def test_norms_where_no_images_are_given_and_where_steps_are_too_few():
    sense = im.Sense(MAPS, GRID)
    exact = torch.linalg.matrix_norm(matrix(sense, (4, 5), C), 2)
    assert torch.allclose(sense.norm(), exact, rtol=1e-3)
    assert sense.norm().shape == (1,)
    assert torch.allclose(sense.norm_bound(), MAPS.abs().square().sum(0).max().sqrt())
    assert torch.equal(LINES.norm(), torch.ones(1))
    assert torch.allclose((2 * LINES).norm(normal(2, 4, 5, dtype=C)), torch.full((2,), 2.0, dtype=D))
    with pytest.warns(ti.ConvergenceWarning, match=r"Blur.norm: known to .* after 2 steps, asked for"):
        im.Blur(KERNEL).norm(normal(1, 1, 9, 9), rtol=1e-9, max_steps=2)
    with pytest.raises(ValueError, match=r"Blur.norm\(like=None\): expected images .*try norm\(x\)"):
        im.Blur(KERNEL).norm()


def test_a_solve_that_fails_says_so():
    blur, y = im.Blur(im.gaussian_kernel(5, 1.5).double(), "reflect"), normal(2, 1, 8, 8)
    few = ti.CG(rtol=1e-10, max_steps=1)
    with pytest.raises(ti.ConvergenceError):
        blur.prox(y, y, 100.0, solver=few, on_failure="raise")
    with pytest.warns(ti.ConvergenceWarning):
        blur.A_dagger(y, solver=few)
    y[0, 0, 0, 0] = torch.nan
    with pytest.raises(ti.ConvergenceError) as caught:
        blur.prox(y, y, 1.0, on_failure="raise")
    assert caught.value.report.status.tolist() == [ti.Status.NON_FINITE, ti.Status.CONVERGED]


def test_parameters_stay_parameters_and_precisions_those_of_images():
    blur = im.Blur(torch.nn.Parameter(KERNEL.clone()))
    assert [name for name, _ in blur.named_parameters()] == ["kernel"]
    assert not im.Sense(MAPS, GRID).state_dict()
    for operator, shape, dtype in OPERATORS.values():
        single = torch.complex64 if dtype is C else torch.float32
        y = operator.A(torch.ones(1, *shape, dtype=single))
        assert y.dtype in (torch.float32, torch.complex64)
        assert operator.A_adjoint(y).dtype in (torch.float32, torch.complex64)
        assert operator.A(torch.ones(1, *shape, dtype=dtype)).dtype in (D, C)


def test_anything_with_both_methods_composes():
    class Half:
        def A(self, x):
            return x / 2

        def A_adjoint(self, y):
            return y / 2

    x = normal(2, 4, 5, dtype=C)
    for operator in (LINES @ Half(), LINES + Half(), im.Stack(LINES, Half()), im.Scaled(Half(), 2j)):
        check_operator(operator, x)
    assert torch.allclose((LINES @ Half()).A(x), LINES.A(x) / 2)
    with pytest.raises(TypeError, match="unsupported operand"):
        LINES @ 3
    with pytest.raises(TypeError, match="unsupported operand"):
        LINES + torch.ones(3)
    with pytest.raises(TypeError):
        LINES * "2"


def test_what_is_seen_and_what_is_grey():
    image = torch.rand(1, 3, 4, 4, dtype=D)
    grey = 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]
    assert torch.allclose(im.Greyscale().A(image)[:, 0], grey)
    seen = im.Inpainting(torch.tensor([True, False, True]))
    assert torch.equal(seen.A(torch.arange(6.0).view(2, 3)), torch.tensor([[0.0, 2.0], [3.0, 5.0]]))


def test_weights_of_grey_are_constants():
    with pytest.raises(TypeError, match=r"Greyscale\(weights\): got a tensor that requires a gradient"):
        im.Greyscale(torch.tensor([0.3, 0.6, 0.1], requires_grad=True))
