"""Signal and noise of a gradient against closed forms, plain loops and simulation."""

import math

import pytest
import torch
from torch import nn

from gradoscope.guard import random_fingerprint
from gradoscope.measure.signal import SignalSums, target_signal


def draws(n: int, seed: int, mean: float = 0.0, dim: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=random, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.5])[:dim] + mean


def test_estimates_equal_the_slow_sum_over_pairs() -> None:
    z = draws(128, 0, mean=0.3)
    sums = SignalSums(groups=16)
    sums.add(z[:48])
    sums.add(z[48:])
    found = sums.signal()
    pairs = sum(float(z[i] @ z[j]) for i in range(128) for j in range(128) if i != j) / (128 * 127)
    mean = z.mean(0)
    noise = float(((z - mean) ** 2).sum()) / 127
    assert found.signal == pytest.approx(pairs, rel=1e-12)
    assert found.noise == pytest.approx(noise, rel=1e-12)
    assert found.snr == pytest.approx(pairs / noise)
    assert found.plain == pytest.approx(float(mean @ mean) / (float((z**2).sum()) / 128 - float(mean @ mean)))


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.2])
def test_unbiased_with_honest_errors_while_the_plain_estimate_has_a_floor(mean: float) -> None:
    n, repeats = 1280, 200
    found = []
    for seed in range(repeats):
        sums = SignalSums()
        sums.add(draws(n, 1000 + seed, mean))
        found.append(sums.signal())
    noise = 4 + 1 + 0.25
    true = 3 * mean**2 / noise
    values = torch.tensor([f.snr for f in found])
    spread = float(values.std())
    assert abs(float(values.mean()) - true) < 4 * spread / math.sqrt(repeats)
    told = float(torch.tensor([f.se for f in found]).square().mean().sqrt())
    assert 0.85 * spread < told < (1.6 if mean < 0.1 else 1.2) * spread  # on the wide side where there is no signal
    plain = float(torch.tensor([f.plain for f in found]).mean())
    assert plain == pytest.approx(true + 1 / n, abs=4 * spread / math.sqrt(repeats))
    null = math.sqrt(2 * (16 + 1 + 0.0625)) / n / noise  # sqrt(2 tr S^2) / n, in units of the noise
    assert float(torch.tensor([f.resolution for f in found]).mean()) == pytest.approx(3 * null, rel=0.1)


def test_target_signal_equals_a_loop_over_examples_and_leaves_no_trace() -> None:
    random = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    model.eval()
    x = torch.randn(130, 4, generator=random, dtype=torch.float64)
    y = x[:, 0].sign()
    before = [p.detach().clone() for p in model.parameters()]
    random_before = random_fingerprint()
    found = target_signal(model, x, y, chunk=48, groups=16)
    assert random_fingerprint() == random_before
    assert found.n == 128
    rows = []
    for one, target in zip(x[:128], y[:128], strict=True):
        gradient = torch.autograd.grad(model(one[None]).sum(), list(model.parameters()))
        rows.append(target * torch.cat([g.flatten() for g in gradient]))
    z = torch.stack(rows)
    reference = (float(z.sum(0) @ z.sum(0)) - float((z**2).sum())) / (128 * 127)
    assert found.signal == pytest.approx(reference, rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_a_part_of_the_parameters() -> None:
    model = nn.Linear(4, 1)
    x = torch.randn(640, 4, generator=torch.Generator().manual_seed(1))
    found = target_signal(model, x, x[:, 1].sign(), parameters={"weight": model.weight})
    z = x * x[:, 1:2].sign()
    assert found.plain == pytest.approx(float(z.mean(0).square().sum() / (z.square().sum(1).mean() - z.mean(0).square().sum())), rel=1e-5)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        SignalSums().add(torch.ones(65, 2))
    with pytest.raises(ValueError, match="no samples"):
        SignalSums().signal()
    with pytest.raises(ValueError, match="at least 64 examples"):
        target_signal(nn.Linear(2, 1), torch.ones(10, 2), torch.ones(10))


def test_no_noise() -> None:
    sums = SignalSums(groups=4)
    sums.add(torch.ones(8, 2))
    assert sums.signal().snr == math.inf
