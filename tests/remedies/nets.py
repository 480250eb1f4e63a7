"""Small trainings for the remedies, and how they are run."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradoscope.loop import advance, prepare
from gradoscope.remedies import Remedy
from gradoscope.state import State
from gradoscope.training import Live, Training
from tests.reference.training import data, mlp


def training(**options: Any) -> Training:
    """A small healthy training, but for what is given."""
    base: dict[str, Any] = {
        "model": mlp,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.125, momentum=0.5),
        "data": data(),
        "loss_fn": F.cross_entropy,
        "batch_size": 6,
    }
    return Training(**(base | options))


def prepared(recipe: Training, *remedies: Remedy, seed: int = 3) -> Live:
    """A live copy at the training's start with the remedies applied."""
    for remedy in remedies:
        recipe = remedy(recipe)
    live = Live.of(recipe, seed=seed)
    prepare(live, State.capture(live))
    return live


def trained(recipe: Training, *remedies: Remedy, steps: int = 6, seed: int = 3) -> tuple[list[Tensor], list[float]]:
    """The parameters at the end and the losses on the way."""
    live, losses = prepared(recipe, *remedies, seed=seed), []
    advance(live, 0, steps, [lambda _live, _i, loss: losses.append(loss)])
    return [p.detach() for p in live.model.parameters()], losses


def equal(a: tuple[Sequence[Tensor], list[float]], b: tuple[Sequence[Tensor], list[float]]) -> bool:
    """Whether two trainings are the same to the last bit."""
    return a[1] == b[1] and all(torch.equal(p, q) for p, q in zip(a[0], b[0], strict=True))
