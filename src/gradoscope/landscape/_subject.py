"""The losses of a training as a landscape shows them: on fixed examples, of training and validation data."""

from dataclasses import dataclass
from typing import Any, Literal

from gradoscope.batches import make_batches
from gradoscope.guard import derive_seed
from gradoscope.objective import Objective
from gradoscope.training import Live, enough

__all__ = ["Subject", "subject"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is evaluated at each point.

    Attributes:
        train: the loss on training examples.
        validation: on held-back ones, or None where the training has none.
        metric: `metric(output, target)`, or None.
        metric_mode: whether a good metric is a large one.
    """

    train: Objective
    validation: Objective | None = None
    metric: Any = None
    metric_mode: Literal["max", "min"] = "max"


def subject(live: Live, *, rows: int = 1024, mode: Literal["train", "eval"] = "eval", seed: int = 0) -> Subject:
    """The losses of a live training on fixed examples, and its metric.

    The examples are those that the diagnosis of the training would take as its probe, for the same seed of `live`.

    Args:
        live: the training where it stands; landscapes are drawn over its trainable parameters.
        rows: how many examples of each.
        mode: "eval" switches dropout off, as the sources do; "train" keeps the same masks at every point. The validation loss is always
            that of evaluation.
        seed: what masks are drawn from.

    Returns:
        The objectives, of the very model of `live`.

    Cost: none.

    Example:
        >>> import torch
        >>> from gradoscope.training import Training
        >>> net, data = torch.nn.Linear(2, 1), (torch.eye(2), torch.zeros(2, 1))
        >>> sgd = lambda p: torch.optim.SGD(p, lr=0.1)
        >>> with Live.of(Training(model=net, optimizer=sgd, data=data, loss_fn=torch.nn.functional.mse_loss)) as live:
        ...     subject(live).train
        Objective(Linear, dim=3, batches=1, mode='eval')
    """
    training = live.training
    train = Objective.of(live, live.batches.sample(rows, "probe"), mode=mode, seed=seed)
    validation = None
    if training.validation is not None:
        held = make_batches(training.validation, training.batch_size, derive_seed(live.seed, 106), shuffle=False, most=enough(training))
        validation = Objective.of(live, held.sample(rows, "probe"), mode="eval", seed=seed)
    return Subject(train, validation, training.metric if training.loss_fn is not None else None, training.metric_mode)
