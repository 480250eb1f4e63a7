"""The variance over all parities against one gradient per parity, by plain differentiation; the sampled one against the exact one."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.target_variance import (
    cube,
    half_squared,
    hinge,
    logistic,
    mask_sizes,
    sampled_target_variance,
    target_variance,
    walsh_hadamard,
)

D = 5


def network(depth: int = 1, seed: int = 0, width: int = 7) -> nn.Sequential:
    with private_random(seed):
        sizes = [D, *[width] * depth]
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*layers, nn.Linear(width, 1))
        with torch.no_grad():
            model[-1].weight.mul_(4)  # so that |p| > 1 for some inputs: the hinge loss has two kinds of them
    return model


def one_by_one(model: nn.Module, loss, inputs: torch.Tensor) -> torch.Tensor:
    """The gradient of the mean loss for every parity, with one backward pass each; shape (2^D, P)."""
    model = model.double()
    rows = []
    for v in range(2**D):
        h = torch.tensor([(-1.0) ** bin(v & x).count("1") for x in range(2**D)], dtype=torch.float64)
        value = loss(model(inputs)[:, 0], h).mean()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    return torch.stack(rows)


@pytest.mark.parametrize("loss", [half_squared, hinge, logistic, lambda p, y: (p - y) ** 4])
@pytest.mark.parametrize("coding", ["signs", "bits"])
def test_every_gradient_is_that_of_plain_differentiation(loss, coding):
    model = network(2)
    found = target_variance(model, D, loss=loss, inputs=coding, keep=True)
    slow = one_by_one(model, loss, cube(D, coding))
    torch.testing.assert_close(found.gradients, slow, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.mean_gradient, slow.mean(0), rtol=1e-10, atol=1e-12)
    distances = (slow - slow.mean(0)).square().sum(1)
    torch.testing.assert_close(found.distances, distances, rtol=1e-9, atol=1e-14)
    assert math.isclose(found.variance, float(distances.mean()), rel_tol=1e-10)
    assert math.isclose(found.closed, found.variance, rel_tol=1e-9)
    assert found.parseval < 1e-12
    if loss in (half_squared, hinge, logistic):
        assert 0 < found.ratio <= 1


def test_turns_give_the_same_as_one():
    model = network(2)
    whole, parts = target_variance(model, D, keep=True), target_variance(model, D, keep=True, memory=16 * 2**D * 9)
    assert parts.cost.forward > whole.cost.forward
    assert parts.gradients.shape == whole.gradients.shape
    torch.testing.assert_close(parts.gradients, whole.gradients, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.spectrum, whole.spectrum, rtol=1e-12, atol=1e-15)
    assert math.isclose(parts.size, whole.size, rel_tol=1e-12)


def test_a_sure_network_has_a_quarter_of_the_hinge_bound():
    model = network()
    with torch.no_grad():
        model[-1].bias.fill_(1e3)
    found = target_variance(model, D, loss=hinge)
    assert math.isclose(found.weighted, found.size / 4, rel_tol=1e-12)


def test_the_spectrum_by_size_adds_up():
    found = target_variance(network(), D)
    counts = torch.tensor([math.comb(D, k) for k in range(D + 1)], dtype=torch.float64)
    assert math.isclose(float((found.by_size() * counts).sum()) * found.bound, float(found.spectrum.sum()), rel_tol=1e-12)
    small = float(found.spectrum[mask_sizes(D) <= 2].sum() / found.spectrum.sum())
    assert math.isclose(found.carried_by(2), small)
    assert found.to_measurement(3).value == found.ratio


def test_the_model_stays_as_it_is_and_frozen_parameters_are_left_out():
    model = network().float()
    model[0].weight.requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    found = target_variance(model, D)
    assert all(torch.equal(p, q) and p.dtype == torch.float32 for p, q in zip(before, model.parameters(), strict=True))
    assert len(found.mean_gradient) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_recurrent_network_that_reads_the_bits_in_turn():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.score = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.score(self.cell(x)[0][:, -1])

    with private_random(0):
        model = Reader()
    inputs = cube(D)[..., None]
    found = target_variance(model, D, inputs=inputs, keep=True)
    torch.testing.assert_close(found.gradients, one_by_one(model, half_squared, inputs), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("d", [0, 1, 3, 4, 6])
def test_the_transform_is_the_matrix(d):
    values = torch.randn(2**d, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(d))
    matrix = torch.from_numpy(hadamard(2**d)).double()
    torch.testing.assert_close(walsh_hadamard(values), matrix @ values)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(values)) / 2**d, values)


@pytest.mark.parametrize("loss", [half_squared, hinge])
def test_the_sampled_variance_is_unbiased(loss):
    model = network()
    exact = target_variance(model, D, loss=loss)
    found = sampled_target_variance(model, D, loss=loss, per_size=4, examples=200, batches=60, seed=1)
    assert abs(found.variance - exact.variance) < 4 * found.se
    assert abs(found.closed - exact.closed) < 4 * found.closed_se
    by_size = exact.by_size() * exact.bound
    for k, value in found.by_size.items():
        assert abs(value - float(by_size[k])) < 4 * found.by_size_se[k]
    # a biased one, |mean|^2 of the same draws, would be off by about G^2/n: the test can tell them apart
    assert exact.size / 200 > 4 * found.by_size_se[3]


def test_what_small_parities_contribute_at_thirty_bits():
    with private_random(0):
        model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))
    found = sampled_target_variance(model, 30, sizes=(0, 1, 2), examples=256, batches=4)
    again = sampled_target_variance(model, 30, sizes=(0, 1, 2), examples=256, batches=4)
    assert found.variance == again.variance
    assert 0.5 < found.variance / found.bound < 1.2
    assert math.isclose(found.closed, found.bound, rel_tol=1e-6)
    assert found.to_measurement().se == found.se / found.bound


def test_bad_calls_are_told():
    with pytest.raises(CannotRun, match="power of two"):
        walsh_hadamard(torch.ones(6))
    with pytest.raises(CannotRun, match="one number for each row"):
        target_variance(nn.Linear(D, 2), D)
    with pytest.raises(CannotRun, match="32 rows, got 8"):
        target_variance(nn.Linear(D, 1), D, inputs=cube(3))
    with pytest.raises(CannotRun, match="none"):
        target_variance(nn.ReLU(), D)
    with pytest.raises(CannotRun, match="at least 2 batches"):
        sampled_target_variance(nn.Linear(D, 1), D, batches=1)
