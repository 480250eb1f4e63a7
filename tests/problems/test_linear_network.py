"""Linear networks: whitened inputs, the saddle's eigenvalues, and who leaves it."""

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.training import Live


def test_inputs_are_whitened_and_the_target_has_the_singular_values():
    x, y = (t.double() for t in find("linear-network:saddle", seed=5).data)
    np.testing.assert_allclose((x.T @ x / len(x)).numpy(), np.eye(10), atol=1e-6)
    gamma = torch.linalg.lstsq(x, y).solution.T
    np.testing.assert_allclose(torch.linalg.svdvals(gamma).numpy(), [3, 2, 1] + [0] * 7, atol=1e-6)


def test_hessian_at_the_start_has_plus_and_minus_the_singular_values():
    training = find("linear-network:saddle,d=4,rows=12")
    live = Live.of(training)
    x, y = (t.double() for t in training.data)
    theta = torch.cat([p.detach().double().reshape(-1) for p in live.model.parameters()])

    def loss(t):
        w1, w2 = t[:16].reshape(4, 4), t[16:].reshape(4, 4)
        return 0.5 * (x @ w1.T @ w2.T - y).square().sum(1).mean()

    assert float(torch.autograd.functional.jacobian(loss, theta).norm()) < 1e-6
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta)).numpy()
    expected = sorted([s * v for v in (3, 2, 1, 0) for s in (-1, 1) for _ in range(4)])
    np.testing.assert_allclose(eigenvalues, expected, atol=1e-5)


def test_the_plain_run_never_leaves_the_plateau_but_a_longer_one_would(train):
    stuck = train(find("linear-network:saddle"))
    assert stuck.losses[0] == pytest.approx((9 + 4 + 1) / 2, rel=1e-5)
    assert stuck.losses[-1] == pytest.approx(stuck.losses[0], rel=1e-5)
    assert train(find("linear-network:saddle,steps=400")).losses[-1] < 0.5 * stuck.losses[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_learns_the_target(train, seed):
    training = find("linear-network:healthy", seed=seed)
    assert train(training, seed=seed).on(training.validation)[0] < 1e-3


def test_bad_options():
    with pytest.raises(Usage, match="d >= 3"):
        find("linear-network:saddle,d=2")
