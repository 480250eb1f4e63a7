"""Matrix factorisation: a table of ratings as a product of two thin matrices."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("factorisation", "linear", 5e-4)


class Factors(nn.Module):
    """A rating is the inner product of a row's and a column's factors."""

    def __init__(self, size: int, rank: int, start: float, *, symmetric: bool) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(size, rank), nn.Embedding(size, rank)
        with torch.no_grad():
            for table in (self.rows, self.columns):
                table.weight.mul_(start)
                if symmetric:
                    table.weight.copy_(table.weight[:, :1].expand_as(table.weight).clone())

    def forward(self, pairs: Tensor) -> Tensor:
        rating: Tensor = (self.rows(pairs[:, 0]) * self.columns(pairs[:, 1])).sum(1)
        return rating


def make(
    seed: int,
    *,
    size: int = 40,
    rank: int = 3,
    true_rank: int = 3,
    start: float = 0.5,
    symmetric: bool = False,
    lr: float = 2e-2,
    use_sgd: bool = False,
    noise: float = 0.1,
    share: float = 0.6,
    batch: int = 100,
    steps: int = 400,
    decay: float = 0.0,
    frozen: bool = False,
) -> Training:
    """A share of the entries of a table of low rank with entries of variance one, with noise; the others are for validation."""
    random = generator(seed, 32, size)
    left, right = (torch.randn(size, true_rank, generator=random) for _ in range(2))
    table = left @ right.T / true_rank**0.5
    table = table + noise**0.5 * torch.randn(size, size, generator=random)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    pairs = pairs[torch.randperm(len(pairs), generator=random)]
    y = table[pairs[:, 0], pairs[:, 1]]
    cut = int(share * len(pairs))

    def model() -> nn.Module:
        made = Factors(size, rank, start, symmetric=symmetric)
        if frozen:
            made.rows.requires_grad_(False)
        return made

    return Training(
        name="factorisation",
        model=model,
        optimizer=sgd(lr) if use_sgd else adam(lr, weight_decay=decay),
        loss_fn=nn.functional.mse_loss,
        data=(pairs[:cut], y[:cut]),
        validation=(pairs[cut:][:600], y[cut:][:600]),
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


FACTORED = Success("training", 0.3)
DESCENT: dict[str, Any] = {"use_sgd": True, "lr": 3.0, "batch": 960, "noise": 0.05}

FAMILY.faulty(
    "near-zero",
    "saddle_point",
    "easy",
    "Factors of size 1e-7: the product is zero to second order, and plain descent needs longer than the run to leave.",
    plan(start=1e-7, steps=60, **DESCENT),
    ("factors of size 0.5", plan(steps=60, **DESCENT)),
    FACTORED,
    rivals=(
        ("steps of 1", plan(start=1e-7, steps=60, **{**DESCENT, "lr": 1.0})),
        ("steps of 6", plan(start=1e-7, steps=60, **{**DESCENT, "lr": 6.0})),
    ),
)
FAMILY.faulty(
    "equal-columns",
    "saddle_point",
    "medium",
    "All factors of a row start equal: they stay so, and a table of rank three gets a fit of rank one.",
    plan(symmetric=True, noise=0.02),
    ("factors drawn one by one", plan(noise=0.02)),
    FACTORED,
    rivals=(("steps of 0.2", plan(symmetric=True, noise=0.02, lr=0.2)), ("steps of 2e-3", plan(symmetric=True, noise=0.02, lr=2e-3))),
)
FAMILY.faulty(
    "frozen-rows",
    "frozen_parameters",
    "easy",
    "The factors of the rows are left out of the training: a column has three numbers for what 24 entries say.",
    plan(frozen=True),
    ("both tables trained", plan()),
    FACTORED,
    rivals=(("steps of 0.2", plan(frozen=True, lr=0.2)),),
)
FAMILY.faulty(
    "too-many-factors",
    "overfitting",
    "medium",
    "Thirty factors for rows that show fourteen entries: all are fitted, and those that were left out are not.",
    plan(rank=30, share=0.35, noise=0.3, steps=500),
    ("three factors, and decay", plan(rank=3, share=0.6, noise=0.3, steps=400)),
    Success("validation", 0.75),
)
FAMILY.faulty(
    "mostly-noise",
    "bayes_floor",
    "hard",
    "Noise of six times the signal's variance in a table of rank one: what can be explained is a seventh.",
    plan(rank=1, true_rank=1, noise=6.0, size=100, batch=400, lr=1e-2, share=0.8),
    ("entries without noise", plan(rank=1, true_rank=1, noise=0.0, size=100, batch=400, lr=1e-2, share=0.8)),
    Success("training", 1.0),
    rivals=(("steps of 3e-3", plan(rank=1, true_rank=1, noise=6.0, size=100, batch=400, lr=3e-3, share=0.8)),),
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Plain descent at 100, thirty times a good step.",
    plan(**{**DESCENT, "lr": 100.0}),
    ("step 3", plan(**DESCENT)),
    FACTORED,
)
FAMILY.healthy("plain", "easy", "Three factors, Adam.", plan(), FACTORED)
FAMILY.healthy(
    "late-start",
    "hard",
    "Factors of size 0.05 under plain descent: a long plateau near the saddle at zero, and then it falls.",
    plan(start=0.05, **DESCENT),
    FACTORED,
)
