"""A regression whose noise has heavy tails on one side; what counts is the median error."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("heavy-tail-regression", "mlp", 8e-4)


def median_error(output: Tensor, target: Tensor) -> float:
    """The median of the absolute errors."""
    return float((output - target).abs().median())


def make(
    seed: int,
    *,
    loss: Literal["squared", "absolute"] = "squared",
    wild: float = 0.2,
    far: float = 8.0,
    noise: float = 0.05,
    rows: int = 2000,
    lr: float = 3e-3,
    batch: int = 100,
    steps: int = 500,
) -> Training:
    """y = sin(x1) + x2 x3 / 2 with little noise, and for a share of the rows an exponential far above it."""
    random = generator(seed, 62)
    x = torch.randn(rows + 1000, 4, generator=random)
    y = (x[:, 0].sin() + x[:, 1] * x[:, 2] / 2 + noise * torch.randn(len(x), generator=random))[:, None]
    off = torch.rand(len(x), generator=random) < wild
    y[off] += far * (1 - torch.log(torch.rand(int(off.sum()), 1, generator=random)))
    return Training(
        name="heavy-tail-regression",
        model=lambda: mlp((4, 32, 32, 1)),
        optimizer=adam(lr),
        loss_fn=F.mse_loss if loss == "squared" else F.l1_loss,
        data=(x[:rows], y[:rows]),
        validation=(x[rows:], y[rows:]),
        metric=median_error,
        metric_mode="min",
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


def others(**options: Any) -> tuple[tuple[str, Any], ...]:
    """Other steps and batches minimise the same squares."""
    return (
        ("steps of 1e-2", plan(lr=1e-2, **options)),
        ("steps of 1e-3", plan(lr=1e-3, **options)),
        ("batches of 400", plan(batch=400, **options)),
    )


FAMILY.faulty(
    "squares-of-wild-targets",
    "surrogate_mismatch",
    "easy",
    "A fifth of the targets lies far above the rest: the mean, which squares ask for, is where none of them is.",
    plan(),
    ("absolute errors", plan(loss="absolute")),
    Success("metric", 0.5),
    rivals=others(),
    # A training at the floor of its squared error as well: what is left of it is the scatter of the wild targets.
    accepts=("bayes_floor",),
)
FAMILY.faulty(
    "squares-of-a-few-wild-targets",
    "surrogate_mismatch",
    "hard",
    "A tenth of them, less far off.",
    plan(wild=0.1, far=6.0),
    ("absolute errors", plan(wild=0.1, far=6.0, loss="absolute")),
    Success("metric", 0.35),
    rivals=others(wild=0.1, far=6.0),
    accepts=("bayes_floor",),
)
FAMILY.healthy(
    "squares-of-tame-targets",
    "easy",
    "The same function with Gaussian noise alone.",
    plan(wild=0.0, steps=1200),
    Success("metric", 0.12),
)
