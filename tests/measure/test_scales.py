"""Scales of inputs: against eigenvalues by hand, and against the steps that gradient descent really takes."""

import math

import pytest
import torch

from gradoscope.measure.scales import by_feature, scales


def rows(n: int = 4000, f: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    x = rows() * torch.tensor([1.0, 10.0, 100.0]) + torch.tensor([0.0, 3.0, 0.0])
    s = scales(x)
    torch.testing.assert_close(s.mean, x.mean(0))
    torch.testing.assert_close(s.spread, x.std(0, correction=0))
    padded = torch.cat([x, torch.ones(len(x), 1)], 1)
    assert s.largest == pytest.approx(float(torch.linalg.eigvalsh(padded.T @ padded / len(x))[-1]), rel=1e-10)
    slow = float(x.std(0, correction=0).min())  # the first decile of three
    assert s.stretch == pytest.approx(s.largest / slow**2 / s.standardised, rel=1e-12)
    assert s.size == pytest.approx(float(x.square().mean().sqrt()))


def test_standardised_features_are_not_stretched_and_one_size_for_all_is_none_either() -> None:
    assert scales(rows()).stretch == pytest.approx(1, abs=0.1)
    assert scales(1000 * rows()).stretch == pytest.approx(1, abs=0.1)
    assert scales(1000 * rows()).size == pytest.approx(1000, rel=0.05)


def test_an_offset_stretches_as_one_plus_its_square() -> None:
    """One feature with mean m and unit spread: the largest eigenvalue of the moment of (x, 1) is about m^2 + 2."""
    s = scales(rows(f=1) + 30)
    assert s.stretch == pytest.approx(30**2 + 2, rel=0.1)


def test_the_stretch_is_what_gradient_descent_pays() -> None:
    """Steps of 1 / largest eigenvalue until the error of every weight has halved, raw against standardised."""

    def halving(x: torch.Tensor) -> int:
        m = x.T @ x / len(x)
        rate = 1 / float(torch.linalg.eigvalsh(m)[-1])
        error, steps = torch.ones(x.shape[1], dtype=torch.float64), 0
        while bool((error.abs() > 0.5).any()):
            error, steps = error - rate * m @ error, steps + 1
        return steps

    x = rows(f=2) * torch.tensor([1.0, 10.0])
    # steps of 1 / largest eigenvalue: about ln 2 * stretch of them, where standardised features take one
    assert halving(rows(f=2)) == 1
    assert halving(x) == pytest.approx(scales(x).largest * math.log(2), rel=0.1)


def test_constant_features_and_broken_values_count_for_nothing() -> None:
    x = torch.cat([rows(), torch.full((4000, 1), 7.0)], 1)
    s = scales(x)
    assert s.varies.tolist() == [True, True, True, False]
    assert float(s.spread[3]) == 1
    assert s.stretch == pytest.approx(1, abs=0.1)
    x[0, 0] = math.nan
    assert math.isfinite(scales(x).stretch)
    assert scales(torch.ones(5, 2)).stretch == 1


def test_shapes() -> None:
    images = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    assert by_feature(images).shape == (40, 3)
    torch.testing.assert_close(by_feature(images)[:, 1].sort().values, images[:, 1].flatten().sort().values)
    assert by_feature(torch.zeros(6, 7, 2)).shape == (42, 2)
    assert by_feature(torch.zeros(6, 2, 7), channels=1).shape == (42, 2)
    assert by_feature(torch.zeros(9)).shape == (9, 1)
    with pytest.raises(ValueError, match="of shape"):
        scales(torch.zeros(3, 0))
