"""Handwritten digits and a small convolutional network, with the usual parts of a real one: momentum, norms, schedules."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.problems._data import digits
from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("digits-cnn", "cnn", 2e-3)


def make(
    seed: int,
    *,
    lr: float = 0.05,
    momentum: float = 0.9,
    use_adam: bool = False,
    width: int = 8,
    norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    gain: float = 1.0,
    frozen: str = "",
    rows: int = 1347,
    batch: int = 50,
    steps: int = 250,
    schedule: str = "",
    dropout: float = 0.0,
    log_twice: str = "",
    units: float = 1.0,
    offset: float = 0.0,
    decay: float = 0.0,
) -> Training:
    """Two convolutions with pooling, a linear layer; images with mean zero and unit spread unless `units` and `offset` change them."""
    (x, y), (x_other, y_other) = digits(seed, train=rows)

    def shaped(images: Tensor) -> Tensor:
        return units * images.reshape(-1, 1, 8, 8) + offset

    def model() -> nn.Module:
        def normed(count: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(count)] if norm else []

        made = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            *normed(width),
            activation(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            *normed(2 * width),
            activation(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(8 * width, 10),
        )
        scaled(made, gain)
        if frozen == "body":
            made[:-1].requires_grad_(False)
        if log_twice:
            made.append(nn.Softmax(dim=-1) if log_twice == "squared" else nn.Sigmoid())
        return made

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if log_twice == "squared":
            return nn.functional.mse_loss(output, nn.functional.one_hot(target, 10).float())
        return nn.functional.cross_entropy(output, target)

    def falling(optimizer: torch.optim.Optimizer) -> Any:
        if schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        if schedule == "one-cycle":
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4 * lr, total_steps=steps + 2)
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)

    return Training(
        name="digits-cnn",
        model=model,
        optimizer=adam(lr, weight_decay=decay) if use_adam else sgd(lr, momentum=momentum, weight_decay=decay),
        loss_fn=loss,
        data=(shaped(x), y),
        validation=(shaped(x_other), y_other),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
        schedule=falling if schedule else None,
    )


plan = planner(make)


READ = Success("training", 0.4)

FAMILY.faulty(
    "step-that-fades",
    "step_too_small",
    "hard",
    "The step shrinks by a fifth at every step, as where a schedule made for epochs is called once per batch: after 20 steps it is gone.",
    plan(lr=0.02, momentum=0.0, schedule="fading"),
    ("a step that is kept", plan(lr=0.02, momentum=0.9)),
    READ,
)
FAMILY.faulty("tiny-step", "step_too_small", "easy", "A step of 2e-5.", plan(lr=2e-5), ("step 0.05", plan()), READ)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "A step of 2 with momentum of 0.9.",
    plan(lr=2.0),
    ("step 0.05", plan()),
    READ,
    rivals=(("batches of 400", plan(lr=2.0, batch=400)),),
)
FAMILY.faulty(
    "sigmoid-scores",
    "wrong_loss_output",
    "medium",
    "Scores go through a sigmoid before cross-entropy: no digit is given more than 23% of the probability.",
    plan(log_twice="sigmoid"),
    ("without the sigmoid", plan()),
    Success("training", 1.0),
    rivals=(("steps of 0.5", plan(log_twice="sigmoid", lr=0.5)),),
)
FAMILY.faulty(
    "frozen-body",
    "frozen_parameters",
    "medium",
    "Two random filters and their four combinations are not trained, only the last layer is.",
    plan(frozen="body", width=2, lr=0.05),
    ("all layers trained", plan(width=2, lr=0.05)),
    Success("training", 0.75),
    rivals=(("steps of 0.5", plan(frozen="body", width=2, lr=0.5)),),
)
FAMILY.faulty(
    "counts-with-offset",
    "unnormalised_inputs",
    "medium",
    "Grey values around 100 with a spread of three.",
    plan(units=3.0, offset=100.0, lr=1e-4),
    ("grey values around zero with unit spread, and the step that they allow", plan()),
    READ,
    rivals=(
        ("steps of 1e-3", plan(units=3.0, offset=100.0, lr=1e-3)),
        ("steps of 1e-5", plan(units=3.0, offset=100.0, lr=1e-5)),
    ),
)
FAMILY.faulty(
    "forty-digits",
    "overfitting",
    "medium",
    "Forty digits are learnt by heart.",
    plan(rows=40, batch=20, use_adam=True, lr=5e-3),
    ("all digits", plan(use_adam=True, lr=5e-3)),
    Success("validation", 0.4),
)
FAMILY.healthy("plain", "easy", "Two convolutions and momentum.", plan(), READ)
FAMILY.healthy(
    "one-cycle",
    "medium",
    "The step rises to four times its start and falls to nothing: a slow beginning, and an end that stands still.",
    plan(schedule="one-cycle", lr=0.02),
    READ,
)
FAMILY.healthy(
    "dropout-and-norm",
    "hard",
    "Half of the features are dropped at each step: the loss of a step stays far above validation's.",
    plan(dropout=0.5, norm=True, steps=300),
    READ,
)
FAMILY.healthy(
    "decayed",
    "medium",
    "Weight decay of 1e-3 under Adam.",
    plan(use_adam=True, lr=3e-3, decay=1e-3),
    READ,
)
