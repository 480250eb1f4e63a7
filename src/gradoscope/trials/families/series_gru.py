"""The next value of a noisy periodic series, from a window of its past."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, balanced, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("series-gru", "recurrent", 3e-3)


class Forecaster(nn.Module):
    """A GRU over the window, a linear map of its last state."""

    def __init__(self, width: int, *, head: float, equal: bool) -> None:
        super().__init__()
        self.cells = nn.GRU(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            if equal:
                for p in self.parameters():
                    p.fill_(0.1)
            self.head.weight.mul_(head)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.cells(x)[0][:, -1])
        return answer


def make(
    seed: int,
    *,
    width: int = 16,
    window: int = 12,
    lr: float = 1e-2,
    use_sgd: bool = False,
    momentum: float = 0.0,
    noise: float = 0.05,
    level: float = 0.0,
    size: float = 1.0,
    equal: bool = False,
    rows: int = 1500,
    batch: int = 64,
    steps: int = 250,
    fresh: bool = False,
    falling: bool = False,
) -> Training:
    """Two waves of random phases, variance one; `level` and `size` are the series' own units, `noise` is of what is to be foretold."""
    random = generator(seed, 36)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        t = torch.arange(window + 1)
        one, two = (6.28 * torch.rand(n, 1, generator=random) for _ in range(2))
        wave = torch.sin(0.7 * t + one) + torch.sin(1.9 * t + two)
        return level + size * wave[:, :-1, None], wave[:, -1:] + spread * torch.randn(n, 1, generator=random)

    spread = noise**0.5
    x, y = sample(random, rows)
    spread = 0.0  # what is held out gets its noise in pairs
    held = balanced(*sample(random, 300), noise, random)
    spread = noise**0.5

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    return Training(
        name="series-gru",
        model=lambda: Forecaster(width, head=1.0, equal=equal),
        optimizer=sgd(lr, momentum=momentum) if use_sgd else adam(lr),
        loss_fn=nn.functional.mse_loss,
        data=sample if fresh else (x, y),
        validation=held,
        batch_size=batch,
        steps=steps,
        schedule=schedule if falling else None,
    )


plan = planner(make)


FORETOLD = Success("training", 0.3)

FAMILY.faulty(
    "in-its-own-units",
    "unnormalised_inputs",
    "easy",
    "The series runs around 1,000 with a spread of 50: every gate is saturated, on the same side for all.",
    plan(level=1000.0, size=50.0),
    ("the series around zero, with unit spread", plan()),
    FORETOLD,
    rivals=(("steps of 1e-1", plan(level=1000.0, size=50.0, lr=1e-1)), ("steps of 1e-3", plan(level=1000.0, size=50.0, lr=1e-3))),
)
FAMILY.faulty(
    "in-small-units",
    "unnormalised_inputs",
    "medium",
    "The series has a spread of 1e-3: what the gates see of it is nothing beside their biases.",
    plan(size=1e-3),
    ("unit spread", plan()),
    FORETOLD,
    rivals=(("steps of 1e-3", plan(size=1e-3, lr=1e-3)), ("batches of 512", plan(size=1e-3, batch=512))),
)
FAMILY.faulty(
    "equal-units",
    "saddle_point",
    "medium",
    "All weights start at 0.1: sixteen units stay one unit, which cannot keep two waves apart.",
    plan(equal=True),
    ("a random start", plan()),
    FORETOLD,
    rivals=(("steps of 1e-1", plan(equal=True, lr=1e-1)), ("steps of 1e-3", plan(equal=True, lr=1e-3))),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "Plain descent at 1e-4.",
    plan(use_sgd=True, lr=1e-4, momentum=0.9),
    ("step 0.1", plan(use_sgd=True, lr=0.1, momentum=0.9)),
    FORETOLD,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Plain descent at 10 with momentum.",
    plan(use_sgd=True, lr=10.0, momentum=0.9),
    ("step 0.1", plan(use_sgd=True, lr=0.1, momentum=0.9)),
    FORETOLD,
    rivals=(("batches of 512", plan(use_sgd=True, lr=10.0, momentum=0.9, batch=512)),),
)
FAMILY.faulty(
    "drowned",
    "low_gradient_snr",
    "hard",
    "The next value is seen with thirty times as much noise, in batches of two fresh windows.",
    plan(noise=30.0, fresh=True, batch=2, lr=1e-2, steps=300),
    ("batches of 128", plan(noise=30.0, fresh=True, batch=128, lr=1e-2, steps=300)),
    Success("validation", 30.5),
    rivals=(("steps of 1e-3", plan(noise=30.0, fresh=True, batch=2, lr=1e-3, steps=300)),),
)
FAMILY.faulty(
    "mostly-noise",
    "bayes_floor",
    "medium",
    "What is to be foretold carries noise of four times its variance.",
    plan(noise=4.0, rows=5000, batch=128, width=8),
    ("values without noise", plan(noise=0.0, rows=5000, batch=128, width=8)),
    Success("training", 1.0),
    rivals=(("steps of 3e-3", plan(noise=4.0, rows=5000, batch=128, width=8, lr=3e-3)),),
)
FAMILY.healthy("plain", "easy", "Two waves, a GRU.", plan(), FORETOLD)
FAMILY.healthy(
    "eight-windows-a-step",
    "medium",
    "Eight windows a step: a loss that jumps by its own size, while the step falls to nothing, to an end that is as good as any.",
    plan(batch=8, lr=2e-2, falling=True, steps=600),
    FORETOLD,
)
