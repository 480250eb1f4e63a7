"""What the two obstacles about information share: how much was learnt, what else learns, what can be memorised."""

import math

import numpy as np
import torch

from gradoscope import tree
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual
from gradoscope.loop import scalar
from gradoscope.remedies.rescale import Rescale, rescalable
from gradoscope.remedies.step_size import StepSize
from gradoscope.training import Live

__all__ = ["learnt", "material_gain", "memorises", "try_alternatives"]


def learnt(case: Case) -> float:
    """The share of the reachable loss, from the constant answer's or the start's level, that the training removed."""
    level = case.initial if case.constant is None else min(case.constant, case.initial)
    floor = case.attainable if case.attainable is not None else min(case.best, 0.0)
    whole = level - floor
    return (level - case.final) / whole if whole > 0 else 0.0


def try_alternatives(case: Case) -> None:
    """Run the fixed set of changes that every verdict of the kind "nothing helps" has to have tried."""
    for factor in (0.1, 10.0):
        case.trial(StepSize(factor))
    with case.live() as live:
        layers = rescalable(live.model)
    if layers:
        case.trial(Rescale())


def material_gain(case: Case) -> Counterfactual | None:
    """The best of the fixed set of gradient-based changes, if it gains materially: other steps, and all tried before."""
    try_alternatives(case)
    helpful = [c for c in case.trials() if c.on == "training" and case.material(c) is not False]
    return max(helpful, key=lambda c: c.difference, default=None)


def memorises(case: Case, rows: int = 32, steps: int = 400) -> float | None:
    """The share of the loss on a few fixed examples that the same network removes by Adam; None without such examples."""

    def read(live: Live) -> float | None:
        sample = tree.to_device(live.batches.sample(rows, "fresh")[0], live.device)
        n = tree.rows(sample)
        if n is not None and n > rows:
            sample = tree.take(sample, slice(0, rows))
        live.batches = _Fixed(sample)
        optimizer = torch.optim.Adam([p for _, p in live.trainable()], lr=3e-3)
        first = last = math.nan
        for _ in range(steps):
            optimizer.zero_grad()
            loss = scalar(live, 0)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = float(loss.detach())
            if math.isnan(first):
                first = last
        floor = case.attainable or 0.0
        return float(np.clip((first - last) / max(first - floor, 1e-30), 0, 1))

    found: float | None = case.measure("memorises", case.first, read)
    return found


class _Fixed:
    """One batch, again and again."""

    size = per_epoch = 1

    def __init__(self, batch: object) -> None:
        self.only, self.batch_size = batch, tree.rows(batch)

    def batch(self, i: int) -> object:
        return self.only

    def sample(self, n: int, stream: str) -> list[object]:
        return [self.only]
