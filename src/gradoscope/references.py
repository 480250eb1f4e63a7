"""What independent learners make of a case's examples: whether anything in them holds for new ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from gradoscope import thresholds as T
from gradoscope.errors import GradoscopeError
from gradoscope.guard import untouched
from gradoscope.learners import THIS_MODEL, Score, as_examples, by_position, reference_scores, repeated_noise
from gradoscope.training import Live

if TYPE_CHECKING:
    from gradoscope.case import Case

__all__ = ["better_learner", "nothing_general", "repeats", "scores"]

DENSE = 512  # examples with many numbers to foretell each: trees take seconds for more


def scores(case: Case) -> list[Score] | None:
    """What independent learners get on new examples, or None where the examples are no (input, target) tensors."""

    def read(live: Live) -> list[Score] | None:
        examples = as_examples(live.batches.sample(4096, "fresh"))
        if examples is None or case.training.loss_fn is None:
            return None
        parts, y = examples
        if len(parts) == 1 and parts[0].shape == y.shape and torch.equal(parts[0], y):
            return None  # an autoencoder's target is its input, which any learner without a bottleneck repeats
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(case.seed))[:4096]
        sequences = len(parts) == 1 and y.dim() == 2 and y.shape[1] > 1 and not y.is_floating_point()
        dense = y.dim() > 2 and y.is_floating_point()  # a number at each place of an image, say: all of a row are foretold at once
        if (y.dim() > 2 and not dense) or max(y[0].numel(), sum(p[0].numel() for p in parts)) > 4096:
            return None
        order = order[: max(256, 4096 // y.shape[1])] if sequences else order[:DENSE] if dense else order
        parts, y = tuple(p[order] for p in parts), y[order]
        with untouched(live.model, seed=0), torch.no_grad():
            live.model.eval()
            output = live.model(*(p.to(live.device) for p in parts))
        if dense:
            output = output.flatten(1) if isinstance(output, torch.Tensor) and output.shape == y.shape else None
            y = y.flatten(1)
        x = parts[0] if len(parts) == 1 else torch.cat([p.double().flatten(1) for p in parts], 1)
        if sequences:
            found = by_position(x, y, output)
            if found is None:
                return None
            # All positions of a sequence are one draw: a random few of them are nearly independent.
            few = torch.randperm(len(found[0]), generator=torch.Generator().manual_seed(case.seed))[:4096]
            x, y, output = found[0][few], found[1][few], None if found[2] is None else found[2].cpu()[few]
        same_inputs.append(None if sequences else repeated_noise(x, y))
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


def nothing_general(case: Case) -> bool:
    """Whether learners could be fitted, and none of them does better than a constant answer on new examples."""
    others = [s for s in scores(case) or [] if s.learner != THIS_MODEL]
    return bool(others) and not any(s.better for s in others)
