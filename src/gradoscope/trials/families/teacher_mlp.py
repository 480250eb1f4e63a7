"""Regression on what another network says: there is nothing in the targets that the model cannot express."""

from typing import Any

import torch
from torch import nn

from gradoscope.guard import private_random
from gradoscope.training import Training
from gradoscope.trials.families._make import adam, balanced, generator, mlp, overwrite, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("teacher-mlp", "mlp", 6e-4)


def make(
    seed: int,
    *,
    lr: float = 0.1,
    use_adam: bool = False,
    depth: int = 1,
    width: int = 64,
    activation: type[nn.Module] = nn.Tanh,
    last: type[nn.Module] | None = None,
    gain: float = 1.0,
    zero: bool = False,
    rows: int = 1500,
    noise: float = 0.0,
    batch: int = 64,
    steps: int = 400,
    offset: float = 0.0,
    column: bool = True,
    momentum: float = 0.0,
    schedule: str = "",
    target_offset: float = 0.0,
    stretch: float = 1.0,
) -> Training:
    """A teacher of four tanh units on eight inputs, its answers at mean zero and variance one; the student is wider."""
    random = generator(seed, 24)
    with private_random(int(torch.randint(0, 2**31, (1,), generator=random))):
        teacher = scaled(mlp((8, 4, 1), nn.Tanh), 2.0)
    x = torch.randn(rows + 500, 8, generator=random)
    with torch.no_grad():
        y = teacher(x)
    y = (y - y.mean()) / y.std() + target_offset
    if stretch != 1:  # a correlated copy of the inputs, of the same size: the teacher's answers are those of the white ones
        spread = torch.logspace(0, -float(torch.tensor(stretch).log10()), 8).sqrt()
        x = (x * spread / spread.square().mean().sqrt()) @ torch.linalg.qr(torch.randn(8, 8, generator=random))[0].T
    x = x + offset
    data = (x[:rows], y[:rows] + noise**0.5 * torch.randn(rows, 1, generator=random))
    validation = balanced(x[rows:], y[rows:], noise, random)
    if not column:
        data, validation = (data[0], data[1][:, 0]), (validation[0], validation[1][:, 0])

    def model() -> nn.Module:
        network = scaled(mlp((8, *[width] * depth, 1), activation), gain)
        if zero:
            overwrite(network, **{name.replace(".", "__"): 0.0 for name, _ in network.named_parameters()})
        if last is not None:
            network.append(last())
        return network

    def falling(optimizer: torch.optim.Optimizer) -> Any:
        if schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return torch.optim.lr_scheduler.StepLR(optimizer, steps // 20, gamma=0.5)

    return Training(
        name="teacher-mlp",
        model=model,
        optimizer=adam(lr) if use_adam else sgd(lr, momentum=momentum),
        loss_fn=nn.functional.mse_loss,
        data=data,
        validation=validation,
        batch_size=batch,
        steps=steps,
        schedule=falling if schedule else None,
    )


plan = planner(make)


CLOSE = Success("training", 0.15)
HALF = Success("training", 0.4)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "A step a thousandth of a good one.",
    plan(lr=1e-4),
    ("step 0.1", plan()),
    CLOSE,
)
FAMILY.faulty(
    "halved-too-often",
    "step_too_small",
    "hard",
    "The step is halved every 20 steps: all further movement together is no longer than the first 40 steps.",
    plan(lr=0.003, schedule="halved"),
    ("step 0.1, kept", plan()),
    CLOSE,
    rivals=(("batches of 512", plan(lr=0.003, schedule="halved", batch=512)),),
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "A step of 3 on 64 tanh units: the output layer alone has its limit of stability near a tenth of that.",
    plan(lr=3.0),
    ("step 0.1", plan()),
    CLOSE,
    rivals=(("batches of 512", plan(lr=3.0, batch=512)),),
)
FAMILY.faulty(
    "much-momentum",
    "step_too_large",
    "hard",
    "Momentum of 0.99 makes a step of 1 one of 100.",
    plan(lr=1.0, momentum=0.99),
    ("step 0.01", plan(lr=0.01, momentum=0.9)),
    CLOSE,
    rivals=(("batches of 512", plan(lr=1.0, momentum=0.99, batch=512)),),
)
FAMILY.faulty(
    "all-zero",
    "saddle_point",
    "easy",
    "Every weight starts at zero: outputs do not feel the hidden units, nor these the inputs. Only the last bias ever moves.",
    plan(zero=True),
    ("the usual start", plan()),
    CLOSE,
    rivals=(("steps of 1", plan(zero=True, lr=1.0)), ("steps of 0.01", plan(zero=True, lr=0.01))),
)
FAMILY.faulty(
    "row-against-column",
    "wrong_loss_output",
    "medium",
    "Outputs of shape (n, 1) and targets of shape (n,): every output is compared with every target, and their mean is the best answer.",
    plan(column=False),
    ("targets of shape (n, 1)", plan()),
    HALF,
)
FAMILY.faulty(
    "rectified-answers",
    "wrong_loss_output",
    "medium",
    "The output goes through a ReLU, and half of the targets are below zero.",
    plan(last=nn.ReLU, width=64),
    ("no ReLU after the last layer", plan()),
    Success("training", 0.25),
)
FAMILY.faulty(
    "inputs-with-offset",
    "unnormalised_inputs",
    "medium",
    "Inputs around 50 with a spread of one, as temperatures in kelvin have it: every tanh is saturated, on the same side for all rows.",
    plan(offset=50.0),
    ("inputs at mean zero", plan()),
    CLOSE,
    rivals=(("steps of 0.01", plan(offset=50.0, lr=0.01)), ("steps of 1", plan(offset=50.0, lr=1.0))),
)
FAMILY.faulty(
    "targets-far-off",
    "unnormalised_inputs",
    "hard",
    "Targets around 1,000 with a spread of one: Adam's steps of 0.003 take the whole run to get there.",
    plan(target_offset=1000.0, use_adam=True, lr=3e-3),
    ("targets at mean zero", plan(use_adam=True, lr=3e-3)),
    CLOSE,
    rivals=(
        ("steps of 3e-4", plan(target_offset=1000.0, use_adam=True, lr=3e-4)),
        ("batches of 512", plan(target_offset=1000.0, use_adam=True, lr=3e-3, batch=512)),
    ),
)
FAMILY.faulty(
    "noise-learnt-by-heart",
    "overfitting",
    "medium",
    "Eighty rows with as much noise as signal, and a wide network under Adam that has fitted both.",
    plan(rows=80, noise=1.0, width=256, depth=2, activation=nn.ReLU, use_adam=True, lr=3e-3, batch=40),
    ("3,000 rows", plan(rows=3000, noise=1.0, width=256, depth=2, activation=nn.ReLU, use_adam=True, lr=1e-3, batch=40, steps=200)),
    Success("validation", 1.4),
)
FAMILY.faulty(
    "more-noise-than-signal",
    "bayes_floor",
    "medium",
    "Noise of four times the signal's variance, in more rows than the student can learn by heart.",
    plan(noise=4.0, rows=6000, width=16, batch=256),
    ("targets without noise", plan(rows=6000, width=16, batch=256)),
    Success("training", 1.0),
    rivals=(("steps of 0.01", plan(noise=4.0, rows=6000, width=16, batch=256, lr=0.01)),),
)
DROWNED: dict[str, Any] = {"noise": 40.0, "rows": 20000, "width": 48}

FAMILY.faulty(
    "two-rows-a-step",
    "low_gradient_snr",
    "medium",
    "Noise of forty times the signal's variance, two rows a step: the steps that would learn in time are thrown about.",
    plan(**DROWNED, batch=2, lr=0.01),
    ("batches of 256", plan(**DROWNED, batch=256, lr=0.01)),
    Success("validation", 40.2),
    rivals=(("steps of 0.003", plan(**DROWNED, batch=2, lr=0.003)), ("steps of 0.001", plan(**DROWNED, batch=2, lr=0.001))),
)
FAMILY.faulty(
    "correlated-inputs",
    "ill_conditioning",
    "medium",
    "The student sees the inputs through a rotation and scales from 1 to 3e-4: most of what counts lies in what hardly varies.",
    plan(stretch=1e7, lr=0.1),
    ("white inputs", plan(lr=0.1)),
    Success("training", 0.2),
    rivals=(
        ("steps of 0.3", plan(stretch=1e7, lr=0.3)),
        ("steps of 0.03", plan(stretch=1e7, lr=0.03)),
        ("batches of 512", plan(stretch=1e7, lr=0.1, batch=512)),
    ),
)
FAMILY.faulty(
    "row-against-column-tiny-step",
    ("wrong_loss_output", "step_too_small"),
    "hard",
    "Outputs and targets are broadcast against each other, and the step is a thousandth of a good one.",
    plan(column=False, lr=1e-4),
    ("targets of shape (n, 1), and a step of 0.1", plan()),
    CLOSE,
    rivals=(("targets of shape (n, 1) alone", plan(lr=1e-4)), ("a step of 0.1 alone", plan(column=False))),
)
FAMILY.healthy("plain", "easy", "64 tanh units follow four.", plan(), CLOSE)
FAMILY.healthy(
    "cosine",
    "medium",
    "Adam with a step that falls along a cosine: the last quarter looks as if it stood still.",
    plan(use_adam=True, lr=1e-2, schedule="cosine", activation=nn.ReLU),
    CLOSE,
)
FAMILY.healthy(
    "a-fifth-of-noise",
    "hard",
    "A fifth of the targets' variance is noise, which stays, and all else is learnt.",
    plan(noise=0.25, rows=6000, batch=128, use_adam=True, lr=1e-2, width=16, steps=500),
    Success("training", 0.33),
)
