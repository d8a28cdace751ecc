import math
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def polytope():
    return runpy.run_path(str(EXAMPLES / "polytope.py"))


@pytest.fixture(scope="module")
def denoise():
    return runpy.run_path(str(EXAMPLES / "tv_denoise.py"))


def square(edge, centre=(0.0, 0.0)):
    normals = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.6, 0.8]])
    offsets = torch.tensor([edge / 2] * 4 + [5.0])  # the last face touches nothing
    return normals, offsets + normals @ torch.tensor(centre)


def test_corners_distances_and_errors_of_squares(polytope):
    corners = polytope["corners"](*square(2.0))
    assert corners.tolist() == [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    assert polytope["area"](corners) == 4
    points = torch.tensor([[0.5, -0.5], [3.0, 0.0], [4.0, 5.0]])
    assert polytope["distance"](points, *square(2.0)).tolist() == pytest.approx([0, 2, 5])
    differ, apart = polytope["errors"](square(2.0, (0.5, 0.0)), square(2.0))
    assert differ == pytest.approx(0.5)
    assert apart == pytest.approx(0.5 / math.sqrt(8))
    assert polytope["errors"](square(2.0), square(2.0)) == pytest.approx((0, 0), abs=1e-6)


def test_points_are_inside_up_to_the_margin_and_the_faces_feel_it(polytope):
    shape = polytope["Polytope"](4, 0.0)
    with torch.no_grad():
        shape.reach.fill_(1.0)  # softplus(1) at ten times the steepness: 1.0000045
    x = torch.tensor([[0.0, 0.0], [0.95, 0.0], [1.2, 0.1]])
    depth = shape(x, 0.1)
    assert depth.tolist() == pytest.approx([0.1, 0.05, -0.2], abs=1e-4)
    depth[1:].sum().backward()
    assert shape.reach.grad.tolist() == pytest.approx([2, 0, 0, 0], abs=1e-3)


def test_the_polytope_is_found(polytope, tmp_path, capsys):
    picture = tmp_path / "polytope.png"
    differ, apart = polytope["main"](points=800, steps=80, file=str(picture))
    assert differ < 0.05
    assert apart < 0.05
    assert picture.stat().st_size > 10_000
    assert "6 true" in capsys.readouterr().out


def test_the_weight_of_signals_is_the_best_of_a_grid(denoise, capsys):
    clean = denoise["steps_of"](16, torch.Generator().manual_seed(0))
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    weights = torch.logspace(-1.5, 0.5, 101, dtype=torch.float64)
    learned, best = denoise["compare"]("signals", denoise["prox"].total_variation, clean, noisy, weights, 60)
    assert weights[0] < best < weights[-1]
    assert learned == pytest.approx(best, rel=0.05)
    assert "best of 101" in capsys.readouterr().out


def test_the_weight_of_images_falls_along_the_error(denoise):
    clean = denoise["photographs"](16)
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    log = torch.tensor(math.log(0.04), dtype=torch.float64, requires_grad=True)

    def loss(log):
        return denoise["error"](denoise["prox"].total_variation_2d, clean, noisy, log.exp())

    (slope,) = torch.autograd.grad(loss(log), log)
    with torch.no_grad():
        difference = (loss(log + 1e-3) - loss(log - 1e-3)) / 2e-3
    assert slope.item() == pytest.approx(difference.item(), rel=0.05)


def test_noise_is_seen_through_few_jumps(denoise):
    clean = denoise["steps_of"](50, torch.Generator().manual_seed(0), length=1000)
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert denoise["visible_noise"](noisy).mean().item() == pytest.approx(0.2, rel=0.1)
