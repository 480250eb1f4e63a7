"""The evidence of one training: its own run, what is measured on it, and the forks, each made once and when asked for."""

import math
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradoscope import thresholds as T
from gradoscope.batches import Batches, make_batches
from gradoscope.comparison import Fork, compared
from gradoscope.diagnosis import Counterfactual
from gradoscope.errors import GradoscopeError
from gradoscope.guard import derive_seed
from gradoscope.levels import levels
from gradoscope.loop import prepare
from gradoscope.objective import Objective
from gradoscope.probe import Probe, flops_per_row
from gradoscope.rehearsal import rehearse
from gradoscope.remedies import Remedy
from gradoscope.standing import Standing
from gradoscope.state import State
from gradoscope.trace import POINTS, Recording, Trace, run
from gradoscope.training import Live, Training, enough
from gradoscope.unseen import by_heart

__all__ = ["Case", "Trace"]

FLOPS_PER_LOOK = 5e8  # some 25 ms on one core
READINGS = 30  # readings that the time for forks must allow
SCREENS = 8  # forks that the time for forks must allow; longer ones are screened by their first part


class Case(Standing):
    """Everything that obstacles may ask about one training; nothing is measured twice.

    Args:
        training: what is diagnosed.
        seed: seeds the order of data, the probes and every measurement.
        device: where to run, by default where the model is.
        counterfactuals: whether forks may be run.
        progress: called with (text, share done).
        limit: seconds that forks may take together; None sets it from the training's own time.
        start: the state to begin from, by default the training's own start.
        steps: how many steps the unchanged run takes from there, by default the training's.
        initial: the loss at the very start of a training that begins from a later state.
        record: a `gradoscope.store.Run` into which the unchanged run is written as it goes.
        budget: the share of the time that writing single steps may take; steps are left out to keep to it.
        step_seconds: what a step is taken to last; None measures it. Readings and forks are cut by this time, so that with a
            number given the same seed gives the same diagnosis on a machine of any speed.
    """

    def __init__(
        self,
        training: Training,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        counterfactuals: bool = True,
        progress: Callable[[str, float], None] | None = None,
        limit: float | None = None,
        start: State | None = None,
        steps: int | None = None,
        initial: float | None = None,
        record: Any = None,
        budget: float = 0.05,
        step_seconds: float | None = None,
    ) -> None:
        self.step_seconds = step_seconds
        self.training, self.seed, self.device = training, seed, device
        self.counterfactuals = counterfactuals
        self.notes: list[str] = []
        self.progress, self._limit, self.start, self._initial = progress, limit, start, initial
        self._recording = None if record is None else Recording(record, budget)
        self.first = start.step if start is not None else 0
        self.steps = steps or training.steps
        self._traces: dict[tuple[str, int, int], Trace] = {}
        self._validated: dict[str, Counterfactual] = {}
        self._memo: dict[Any, Any] = {}
        self.batches: Batches = make_batches(
            training.data, training.batch_size, derive_seed(seed, 101), shuffle=training.shuffle, most=enough(training)
        )
        self.validation = (
            None
            if training.validation is None
            else make_batches(training.validation, training.batch_size, derive_seed(seed, 106), shuffle=False, most=enough(training))
        )
        self.seconds_baseline = 0.0
        self.seconds_forks = 0.0
        self.seconds_confirmed = 0.0
        self.began = time.perf_counter()

    # ---- runs -------------------------------------------------------------------------------------------------------

    def tell(self, text: str, done: float = 0.0) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(text, done)

    @contextmanager
    def live(self, step: int | None = None, training: Training | None = None) -> Any:
        """A live copy of the training, at a kept state where `step` is given."""
        with Live.of(training or self.training, seed=self.seed, device=self.device, batches=self.batches) as live:
            if step is not None:
                self.baseline.states[step].restore(live)
            elif self.start is not None:
                self.start.restore(live)
            live.model.train()
            yield live

    @property
    def baseline(self) -> Trace:
        """The unchanged run, from its first step to its last."""
        if "baseline" not in self._memo:
            self.tell("training as given", 0.02)
            with Live.of(self.training, seed=self.seed, device=self.device, batches=self.batches) as live:
                if self.start is not None:
                    self.start.restore(live)
                rehearse(live, self.validation)
                self._memo["probes"] = self._make_probes(live)
                trace = run(
                    live,
                    self._memo["probes"],
                    self.first,
                    self.steps,
                    keep=True,
                    recording=self._recording,
                    tell=lambda share: self.tell("training as given", 0.02 + 0.3 * share),
                )
            if self.step_seconds is not None:
                trace.seconds = trace.seconds_stepping = self.step_seconds * (trace.done - trace.start)
            self._memo["baseline"] = trace
            self.seconds_baseline = trace.seconds
            if self._limit is None:
                # At most the training's own cost, or what makes a whole diagnosis of a short one last under a minute.
                self._limit = max(45.0, trace.seconds)
        return self._memo["baseline"]  # type: ignore[no-any-return]

    @property
    def probes(self) -> tuple[Probe, Probe | None]:
        """The training probe and the validation probe."""
        self.baseline  # noqa: B018 - makes them
        return self._memo["probes"]  # type: ignore[no-any-return]

    def _make_probes(self, live: Live) -> tuple[Probe, Probe | None]:
        # Looked at some 20 times a run: as many examples as make one look cheap, counted and not timed, so that the same
        # seed gives the same examples on any machine.
        each = flops_per_row(live, self.batches.sample(8, "probe")[0])
        rows = 256 if each is None else int(np.clip(FLOPS_PER_LOOK / max(each, 1.0), 64, 2048))
        whole = self.batches.size
        if whole is not None and whole <= 4 * rows:
            rows = whole
        train = Probe(live, self.batches.sample(rows, "probe"), "train")
        if self.validation is None:
            return train, None
        return train, Probe(live, self.validation.sample(self._validation_rows(rows), "probe"), "eval")

    def _validation_rows(self, rows: int) -> int:
        """All validation examples where they are few: a gap is judged on them, and their losses scatter widely."""
        assert self.validation is not None
        size = self.validation.size
        return size if size is not None and size <= 1024 else max(rows, 128)

    @property
    def limit(self) -> float:
        """Seconds that forks may take together."""
        return self._limit or 0.0

    def budget_left(self) -> float:
        """Seconds that forks may still take."""
        return (self._limit or 0.0) - self.seconds_forks

    # ---- levels -------------------------------------------------------------------------------------------------------

    def runs(self) -> list[Trace]:
        """The unchanged run and every fork so far."""
        return [self.baseline, *self._traces.values()]

    def levels(self) -> tuple[float | None, float | None]:
        """The loss of the best constant answer, and a lower bound of the loss, where they are known."""
        if "levels" not in self._memo:
            with self.live() as live:
                self._memo["levels"] = levels(live)
        return self._memo["levels"]  # type: ignore[no-any-return]

    def adds_capacity(self, remedy: str) -> bool:
        """Whether a remedy that was tried lets the model fit more than before."""
        return any(r.changes_capacity for key, r in self._remedies.items() if key[0] == remedy)

    # ---- forks --------------------------------------------------------------------------------------------------------

    def checkpoint(self, share: float) -> int:
        """The kept state nearest to this share of the run (that was reached)."""
        steps = sorted(self.baseline.states)
        return min(steps, key=lambda s: abs(s - self.first - share * self.steps))

    def trial(self, remedy: Remedy, *, start: int | None = None, steps: int | None = None) -> Counterfactual:
        """Fork the training at `start` under a remedy and compare it with the unchanged run.

        Args:
            remedy: the change.
            start: the step at which the two part, by default the first; changes that need a start leave it so.
            steps: how many steps the fork takes, by default all that the training has left.
        """
        if start is None:
            start = self.first
        if steps is not None:
            return self._try(remedy, (remedy.name, start, steps))
        steps = self.first + self.steps - start
        whole = (remedy.name, start, steps)
        seconds = self.baseline.seconds / max(1, self.steps) * steps * remedy.batches_per_step()
        if whole in self._traces or seconds <= self.limit / SCREENS:
            return self._try(remedy, whole)
        # Too long to be run for every remedy: a first part screens, and only what leads there is run to the end.
        every = max(1, round(self.steps / POINTS))
        part = max(2 * every, int(steps * self.limit / SCREENS / seconds / every) * every)
        screened = self._try(remedy, (remedy.name, start, min(steps, part)))
        if screened.failed or screened.shortfall < T.MINOR:
            return screened
        if seconds > self.limit - self.seconds_confirmed:
            self.notes.append(f"{remedy.name} leads after {part} steps; the time did not allow to run it to the last step")
            return replace(screened, failed="it leads, but the time did not allow to run it to the last step")
        self.seconds_confirmed += seconds
        return self._try(remedy, whole)

    def _try(self, remedy: Remedy, key: tuple[str, int, int]) -> Counterfactual:
        if key not in self._traces:
            self._remedies[key] = remedy
            self.tell(f"trying {remedy.name}", 0.35 + 0.6 * min(1.0, self.seconds_forks / max(1e-9, self.limit)))
            self._traces[key] = self._fork(remedy, *key[1:])
        return self._compare(remedy, key)

    def _fork(self, remedy: Remedy, start: int, steps: int) -> Trace:
        began = time.perf_counter()
        changed = remedy(self.training)
        state = self.baseline.states[start]
        trace = Trace(start)
        try:
            with Live.of(changed, seed=self.seed, device=self.device, batches=self.batches) as live:
                prepare(live, state)
                bound = max(self.start_level + self.scale, self.initial if math.isfinite(self.initial) else 0.0)
                trace = run(live, self.probes, start, steps, stop_above=10 * bound)
        except (GradoscopeError, RuntimeError, ValueError, AssertionError) as error:
            trace.failed = f"{type(error).__name__}: {error}"
            trace.probe = trace.probe or [self.baseline.probe[0]]
            trace.validation = trace.validation or self.baseline.validation[:1]
        self.charge(time.perf_counter() - began, remedy, steps)
        return trace

    def _nominal(self, remedy: Remedy, steps: int) -> float:
        """What a fork lasts where every step lasts `step_seconds`."""
        if remedy.takes_optimizer_steps:
            return (self.step_seconds or 0.0) * steps * remedy.batches_per_step()
        return remedy.examples_per_step() * steps * self.seconds_per_example()

    def _compare(self, remedy: Remedy, key: tuple[str, int, int]) -> Counterfactual:
        trace = self._traces[key]
        # A fork that stops early is compared with the unchanged run at the same step if it takes the training's own
        # kind of steps; one of a few expensive steps has to beat the unchanged run's end.
        same_step = key[1] + key[2] if remedy.takes_optimizer_steps else None
        unchanged, changed = self.capped(self.baseline.result(until=same_step)), self.capped(trace.result())
        fork = Fork(*key[1:], float(np.mean(trace.probe[0][1])), changed, trace.curve(), trace.failed, self._examples_ratio(remedy, key[2]))
        excess = max(self.final - min(self.best, self.final), 1e-12 * max(1.0, abs(self.final)))
        curve = tuple(p for p in self.baseline.curve() if p[0] >= key[1])
        return compared(remedy, fork, unchanged, curve, excess=excess, scale=self.scale, on="training")

    def _examples_ratio(self, remedy: Remedy, steps: int) -> float:
        """Examples that went through a fork, per example of the unchanged run over the rest of its steps."""
        per_epoch = self.batches.per_epoch
        if remedy.takes_optimizer_steps:
            many = remedy.batches_per_step()
            return float(many if per_epoch is None else min(many, max(1, per_epoch)))
        own = (self.batches.batch_size or 1) * self.training.accumulate
        return remedy.examples_per_step() * steps / max(1, own * (self.steps - self.steps // 2))

    def material(self, c: Counterfactual) -> bool | None:
        """Whether a counterfactual gains materially, and not only on the examples that it trained on: see `Standing.material`."""
        value = super().material(c)
        return False if value is not False and by_heart(self, c) else value

    def validate(self, remedy: Remedy, parts: slice = slice(None)) -> Counterfactual:
        """Train under a remedy from the start and compare the validation losses at the end.

        Args:
            remedy: the change.
            parts: the validation parts that judge, where the others went into the training.
        """
        key = (remedy.name, self.first, self.steps)
        if key not in self._traces:
            self._remedies[key] = remedy
            self.tell(f"trying {remedy.name}", 0.35 + 0.6 * min(1.0, self.seconds_forks / max(1e-9, self._limit or 1.0)))
            self._traces[key] = self._fork(remedy, self.first, self.steps)
        trace = self._traces[key]
        return self.judge_validation(remedy, trace.result("validation")[parts], trace.curve("validation"), parts, trace.failed)

    def judge_validation(
        self, remedy: Remedy, changed: np.ndarray, curve: tuple[tuple[int, float], ...], parts: slice, failed: str = ""
    ) -> Counterfactual:
        """A comparison of validation losses; its scale is the gap between validation and training at the end."""
        unchanged = self.baseline.result("validation")[parts]
        gap = max(float(np.mean(unchanged)) - self.final, 1e-12)
        before = float(np.mean(self.baseline.validation[0][1][parts]))
        fork = Fork(self.first, self.steps, before, changed, curve, failed)
        return self.judged(compared(remedy, fork, unchanged, self.baseline.curve("validation"), excess=gap, scale=gap, on="validation"))

    def judged(self, c: Counterfactual) -> Counterfactual:
        """Keep a counterfactual that is compared by something else than the training loss; the last one of a name counts."""
        self._validated[c.remedy] = c
        return c

    def judged_as(self, name: str) -> Counterfactual | None:
        """The counterfactual of this name that `judged` keeps, or None."""
        return self._validated.get(name)

    def trials(self) -> tuple[Counterfactual, ...]:
        """Every fork that was run, compared at the levels that are known now."""
        on_training = [
            self._compare(remedy, key)
            for key, remedy in self._remedies.items()
            if key in self._traces and remedy.name not in self._validated
        ]
        return (*on_training, *self._validated.values())

    def tried(self, c: Counterfactual) -> tuple[Remedy, Trace] | None:
        """The change and the run behind a counterfactual of this case; None where it has none of its own."""
        key = (c.remedy, c.start, c.steps)
        return (self._remedies[key], self._traces[key]) if key in self._traces else None

    def charge(self, seconds: float, remedy: Remedy, steps: int) -> None:
        """Count a fork's time against what forks may take together."""
        self.seconds_forks += seconds if self.step_seconds is None else self._nominal(remedy, steps)

    @property
    def _remedies(self) -> dict[tuple[str, int, int], Remedy]:
        return self._memo.setdefault("remedies", {})  # type: ignore[no-any-return]

    # ---- measurements ---------------------------------------------------------------------------------------------------

    def measure(self, name: str, step: int, function: Callable[[Live], Any]) -> Any:
        """The result of `function` on a live copy at a kept state, memoised by (name, step)."""
        key = (name, step)
        if key not in self._memo:
            self.tell(f"measuring {name}", 0.34)
            with self.live(step) as live:
                self._memo[key] = function(live)
        return self._memo[key]

    @property
    def taken(self) -> set[Any]:
        """The (name, step) keys of the measurements taken so far."""
        return {key for key in self._memo if isinstance(key, tuple)}

    def remember(self, name: str, step: int, value: Any) -> None:
        """Keep a value as if it had been measured."""
        self._memo[(name, step)] = value

    def recall(self, name: str, step: int) -> Any:
        """A value that was measured or remembered, or None."""
        return self._memo.get((name, step))

    def rows(self, passes: int, most: int = 2048, least: int = 32) -> int:
        """How many examples a reading of so many forward and backward passes may use, for a fixed share of the time."""
        return int(np.clip(self.limit / READINGS / max(passes * self.seconds_per_example(), 1e-12), least, most))

    def seconds_per_example(self) -> float:
        """What one example of one step of the unchanged run took, its forward and backward pass together."""
        took = self.baseline.seconds_stepping / max(1, self.baseline.done - self.baseline.start)
        return took / max(1, (self.batches.batch_size or 1) * self.training.accumulate)

    def objective(self, live: Live, rows: int = 512, stream: str = "fresh") -> Objective:
        """The training's loss on fixed examples at the point where `live` stands."""
        return Objective.of(live, self.batches.sample(rows, stream), seed=7)
