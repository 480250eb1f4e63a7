"""Changes of a training that a proof tries: another step size, batch size, number of steps, or start."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from gradoscope import tree
from gradoscope.training import Training, make_optimizer

__all__ = ["clipped", "larger_batch", "longer", "restarted", "step_times"]


def step_times(training: Training, factor: float) -> Training:
    """The same training with every learning rate times a factor; a schedule starts from the new ones.

    Example:
        >>> from gradoscope.problems import find
        >>> changed = step_times(find("digits:healthy"), 0.5)
        >>> changed.optimizer(nn.Linear(1, 1)).param_groups[0]["lr"]
        0.1
    """
    assert not isinstance(training.optimizer, Optimizer)
    inner: Callable[..., Optimizer] = training.optimizer

    def optimizer(model: nn.Module) -> Optimizer:
        made = make_optimizer(inner, model)
        for group in made.param_groups:
            group["lr"] *= factor
        made.defaults["lr"] = made.defaults.get("lr", 0.0) * factor
        return made

    return replace(training, optimizer=optimizer)


def larger_batch(training: Training, factor: int) -> Training | None:
    """The same training with batches so many times as large, at most all data; None where it sees all data already."""
    rows = None if callable(training.data) else tree.rows(training.data)
    size = training.batch_size
    if size is None or (rows is not None and size >= rows):
        return None
    return replace(training, batch_size=size * factor if rows is None else min(rows, size * factor))


def longer(training: Training, factor: int) -> Training:
    """The same training with so many times as many steps."""
    return replace(training, steps=training.steps * factor)


def clipped(training: Training, norm: float = 1.0) -> Training:
    """The same training with its gradients clipped to a norm."""
    return replace(training, clip_norm=norm)


def restarted(training: Training, number: int) -> Training:
    """The same training from another random start, drawn by its model function."""
    assert not isinstance(training.model, nn.Module)
    inner: Callable[[], nn.Module] = training.model

    def model() -> nn.Module:
        for _ in range(number):  # on to other numbers of the stream that the caller has seeded
            inner()
        return inner()

    return replace(training, model=model, name=f"{training.name}, start {number}")
