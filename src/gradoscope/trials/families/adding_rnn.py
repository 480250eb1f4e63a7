"""Sequences of numbers of which two are marked: their sum is asked for at the end."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("adding-rnn", "recurrent", 4e-3)


class Adder(nn.Module):
    """A recurrent layer and a linear map of its last state."""

    def __init__(self, kind: str, width: int, *, gain: float, head_only: bool) -> None:
        super().__init__()
        layers: dict[str, Any] = {"relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
        options = {"nonlinearity": "relu"} if kind == "relu" else {}
        self.cells: Any = layers[kind](2, width, batch_first=True, **options)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            if gain != 1:
                nn.init.orthogonal_(self.cells.weight_hh_l0)
                self.cells.weight_hh_l0.mul_(gain)
        if head_only:
            self.cells.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        states = self.cells(x)[0]
        answer: Tensor = self.head(states[:, -1])
        return answer


def make(
    seed: int,
    *,
    kind: str = "gru",
    width: int = 24,
    length: int = 10,
    gain: float = 1.0,
    lr: float = 1e-2,
    use_sgd: bool = False,
    noise: float = 0.0,
    rows: int = 1500,
    batch: int = 64,
    steps: int = 250,
    clip: float | None = None,
    head_only: bool = False,
) -> Training:
    """Two marks, in the first and second half. The sum has variance one."""
    random = generator(seed, 34)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        values = torch.rand(n, length, generator=random) * 2 - 1
        first = torch.randint(0, length // 2, (n, 1), generator=random)
        second = torch.randint(length // 2, length, (n, 1), generator=random)
        marks = torch.zeros(n, length).scatter_(1, first, 1.0).scatter_(1, second, 1.0)
        y = (values * marks).sum(1, keepdim=True) * 1.5**0.5
        return torch.stack([values, marks], 2), y + noise**0.5 * torch.randn(n, 1, generator=random)

    return Training(
        name="adding-rnn",
        model=lambda: Adder(kind, width, gain=gain, head_only=head_only),
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=nn.functional.mse_loss,
        data=sample(rows),
        validation=sample(400),
        batch_size=batch,
        steps=steps,
        clip_norm=clip,
    )


plan = planner(make)


ADDED = Success("training", 0.3)

FAMILY.faulty(
    "growing-state",
    "exploding_gradient",
    "medium",
    "ReLU units behind a recurrent matrix of five times an orthogonal one: states and gradients grow threefold at each of ten steps.",
    plan(kind="relu", gain=5.0, length=10, lr=3e-3, steps=300),
    ("an orthogonal recurrence", plan(kind="relu", gain=1.0001, length=10, lr=3e-3, steps=300)),
    ADDED,
    rivals=(
        ("steps of 3e-4", plan(kind="relu", gain=5.0, length=10, lr=3e-4, steps=300)),
        ("steps of 3e-2", plan(kind="relu", gain=5.0, length=10, lr=3e-2, steps=300)),
    ),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "Adam at 1e-5.",
    plan(lr=1e-5),
    ("step 1e-2", plan()),
    ADDED,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Adam at 1.",
    plan(lr=1.0),
    ("step 1e-2", plan()),
    ADDED,
    rivals=(("batches of 512", plan(lr=1.0, batch=512, steps=120)),),
)
FAMILY.faulty(
    "head-only",
    "frozen_parameters",
    "medium",
    "Only the last linear map is trained, on six random gated units.",
    plan(width=6, head_only=True, length=20, lr=2e-2),
    ("all parameters trained", plan(width=6, length=20, lr=2e-2)),
    ADDED,
    rivals=(("steps of 0.2", plan(width=6, head_only=True, length=20, lr=0.2)),),
)
FAMILY.faulty(
    "noisy-sums",
    "bayes_floor",
    "hard",
    "Noise of four times the sums' variance.",
    plan(noise=4.0, rows=5000, batch=128, width=12, steps=300),
    ("sums without noise", plan(rows=5000, batch=128, width=12, steps=300)),
    Success("training", 1.0),
    rivals=(("steps of 3e-3", plan(noise=4.0, rows=5000, batch=128, width=12, steps=300, lr=3e-3)),),
)
FAMILY.faulty(
    "fifty-sequences",
    "overfitting",
    "medium",
    "Fifty sequences with noise, learnt by heart.",
    plan(rows=50, noise=0.3, batch=25, width=32, lr=2e-2, steps=300),
    ("1,500 sequences", plan(noise=0.3, batch=25, width=32, lr=1e-2, steps=300)),
    Success("validation", 0.65),
)
FAMILY.healthy("gru", "easy", "Ten steps, gates: it adds.", plan(), ADDED)
FAMILY.healthy(
    "clipped",
    "medium",
    "Gradients clipped to a norm of 0.5 throughout: more than half of the steps are shortened, and it adds as well.",
    plan(clip=0.5, kind="lstm", steps=300),
    ADDED,
)
FAMILY.healthy(
    "plateau",
    "hard",
    "Sixteen steps: a plateau at the variance of the sums, then a fall.",
    plan(length=16, steps=300, lr=1e-2),
    ADDED,
)
