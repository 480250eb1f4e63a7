"""Remedies: each changes a training in the one way that removes one obstacle. One file per remedy."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gradoscope.training import Live, Training

__all__ = ["Remedy"]


class Remedy:
    """A change of a training: `remedy(training)` is the changed recipe. Every hook is neutral unless overridden.

    Attributes:
        name: with its parameter, e.g. "step_size(x10)".
        explanation: one sentence: what is changed.
        from_checkpoint: whether it applies to a state (a step size) or only from the start (an initialisation).
        takes_optimizer_steps: whether its steps are those of the training's own optimizer, one for one.
        changes_capacity: whether it lets the model fit more than before.
        code: how a user makes the change, as Python to paste.
    """

    name = "unchanged"
    explanation = "Nothing is changed."
    from_checkpoint = True
    takes_optimizer_steps = True
    changes_capacity = False
    code = ""

    def __call__(self, training: Training) -> Training:
        return training.with_change(self)

    def __repr__(self) -> str:
        return self.name

    def prepare(self, live: Live) -> None:
        """Alter the live copy once, after its state was set."""

    def step_scale(self) -> float:
        """The factor on every learning rate."""
        return 1.0

    def batches_per_step(self) -> int:
        """How many batches one optimizer step averages over."""
        return 1

    def examples_per_step(self) -> float:
        """Examples that one of its own steps costs, where it does not take the optimizer's."""
        return 0.0

    def forward_context(self) -> AbstractContextManager[Any]:
        """A context manager around every forward and backward pass."""
        return nullcontext()

    def before_step(self, live: Live) -> None:
        """Alter gradients just before the optimizer's step."""

    def replace_step(self, live: Live, step: int) -> float | None:
        """Do a whole step instead of the optimizer and return its loss, or None to leave it to the optimizer."""
        return None
