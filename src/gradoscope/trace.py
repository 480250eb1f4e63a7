"""One run of a training: what is looked at on the way, kept, and written down."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope import tree
from gradoscope.loop import advance
from gradoscope.probe import Probe
from gradoscope.state import State
from gradoscope.training import Live

__all__ = ["POINTS", "Recording", "Trace", "run"]

POINTS = 20  # probe points along a run
TAIL = 3  # the last probe points whose mean is a run's result: one point alone is one draw of the batch noise
KEPT = (0, 0.1, 0.25, 0.5, 0.75, 1)  # shares of the unchanged run at which its state is kept


@dataclass
class Trace:
    """What one run of a training did.

    Attributes:
        start: the step it began at.
        done: the step it ended at.
        probe: (step, part losses) points on the training probe.
        validation: the same on the validation probe, empty without one.
        metric: (step, value) of the user's metric on the validation probe, in the unchanged run.
        batch_loss: the loss of every step's own batch.
        gradient_norm: the norm of every step's gradient.
        states: the states that were kept, by step.
        broke: the first step whose loss was not finite, or None.
        where: the layer in which NaN or infinity was first seen.
    """

    start: int
    done: int = 0
    probe: list[tuple[int, np.ndarray]] = field(default_factory=list)
    validation: list[tuple[int, np.ndarray]] = field(default_factory=list)
    metric: list[tuple[int, float]] = field(default_factory=list)
    batch_loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    broke: int | None = None
    where: str = ""
    seconds: float = 0.0
    seconds_stepping: float = 0.0
    failed: str = ""

    def curve(self, which: str = "probe") -> tuple[tuple[int, float], ...]:
        """(step, mean loss) points."""
        return tuple((step, float(np.mean(v))) for step, v in getattr(self, which))

    def result(self, which: str = "probe", until: int | None = None) -> np.ndarray:
        """The part losses at the end (or at step `until`): the mean over the last few points; infinite where it broke."""
        points = [p for p in getattr(self, which) if until is None or p[0] <= until]
        tail = [v for step, v in points if step > self.start][-TAIL:] or [points[-1][1]]
        if self.broke is not None and (until is None or self.broke <= until):
            return np.full_like(points[0][1], math.inf)
        mean: np.ndarray = np.mean(tail, axis=0)
        return np.asarray(np.nan_to_num(mean, nan=math.inf, posinf=math.inf))

    def lowest(self, which: str = "validation") -> tuple[np.ndarray, int]:
        """The part losses where their mean was lowest, and the (earlier) step.

        Chosen on one half of the parts and judged on the other, both ways round, so that the lowest of many points is no luck.
        """
        points = [p for p in getattr(self, which) if np.isfinite(p[1]).all()] or getattr(self, which)[:1]
        losses, steps = np.array(points[0][1], dtype=float), []
        for choose, judge in ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2))):
            step, there = min(points, key=lambda p: float(np.mean(p[1][choose])))
            losses[judge] = there[judge]
            steps.append(step)
        return losses, min(steps)


class Recording:
    """Writes an unchanged run into a `gradoscope.store.Run`, single steps for a share of the time at most.

    Args:
        folder: the run on disk.
        budget: the share of the time so far that writing single steps may have taken; steps are left out to keep to it.
    """

    def __init__(self, folder: Any, budget: float) -> None:
        self.folder, self.budget = folder, budget
        self._began, self._spent = time.perf_counter(), 0.0

    def step(self, step: int, loss: float, norm: float) -> None:
        """Append one step, unless writing has taken its share; a loss that is not finite is never left out."""
        now = time.perf_counter()
        if self._spent <= self.budget * (now - self._began) or not math.isfinite(loss):
            self.folder.append({"step": step, "loss": loss, "grad_norm": norm})
            self._spent += time.perf_counter() - now

    def point(self, trace: "Trace") -> None:
        """Append the last probe point, and write the state if it was kept."""
        step, losses = trace.probe[-1]
        point = {"step": step, "probe": float(losses.mean())}
        if trace.validation:
            point["validation"] = float(trace.validation[-1][1].mean())
        if step in trace.states:
            self.folder.checkpoint(trace.states[step])
        self.folder.append(point)


def run(
    live: Live,
    probes: tuple[Probe, Probe | None],
    start: int,
    steps: int,
    *,
    keep: bool = False,
    recording: Recording | None = None,
    tell: Callable[[float], None] | None = None,
    stop_above: float = math.inf,
) -> Trace:
    """Train `live` from where it stands and look at the probes on the way.

    Args:
        live: the training, at step `start`.
        probes: the training probe and the validation probe.
        start: the step it stands at.
        steps: how many steps to take.
        keep: whether to keep states, gradient norms and the metric, as for the unchanged run.
        recording: where to write it down.
        tell: called with the share of the run that is done.
        stop_above: a probe loss above this ends the run as broken.

    Cost: the steps, and 21 forward passes over the probes.
    """
    train, validation = probes
    trace = Trace(start)
    marks = {start + round(steps * i / POINTS) for i in range(1, POINTS + 1)}
    keeps = {start + round(steps * share) for share in KEPT} if keep else set()
    looking = 0.0

    def look(step: int) -> None:
        nonlocal looking
        began = time.perf_counter()
        trace.probe.append((step, train.losses(live)))
        if validation is not None:
            trace.validation.append((step, validation.losses(live)))
            value = validation.metric(live) if keep else None
            if value is not None:
                trace.metric.append((step, value))
        if step in keeps:
            trace.states[step] = State.capture(live, step)
        if recording is not None:
            recording.point(trace)
        looking += time.perf_counter() - began

    def watch(live: Live, i: int, loss: float) -> bool:
        trace.batch_loss.append(loss)
        if keep:
            grads = [p.grad for _, p in live.trainable() if p.grad is not None and not p.grad.is_sparse]
            trace.gradient_norm.append(float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0)
            if recording is not None:
                recording.step(i, loss, trace.gradient_norm[-1])
        if not math.isfinite(loss):
            trace.broke = i
            return True
        if i + 1 not in marks:
            return False
        look(i + 1)
        if tell is not None:
            tell((i + 1 - start) / steps)
        value = float(np.mean(trace.probe[-1][1]))
        if not math.isfinite(value):
            trace.broke = i
        return not math.isfinite(value) or value > stop_above

    wall = time.perf_counter()
    look(start)
    trace.done = advance(live, start, steps, [watch])
    if trace.done < start + steps and trace.broke is None:
        trace.broke = trace.done  # stopped for having risen beyond all bounds
    if trace.broke is not None and keep:
        trace.where = _not_finite(live)
    trace.seconds = time.perf_counter() - wall
    trace.seconds_stepping = trace.seconds - looking
    return trace


def _not_finite(live: Live) -> str:
    """The first place, in the order of the model, where a value is not finite."""
    for kind, named in (("parameter", live.model.named_parameters()), ("buffer", live.model.named_buffers())):
        for name, t in named:
            if t.is_floating_point() and not bool(t.detach().isfinite().all()):
                return f"{kind} {name}"
    found: list[str] = []

    def hook(name: str) -> Any:
        def check(module: Any, inputs: Any, output: Any) -> None:
            if not found and any(
                t.is_floating_point() and not bool(t.isfinite().all()) for t in tree.leaves(output) if isinstance(t, Tensor)
            ):
                found.append(f"output of {name or 'the model'}")

        return check

    handles = [m.register_forward_hook(hook(n)) for n, m in live.model.named_modules() if not list(m.children())]
    try:
        with torch.no_grad():
            live.loss(live.batches.sample(64, "fresh")[0])
    except Exception:  # whatever fails here failed in the training too; the place is extra
        return ""
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss"
