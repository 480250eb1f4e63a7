"""Curves: the map and its inverse, the step size, and how slow plain gradient descent is."""

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.curves import draw_breakpoints, half_squared_error, integrator
from gradoscope.training import Live


def test_integrator_against_loops_and_its_inverse_takes_second_differences():
    n = 9
    slow = [[max(i - j + 1, 0) for j in range(n)] for i in range(n)]
    assert integrator(n).tolist() == slow
    second = np.eye(n) - 2 * np.eye(n, k=-1) + np.eye(n, k=-2)
    np.testing.assert_allclose(np.linalg.inv(integrator(n).numpy()), second, atol=1e-10)


def test_condition_number_grows_with_the_fourth_power():
    small, large = (np.linalg.cond(integrator(n).numpy()) ** 2 for n in (50, 100))
    assert np.log2(large / small) == pytest.approx(3.946, abs=0.01)  # the measured exponent from 50 to 100


def test_breakpoints_are_k_different_places_with_changes_in_range():
    p = draw_breakpoints(500, 20, 3, torch.Generator().manual_seed(1))
    assert ((p != 0).sum(1) == 3).all()
    assert float(p.abs().max()) <= 1
    assert ((p != 0).double().mean(0) - 3 / 20).abs().max() < 0.06


def test_step_size_is_one_over_the_largest_eigenvalue():
    training = find("curves:linear,n=20,curves=50", seed=2)
    f = training.data[0].numpy()
    slow = sum(np.outer(row, row) for row in f) / len(f)
    assert Live.of(training).optimizer.param_groups[0]["lr"] == pytest.approx(1 / np.linalg.eigvalsh(slow)[-1], rel=1e-9)


def test_the_optimum_is_exact_and_gradient_descent_stays_far_from_it(train):
    training = find("curves:linear")
    f, p = training.data
    exact = torch.linalg.inv(integrator(100))
    assert float(half_squared_error(f @ exact.T, p)) < 1e-15
    trained = train(training, steps=200)
    start, end = trained.losses[0], trained.on(training.data)[0]
    assert start == pytest.approx(float(0.5 * p.square().sum(1).mean()))  # U = 0 predicts nothing
    assert 0.9 * start < end < start
    assert all(b <= a for a, b in zip(trained.losses, trained.losses[1:], strict=False))  # the step is safe


def test_bad_options():
    with pytest.raises(Usage, match="1 <= k <= n"):
        find("curves:linear,n=5,k=6")
