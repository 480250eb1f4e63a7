"""What the parts of a landscape are computed from: a recorded run, where it stands, and the losses that are evaluated."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.landscape.points import Subject, evaluate
from gradoscope.landscape.questions import Place
from gradoscope.landscape.record import Recorded
from gradoscope.landscape.trajectory import Path, path_of
from gradoscope.landscape.walks import Straightness, Walk, straightness, walks
from gradoscope.objective import Objective
from gradoscope.training import Live

__all__ = ["WALKS", "Scene", "halves"]

WALKS = 200
DRAWN = 5  # walks that are drawn beside a path
PARTS = 4  # parts of each half of the examples


@dataclass
class Scene:
    """Everything that the parts are computed from: a run, where it stands, and what to evaluate.

    Attributes:
        live: the training at the end of its run.
        recorded: the run.
        again: a run from another start, or None.
        subject: training and validation loss without masks, on fixed examples.
        halves: the training's own loss on two halves of some examples, each in parts; or on the whole data set, and None.
        side: points along each side of a surface.
        coarse: whether surfaces may be interpolated.
        batch_norm: "recomputed" where the model has batch normalisation.
        seed: of directions, walks and tests.
        notes: what the reader must know.
    """

    live: Live
    recorded: Recorded
    again: Recorded | None
    subject: Subject
    halves: tuple[Objective, Objective | None]
    side: int
    coarse: bool
    batch_norm: Literal["stored", "recomputed"]
    seed: int
    notes: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)

    @cached_property
    def path(self) -> Path:
        """The path of the run."""
        return path_of(self.recorded.points)

    @cached_property
    def straight(self) -> Straightness:
        """Its test against random walks."""
        return straightness(self.path, count=WALKS, seed=self.seed)

    @cached_property
    def walks(self) -> list[Walk]:
        """The random walks that are drawn."""
        return list(walks(self.path, DRAWN, seed=self.seed))

    @cached_property
    def losses(self) -> np.ndarray:
        """The loss at every recorded point, on the fixed examples and without masks, shape (n,)."""
        return np.array([self.loss_at(p) for p in self.recorded.points])

    def loss_at(self, point: Tensor) -> float:
        """The loss at one recorded vector, as the surfaces have it."""
        here = self.to_live(point)
        return float(evaluate(self.subject.train, here, torch.zeros_like(here)[None], [[0.0]], batch_norm=self.batch_norm).loss[0])

    def to_live(self, point: Tensor) -> Tensor:
        """A recorded vector in the type and on the device of the parameters."""
        like = self.subject.train.parameters[0]
        return point.to(like.device, like.dtype)

    @property
    def start(self) -> Tensor:
        """The parameters at the start, shape (dim,)."""
        return self.to_live(self.recorded.points[0])

    @property
    def end(self) -> Tensor:
        """The parameters at the end, shape (dim,)."""
        return self.to_live(self.recorded.points[-1])


def halves(live: Live, rows: int) -> tuple[Objective, Objective | None]:
    """The training's own loss on the whole data set, and None, where it has no more than `rows`; else on two halves of a sample, in parts.

    Both halves are the same where there is one batch that cannot be cut.
    """
    sample = [tree.to_device(b, live.device) for b in live.batches.sample(rows, "probe")]
    try:
        whole = sample[0] if len(sample) == 1 else tree.concatenate(sample)
        n = tree.rows(whole)
    except (RuntimeError, TypeError, ValueError):  # batches of different shapes, e.g. sequences of different lengths
        n = None
    if n is not None and live.batches.size == n:
        return Objective.of(live, [whole], seed=7), None
    if n is None or n < 4 * PARTS:
        groups = [sample[::2], sample[1::2]] if len(sample) > 1 else [sample, sample]
        return Objective.of(live, groups[0], seed=7), Objective.of(live, groups[1], seed=8)
    each = min(n, rows) // (2 * PARTS)
    cut = [tree.take(whole, slice(k * each, (k + 1) * each)) for k in range(2 * PARTS)]
    return Objective.of(live, cut[::2], seed=7), Objective.of(live, cut[1::2], seed=8)
