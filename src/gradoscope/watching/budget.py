"""What watching may cost: it measures its own time against the training's and says when the next look is affordable."""

import math
import statistics
import time
from collections import defaultdict, deque
from typing import Literal

__all__ = ["Budget", "Kind", "Timetable"]

# "light": loss, gradient norm, learning rates. "full": also per layer, and how far the weights moved.
# "checkpoint": also a copy of the whole state.
Kind = Literal["light", "full", "checkpoint"]

# What the timers cannot see (cold caches after a look, the slower call of a module that has hooks) was half to one and a half
# times what they see: benchmarks/overhead.py, on a busy machine.
SAFETY = 0.4
LIGHT_SHARE = 0.7  # of the budget; the rest is kept for the rare heavy looks, which would else never be affordable
DENSE = 1000  # every step is due up to here, then ever fewer: 1,000 per e-fold of steps
HOOK_SECONDS = 1e-6  # what a step costs that is only counted
OUTLIER = 5.0  # a step that took this many times the median was a pause (a validation, a debugger), no training


class Budget:
    r"""Keeps $\sum_i c_i \le b \cdot T$: own costs c, the training's own time T, and the share b that the user sets.

    Args:
        share: b, e.g. 0.05; infinity looks at every step, 0 only at the first.

    Example:
        >>> budget = Budget(0.05)
        >>> budget.spend("light", 0.001)
        >>> budget.trained(10, seconds=0.01)
        >>> budget.affordable("light"), budget.wait("light") > 50
        (False, True)
        >>> budget.trained(200, seconds=0.2)
        >>> budget.affordable("light")
        True
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.training = 0.0  # seconds of the training itself
        self._spent = {"light": 0.0, "heavy": 0.0}
        self._costs: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=5))
        self._pace: deque[float] = deque(maxlen=9)

    def __repr__(self) -> str:
        return f"Budget(share={self.share:g}, overhead={self.overhead:.3g})"

    @property
    def spent(self) -> float:
        """Seconds that watching took."""
        return sum(self._spent.values())

    @property
    def overhead(self) -> float:
        """Seconds that watching took, per second of training."""
        return self.spent / self.training if self.training > 0 else 0.0

    @property
    def step_seconds(self) -> float:
        """The median time of a step, without what watching took."""
        return statistics.median(self._pace) if self._pace else 0.0

    def spend(self, kind: Kind, seconds: float) -> None:
        """Note what one look has cost."""
        self._spent[_account(kind)] += seconds
        self._costs[kind].append(seconds)

    def spend_idle(self, seconds: float) -> None:
        """Note own time that was no look."""
        self._spent["light"] += seconds

    def trained(self, steps: int, seconds: float) -> None:
        """Note that `steps` steps took `seconds`, own costs left out; a pause counts no more than a slow step."""
        if steps < 1:
            return
        pace = max(seconds, 0.0) / steps
        if self._pace:
            pace = min(pace, OUTLIER * self.step_seconds)
        self._pace.append(pace)
        self.training += pace * steps
        self._spent["light"] += HOOK_SECONDS * steps

    def affordable(self, kind: Kind) -> bool:
        """Whether one more look of this kind keeps within the budget; the first one always is."""
        return self._missing(kind) <= 0

    def wait(self, kind: Kind) -> int:
        """How many steps to train until a look of this kind is affordable, at least 1."""
        pace = self._allowance(kind) * self.step_seconds - (HOOK_SECONDS if kind == "light" else 0.0)
        if pace <= 0:
            return 1 << 20
        return max(1, min(math.ceil(self._missing(kind) / pace), 1 << 20))

    def _allowance(self, kind: Kind) -> float:
        return SAFETY * self.share * (LIGHT_SHARE if kind == "light" else 1 - LIGHT_SHARE)

    def _missing(self, kind: Kind) -> float:
        """Seconds of own cost that the budget still lacks for one more look."""
        if math.isinf(self.share):
            return 0.0
        costs = self._costs[kind]
        if not costs:
            # Not tried yet: at least as much as what it contains.
            known = [statistics.median(c) for c in self._costs.values() if c]
            cost = 2 * max(known, default=0.0)
        else:
            cost = statistics.median(costs)
        return self._spent[_account(kind)] + cost - self._allowance(kind) * self.training


def _account(kind: Kind) -> str:
    return "light" if kind == "light" else "heavy"


class Timetable:
    """Says at which steps to look, and how closely; keeps the clock that the budget is charged by.

    Light looks are due at every step at first, fuller ones at steps that grow by a third, checkpoints by doubling.

    Attributes:
        next: the step before which nothing needs to be asked.
        skipped: looks that were due and that the budget did not allow.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget, self.next, self.skipped = budget, 0, 0
        self._full, self._checkpoint = 0, 1
        self._step = 0
        self._own = 0.0
        self._denied: int | None = None
        self._entered = self._mark = self.started = time.perf_counter()

    def enter(self) -> None:
        """Our own code begins."""
        self._entered = time.perf_counter()

    def leave(self) -> None:
        """Our own code ends."""
        self._own += time.perf_counter() - self._entered

    def restart(self, step: int) -> None:
        """Forget the time since the last step: it belonged neither to the training nor to watching it."""
        self._mark = self._entered = time.perf_counter()
        self._step, self._own = step, 0.0

    def settle(self, step: int) -> None:
        """Bring the budget's account up to date, outside of the loop."""
        self._count_skipped(step)
        if step > self._step:
            self.enter()
            self.budget.spend_idle(self._tick(step))

    def looked(self, step: int, kind: Kind) -> None:
        """A look was taken, and `step` steps are done."""
        self.budget.spend(kind, self._tick(step))
        if kind != "light":
            self._full = max(step, int(step * 4 / 3))
        if kind == "checkpoint":
            self._checkpoint = 2 * step
        self.next = max(step, step - 1 + max(1, step // DENSE))

    def choose(self, step: int) -> Kind | None:
        """How to look at the coming step, or None where the budget allows no look yet."""
        self._count_skipped(step)
        if step > self._step:
            self.budget.spend_idle(self._tick(step))
        if step >= self._checkpoint and self.budget.affordable("checkpoint"):
            return "checkpoint"
        if step >= self._full and self.budget.affordable("full"):
            return "full"
        if self.budget.affordable("light"):
            return "light"
        # The pace may change: ask again when as many steps more are done.
        wait = min(self.budget.wait("light"), max(64, step))
        self.next = step + wait
        self._denied = step
        return None

    def _count_skipped(self, step: int) -> None:
        """Count the looks that fell into the steps that passed since the budget last said no."""
        if self._denied is not None and step > self._denied:
            self.skipped += max(1, (step - self._denied) // max(1, self._denied // DENSE))
            self._denied = None

    def _tick(self, step: int) -> float:
        """Tell the budget how long the training itself took since the last time; returns our own seconds since then."""
        now = time.perf_counter()
        own = self._own + now - self._entered
        self.budget.trained(step - self._step, now - self._mark - own)
        self._mark, self._step, self._own, self._entered = now, step, 0.0, now
        return own
