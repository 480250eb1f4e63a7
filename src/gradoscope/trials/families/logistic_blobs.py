"""A linear classifier on Gaussian clouds."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, blobs, generator, planner, sgd, split_rows
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("logistic-blobs", "linear", 4e-4)


def make(
    seed: int,
    *,
    lr: float = 0.3,
    classes: int = 5,
    d: int = 20,
    apart: float = 4.0,
    rows: int = 1000,
    shares: tuple[float, ...] | None = None,
    scales: float = 1.0,
    standardised: bool = False,
    batch: int = 50,
    steps: int = 300,
    ending: str = "scores",
    flipped: float = 0.0,
    decay: float = 0.0,
) -> Training:
    """Clouds around random centres under one linear layer; `scales` makes columns up to so many times as wide as the first."""
    random = generator(seed, 22)
    (x, y), validation = split_rows(blobs(random, rows + 500, classes, d, apart, shares), rows)
    if flipped:
        y, other_y = (
            torch.where(torch.rand(t.shape, generator=random) < flipped, torch.randint(0, classes, t.shape, generator=random), t)
            for t in (y, validation[1])
        )
        validation = (validation[0], other_y)
    wide = torch.logspace(0, float(torch.tensor(scales).log10()), d)[torch.randperm(d, generator=random)]
    x, other = x * wide, validation[0] * wide
    if standardised:
        mean, spread = x.mean(0), x.std(0)
        x, other = (x - mean) / spread, (other - mean) / spread

    def model() -> nn.Module:
        layer = nn.Linear(d, classes)
        return nn.Sequential(layer, nn.Softmax(dim=-1)) if ending != "scores" else layer

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.nll_loss(output, target) if ending == "nll" else nn.functional.cross_entropy(output, target)

    return Training(
        name="logistic-blobs",
        model=model,
        optimizer=sgd(lr, weight_decay=decay),
        loss_fn=loss,
        data=(x, y),
        validation=(other, validation[1]),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


LEARNT = Success("training", 0.2)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "A step a thousandth of a good one.",
    plan(lr=3e-4),
    ("step 0.3", plan()),
    LEARNT,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Steps of 1,000: every batch throws the weights beyond what the others need, and the loss is that of wrong certainties.",
    plan(lr=1000.0, apart=3.0, rows=2000),
    ("step 0.3", plan(apart=3.0, rows=2000)),
    Success("training", 0.35),
)
FAMILY.faulty(
    "raw-columns",
    "unnormalised_inputs",
    "easy",
    "Columns up to a thousand times as wide as the narrowest: at the step that the widest allow, the others count for nothing.",
    plan(scales=1000.0, lr=1e-6),
    ("standardised columns, with the step that they allow", plan(scales=1000.0, standardised=True)),
    LEARNT,
    rivals=(("steps of 1e-4", plan(scales=1000.0, lr=1e-4)), ("steps of 1e-7", plan(scales=1000.0, lr=1e-7))),
)
FAMILY.faulty(
    "likelihood-of-probabilities",
    "wrong_loss_output",
    "medium",
    "The negative log-likelihood is given probabilities instead of their logarithms: it ends at -1, and rewards what is sure already.",
    plan(ending="nll", lr=0.03, classes=8, apart=3.0, rows=2000),
    ("scores under cross-entropy", plan(lr=0.03, classes=8, apart=3.0, rows=2000)),
    Success("metric", 0.82, above=True),
)
FAMILY.faulty(
    "more-columns-than-rows",
    "overfitting",
    "easy",
    "Sixty rows in 200 dimensions can be told apart at will: the fit is perfect, and says little of new rows.",
    plan(d=200, rows=60, apart=3.0, batch=60, lr=1.0),
    ("2,000 rows", plan(d=200, rows=2000, apart=3.0, batch=60, lr=0.1)),
    Success("validation", 0.6),
)
FAMILY.faulty(
    "clouds-that-overlap",
    "bayes_floor",
    "medium",
    "Centres 0.6 spreads from the origin: the clouds overlap so far that the best classifier leaves four fifths of the loss.",
    plan(apart=0.6, rows=4000, batch=200, lr=0.3),
    ("centres at a distance of 4", plan(rows=4000, batch=200)),
    Success("training", 0.6),
    rivals=(
        ("steps of 0.03", plan(apart=0.6, rows=4000, batch=200, lr=0.03)),
        ("steps of 3", plan(apart=0.6, rows=4000, batch=200, lr=3.0)),
    ),
)
DROWNED: dict[str, Any] = {"flipped": 0.6, "d": 40, "rows": 8000, "apart": 4.0, "steps": 60}

FAMILY.faulty(
    "two-rows-a-step",
    "low_gradient_snr",
    "hard",
    "Three in five labels are drawn at random, and two rows make a step: most of each step follows labels that mean nothing.",
    plan(**DROWNED, batch=2, lr=0.1),
    ("batches of 400", plan(**DROWNED, batch=400, lr=0.1)),
    Success("validation", 1.5),
    rivals=(("steps of 0.03", plan(**DROWNED, batch=2, lr=0.03)), ("steps of 0.01", plan(**DROWNED, batch=2, lr=0.01))),
)
FAMILY.healthy("plain", "easy", "Clouds four spreads from the origin: a linear classifier separates them.", plan(), LEARNT)
FAMILY.healthy(
    "rare-classes",
    "hard",
    "Nine rows in ten are of one class: accuracy starts high and hardly moves, while the loss falls to a tenth.",
    plan(shares=(0.9, 0.03, 0.03, 0.02, 0.02), rows=2000, batch=100),
    Success("training", 0.12),
)
FAMILY.healthy(
    "separable",
    "medium",
    "Clouds ten spreads apart: weights grow for ever, the gradient fades, and the loss has no minimum to reach.",
    plan(apart=10.0, classes=3),
    Success("training", 0.05),
)
