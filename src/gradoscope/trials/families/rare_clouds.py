"""A linear classifier of two clouds of which one is rare; what counts is the mean of both recalls, or the share of right answers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.training import Training
from gradoscope.trials.families._make import generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("rare-clouds", "linear", 4e-4)


def mean_recall(output: Tensor, target: Tensor) -> float:
    """The mean over both classes of the share that is recognised."""
    right = ((output > 0) == (target > 0.5)).double()
    return float(right[target > 0.5].mean() + right[target < 0.5].mean()) / 2


def right(output: Tensor, target: Tensor) -> float:
    """The share of right answers."""
    return float(((output > 0) == (target > 0.5)).double().mean())


def make(
    seed: int,
    *,
    share: float = 0.07,
    apart: float = 2.0,
    d: int = 6,
    rows: int = 2000,
    weigh: bool = False,
    recall: bool = True,
    lr: float = 0.3,
    batch: int = 100,
    steps: int = 400,
) -> Training:
    """Two clouds of unit variance, `apart` along the first axis; `weigh` gives both the same weight in the loss."""
    random = generator(seed, 61)
    y = (torch.rand(rows + 1000, 1, generator=random) < share).float()
    x = torch.randn(rows + 1000, d, generator=random)
    x[:, :1] += apart * (y - share)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        weight = torch.where(target > 0.5, 0.5 / share, 0.5 / (1 - share)) if weigh else None
        return F.binary_cross_entropy_with_logits(output, target, weight=weight)

    return Training(
        name="rare-clouds",
        model=lambda: nn.Linear(d, 1),
        optimizer=sgd(lr),
        loss_fn=loss,
        data=(x[:rows], y[:rows]),
        validation=(x[rows:], y[rows:]),
        metric=mean_recall if recall else right,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


def others(**options: Any) -> tuple[tuple[str, Any], ...]:
    """Other steps and batches: they minimise the same loss, and leave the same class out."""
    return (
        ("steps of 1", plan(lr=1.0, **options)),
        ("steps of 0.1", plan(lr=0.1, **options)),
        ("batches of 1,000", plan(batch=1000, **options)),
    )


FAMILY.faulty(
    "recall-of-a-rare-class",
    "surrogate_mismatch",
    "medium",
    "One example in 14 is of the class whose recall counts as much as the other's: cross-entropy is lowest where it is hardly ever named.",
    plan(),
    ("both classes of the same weight", plan(weigh=True)),
    Success("metric", 0.8, above=True),
    rivals=others(),
)
FAMILY.faulty(
    "recall-of-a-rarer-class",
    "surrogate_mismatch",
    "easy",
    "One example in 40, and clouds that overlap: it is never named.",
    plan(share=0.025, apart=1.8, rows=4000),
    ("both classes of the same weight", plan(share=0.025, apart=1.8, rows=4000, weigh=True)),
    Success("metric", 0.75, above=True),
    rivals=others(share=0.025, apart=1.8, rows=4000),
)
FAMILY.healthy(
    "share-of-right-answers",
    "medium",
    "The same rare class where all right answers count alike: nothing does better than to name it seldom.",
    plan(recall=False, share=0.05, apart=4.5),
    Success("metric", 0.98, above=True),
)
FAMILY.healthy(
    "recall-with-weights",
    "easy",
    "The loss gives both classes the weight that the metric gives them.",
    plan(weigh=True, apart=4.0),
    Success("metric", 0.95, above=True),
)
