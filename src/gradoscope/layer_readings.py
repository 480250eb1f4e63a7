"""Readings of layers: how sensitive they are, what passes through them, which units are alike, what reaches the start of a sequence."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.case import Case
from gradoscope.guard import second_order_kernels, untouched
from gradoscope.measure.activations import LayerSignal, layer_sensitivity, signal_statistics
from gradoscope.measure.recurrences import recurrences, time_profile
from gradoscope.measure.twins import twin_share
from gradoscope.training import Live

__all__ = ["output_growth", "sensitivity", "signals", "time_ratio", "twins"]


def sensitivity(case: Case, step: int) -> dict[str, float]:
    """Per-layer sensitivity s_l = RMS over examples of |d loss_n / d theta_l| |theta_l| at a checkpoint.

    A layer that starts at or near zero is counted as large as a usual start would make it (its weights have a norm of
    about the square root of the number of its outputs then): a zero start is no missing gradient. Layers without a
    matrix (biases, normalisation) are left out unless there are no others.
    """
    reading: dict[str, float] = case.measure("sensitivity", step, lambda live: _sensitivity(case, live))
    return reading


def _sensitivity(case: Case, live: Live) -> dict[str, float]:
    objective = case.objective(live, 32)
    measured = layer_sensitivity(objective, n=32)
    matrices: dict[str, float] = {}
    for name, p in objective.named:
        if p.dim() > 1:
            for layer in measured.value:
                if name == layer or name.rpartition(".")[0] == layer or (not name.count(".") and layer == type(live.model).__name__):
                    matrices[layer] = matrices.get(layer, 0.0) + p.shape[0]
    kept = [layer for layer in measured.value if layer in matrices] or list(measured.value)
    out = {}
    for layer in kept:
        usual = math.sqrt(matrices.get(layer, 1.0))
        weight = float(measured.details["weight"][layer])
        out[layer] = float(measured.details["gradient"][layer]) * (weight if weight > 1e-2 * usual else usual)
    return out


def signals(case: Case, step: int) -> list[LayerSignal]:
    """Signal, gradient, dead and saturated units per layer at a checkpoint. Cost: one forward and one backward pass."""

    def read(live: Live) -> list[LayerSignal]:
        return signal_statistics(live.model, _both_passes(case, live))

    reading: list[LayerSignal] = case.measure("signals", step, read)
    return reading


def _both_passes(case: Case, live: Live) -> Callable[[], None]:
    """A forward and a backward pass that leave no gradient behind."""
    batch = tree.to_device(live.batches.sample(case.rows(4, 256), "fresh")[0], live.device)

    def run() -> None:
        loss = live.training.loss(live.model, batch)
        if loss.requires_grad:
            torch.autograd.grad(loss, [p for _, p in live.trainable()], allow_unused=True)

    return run


def twins(case: Case, step: int) -> dict[str, float]:
    """The share of units that are copies of another one, by layer, at a checkpoint. Cost: one forward and one backward pass."""

    def read(live: Live) -> dict[str, float]:
        return twin_share(live.model, _both_passes(case, live))

    reading: dict[str, float] = case.measure("twins", step, read)
    return reading


def output_growth(case: Case, step: int) -> float | None:
    """RMS of the model's output over that of its floating-point input, at a checkpoint; None where either is no number."""

    def read(live: Live) -> float | None:
        seen: list[float] = []

        def hook(module: Any, inputs: Any, output: Any) -> None:
            numbers = [t.detach().float().square().mean().sqrt() for t in tree.leaves(inputs) if t.is_floating_point()]
            outputs = [t.detach().float().square().mean().sqrt() for t in tree.leaves(output) if t.is_floating_point()]
            if numbers and outputs and not seen:
                seen.append(float(max(outputs) / max(float(max(numbers)), 1e-30)))

        handle = live.model.register_forward_hook(hook)
        try:
            case.objective(live, case.rows(2, 256)).loss()
        finally:
            handle.remove()
        return seen[0] if seen else None

    reading: float | None = case.measure("output_growth", step, read)
    return reading


def time_ratio(case: Case, step: int) -> float | None:
    """How much the first tenth of a sequence moves the loss, against the part that moves it most; the smallest of all recurrences.

    None without a recurrence. Cost: one forward pass, and one forward and one backward pass for each recurrence.
    """

    def read(live: Live) -> float | None:
        batch = tree.to_device(live.batches.sample(case.rows(4, 64), "fresh")[0], live.device)

        def loss() -> Tensor:
            return live.training.loss(live.model, batch)

        found = []
        with untouched(live.model, seed=7), second_order_kernels(live.model), torch.enable_grad():
            live.model.train()
            for recurrence in recurrences(live.model, loss):
                profile = time_profile(recurrence, loss)
                if profile is not None and np.isfinite(profile).all() and profile.max() > 0:
                    found.append(float(profile[: max(1, len(profile) // 10)].max() / profile.max()))
        return min(found, default=None)

    reading: float | None = case.measure("time_ratio", step, read)
    return reading
