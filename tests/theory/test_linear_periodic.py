"""Closed forms against draws, automatic differentiation, and each other."""

import math

import pytest
import torch

from gradoscope.errors import CannotRun
from gradoscope.theory.laws import GaussianMixture, UniformCube, standard
from gradoscope.theory.linear_periodic import (
    critical_points,
    descend,
    find_critical_points,
    gradient,
    hessian,
    loss,
    mean_gradient,
    on_sphere,
    sphere_variance,
    target_distances,
    variance_over_targets,
)

D = 3


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixture() -> GaussianMixture:
    draw = random(5)
    means = torch.randn(2, D, dtype=torch.float64, generator=draw)
    return GaussianMixture(
        torch.tensor([0.3, 0.7], dtype=torch.float64), means, torch.rand(2, D, dtype=torch.float64, generator=draw) + 0.2
    )


LAWS = {"standard": standard(D), "anisotropic": standard(D, [0.5, 1.0, 3.0]), "mixture": mixture(), "uniform": UniformCube(D, 1.7)}


@pytest.mark.parametrize("name", LAWS)
def test_the_loss_against_draws(name):
    law, n = LAWS[name], 200_000
    w, target = on_sphere(2, D, 1.3, random(1))
    x = law.sample(n, random(2))
    each = (torch.cos(x @ w) - torch.cos(x @ target)).square()
    assert abs(float(each.mean()) - float(loss(w, target, law))) < 4 * float(each.std()) / math.sqrt(n)
    assert math.isclose(float(loss(w, target, law, half=True)), float(loss(w, target, law)) / 2)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_derivatives_against_automatic_ones(name, half):
    law = LAWS[name]
    w = on_sphere(4, D, 1.3, random(1))
    w[3, 0] = 0.0  # where the uniform law's formula is 0/0
    target = on_sphere(1, D, 0.9, random(2))[0]
    for row in w:
        auto = torch.func.grad(lambda v: loss(v, target, law, half=half))(row)
        torch.testing.assert_close(gradient(row, target, law, half=half), auto, rtol=1e-9, atol=1e-12)
        if name != "uniform":
            twice = torch.func.hessian(lambda v: loss(v, target, law, half=half))(row)
            torch.testing.assert_close(hessian(row, target, law, half=half), twice, rtol=1e-8, atol=1e-11)
            if name == "standard":
                torch.testing.assert_close(hessian(row, target, half=half), twice, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3, 6])
@pytest.mark.parametrize("r", [0.6, 1.5, 4.0])
def test_critical_points_have_no_gradient_and_the_kinds_of_the_text(d, r):
    target = on_sphere(1, d, r, random(d))[0]
    points = critical_points(target)
    for p in points:
        scale = (p.w - target).norm() * torch.exp(-(p.w - target).square().sum() / 2) + 1e-9
        assert float(gradient(p.w, target).norm() / scale) < 1e-6
    assert [p.kind for p in points[:3]] == ["minimum", "minimum", "maximum"]
    assert abs(points[0].loss) < 1e-12
    for p in points[3:]:
        assert abs(float(p.w @ target)) < 1e-12
        assert math.isclose(float(p.w.norm()), r / math.sqrt(3))
        assert p.eigenvalues[0] < 0 < p.eigenvalues[-1]


def test_the_numbers_of_the_slides_target():
    saddle = critical_points(torch.tensor([2.0, 2.0], dtype=torch.float64))[-1]
    assert round(saddle.loss, 4) == 0.9928
    assert [round(v, 4) for v in saddle.eigenvalues.tolist()] == [-0.0772, 0.0772]


def test_search_finds_the_five_and_nothing_else():
    target = torch.tensor([1.5, -2.0], dtype=torch.float64)
    starts = (torch.rand(300, 2, dtype=torch.float64, generator=random(3)) * 2 - 1) * 4
    found, reached = find_critical_points(target, starts)
    assert reached > 0.95
    assert sorted(p.kind for p in found) == ["maximum", "minimum", "minimum", "saddle", "saddle"]
    known = torch.stack([p.w for p in critical_points(target)])
    assert all(float((known - p.w).norm(dim=1).min()) < 1e-7 for p in found)


@pytest.mark.parametrize(("size", "r", "d"), [(1.0, 1.0, 10), (0.7, 2.0, 2), (2.0, 2.0, 3), (1.0, 4.0, 5)])
def test_the_integral_over_targets_against_draws(size, r, d):
    w = torch.zeros(d, dtype=torch.float64)
    w[0] = size
    targets = on_sphere(40_000, d, r, random(4))
    drawn, error = variance_over_targets(w, targets)
    assert abs(drawn - sphere_variance(size, r, d)) < 4 * error
    each = gradient(w, targets, half=True)
    mean = each.mean(0)
    spread = each.std(0) / math.sqrt(len(each))
    assert abs(float(mean[0]) - mean_gradient(size, r, d)) < 4 * float(spread[0])
    assert bool((mean[1:].abs() < 5 * spread[1:]).all())
    slow = (each - torch.nn.functional.pad(torch.tensor([mean_gradient(size, r, d)]), (0, d - 1))).norm(dim=1)
    torch.testing.assert_close(target_distances(size, r, d, targets[:, 0] / r), slow, rtol=1e-6, atol=1e-9)


def test_variances_of_the_baseline():
    found = [sphere_variance(1.0, r, 10) for r in (1, 2, 4, 6, 8)]
    for value, earlier in zip(found, (1.2e-2, 1.2e-2, 3.3e-6, 2.1e-13, 5.2e-24), strict=True):
        assert abs(value / earlier - 1) < 0.15  # earlier: 20,000 draws
    assert sphere_variance(1.0, 12.0, 2) < 1e-40  # nothing is lost to rounding of what the targets share


def test_mixtures_are_convex():
    law = LAWS["mixture"]
    w, targets = on_sphere(1, D, 1.0, random(6))[0], on_sphere(500, D, 2.0, random(7))
    whole = variance_over_targets(w, targets, law)[0]
    one = torch.ones(1, dtype=torch.float64)
    parts = [
        variance_over_targets(w, targets, GaussianMixture(one, m[None], s[None]))[0] for m, s in zip(law.means, law.variances, strict=True)
    ]
    assert whole <= float(law.weights @ torch.tensor(parts, dtype=torch.float64))


def test_descent_finds_slow_targets_and_is_alone_in_its_row():
    starts, targets = on_sphere(20, 4, 1.0, random(8)), on_sphere(20, 4, 1.0, random(9))
    ends = descend(starts, targets, steps=500)
    assert float(loss(ends, targets, half=True).max()) < 1e-6
    alone = descend(starts[7:8], targets[7:8], steps=500)
    torch.testing.assert_close(alone, ends[7:8], rtol=1e-12, atol=1e-14)


def test_a_line_has_no_sphere():
    with pytest.raises(CannotRun, match="at least 2 dimensions"):
        sphere_variance(1.0, 1.0, 1)
