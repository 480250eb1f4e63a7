"""What the tests of the catalogue share: train a problem and look at where it ends."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from gradoscope.loop import advance
from gradoscope.training import Live, Training


@dataclass
class Trained:
    """A trained live copy and the loss of each step."""

    live: Live
    losses: list[float]

    def on(self, data: object, n: int = 2000) -> tuple[float, float]:
        """(loss, metric) on tensors, or on n fresh examples of a function."""
        x, y = data(torch.Generator().manual_seed(7), n) if callable(data) else data
        metric = self.live.training.metric
        with torch.no_grad():
            output = self.live.model(x)
            return float(self.live.training.loss(self.live.model, (x, y))), metric(output, y) if metric else float("nan")


@pytest.fixture
def train() -> Callable[..., Trained]:
    def run(training: Training, *, seed: int = 0, steps: int | None = None) -> Trained:
        losses: list[float] = []
        live = Live.of(training, seed=seed)
        advance(live, 0, steps or training.steps, [lambda _live, _step, loss: losses.append(loss)])
        return Trained(live, losses)

    return run
