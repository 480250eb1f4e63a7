"""The closed form behind theorem 3 against simulation."""

import math

import pytest
import torch

from gradoscope.theory.products import product_bound, product_model_variance, sign_direction_moment


@pytest.mark.parametrize(("d", "m"), [(3, 1), (5, 2), (8, 3)])
def test_moments_of_a_direction(d: int, m: int) -> None:
    u = torch.nn.functional.normalize(torch.randn(100_000, d, generator=torch.Generator().manual_seed(m), dtype=torch.float64), dim=1)
    powers = u[:, 0] ** (2 * m)
    assert float(powers.mean()) == pytest.approx(sign_direction_moment(d, m), abs=4 * float(powers.std()) / math.sqrt(100_000))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_variance_of_the_product_predictor(k: int) -> None:
    d, n, directions = 3, 50_000, 100
    random = torch.Generator().manual_seed(k)
    w = torch.zeros(d, dtype=torch.float64)
    w[0] = 1.0
    u = torch.nn.functional.normalize(torch.randn(directions, d, generator=random, dtype=torch.float64), dim=1)
    halves, square = [], 0.0
    for _ in range(2):
        x = torch.randn(n, k, d, generator=random, dtype=torch.float64)
        along = x @ w
        g = sum(x[:, j] * along[:, [i for i in range(k) if i != j]].prod(1)[:, None] for j in range(k))
        assert isinstance(g, torch.Tensor)
        square += float(g.square().sum(1).mean()) / 2
        mean = (x @ u.T).sign().prod(1).T @ g / n
        halves.append(mean - mean.mean(0))
    per_direction = (halves[0] * halves[1]).sum(1)
    measured = float(per_direction.sum()) / (directions - 1) / square
    error = float(per_direction.std()) / math.sqrt(directions) / square
    assert measured == pytest.approx(product_model_variance(d, k), abs=4 * error)


def test_the_bound_is_far_above() -> None:
    for d in (16, 128, 784):
        for k in (1, 2, 3, 4):
            assert product_model_variance(d, k) < product_bound(d, k)
