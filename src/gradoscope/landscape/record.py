"""One run of a training, kept as points in the space of its parameters: few enough to fit in memory, evenly spaced."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradoscope.loop import advance
from gradoscope.measure.metric import preconditioner
from gradoscope.objective import flat
from gradoscope.training import Live

__all__ = ["MEMORY", "MOST", "Recorded", "Stretch", "record"]

MOST = 100  # recorded points, the start included
FEWEST = 8
MEMORY = 256 << 20  # bytes that recorded points may take
WIDTH = 12  # steps of a stretch


@dataclass
class Stretch:
    """Consecutive steps of a run, for evidence step by step.

    Attributes:
        first: the step that the first point stands before.
        points: the parameters before the first step and after each, shape (W + 1, dim), in the parameters' own type.
        rates: the optimizer's step per unit of gradient after the last of them, shape (dim,); None where it is not known.
    """

    first: int
    points: Tensor
    rates: Tensor | None = None


@dataclass
class Recorded:
    """What was kept of one run.

    Attributes:
        points: the parameters that the optimizer moves, flat, float32, on the CPU, shape (n, dim).
        steps: the steps they stand at, ascending from 0, shape (n,).
        batch_loss: the loss of every step's own batch, shape (done,).
        gradient_norm: the norm of every step's gradient as the optimizer saw it, shape (done,).
        stretches: consecutive steps.
        every: the spacing of the points, in steps.
        done: how many steps were taken.
        broke: the first step whose loss was not finite, or None.
        interrupted: whether Ctrl-C ended it.
    """

    points: Tensor
    steps: np.ndarray
    batch_loss: np.ndarray
    gradient_norm: np.ndarray
    stretches: list[Stretch] = field(default_factory=list)
    every: int = 1
    done: int = 0
    broke: int | None = None
    interrupted: bool = False


def record(
    live: Live,
    steps: int,
    *,
    most: int = MOST,
    stretches: Sequence[float] = (),
    memory: int = MEMORY,
    tell: Callable[[float], None] | None = None,
) -> Recorded:
    """Train `live` and keep the start, the end and evenly spaced points between them.

    Every point is kept at first; when there are more than `most`, every second one is dropped and the spacing doubles. So a run that
    breaks early has points as well, and one of any length fits.

    Args:
        live: the training at its start; afterwards it stands at its end.
        steps: how many steps to take.
        most: the largest number of points; fewer where they would take more than `memory`.
        stretches: shares of the run at which consecutive steps are kept, e.g. (0, 0.5, 1).
        memory: bytes that points may take, and stretches as much again.
        tell: called with the share done.

    Returns:
        What was kept. Ctrl-C ends the run early and is noted, not raised.

    Cost: the steps.

    Example:
        >>> from gradoscope import Training
        >>> net = torch.nn.Linear(1, 1)
        >>> sgd = lambda p: torch.optim.SGD(p, lr=0.1)
        >>> task = Training(model=net, optimizer=sgd, loss_fn=torch.nn.functional.mse_loss, data=(torch.ones(4, 1), torch.zeros(4, 1)))
        >>> with Live.of(task) as live:
        ...     kept = record(live, 10, most=8)
        >>> kept.steps.tolist(), tuple(kept.points.shape)
        ([0, 2, 4, 6, 8, 10], (6, 2))
    """
    watcher = _Recorder(live, steps, most, stretches, memory, tell)
    interrupted = False
    try:
        advance(live, 0, steps, [watcher])
    except KeyboardInterrupt:
        interrupted = True
    return watcher.finish(interrupted)


class _Recorder:
    def __init__(
        self, live: Live, steps: int, most: int, stretches: Sequence[float], memory: int, tell: Callable[[float], None] | None
    ) -> None:
        self.live, self.steps, self.tell = live, steps, tell
        self.named = live.trainable()
        dim = sum(p.numel() for _, p in self.named)
        self.most = max(FEWEST, min(most, memory // (4 * dim)))
        self.every = 1
        self.kept: list[tuple[int, Tensor]] = []
        self.loss: list[float] = []
        self.norm: list[Tensor] = []
        self.broke: int | None = None
        width = min(WIDTH, steps, memory // (8 * dim * max(1, len(stretches))))
        starts = sorted({round(share * (steps - width)) for share in stretches}) if width >= 3 else []
        self.wanted = [s for i, s in enumerate(starts) if i == 0 or s >= starts[i - 1] + width]
        self.width = width
        self.open: list[Tensor] = []
        self.done: list[Stretch] = []
        self._keep(0)
        if self.wanted and self.wanted[0] == 0:
            self.open = [self._flat()]

    def _flat(self) -> Tensor:
        values = [p.detach() for _, p in self.named]
        return flat(values, values).cpu().clone()

    def _keep(self, step: int) -> None:
        if not self.kept or self.kept[-1][0] < step:
            here = self._flat().float()
            if bool(torch.isfinite(here).all()):
                self.kept.append((step, here))
        if len(self.kept) > self.most:
            del self.kept[1::2]
            self.every *= 2

    def __call__(self, live: Live, i: int, loss: float) -> None:
        self.loss.append(loss)
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for _, p in self.named if p.grad is not None]
        self.norm.append(torch.nn.utils.get_total_norm(grads).detach().cpu() if grads else torch.tensor(math.nan))
        if not math.isfinite(loss):
            self.broke = i
            return
        if (i + 1) % self.every == 0:
            self._keep(i + 1)
        self._stretch(i + 1)
        if self.tell is not None and (i % max(1, self.steps // 100) == 0):
            self.tell((i + 1) / self.steps)

    def _stretch(self, step: int) -> None:
        """Keep consecutive points from a wanted step on, and the optimizer's metric after the last of them."""
        if not self.wanted or step < self.wanted[0]:
            return
        self.open.append(self._flat())
        if len(self.open) == self.width + 1:
            points = torch.stack(self.open)
            if bool(torch.isfinite(points).all()):
                rates = preconditioner(self.live.optimizer, self.named)
                self.done.append(Stretch(self.wanted[0], points, None if rates is None else rates.cpu()))
            self.open = []
            del self.wanted[0]

    def finish(self, interrupted: bool) -> Recorded:
        done = len(self.loss)
        if self.broke is None and not interrupted:
            self._keep(done)
        if len(self.kept) > 2 and self.kept[-1][0] - self.kept[-2][0] < self.every / 2:
            del self.kept[-2]  # a last step of less than half the others' length would not be one of them
        return Recorded(
            points=torch.stack([p for _, p in self.kept]),
            steps=np.array([s for s, _ in self.kept]),
            batch_loss=np.array(self.loss),
            gradient_norm=np.array([float(n) for n in self.norm]),
            stretches=self.done,
            every=self.every,
            done=done,
            broke=self.broke,
            interrupted=interrupted,
        )
