"""The loss at many parameter points: factored, stacked, or one by one, all equal up to rounding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from gradoscope import tree
from gradoscope.errors import Usage
from gradoscope.landscape._passes import batch_norms
from gradoscope.landscape._subject import Subject, subject
from gradoscope.landscape._ways import Found, Job, Method, Metric, Ways
from gradoscope.measurement import Cost
from gradoscope.objective import Objective

__all__ = ["Metric", "Subject", "Values", "evaluate", "evaluator", "subject"]

BatchNorm = Literal["stored", "recomputed"]


@dataclass(frozen=True, eq=False)
class Values:
    r"""The loss and the metric at P points.

    Attributes:
        loss: the mean over the batches, shape (P,), float64; infinite or NaN where it is.
        standard_error: $\sqrt{\frac{n}{n-1}\sum_i w_i^2(\ell_i-J)^2}$ over the examples, or over the batches where the loss cannot be cut
            into examples (NaN with a single batch), shape (P,).
        metric: shape (P,), or None.
        per_example: the loss of each example (of each batch, see `unit`), shape (P, n); None unless asked for.
        weights: of the examples or batches; they sum to 1, and `per_example @ weights` is the loss, shape (n,).
        unit: "examples" or "batches".
        cost: the passes spent; a factored or stacked pass counts as one for each point.
        method: "factored", "stacked", "factored and stacked", or "loop".
        why: why not a faster one.
        batch_norm: which statistics batch normalisation used; "" where the model has none.
        rounding: the relative size of what rounding does to a loss.
    """

    loss: np.ndarray
    standard_error: np.ndarray
    metric: np.ndarray | None
    per_example: np.ndarray | None
    weights: np.ndarray
    unit: Literal["examples", "batches"]
    cost: Cost
    method: str
    why: str
    batch_norm: str
    rounding: float


def evaluate(
    objective: Objective,
    origin: Tensor,
    directions: Tensor,
    coordinates: np.ndarray | Tensor | Sequence[Sequence[float]],
    *,
    metric: Metric | None = None,
    per_example: bool = False,
    chunk: int | None = None,
    progress: Callable[[float], None] | None = None,
    method: Method = "auto",
    batch_norm: BatchNorm = "stored",
    statistics: Objective | None = None,
) -> Values:
    r"""The loss at $\theta=\theta_0+\sum_i c_i d_i$ for many c, with the same examples, masks and noise at every point.

    Three ways, which agree up to rounding. In the *loop* the parameters are set by one addition per point. *Stacked* points go
    through the model together (`torch.func.vmap`), which pays where a pass is so small that it consists of overhead. *Factored*: a linear
    or convolutional layer that sees the raw data is linear in its parameters, so its responses to the origin and to each direction are
    computed once and combined at each point. Which one is taken follows from counted operations, not from a clock, so that the same
    call gives the same bits. Each is tried at two points first and compared with a plain guarded pass there; where they differ, or a
    model refuses, the next one is taken and `why` says so.

    The model is left as it was to the bit: parameters, buffers, `.grad`, modes, random streams, also after an exception.

    Args:
        objective: the loss; `mode="eval"` switches dropout off, "train" keeps the same masks at every point.
        origin: shape (dim,), over `objective.named`.
        directions: shape (k, dim).
        coordinates: c, shape (P, k).
        metric: `metric(output, target)`, a number; given all outputs and targets together. Batches are then (x, ..., y).
        per_example: whether to return the loss of each example.
        chunk: the most points that are held at once; by memory if None.
        progress: called with the share that is done.
        method: "auto", or one of the ways, which may still fall back to the loop.
        batch_norm: in evaluation mode "stored" uses the running statistics as they are, at every point; "recomputed" takes them anew at
            each, as averages over the batches of `statistics`. In training mode each batch has its own.
        statistics: the objective whose batches these are; `objective` itself if None.

    Raises:
        Usage: where shapes do not fit.
        CannotRun: where the metric fails.

    Cost: P passes over all batches, P more for recomputed statistics, and up to 10 to prepare; fewer operations where factored.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2)])
        >>> evaluate(objective, torch.zeros(2), torch.eye(2), [[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]]).loss.tolist()
        [0.0, 0.5, 2.5]
    """
    if chunk is not None and chunk < 1:
        raise Usage(f"`chunk` must be at least 1, got {chunk}.")
    if method not in ("auto", "factored", "stacked", "loop") or batch_norm not in ("stored", "recomputed"):
        raise Usage(f"unknown `method` {method!r} or `batch_norm` {batch_norm!r}.")
    c = _checked(objective, origin, directions, coordinates)
    told, anew = _batch_norm(objective, batch_norm, statistics)
    job = Job(objective, origin.detach(), directions.detach(), c, metric, per_example, chunk, anew)
    with Ways(job, method) as ways:
        found = ways.evaluate(tell=progress or (lambda _: None))
    return _values(job, ways, found, told, len(c))


@contextmanager
def evaluator(
    objective: Objective,
    origin: Tensor,
    directions: Tensor,
    corners: np.ndarray,
    *,
    chunk: int | None = None,
    batch_norm: BatchNorm = "stored",
) -> Iterator[Callable[[np.ndarray], Values]]:
    """As `evaluate` for points that come in several lots, with the preparations made once.

    Inside, the model is lent other memory: nothing else may use it, and no second evaluator of the same model may be open.

    Args:
        objective: as there; `origin`, `directions`, `chunk` and `batch_norm` likewise.
        corners: some points, the nearest and the farthest of them among those at which the ways are compared, shape (P, k).

    Yields:
        A function of coordinates (P, k).
    """
    told, anew = _batch_norm(objective, batch_norm, None)
    job = Job(objective, origin.detach(), directions.detach(), _checked(objective, origin, directions, corners), None, False, chunk, anew)
    with Ways(job, "auto") as ways:
        yield lambda at: _values(job, ways, ways.evaluate(_checked(objective, origin, directions, at)), told, len(at))


def _values(job: Job, ways: Ways, found: Found, told: str, points: int) -> Values:
    objective = job.objective
    rows = sum(tree.rows(b) or 1 for b in objective.batches)
    spent = Cost(points * len(objective.batches), 0, points * rows)
    objective.cost = objective.cost + spent
    return Values(
        loss=found.loss,
        standard_error=found.error,
        metric=found.metric,
        per_example=found.each,
        weights=found.weights,
        unit="examples" if found.examples else "batches",
        cost=spent,
        method=ways.name,
        why=ways.why,
        batch_norm=told,
        rounding=16 * job.epsilon,
    )


def _checked(objective: Objective, origin: Tensor, directions: Tensor, coordinates: Any) -> np.ndarray:
    c = np.asarray(coordinates.detach().cpu() if isinstance(coordinates, Tensor) else coordinates, dtype=np.float64)
    if origin.shape != (objective.dim,) or directions.dim() != 2 or directions.shape[1] != objective.dim or not len(directions):
        raise Usage(
            f"`origin` must have shape ({objective.dim},) and `directions` (k, {objective.dim}), its number of parameters; "
            f"got {tuple(origin.shape)} and {tuple(directions.shape)}."
        )
    if c.ndim != 2 or c.shape[1] != len(directions) or not len(c):
        raise Usage(f"`coordinates` must have shape (points, {len(directions)}), got {c.shape}.")
    if not np.isfinite(c).all():
        raise Usage("`coordinates` must be finite.")
    return c


def _batch_norm(objective: Objective, wanted: BatchNorm, statistics: Objective | None) -> tuple[str, Objective | None]:
    """What is said about batch normalisation, and where its statistics are taken from."""
    if not batch_norms(objective.model):
        return "", None
    if objective.mode == "train":
        return "the statistics of each batch", None
    if wanted == "stored":
        return "the stored statistics, the same at every point", None
    source = statistics or objective
    return f"statistics taken anew at each point, from {len(source.batches)} batches", source
