"""What the two obstacles about information share: how much was learnt, what else learns, what can be memorised."""

import math

import numpy as np
import torch

from gradoscope import thresholds as T
from gradoscope import tree
from gradoscope.case import Case
from gradoscope.diagnosis import Counterfactual
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.learners import THIS_MODEL, Score, as_examples, reference_scores, repeated_noise
from gradoscope.loop import scalar
from gradoscope.remedies.rescale import Rescale, rescalable
from gradoscope.remedies.step_size import StepSize
from gradoscope.training import Live

__all__ = ["better_learner", "learnt", "material_gain", "memorises", "repeats", "scores", "try_alternatives"]


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


def scores(case: Case) -> list[Score] | None:
    """What independent learners get on new examples, or None where the examples are no (input, target) tensors."""

    def read(live: Live) -> list[Score] | None:
        examples = as_examples(live.batches.sample(4096, "fresh"))
        if examples is None or case.training.loss_fn is None:
            return None
        x, y = examples
        if x.shape == y.shape and torch.equal(x, y):
            return None  # an autoencoder's target is its input, which any learner without a bottleneck repeats
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(case.seed))[:4096]
        if y.dim() > 2 or (y.dim() == 2 and y.shape[1] > 1 and not y.is_floating_point()) or x[0].numel() > 4096:
            return None
        x, y = x[order], y[order]
        with untouched(live.model, seed=0), torch.no_grad():
            live.model.eval()
            output = live.model(x.to(live.device))
        same_inputs.append(repeated_noise(x, y))
        return reference_scores(x, y, output=output if isinstance(output, torch.Tensor) else None, seed=case.seed)

    same_inputs: list[tuple[float, int] | None] = []
    try:
        found: list[Score] | None = case.measure("scores", max(case.baseline.states), read)
    except (GradoscopeError, RuntimeError, ValueError, TypeError, IndexError):
        found = None
        case.remember("scores", max(case.baseline.states), None)
    if same_inputs:
        case.remember("repeats", max(case.baseline.states), same_inputs[0])
    return found


def better_learner(case: Case) -> Score | None:
    """The best independent learner that beats the model itself on the same new examples beyond doubt, or None."""
    found = scores(case) or []
    own = next((s for s in found if s.learner == THIS_MODEL), None)
    others = [s for s in found if s.learner != THIS_MODEL]
    if own is None or not others:
        return None
    best = max(others, key=lambda s: s.skill)
    margin = best.skill - own.skill
    return best if margin > T.MINOR and margin > T.SIGMAS * math.hypot(best.se, own.se) else None


def repeats(case: Case) -> tuple[float, int] | None:
    """What rows with equal inputs tell of the noise in the targets, see `learners.repeated_noise`."""
    scores(case)
    found: tuple[float, int] | None = case.recall("repeats", max(case.baseline.states))
    return found


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
