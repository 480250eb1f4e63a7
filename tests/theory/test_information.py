"""Bounds and tails against draws, integrals and enumeration."""

import math

import pytest
import torch
from scipy import integrate

from gradoscope.errors import CannotRun
from gradoscope.theory.information import (
    chebyshev_tail,
    fourier_tail,
    gaussian_fourier_tail,
    mixture_fourier_tail,
    oracle_departures,
    pair_distances,
    parity_variance,
    printed_target_part,
    share_above,
    target_part,
    uniform_fourier_tail,
    variance_bound,
)

RANDOM = torch.Generator().manual_seed(0)


def hinge_slope(t):
    return -(t < 1).double()


def test_pairs_by_enumeration():
    g = torch.randn(6, 4, dtype=torch.float64, generator=RANDOM) + 1e3
    slow = torch.tensor([[float((a - b).square().sum()) for a in g] for b in g], dtype=torch.float64)
    torch.testing.assert_close(pair_distances(g), slow, rtol=1e-9, atol=1e-10)
    variance = float((g - g.mean(0)).square().sum(1).mean())
    assert math.isclose(float(pair_distances(g).mean()), 2 * variance, rel_tol=1e-9)


def test_tails_are_at_least_what_happens():
    distances = torch.randn(500, 3, dtype=torch.float64, generator=RANDOM).norm(dim=1)
    t = [0.5, 1.0, 2.0, 3.0]
    bound = chebyshev_tail(float(distances.square().mean()), t)
    assert bool((share_above(distances, t) <= bound).all())
    assert share_above(distances, [2.0])[0] == (distances >= 2.0).double().mean()


@pytest.mark.parametrize("p", [-2.5, -0.3, 0.0, 0.9, 1.5])
def test_the_target_part_is_the_difference_over_targets(p):
    leaf = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    up, down = (float(torch.autograd.grad(torch.relu(1 - leaf * h), leaf)[0]) for h in (1.0, -1.0))
    where = torch.tensor(p, dtype=torch.float64)
    assert float(target_part(hinge_slope, where)) == (up - down) / 2
    if abs(p) < 1:
        assert float(printed_target_part(hinge_slope, where)) == 0 != (up - down) / 2


def test_the_closed_form_by_enumeration():
    d = 4
    g = torch.randn(2**d, dtype=torch.float64, generator=RANDOM)
    signals = [sum((-1) ** bin(v & x).count("1") * float(g[x]) for x in range(2**d)) / 2**d for v in range(2**d)]
    centre = sum(signals) / 2**d
    slow = sum((s - centre) ** 2 for s in signals) / 2**d
    assert math.isclose(parity_variance(float(g.square().mean()), float(g[0] ** 2), d), slow, rel_tol=1e-12)
    assert slow <= variance_bound(float(g.square().mean()), 2**d)


@pytest.mark.parametrize("variances", [[1.0, 1.0], [0.5, 1.0, 4.0], [0.3, 0.3, 2.0, 2.0]])
def test_gaussian_tails_against_draws(variances):
    s = torch.tensor(variances, dtype=torch.float64)
    omega = torch.randn(200_000, len(s), dtype=torch.float64, generator=RANDOM) / (2 * s.sqrt())
    for r in (0.5, 1.0, 1.5):
        share = float((omega.norm(dim=1) > r).double().mean())
        error = math.sqrt(share * (1 - share) / 200_000) + 1e-6
        assert abs(gaussian_fourier_tail(r, variances) - share) < 4 * error


def test_far_tails_keep_their_relative_accuracy():
    # in the plane with variances a < b: an integral over the angle
    a, b, r = 0.5, 3.0, 4.0

    def of_angle(t):
        q = 2 * (a * math.cos(t) ** 2 + b * math.sin(t) ** 2)
        return 4 * math.sqrt(a * b) / (2 * math.pi) * math.exp(-q * r * r) / (2 * q)

    exact = integrate.quad(of_angle, 0, 2 * math.pi, epsabs=0, epsrel=1e-11, limit=500)[0]
    assert math.isclose(gaussian_fourier_tail(r, [a, b]), exact, rel_tol=1e-8)
    assert exact < 1e-7


@pytest.mark.parametrize("r", [0.7, 2.0])
def test_the_transform_of_any_density(r):
    normal = fourier_tail(lambda x: torch.exp(-x.square() / (2 * 0.49)), r, half_width=20.0)
    assert math.isclose(normal, gaussian_fourier_tail(r, [0.49]), rel_tol=5e-3)
    box = fourier_tail(lambda x: (x.abs() <= 1).double(), r, half_width=8.0)
    assert math.isclose(box, uniform_fourier_tail(r), rel_tol=1e-2)


def test_the_uniform_tail_is_its_integral():
    inside = integrate.quad(lambda w: (math.sin(w) / w) ** 2 / math.pi, 1e-12, 3.0)[0] * 2
    assert math.isclose(uniform_fourier_tail(3.0), 1 - inside, rel_tol=1e-6)
    assert math.isclose(uniform_fourier_tail(1.5, half_width=2.0), 1 - inside, rel_tol=1e-6)


def test_a_mixture_is_as_bad_as_its_worst_component():
    assert mixture_fourier_tail(2.0, [[0.5, 0.5], [2.0, 2.0]]) == gaussian_fourier_tail(2.0, [0.5, 0.5])


def test_departures_by_hand():
    path = [torch.tensor(v) for v in ([0.1, 0.5, 0.0], [0.3, 0.1, 0.0], [0.9, 0.2, 0.0])]
    first, bound = oracle_departures(0, lambda i: (i + 1, path[i]), [0.2, 0.4], 3)
    assert first.tolist() == [[1, 0, 3], [2, 0, 3]]
    departed = [(first[0] <= t).double().mean() for t in range(3)]
    assert all(d <= b + 1e-12 for d, b in zip(departed, bound[:, 0], strict=True))


def test_bad_calls_are_told():
    with pytest.raises(CannotRun, match="positive variances"):
        gaussian_fourier_tail(1.0, [1.0, 0.0])
    with pytest.raises(CannotRun, match="use more points"):
        fourier_tail(lambda x: torch.exp(-x.square()), 1e6, half_width=10.0)
    with pytest.raises(CannotRun, match="zero on the whole grid"):
        fourier_tail(torch.zeros_like, 1.0, half_width=10.0)


def test_tails_below_every_number_are_zero():
    assert gaussian_fourier_tail(100.0, [0.5, 4.0]) == 0.0
    with pytest.raises(CannotRun, match="differ too much"):
        gaussian_fourier_tail(1.0, [1e-4, 1.0])
