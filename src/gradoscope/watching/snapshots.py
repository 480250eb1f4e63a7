"""Copies of a training's state while it goes on: the start, the latest, and a few in between, in memory and on disk."""

from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.state import State
from gradoscope.store import Run
from gradoscope.training import Live

__all__ = ["Snapshots"]

MOST_STATES, STATE_BYTES = 6, 512 << 20


class Snapshots:
    """Keeps the state at the start and at later steps, evenly in the logarithm of the step.

    Args:
        model: the module without wrappers.
        optimizer: over its parameters.
        schedule: the learning-rate scheduler, or None.
        run: where checkpoints are written too, or None.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, schedule: Any, run: Run | None) -> None:
        view: Any = SimpleNamespace(model=model, optimizer=optimizer, schedule=schedule)
        self._live: Live = view
        self.run = run
        self.states: list[State] = []

    def keep(self, step: int) -> None:
        """Copy the state after `step` steps; of the copies in between, the ones that crowd go first."""
        state = State.capture(self._live, step)
        self.states.append(state)
        size = sum(t.numel() * t.element_size() for t in [*tree.leaves(state.parameters), *tree.leaves(state.optimizer["state"])])
        most = max(2, min(MOST_STATES, STATE_BYTES // max(size, 1)))
        while len(self.states) > most:
            steps = [s.step + 1 for s in self.states]
            gaps = [steps[i + 1] / steps[i - 1] for i in range(1, len(steps) - 1)]
            del self.states[1 + gaps.index(min(gaps))]
        if self.run is not None:
            self.run.checkpoint(state)
            self.run.thin({s.step for s in self.states})

    def last(self, step: int) -> None:
        """Write where the training ended, where it is recorded and not yet written."""
        if self.run is not None and step > self.states[-1].step:
            self.run.checkpoint(State.capture(self._live, step))
