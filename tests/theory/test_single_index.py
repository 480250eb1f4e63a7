"""GLMtron and Isotron against slow loops, and their bound on problems where it is nearly tight."""

import math

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems.steps import Ramp
from gradoscope.theory.single_index import error_bound, glmtron, isotron, iterations_bound, second_moment


def problem(lipschitz, seed=0, n=60, d=4):
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(d, generator=draw, dtype=torch.float64) * 2
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    u = Ramp(lipschitz).double()
    return x, u(x @ w), u, w


def pool_adjacent(r, y):
    """Isotonic regression as its definition has it: merge neighbours while they fall."""
    blocks = [[float(y[i]), 1] for i in np.argsort(r, kind="stable")]
    i = 0
    while i < len(blocks) - 1:
        if blocks[i][0] > blocks[i + 1][0]:
            (a, m), (b, k) = blocks[i], blocks.pop(i + 1)
            blocks[i] = [(a * m + b * k) / (m + k), m + k]
            i = max(i - 1, 0)
        else:
            i += 1
    out = np.empty(len(y))
    out[np.argsort(r, kind="stable")] = np.repeat([b[0] for b in blocks], [b[1] for b in blocks])
    return out


def test_second_moment_against_the_definition():
    x = problem(2.0)[0]
    slow = max(np.linalg.eigvalsh(sum(np.outer(a, a) for a in x.numpy()) / len(x)))
    assert float(second_moment(x)) == pytest.approx(slow)


def test_glmtron_against_a_loop():
    x, y, u, w = problem(3.0)
    run = glmtron(x, y, u, steps=25, lipschitz=3.0, target=w)
    v, rate = torch.zeros(4, dtype=torch.float64), 1 / (3.0 * second_moment(x))
    for t in range(26):
        error = torch.stack([u(v @ a) - b for a, b in zip(x, y, strict=True)])
        assert float(run.errors[t]) == pytest.approx(float(error.square().mean()))
        assert float(run.distances[t]) == pytest.approx(float((v - w).square().sum()))
        if t < 25:
            v = v - rate * sum(e * a for e, a in zip(error, x, strict=True)) / len(x)
    torch.testing.assert_close(run.weights, v)


def test_isotron_against_a_loop():
    x, y, _, _ = problem(3.0)
    run = isotron(x, y, steps=12, lipschitz=3.0)
    v, rate = np.zeros(4), float(1 / (3.0 * second_moment(x)))
    for t in range(13):
        r = x.numpy() @ v
        fit = np.full(len(y), float(y.mean())) if t == 0 else pool_adjacent(r, y.numpy())  # at w = 0 all sums are tied
        assert float(run.errors[t]) == pytest.approx(float(((fit - y.numpy()) ** 2).mean()), rel=1e-9, abs=1e-15)
        v = v - rate * ((fit - y.numpy()) @ x.numpy()) / len(x)


def test_problems_side_by_side_are_the_same_as_alone():
    pairs = [problem(2.0, seed) for seed in range(3)]
    x, y = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
    for together, alone in (
        (glmtron(x, y, pairs[0][2], steps=20, lipschitz=2.0), glmtron(*pairs[1][:3], steps=20, lipschitz=2.0)),
        (isotron(x, y, steps=8, lipschitz=2.0), isotron(*pairs[1][:2], steps=8, lipschitz=2.0)),
    ):
        torch.testing.assert_close(together.errors[:, 1], alone.errors)
        torch.testing.assert_close(together.weights[1], alone.weights)


@pytest.mark.parametrize("lipschitz", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("method", ["glmtron", "isotron"])
def test_the_theorem_holds_in_every_iteration(lipschitz, method):
    for seed in range(4):
        x, y, u, w = problem(lipschitz, seed)
        more = {"steps": 60, "lipschitz": lipschitz, "target": w}
        run = glmtron(x, y, u, **more) if method == "glmtron" else isotron(x, y, **more)
        moment = float(second_moment(x))
        fall = run.distances[:-1] - run.distances[1:]
        assert bool((fall >= run.errors[:-1] / (lipschitz**2 * moment) - 1e-12).all())
        for t in range(1, 61):
            assert float(run.errors[:t].min()) <= error_bound(lipschitz, moment, float(w.norm()), t)


def test_the_bound_is_met_with_equality_for_one_linear_example():
    x, w = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    run = glmtron(x, x @ w, lambda r: r, steps=1)
    assert float(run.errors[0]) == error_bound(1.0, 4.0, 3.0, 1) == 36.0
    assert float(run.errors[1]) == 0.0


def test_a_larger_step_than_the_theorem_allows_can_break_it():
    x, y, u, w = problem(1.0)
    run = glmtron(x, y, u, steps=40, step_size=2.5 / second_moment(x), target=w)
    assert float(run.distances[-1]) > float(run.distances[0])


def test_iterations_and_error_bounds_agree():
    for epsilon in (0.03, 0.1, 1.7):
        t = iterations_bound(3.0, 1.3, 4.0, epsilon)
        assert error_bound(3.0, 1.3, 4.0, t) <= epsilon**2 * (1 + 1e-9) < error_bound(3.0, 1.3, 4.0, t - 1)
    # O(L^2 / eps^2)
    assert iterations_bound(6.0, 1.0, 1.0, 0.1) == 4 * iterations_bound(3.0, 1.0, 1.0, 0.1)
    assert iterations_bound(3.0, 1.0, 1.0, 0.05) == 4 * iterations_bound(3.0, 1.0, 1.0, 0.1)


def test_what_makes_no_sense_is_refused():
    x, y, u, _ = problem(1.0)
    with pytest.raises(Usage):
        error_bound(1.0, 1.0, 1.0, 0)
    with pytest.raises(Usage):
        iterations_bound(1.0, 1.0, 1.0, 0.0)
    with pytest.raises(Usage):
        glmtron(x, y[:-1], u, steps=3)
    assert math.isfinite(float(glmtron(x, y, u, steps=1).errors[-1]))
