"""Handwritten digits and a ReLU network: what every tutorial begins with."""

import torch
from torch import Tensor, nn

from gradoscope.problems._data import digits
from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, mlp, overwrite, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("digits-mlp", "mlp", 6e-4)


def make(
    seed: int,
    *,
    lr: float = 0.2,
    sizes: tuple[int, ...] = (64, 64, 64, 10),
    activation: type[nn.Module] = nn.ReLU,
    norm: bool = False,
    dropout: float = 0.0,
    gain: float = 1.0,
    dead: float = 0.0,
    rows: int = 1347,
    batch: int = 64,
    steps: int = 300,
    flipped: float = 0.0,
    units: float = 1.0,
    offset: float = 0.0,
    head_only: bool = False,
    softmax: bool = False,
    decay: float = 0.0,
    smoothing: float = 0.0,
    use_adam: bool = False,
) -> Training:
    """Digits (standardised as a whole) under a ReLU network; each option plants or removes one thing."""
    (x, y), validation = digits(seed, train=rows)
    if flipped:
        random = generator(seed, 11)
        y, validation = _guessed(y, flipped, random), (validation[0], _guessed(validation[1], flipped, random))
    x, validation = units * x + offset, (units * validation[0] + offset, validation[1])

    def model() -> nn.Module:
        network = mlp(sizes, activation, norm=norm, dropout=dropout)
        scaled(network, gain)
        if dead:
            second = [m for m in network if isinstance(m, nn.Linear)][1]
            overwrite(second, bias=dead)
        if softmax:
            network.append(nn.Softmax(dim=-1))
        return network

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        parameters = list(model.children())[-1].parameters() if head_only else model.parameters()
        made: torch.optim.Optimizer = (adam if use_adam else sgd)(lr, weight_decay=decay)(parameters)
        return made

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=smoothing)

    return Training(
        name="digits-mlp",
        model=model,
        optimizer=optimizer,
        loss_fn=loss,
        data=(x, y),
        validation=validation,
        metric=accuracy,
        batch_size=batch,
        steps=steps,
    )


def _guessed(y: Tensor, share: float, random: torch.Generator) -> Tensor:
    """Labels of which a share is drawn at random."""
    lot = torch.rand(len(y), generator=random) < share
    return torch.where(lot, torch.randint(0, 10, (len(y),), generator=random), y)


plan = planner(make)


LEARNT = Success("training", 0.35)
KNOWN = Success("metric", 0.9, above=True)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "The step is a two-thousandth of one that works: 300 of them move the loss a little.",
    plan(lr=1e-4),
    ("step 0.2", plan()),
    LEARNT,
)
FAMILY.faulty(
    "shy-adam",
    "step_too_small",
    "hard",
    "Adam moves each weight by its step size: 300 steps of 1e-5 move none by more than 0.003, a fortieth of their spread.",
    plan(lr=1e-5, use_adam=True),
    ("step 1e-3", plan(lr=1e-3, use_adam=True)),
    LEARNT,
    rivals=(("batches of 512", plan(lr=1e-5, use_adam=True, batch=512)),),
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "easy",
    "A step fifty times the one that works lies far beyond the limit of stability.",
    plan(lr=10.0),
    ("step 0.2", plan()),
    LEARNT,
    rivals=(("batches of 512", plan(lr=10.0, batch=512)),),
)
FAMILY.faulty(
    "huge-adam",
    "step_too_large",
    "medium",
    "Adam moves each weight by 0.3 at every step, several times their spread at the start.",
    plan(lr=0.3, use_adam=True),
    ("step 3e-3", plan(lr=3e-3, use_adam=True)),
    LEARNT,
    rivals=(("batches of 512", plan(lr=0.3, use_adam=True, batch=512)),),
)
FAMILY.faulty(
    "deep-sigmoid",
    "vanishing_gradient",
    "easy",
    "Seven sigmoid layers: each has a slope of at most a quarter, and the default start halves what is left.",
    plan(sizes=(64, *[48] * 7, 10), activation=nn.Sigmoid),
    ("ReLU with batch normalisation", plan(sizes=(64, *[48] * 7, 10), norm=True)),
    LEARNT,
    rivals=(("steps of 2", plan(sizes=(64, *[48] * 7, 10), activation=nn.Sigmoid, lr=2.0)),),
)
FAMILY.faulty(
    "dead-layer",
    "vanishing_gradient",
    "easy",
    "Biases of -20 keep every unit of the second layer off on all images: nothing below receives a gradient.",
    plan(dead=-20.0),
    ("biases of zero", plan()),
    LEARNT,
    rivals=(("steps of 2", plan(dead=-20.0, lr=2.0)), ("steps of 0.02", plan(dead=-20.0, lr=0.02))),
)
FAMILY.faulty(
    "saturated-tanh",
    "vanishing_gradient",
    "medium",
    "Weights a hundred times too large drive every tanh to its flat ends, where it passes no gradient.",
    plan(activation=nn.Tanh, gain=100.0, sizes=(64, 64, 64, 64, 64, 10), lr=0.1),
    ("the usual start", plan(activation=nn.Tanh, sizes=(64, 64, 64, 64, 64, 10), lr=0.1)),
    Success("metric", 0.85, above=True),
    rivals=(
        ("steps of 0.01", plan(activation=nn.Tanh, gain=100.0, sizes=(64, 64, 64, 64, 64, 10), lr=0.01)),
        ("batches of 512", plan(activation=nn.Tanh, gain=100.0, sizes=(64, 64, 64, 64, 64, 10), lr=0.1, batch=512)),
    ),
    # The few units that are not saturated pass it on a hundredfold: in the mean over examples the gradient grows on its way back.
    accepts=("exploding_gradient",),
)
FAMILY.faulty(
    "large-start",
    "exploding_gradient",
    "easy",
    "Weights eight times too large in each of seven ReLU layers: the signal grows twofold and more per layer, the gradient with it.",
    plan(sizes=(64, *[48] * 7, 10), gain=8.0, lr=0.05),
    ("He's start", plan(sizes=(64, *[48] * 7, 10), gain=2.4, lr=0.05)),
    LEARNT,
    rivals=(("steps of 0.002", plan(sizes=(64, *[48] * 7, 10), gain=8.0, lr=0.002)),),
)
FAMILY.faulty(
    "few-images",
    "overfitting",
    "easy",
    "Fifty images and a network that fits them within a few steps: validation stays far behind.",
    plan(rows=50, batch=25, use_adam=True, lr=3e-3),
    ("all images", plan(use_adam=True, lr=3e-3)),
    Success("validation", 0.45),
    rivals=(("steps of 3e-4", plan(rows=50, batch=25, use_adam=True, lr=3e-4)),),
)
FAMILY.faulty(
    "noisy-labels-memorised",
    "overfitting",
    "hard",
    "A third of the labels of 300 images are drawn at random, and the network learns them by heart: validation falls, then rises.",
    plan(rows=300, flipped=0.33, batch=50, use_adam=True, lr=3e-3, sizes=(64, 128, 128, 10), steps=400),
    (
        "40 steps, which is early stopping",
        plan(rows=300, flipped=0.33, batch=50, use_adam=True, lr=3e-3, sizes=(64, 128, 128, 10), steps=40),
    ),
    Success("validation", 2.0),
)
FAMILY.faulty(
    "two-softmax",
    "wrong_loss_output",
    "easy",
    "The network ends in a softmax, and cross-entropy takes another one: scores lie within one of each other, the loss above 1.46.",
    plan(softmax=True),
    ("without the softmax", plan()),
    Success("training", 1.0),
    rivals=(("steps of 2", plan(softmax=True, lr=2.0)), ("steps of 0.02", plan(softmax=True, lr=0.02))),
)
FAMILY.faulty(
    "offset-pixels",
    "unnormalised_inputs",
    "medium",
    "Every pixel is raised by 30 times its spread: the mean direction has a thousand times the curvature of the others.",
    plan(offset=30.0, lr=1e-3),
    ("standardised pixels, with the step that they allow", plan()),
    LEARNT,
    rivals=(("steps of 1e-2", plan(offset=30.0, lr=1e-2)), ("steps of 1e-4", plan(offset=30.0, lr=1e-4))),
)
FAMILY.faulty(
    "head-only",
    "frozen_parameters",
    "medium",
    "Only the last layer was handed to the optimizer, on top of eight random units: they do not tell ten digits apart.",
    plan(sizes=(64, 8, 8, 10), head_only=True, lr=0.3, steps=400),
    ("all layers trained", plan(sizes=(64, 8, 8, 10), lr=0.3, steps=400)),
    Success("training", 0.8),
    rivals=(("steps of 3", plan(sizes=(64, 8, 8, 10), head_only=True, lr=3.0, steps=400)),),
)
FAMILY.faulty(
    "guessed-labels",
    "bayes_floor",
    "medium",
    "Four in five labels are drawn at random: the best answer leaves more than four fifths of the constant answer's loss.",
    plan(flipped=0.8, sizes=(64, 10), lr=0.02, steps=300, batch=128),
    ("the true labels", plan(sizes=(64, 10), lr=0.02, steps=300, batch=128)),
    Success("training", 0.8),
    rivals=(("steps of 0.2", plan(flipped=0.8, sizes=(64, 10), lr=0.2, batch=128)),),
)
FAMILY.faulty(
    "deep-sigmoid-tiny-step",
    ("vanishing_gradient", "step_too_small"),
    "hard",
    "Seven sigmoid layers at a two-thousandth of a usual step: with a mended start the steps are still too short.",
    plan(sizes=(64, *[48] * 7, 10), activation=nn.Sigmoid, lr=1e-4),
    ("ReLU with batch normalisation, and steps of 0.2", plan(sizes=(64, *[48] * 7, 10), norm=True)),
    LEARNT,
    rivals=(
        ("ReLU with batch normalisation alone", plan(sizes=(64, *[48] * 7, 10), norm=True, lr=1e-4)),
        ("steps of 0.2 alone", plan(sizes=(64, *[48] * 7, 10), activation=nn.Sigmoid)),
    ),
)
FAMILY.healthy("plain", "easy", "Two hidden layers at a good step size.", plan(), LEARNT)
FAMILY.healthy(
    "dropout",
    "medium",
    "Dropout of 0.3: the loss of a training step stays well above validation's, as it should.",
    plan(dropout=0.3, steps=400),
    LEARNT,
)
FAMILY.healthy(
    "deep-with-norm",
    "medium",
    "Eight hidden layers with batch normalisation: deep, and it learns.",
    plan(sizes=(64, *[48] * 8, 10), norm=True, lr=0.1),
    LEARNT,
)
FAMILY.healthy(
    "label-smoothing",
    "hard",
    "Label smoothing of 0.2: no answer gets below the targets' own entropy of 0.94, and the loss ends just above it.",
    plan(smoothing=0.2, steps=400, lr=0.3),
    Success("training", 1.1),
)
FAMILY.healthy(
    "long-after-convergence",
    "hard",
    "Images by the same network long after they are all learnt: gradients of 1e-3 and less, nothing moves, nothing is wrong.",
    plan(lr=0.5, batch=128, steps=600),
    Success("training", 0.05),
)
