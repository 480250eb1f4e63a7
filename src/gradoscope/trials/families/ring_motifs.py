"""Patterns that may stand anywhere on a ring of numbers, read by a flat network or by one that slides around the ring."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, mlp, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("ring-motifs", "cnn", 1e-3)
WIDTH = 6


class OnRing(nn.Module):
    """Filters that slide around the ring, and the largest answer of each."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.slide = nn.Conv1d(1, 32, WIDTH, padding="same", padding_mode="circular")
        self.tell = mlp((32, 32, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of classes."""
        return self.tell(self.slide(x[:, None]).relu().amax(2))  # type: ignore[no-any-return]  # a module's output


def make(
    seed: int,
    *,
    size: int = 24,
    classes: int = 4,
    rows: int = 300,
    noise: float = 0.3,
    slides: bool = False,
    decay: float = 0.0,
    lr: float = 3e-3,
    batch: int = 50,
    steps: int = 400,
) -> Training:
    """One of four patterns, which differ in order and not in values, at a random place among noise."""
    random = generator(seed, 64)
    values = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0, -2.0])
    motifs = torch.stack([values[torch.randperm(WIDTH, generator=random)] for _ in range(classes)])
    y = torch.randint(classes, (rows + 1000,), generator=random)
    place = torch.randint(size, (rows + 1000,), generator=random)
    where = (torch.arange(size) - place[:, None]) % size
    x = F.pad(motifs[y], (0, size - WIDTH)).gather(1, where) + noise * torch.randn(rows + 1000, size, generator=random)
    return Training(
        name="ring-motifs",
        model=lambda: OnRing(classes) if slides else mlp((size, 128, 128, classes)),
        optimizer=adam(lr, weight_decay=decay),
        loss_fn=F.cross_entropy,
        data=(x[:rows], y[:rows]),
        validation=(x[rows:], y[rows:]),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


def others(**options: Any) -> tuple[tuple[str, Any], ...]:
    """What softens overfitting without the symmetry."""
    return (("weight decay of 0.01", plan(decay=0.01, **options)), ("a fifth of the steps", plan(steps=80, **options)))


FAMILY.faulty(
    "anywhere-on-the-ring",
    "missing_symmetry",
    "hard",
    "A pattern at one of 24 places, and 300 examples: each place is another pattern to a network that does not slide.",
    plan(),
    ("filters that slide", plan(slides=True)),
    Success("validation", 0.2),
    rivals=others(),
)
FAMILY.faulty(
    "anywhere-on-a-small-ring",
    "missing_symmetry",
    "medium",
    "Sixteen places, four patterns and 120 examples.",
    plan(size=16, classes=4, rows=120),
    ("filters that slide", plan(size=16, classes=4, rows=120, slides=True)),
    Success("validation", 0.3),
    rivals=others(size=16, classes=4, rows=120),
)
FAMILY.healthy(
    "filters-that-slide",
    "easy",
    "The same patterns with enough examples for filters that slide.",
    plan(slides=True, rows=3000, steps=1000),
    Success("validation", 0.1),
)
