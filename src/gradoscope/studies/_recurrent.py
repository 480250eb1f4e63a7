"""Recurrent networks: stacked training on the adding problem, and what is measured at the start and the end."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.measure.recurrent import state_jacobians
from gradoscope.objective import Objective
from gradoscope.problems.recurrent import CHANCE, Recurrent, adding, marked
from gradoscope.stacked import bulk, fit, generator

__all__ = ["flat_share", "jacobian_norms", "networks", "plateau", "single", "train"]

KEY = 772  # of this study's random streams: 1 the starts, 2 the training sequences, 3 those for measurements
FLAT = 0.1  # of the largest slope, below which an activation or a gate counts as saturated
LOOKED_AT, TESTED = 4, 1000  # sequences for Jacobians, and for the loss


def networks(values: Mapping[str, Any], seeds: Sequence[int]) -> Recurrent:
    """The untrained networks of several seeds, side by side."""
    return Recurrent(values["cell"], values["hidden"], [generator(seed, KEY, 1) for seed in seeds], sharpness=values["sharpness"])


def single(stack: Recurrent, index: int) -> Recurrent:
    """One network of a stack, alone, in float64."""
    alone = Recurrent(stack.cell, stack.hidden, [generator(0)], sharpness=stack.sharpness)
    with torch.no_grad():
        for mine, theirs in zip(alone.parameters(), stack.parameters(), strict=True):
            mine.copy_(theirs[index] if theirs.dim() == 3 else theirs)
    return alone.double()


def _draw(length: int, batch: int) -> Callable[[np.random.Generator, int], tuple[Tensor, ...]]:
    def draw(random: np.random.Generator, n: int) -> tuple[Tensor, ...]:
        numbers = random.random((n, batch, length), dtype=np.float32)
        half = length // 2
        places = np.stack([random.integers(0, half, (n, batch)), random.integers(half, length, (n, batch))], axis=-1)
        return marked(torch.from_numpy(numbers), torch.from_numpy(places))

    return draw


def _losses(model: torch.nn.Module, x: Tensor, y: Tensor) -> Tensor:
    answers: Tensor = model(x)
    return (answers - y).square().flatten(1).mean(1)


def train(
    values: Mapping[str, Any], seeds: Sequence[int], tick: Callable[[float], None]
) -> tuple[Recurrent, list[tuple[int, Tensor]], float]:
    """A trained stack, its test losses relative to chance by step, and CPU seconds of the training alone."""
    stack = networks(values, seeds)
    if len(seeds) == 1:  # one network has no leading dimension; the stack's code wants one
        for name, p in list(stack.named_parameters()):
            setattr(stack, name, torch.nn.Parameter(p.detach()[None]))
    tests = [adding(generator(seed, KEY, 3), TESTED, values["T"]) for seed in seeds]
    x, y = torch.stack([a for a, _ in tests]), torch.stack([b for _, b in tests])
    curve: list[tuple[int, Tensor]] = []
    spent = -time.process_time()

    def look(step: int, _: Tensor) -> None:
        nonlocal spent
        spent += time.process_time()
        with torch.no_grad():
            parts = [_losses(stack, a, b) for a, b in zip(x.split(200, 1), y.split(200, 1), strict=True)]  # type: ignore[no-untyped-call]
        curve.append((step, torch.stack(parts).mean(0) / CHANCE))
        tick(step / values["steps"])
        spent -= time.process_time()

    batches = bulk(seeds, _draw(values["T"], values["batch"]), KEY, 2, chunk=20)
    optimizer = torch.optim.Adam(stack.parameters(), lr=values["lr"])
    fit(stack, optimizer, batches, _losses, values["steps"], look=look, every=max(1, values["steps"] // 10))
    return stack, curve, spent + time.process_time()


def jacobian_norms(network: Recurrent, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Norms of the state's Jacobians by lag, the root mean square and each sequence's, and the states; float64."""
    x, _ = adding(generator(seed, KEY, 3), LOOKED_AT, length, torch.float64)
    with torch.no_grad():
        drive = network.drive(x)
    found = state_jacobians(network.step, drive, network.begin(drive))
    return np.asarray(found.value), np.asarray(found.details["norms"])


@torch.no_grad()
def flat_share(network: Recurrent, length: int, seed: int) -> float:
    r"""The share of (step, sequence, unit) at which the activation's slope, or the gate's, is below a tenth of its largest.

    For the LSTM the three gates $\tilde u(a)=\sigma(\kappa a)$ are meant, whose largest slope is $\kappa/4$.
    """
    x, _ = adding(generator(seed, KEY, 3), LOOKED_AT * 8, length, torch.float64)
    drive = network.drive(x)
    state = network.begin(drive)
    slopes = []
    for current in drive:
        if network.cell == "lstm":
            gate = torch.sigmoid(network.sharpness * (current + state[0] @ network.recurrent)[..., : 3 * network.hidden])
            slopes.append(4 * gate * (1 - gate))
        state = network.step(current, state)
        if network.cell != "lstm":
            h = state[0]
            slopes.append(1 - h.square() if network.cell == "tanh" else 4 * h * (1 - h))
    return float((torch.stack(slopes) < FLAT).double().mean())


def plateau(network: Recurrent, length: int, seed: int) -> dict[str, float]:
    """Where a training ended: gradient, signed extremes of the Hessian, and the best step along the most negative curvature.

    On 256 sequences, in float64. "escape": the largest share of the chance loss that a step of length 0.001 to 10 along the
    eigenvector, in either direction, takes off.
    """
    batch = adding(generator(seed, KEY, 3), 256, length, torch.float64)
    objective = Objective(network, lambda model, pair: (model(pair[0]) - pair[1]).square().mean(), [batch])
    spectrum = extreme_eigenvalues(objective, tolerance=1e-4, max_products=30)
    theta, here = objective.theta(), objective.loss()
    direction = spectrum.bottom_vectors[0]
    lowest = min(float(objective.at(theta + sign * 10 ** (e / 2) * direction).mean()) for e in range(-6, 3) for sign in (1, -1))
    return {
        "gradient": float(objective.gradient().norm()),
        "largest": spectrum.largest,
        "smallest": spectrum.smallest,
        "residual": float(max(spectrum.top_residuals[0], spectrum.bottom_residuals[0])),
        "escape": (here - lowest) / CHANCE,
    }
