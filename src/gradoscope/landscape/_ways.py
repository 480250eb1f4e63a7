"""The ways to evaluate many points, and which one is taken."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.landscape._examples import Examples
from gradoscope.landscape._factored import Responses, find, settle
from gradoscope.landscape._passes import Passes, Refused, Run
from gradoscope.landscape._stacked import MOST, Stacked, plan
from gradoscope.objective import Objective
from gradoscope.training import split

__all__ = ["Found", "Job", "Method", "Metric", "Ways"]

Metric = Callable[[Any, Any], float]
Method = Literal["auto", "factored", "stacked", "loop"]
FEW = 8  # points, below which no preparation pays
TOLERANCE = 2000  # epsilons by which two ways may differ: summation in another order, carried through many layers
OUTPUTS = 1 << 26  # bytes of outputs that a chunk may keep
AT_ONCE = 64  # points in a chunk of the loop, whose outputs are looked at together


class _Runner(Protocol):
    def chunk(self, points: np.ndarray) -> list[Run]:
        """What each batch gives at these points."""


class _Loop:
    """One point after the other, in lent memory."""

    def __init__(self, passes: Passes, responses: Responses | None, outputs_only: bool) -> None:
        self._passes, self._responses, self._outputs_only = passes, responses, outputs_only

    def chunk(self, points: np.ndarray) -> list[Run]:
        return self._passes.seeded(lambda: self._chunk(points))

    def _chunk(self, points: np.ndarray) -> list[Run]:
        passes, responses = self._passes, self._responses
        count = len(passes.objective.batches)
        losses: list[list[Tensor]] = [[] for _ in range(count)]
        outputs: list[list[Any]] = [[] for _ in range(count)]
        for point in points.tolist():
            passes.move(point)
            if responses is not None:
                responses.move(point, passes.fast)
            for k in range(count):
                if responses is not None:
                    responses.begin(k)
                if self._outputs_only:
                    passes.pass_output(k)
                else:
                    loss = passes.loss(k)
                    losses[k].append(loss if responses is None else responses.released(loss))
                outputs[k].append(passes.output if responses is None else responses.released(passes.output))
        return [Run(torch.stack(loss) if loss else None, _stack(output)) for loss, output in zip(losses, outputs, strict=True)]


class _Guarded:
    """One point after the other, written into the parameters and put back, each pass under a guard of its own."""

    def __init__(self, objective: Objective, origin: Tensor, directions: Tensor) -> None:
        self._objective, self._origin, self._directions = objective, origin.detach(), directions.detach()

    def chunk(self, points: np.ndarray) -> list[Run]:
        objective = self._objective
        runs: list[Run] = []
        kept: list[Any] = []
        for k in range(len(objective.batches)):
            losses, outputs = [], []
            for point in points:
                theta = self._origin
                for c, d in zip(point.tolist(), self._directions, strict=True):  # a product with so few rows is many times as slow
                    theta = torch.add(theta, d, alpha=c)
                with objective.moved(theta):
                    try:
                        losses.append(self._pass(k, kept))
                    except RuntimeError as error:
                        if "require grad" not in str(error) or not objective._no_grad:
                            raise
                        objective._no_grad = False  # a loss that differentiates inside, as physics-informed ones do
                        losses.append(self._pass(k, kept))
                outputs.append(kept[0] if len(kept) == 1 else None)
            runs.append(Run(torch.stack(losses), _stack(outputs)))
        return runs

    def _pass(self, k: int, kept: list[Any]) -> Tensor:
        kept.clear()
        hook = self._objective.model.register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            with self._objective.inside(k), torch.set_grad_enabled(not self._objective._no_grad):
                return self._objective.batch_loss(k).detach()
        finally:
            hook.remove()


def _stack(outputs: list[Any]) -> Any:
    """Outputs of one structure with the points in front; None where there are none or they differ."""
    shapes = {tuple(t.shape for t in tree.leaves(o)) for o in outputs}
    if any(o is None for o in outputs) or len(shapes) != 1 or shapes == {()}:
        return None
    parts = iter([torch.stack(column).detach() for column in zip(*(tree.leaves(o) for o in outputs), strict=True)])
    return tree.map_tensors(lambda _: next(parts), outputs[0])


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be evaluated; the arguments are those of `points.evaluate`."""

    objective: Objective
    origin: Tensor
    directions: Tensor
    points: np.ndarray
    metric: Metric | None
    per_example: bool
    chunk: int | None
    statistics: Objective | None

    @property
    def epsilon(self) -> float:
        """The coarsest rounding among the parameters."""
        return max(torch.finfo(p.dtype).eps for p in self.objective.parameters)

    def outermost(self) -> np.ndarray:
        """The points nearest to the origin and farthest from it, at which ways are compared."""
        size = np.abs(self.points).max(1)
        return self.points[[int(size.argmin()), int(size.argmax())]]


class Found:
    """Losses, standard errors and metrics, collected chunk by chunk.

    Args:
        job: what is evaluated.
        examples: what cuts the losses into those of examples; None where they cannot be cut.
    """

    def __init__(self, job: Job, examples: Examples | None) -> None:
        self._job, self.examples = job, examples
        batches = job.objective.batches
        self.weights = np.full(len(batches), 1 / len(batches)) if examples is None else examples.weights
        self._target = None if job.metric is None else tree.concatenate([split(b)[1] for b in batches])
        self._loss: list[np.ndarray] = []
        self._error: list[np.ndarray] = []
        self._each: list[np.ndarray] = []
        self._metric: list[float] = []

    def add(self, runs: list[Run]) -> None:
        """Add the results of one chunk."""
        if self.examples is not None:
            each = np.concatenate([self.examples.losses(k, r.outputs).cpu().numpy() for k, r in enumerate(runs)], 1)
        else:
            each = np.stack([r.losses.double().cpu().numpy() for r in runs if r.losses is not None], 1)
        n = each.shape[1]
        with np.errstate(invalid="ignore", over="ignore"):
            loss = each @ self.weights
            square = (each - loss[:, None]) ** 2 @ self.weights**2 * n / max(n - 1, 1)
        self._loss.append(loss)
        self._error.append(np.sqrt(square) if n > 1 else np.full(len(loss), math.nan))
        if self._job.per_example:
            self._each.append(each)
        if self._job.metric is not None:
            self._metric += [self._measure([_point(r.outputs, i) for r in runs]) for i in range(len(loss))]

    def _measure(self, outputs: list[Any]) -> float:
        assert self._job.metric is not None
        try:
            return float(self._job.metric(tree.concatenate(outputs), self._target))
        except Exception as error:
            raise CannotRun(
                f"`metric(output, target)` failed: {type(error).__name__}: {error}. It is given all outputs and all targets at once, "
                "as tensors, and returns one number."
            ) from error

    @property
    def loss(self) -> np.ndarray:
        return np.concatenate(self._loss)

    @property
    def error(self) -> np.ndarray:
        return np.concatenate(self._error)

    @property
    def each(self) -> np.ndarray | None:
        return np.concatenate(self._each) if self._job.per_example else None

    @property
    def metric(self) -> np.ndarray | None:
        return None if self._job.metric is None else np.array(self._metric)


# Whether to factor layers, and whether to stack points: True, False, or None where counted operations decide.
_ATTEMPTS: dict[Method, list[tuple[bool, bool | None]]] = {
    "auto": [(True, None), (True, False), (False, False)],
    "factored": [(True, False), (False, False)],
    "stacked": [(False, True), (False, False)],
    "loop": [(False, False)],
}


@dataclass(frozen=True)
class _Way:
    runner: _Runner
    size: int
    name: str
    notes: list[str]
    order: Callable[[np.ndarray], None]  # told of the points that come


class Ways:
    """The fastest way that agrees with a guarded pass, prepared once for any number of points; use it as a context.

    The model is lent other memory inside: nothing else may evaluate it there.

    Args:
        job: what is evaluated; its points are those that ways are tried at and, by default, all that are evaluated.
        method: which ways to try.

    Attributes:
        name: the way that is taken.
        why: why not a faster one.
    """

    def __init__(self, job: Job, method: Method) -> None:
        self._job, self._attempts = job, list(_ATTEMPTS[method])
        self._few = method == "auto" and len(job.points) < FEW and job.statistics is None
        self._scope = ExitStack()
        self._guarded = _Guarded(job.objective, job.origin, job.directions)
        self._trial = job.points if self._few else job.outermost()
        self._reference: list[Run] = []
        self._examples: Examples | None = None
        self._way: _Way | None = None
        self._reasons: list[str] = []

    def __enter__(self) -> Self:
        job = self._job
        self._reference = self._guarded.chunk(self._trial)
        if job.metric is not None and any(r.outputs is None for r in self._reference):
            raise CannotRun(
                "the loss does not call the model exactly once per batch, so that there is no output to compute the metric from."
            )
        self._examples = _examples(job, self._reference)
        return self

    def __exit__(self, *error: object) -> None:
        self._scope.close()

    @property
    def name(self) -> str:
        return "loop" if self._way is None else self._way.name

    @property
    def why(self) -> str:
        return "; ".join([*self._reasons, *([] if self._way is None else self._way.notes)])

    def evaluate(self, points: np.ndarray | None = None, tell: Callable[[float], None] = lambda _: None) -> Found:
        """Evaluate these points, by the next way where one fails."""
        if self._few and points is None:
            found = Found(self._job, self._examples)
            found.add(self._reference)
            self._reasons = ["few points"]
            tell(1.0)
            return found
        wanted = self._job.points if points is None else points
        while True:
            try:
                if self._way is None:
                    self._way = self._next()
                self._way.order(wanted)
                return self._collect(wanted, tell)
            except CannotRun:
                raise
            except Exception as error:  # whatever a model objects to: a plain pass shows whether it is at fault itself
                if self._job.statistics is not None or not self._attempts:
                    raise
                factor, stack = self._attempts.pop(0)
                said = str(error).strip().splitlines() or [type(error).__name__]
                self._reasons.append(f"not {'stacked' if stack else 'factored' if factor else 'in lent memory'}: {said[0]}")
                self._scope.close()
                self._way = None

    def _next(self) -> _Way:
        """The next way, set up and compared; after the last attempt the guarded one."""
        job = self._job
        if not self._attempts:
            return _Way(self._guarded, AT_ONCE, "loop", [], lambda _: None)
        way = _prepare(job, self._scope, *self._attempts[0], self._examples is not None)
        if job.statistics is None and not _agree(way.runner.chunk(self._trial), self._reference, self._examples, job.epsilon):
            raise Refused("it disagreed with a plain pass")
        return way

    def _collect(self, points: np.ndarray, tell: Callable[[float], None]) -> Found:
        assert self._way is not None
        found = Found(self._job, self._examples)
        size = min(self._way.size, _room(self._reference))
        for start in range(0, len(points), size):
            found.add(self._way.runner.chunk(points[start : start + size]))
            tell(min(1.0, (start + size) / len(points)))
        return found


def _prepare(job: Job, scope: ExitStack, factor: bool, stack: bool | None, outputs_only: bool) -> _Way:
    """Set up one way within the scope."""
    passes = scope.enter_context(Passes(job.objective, job.origin, job.directions, statistics=job.statistics))
    notes: list[str] = []
    responses: Responses | None = None
    if job.statistics is not None:
        notes.append("not factored or stacked: statistics are taken anew at each point")
    elif factor:
        probes = job.outermost().tolist()
        responses = find(passes, probes)
        if responses is None:
            notes.append("not factored: no linear or convolutional layer sees the raw data")
        else:
            scope.enter_context(responses)
            settle(passes, responses, probes[0])
    size = AT_ONCE
    if stack is not False and job.statistics is None:
        counted = plan(passes, responses, job.outermost()[0])
        if stack is None and not counted.pays:
            notes.append(f"not stacked: {counted.reason}")
        stack, size = stack or counted.pays, counted.size
    names = [name for name, has in (("factored", responses is not None), ("stacked", stack)) if has]
    runner: _Runner = Stacked(passes, responses, outputs_only) if stack else _Loop(passes, responses, outputs_only)
    return _Way(runner, min(size if stack else AT_ONCE, job.chunk or MOST), " and ".join(names) or "loop", notes, passes.order)


def _point(outputs: Any, i: int) -> Any:
    """The outputs of one point."""
    return tree.map_tensors(lambda t: t[i], outputs)


def _room(reference: list[Run]) -> int:
    """How many points' outputs may be kept at once."""
    points = [t.numel() * t.element_size() / len(t) for r in reference for t in tree.leaves(r.outputs)]
    return max(1, int(OUTPUTS // max(1.0, sum(points))))


def _examples(job: Job, reference: list[Run]) -> Examples | None:
    """What cuts losses into those of examples, tried at the points of the reference; None where the loss is not their mean."""
    examples = Examples(job.objective)
    losses = [r.losses.tolist() for r in reference if r.losses is not None]
    fits = examples.fit(losses, [r.outputs for r in reference], TOLERANCE * job.epsilon)
    return examples if fits else None


def _agree(runs: list[Run], reference: list[Run], examples: Examples | None, epsilon: float) -> bool:
    """Whether losses are the same up to rounding, and not finite at the same points; and whether outputs are there where they were."""
    for k, (a, b) in enumerate(zip(runs, reference, strict=True)):
        if (a.outputs is None) != (b.outputs is None):
            return False
        assert b.losses is not None
        x = (
            examples.losses(k, a.outputs).mean(1).cpu()
            if examples is not None
            else a.losses.double().cpu()
            if a.losses is not None
            else None
        )
        y = b.losses.double().cpu()
        finite = torch.isfinite(y)
        if x is None or not torch.equal(torch.isfinite(x), finite):
            return False
        size = y[finite].abs()
        bound = min(0.05, TOLERANCE * epsilon) * torch.maximum(size, 1e-3 * size.max() if len(size) else size)
        if bool(((x - y)[finite].abs() > bound).any()):
            return False
    return True
