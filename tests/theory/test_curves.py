"""The map of curves: its inverse, exact condition numbers against dense and sampled ones, and the recursion of theorem 3."""

import numpy as np
import pytest
import torch

from gradoscope.problems._curves import draw_slopes, windows
from gradoscope.theory import curves


def test_the_second_difference_is_the_exact_inverse_and_the_dictionary_has_none():
    n = 50
    np.testing.assert_array_equal(curves.integrator(n) @ curves.second_difference(n), np.eye(n))
    assert np.linalg.matrix_rank(curves.dictionary(n)) == n - 1


def test_the_integrator_is_the_curve_one_point_later():
    n, a, theta = 12, (0.7, -1.3), (2, 5)
    p = np.zeros(n)
    p[list(theta)] = a
    f = [sum(c * max(x - t, 0) for c, t in zip(a, theta, strict=True)) for x in range(1, n + 1)]
    np.testing.assert_allclose(curves.integrator(n) @ p, f)


@pytest.mark.parametrize("n", [3, 4, 10, 40])
def test_condition_number_of_the_integrator_against_a_dense_one(n: int):
    assert curves.integrator_condition(n) == pytest.approx(np.linalg.cond(curves.integrator(n)) ** 2, rel=1e-8)


def test_published_values_and_limits():
    assert curves.integrator_condition(100) / 100**4 == pytest.approx(1.3460, abs=1e-4)
    assert curves.integrator_condition(1600) / 1600**4 == pytest.approx(1.2975, abs=1e-4)
    assert curves.filter_condition(1600) / 1600**3 == pytest.approx(1.5033, abs=1e-4)
    # the error of the limit falls as 1/n
    errors = [curves.integrator_condition(n) / n**4 - curves.integrator_limit() for n in (400, 800)]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.02)
    values = np.linalg.svd(curves.integrator(400), compute_uv=False)
    assert values[0] / 400**2 == pytest.approx(1 / curves.beam_root() ** 2, rel=0.01)
    assert values[-1] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("law", ["paper", "code"])
def test_second_moments_against_many_drawn_curves(law: str):
    n = 16
    p = draw_slopes(law, 400_000, n, 3, torch.Generator().manual_seed(3))
    exact, sampled = curves.moment(n, law), (p.T @ p / len(p)).numpy()
    spread = ((p.T**2 @ p**2 / len(p)).numpy() / len(p)) ** 0.5
    assert (np.abs(sampled - exact) < 5 * spread + 1e-12).all()
    x = windows(p @ torch.from_numpy(curves.integrator(n)).T)
    for edge, rows in (("extended", x), ("valid", x[:, 2:])):
        each = torch.einsum("nta,ntb->nab", rows, rows) / rows.shape[1]
        c = curves.filter_moment(n, law, edge)
        assert (np.abs(each.mean(0).numpy() - c) < 5 * (each.std(0) / len(p) ** 0.5).numpy()).all()
        assert curves.filter_condition(n, law, edge) == pytest.approx(np.linalg.cond(c), rel=1e-6)


def test_every_triple_of_places_by_hand():
    n, total, count = 10, np.zeros((10, 10)), 0
    for i in range(3, 7):
        for j in range(i + 1, 7):
            for k in range(j + 1, 7):
                for slopes in curves.PATTERNS:
                    p = np.zeros(n)
                    p[[i, j, k]] = np.diff(slopes, prepend=0)
                    total, count = total + np.outer(p, p), count + 1
    np.testing.assert_allclose(curves.moment(n, "code"), total / count, atol=1e-14)


def test_jacobi_scaling_against_loops_and_its_bound():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 4)) * [1, 10, 100, 1000]
    a = a.T @ a
    slow = np.array([[a[i, j] / (a[i, i] * a[j, j]) ** 0.5 for j in range(4)] for i in range(4)])
    assert curves.jacobi_condition(a) == pytest.approx(np.linalg.cond(slow))
    c = curves.filter_moment(100)
    best = min(np.linalg.cond(c * np.outer(s, s)) for s in np.exp(rng.normal(size=(2000, 3))))
    assert best > curves.jacobi_condition(c) / 3  # van der Sluis
    assert curves.spectral_condition(np.diag([1.0, 0.0])) == np.inf


def test_steps_of_descent_against_running_it():
    c = curves.filter_moment(12)
    h, goal = 2 * c, np.array([1.0, -2.0, 1.0])
    rate = 1 / np.linalg.eigvalsh(h)[-1]
    w, steps = np.zeros(3), 0
    while np.abs(w - goal).max() >= 0.05:
        w, steps = w - rate * h @ (w - goal), steps + 1
    assert curves.descent_steps(h, -goal, tolerance=0.05, rate=rate) == steps
    with pytest.raises(ValueError, match="does not reach"):
        curves.descent_steps(h, -goal, tolerance=0.05, rate=3 * rate)


@pytest.mark.parametrize("loss", ["half", "plain"])
@pytest.mark.parametrize("scaled", [0.3, 0.99, 1.7])
def test_closed_form_against_the_recursion(scaled: float, loss: str):
    if loss == "plain" and scaled > 1:
        assert curves.contraction(8, scaled, loss) > 1
        return
    for t in (1, 2, 37):
        np.testing.assert_allclose(curves.expected_iterate(8, t, scaled, loss), curves.recursion(8, t, scaled, loss), atol=1e-10)
        away = curves.expected_iterate(8, t, scaled, loss) - curves.second_difference(8)
        assert curves.distance(8, t, scaled, loss) == pytest.approx(np.linalg.norm(away, 2))


def test_thresholds_and_the_lower_bound():
    for loss, threshold in (("half", 2.0), ("plain", 1.0)):
        assert curves.contraction(30, threshold - 0.01, loss) < 1 < curves.contraction(30, threshold + 0.01, loss)
        assert curves.distance(6, 5000, threshold + 0.01, loss) > 1e3 * curves.distance(6, 0, threshold + 0.01, loss)
    horizon = int(curves.integrator_condition(30) / 2) - 1
    assert curves.distance(30, horizon, 0.5) == pytest.approx(4 * np.exp(-0.25), abs=0.02)
    assert curves.distance(30, horizon, 0.99) == pytest.approx(4 * np.exp(-0.495), abs=0.02)
