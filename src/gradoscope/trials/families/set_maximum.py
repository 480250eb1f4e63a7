"""A property of a set of numbers that are handed over in a row."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("set-maximum", "mlp", 8e-4)


class OfSet(nn.Module):
    """Each number through one network, the sum through another: the order does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp((1, 64, 64)), mlp((64, 64, 1))

    def forward(self, x: Tensor) -> Tensor:
        """One score for each row."""
        return self.all(self.each(x[..., None]).relu().sum(1))  # type: ignore[no-any-return]  # a module's output


def right(output: Tensor, target: Tensor) -> float:
    """The share of right answers."""
    return float(((output > 0) == (target > 0.5)).double().mean())


def make(
    seed: int,
    *,
    n: int = 12,
    rows: int = 400,
    knows: bool = False,
    largest: bool = True,
    fresh: bool = False,
    decay: float = 0.0,
    lr: float = 3e-3,
    batch: int = 50,
    steps: int = 500,
) -> Training:
    """Is the largest of n numbers above its median, or the spread of them above its own? `knows` reads the row as a set."""
    random = generator(seed, 63)

    def draw(random: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, n, generator=random)
        level = (0.5 ** (1 / n) * 2 - 1) if largest else 0.0
        bar = 2**0.5 * torch.erfinv(torch.tensor(level)) if largest else torch.tensor((n - 2 / 3) ** 0.5)
        value = x.amax(1) if largest else x.norm(dim=1)
        return x, (value > bar).float()[:, None]

    held = draw(random, 1000)
    return Training(
        name="set-maximum",
        model=OfSet if knows else lambda: mlp((n, 128, 128, 1)),
        optimizer=adam(lr, weight_decay=decay),
        loss_fn=F.binary_cross_entropy_with_logits,
        data=draw if fresh else draw(random, rows),
        validation=held,
        metric=right,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


def others(**options: Any) -> tuple[tuple[str, Any], ...]:
    """What softens overfitting without the symmetry."""
    return (("weight decay of 0.01", plan(decay=0.01, **options)), ("a fifth of the steps", plan(steps=100, **options)))


FAMILY.faulty(
    "largest-of-a-row",
    "missing_symmetry",
    "medium",
    "400 rows of twelve numbers, of which any may be the largest: a network that reads places has to learn it at each of them.",
    plan(),
    ("a network of sets", plan(knows=True)),
    Success("validation", 0.2),
    rivals=others(),
)
FAMILY.faulty(
    "length-of-a-row",
    "missing_symmetry",
    "easy",
    "Whether a sum of twelve squares is above its median, from 400 rows.",
    plan(largest=False),
    ("a network of sets", plan(largest=False, knows=True)),
    Success("validation", 0.2),
    rivals=others(largest=False),
)
FAMILY.healthy(
    "a-set-as-a-set",
    "easy",
    "The same rows, read as sets.",
    plan(largest=False, knows=True, rows=2000, steps=800),
    Success("validation", 0.15),
)
