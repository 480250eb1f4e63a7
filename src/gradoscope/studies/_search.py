"""Search without gradients: every method is given a score (or a loss) and a budget of evaluations, and nothing else."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Climb", "bayesian", "climb", "exhaustive", "genetic", "random_points", "random_search"]

Score = Callable[[np.ndarray], np.ndarray]
"""Masks (n, d) of 0 and 1 to scores (n,), of which 1 is the best there is."""


def exhaustive(score: Score, d: int, budget: int, random: np.random.Generator, chunk: int = 4096) -> int:
    """Try all masks in a random order: the evaluations until one scores 1, or -1. On average (2^d + 1)/2.

    Example:
        >>> exhaustive(lambda masks: masks.all(1) * 0.5 + 0.5, 3, 8, np.random.default_rng(0)) <= 8
        True
    """
    order = random.permutation(2**d)[:budget]
    for start in range(0, len(order), chunk):
        hits = np.flatnonzero(score(_masks(order[start : start + chunk], d)) >= 1)
        if len(hits):
            return start + int(hits[0]) + 1
    return -1


def random_search(score: Score, d: int, budget: int, random: np.random.Generator, chunk: int = 4096) -> int:
    """Draw masks with replacement: the evaluations until one scores 1, or -1. On average 2^d."""
    for start in range(0, budget, chunk):
        drawn = random.integers(0, 2**d, min(chunk, budget - start))
        hits = np.flatnonzero(score(_masks(drawn, d)) >= 1)
        if len(hits):
            return start + int(hits[0]) + 1
    return -1


def genetic(score: Score, d: int, budget: int, random: np.random.Generator, parents: int = 20, children: int = 20) -> int:
    """A genetic algorithm (20 + 20): the evaluations until a mask scores 1, or -1.

    Two parents drawn at random, each bit from either, and flipped with probability 1/d; of parents and children the best stay,
    those that came later before those of equal score.
    """
    population = random.integers(0, 2, (parents, d))
    scores = score(population)
    hits = np.flatnonzero(scores >= 1)
    if len(hits):
        return int(hits[0]) + 1
    used = parents
    while used + children <= budget:
        pair = population[random.integers(0, parents, (2, children))]
        mixed = np.where(random.random((children, d)) < 0.5, pair[0], pair[1])
        born = mixed ^ (random.random((children, d)) < 1 / d)
        found = score(born)
        hits = np.flatnonzero(found >= 1)
        if len(hits):
            return used + int(hits[0]) + 1
        used += children
        scores, population = np.concatenate([found, scores]), np.concatenate([born, population])
        best = np.argsort(-scores, kind="stable")[:parents]
        scores, population = scores[best], population[best]
    return -1


@dataclass(frozen=True)
class Climb:
    """Where hill climbing ended.

    Args:
        parameters: shape (S, P).
        losses: shape (S,).
        accepted: the share of the steps that were taken, shape (S,).
    """

    parameters: Tensor
    losses: Tensor
    accepted: Tensor


def climb(losses: Callable[[Tensor], Tensor], start: Tensor, budget: int, randoms: Sequence[torch.Generator], sigma: float = 0.1) -> Climb:
    """Hill climbing (1+1) on weights, S runs side by side: a Gaussian step is kept where the loss does not rise.

    The one-fifth rule: the step's standard deviation grows by e^(1/3) with a step that is kept and falls by e^(-1/12) with another.

    Args:
        losses: parameters (S, P) to losses (S,).
        start: shape (S, P).
        budget: evaluations.
        randoms: what the steps of each run are drawn from.
        sigma: the first standard deviation.

    Example:
        >>> bowl = lambda w: w.square().sum(1)
        >>> found = climb(bowl, torch.ones(3, 2), 300, [torch.Generator().manual_seed(k) for k in range(3)])
        >>> bool((found.losses < 1e-3).all())
        True
    """
    w, loss = start.clone(), losses(start)
    size, kept = torch.full((len(w), 1), sigma, dtype=w.dtype), torch.zeros(len(w))
    for _ in range(budget - 1):
        noise = torch.stack([torch.randn(w.shape[1], generator=random, dtype=w.dtype) for random in randoms])
        trial = w + size * noise
        new = losses(trial)
        better = (new <= loss)[:, None]
        w, loss = torch.where(better, trial, w), torch.where(better[:, 0], new, loss)
        size = size * torch.where(better, np.exp(1 / 3), np.exp(-1 / 12)).to(w.dtype)
        kept += better[:, 0]
    return Climb(w, loss, kept / max(1, budget - 1))


def bayesian(loss: Callable[[np.ndarray], float], bound: float, budget: int, random: np.random.Generator, first: int = 10) -> np.ndarray:
    """Bayesian optimisation on the square [-bound, bound]^2: a Gaussian process and expected improvement.

    `first` points at random; then each evaluation goes to the best of 2,000 random candidates and 200 around the best point so far.
    The kernel's length and height are fitted at every tenth evaluation.

    Returns:
        The lowest loss so far after each evaluation, shape (budget,).
    """
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    points = random.uniform(-bound, bound, (first, 2))
    values = np.array([loss(p) for p in points])
    kernel = ConstantKernel(0.1, (1e-3, 10)) * RBF(1.0, (0.2, bound))
    while len(values) < budget:
        refit = len(values) % 10 == 0
        process = GaussianProcessRegressor(kernel, alpha=1e-6, normalize_y=False, optimizer="fmin_l_bfgs_b" if refit else None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fitted length at its bound, on a plateau that has none
            process.fit(points, values - values.mean())
        kernel = process.kernel_
        near = points[values.argmin()] + 0.1 * bound * random.normal(size=(200, 2))
        candidates = np.clip(np.concatenate([random.uniform(-bound, bound, (2000, 2)), near]), -bound, bound)
        mean, spread = process.predict(candidates, return_std=True)
        gain = values.min() - values.mean() - mean
        z = gain / np.maximum(spread, 1e-12)
        chosen = candidates[int((gain * norm.cdf(z) + spread * norm.pdf(z)).argmax())]
        points, values = np.vstack([points, chosen]), np.append(values, loss(chosen))
    return np.minimum.accumulate(values)


def random_points(loss: Callable[[np.ndarray], float], bound: float, budget: int, random: np.random.Generator) -> np.ndarray:
    """The lowest loss so far of points drawn uniformly from the square [-bound, bound]^2, shape (budget,)."""
    return np.minimum.accumulate([loss(p) for p in random.uniform(-bound, bound, (budget, 2))])


def _masks(numbers: np.ndarray, d: int) -> np.ndarray:
    return (numbers[:, None] >> np.arange(d)) & 1
