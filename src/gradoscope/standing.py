"""How a training stands among the runs that were made of it: levels of the loss, and what counts as material against them."""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from gradoscope import thresholds as T
from gradoscope.diagnosis import Counterfactual
from gradoscope.trace import Trace

__all__ = ["Standing"]


class Standing(ABC):
    """The levels of a case, from its unchanged run and all its forks so far. They move when a fork ends lower than any before."""

    batches: Any
    _initial: float | None

    @property
    @abstractmethod
    def baseline(self) -> Trace:
        """The unchanged run."""

    @property
    @abstractmethod
    def probes(self) -> Any:
        """The training probe and the validation probe."""

    @abstractmethod
    def runs(self) -> list[Trace]:
        """The unchanged run and every fork so far."""

    @abstractmethod
    def levels(self) -> tuple[float | None, float | None]:
        """The loss of the best constant answer, and a lower bound of the loss, where they are known."""

    @abstractmethod
    def adds_capacity(self, remedy: str) -> bool:
        """Whether a remedy that was tried lets the model fit more than before."""

    @property
    def constant(self) -> float | None:
        """The loss of the best constant answer, where it is known."""
        return self.levels()[0]

    @property
    def attainable(self) -> float | None:
        """A lower bound of the loss, where it is known."""
        return self.levels()[1]

    @property
    def initial(self) -> float:
        """The training loss at the start."""
        return self._initial if self._initial is not None else float(np.mean(self.baseline.probe[0][1]))

    @property
    def best(self) -> float:
        """The lowest training loss that any run ended at or passed through."""
        values = [float(np.mean(v)) for run in self.runs() if not run.failed for _, v in run.probe]
        finite = [v for v in values if math.isfinite(v)]
        return min(finite) if finite else math.inf

    def capped(self, parts: np.ndarray) -> np.ndarray:
        """Part losses of a run, none of which counts as more than its start plus all there was to remove.

        A run that has diverged is as bad as one that went as far up as the best went down: how far up says nothing.
        """
        first = self.baseline.probe[0][1]
        usable = np.isfinite(first).all() and self.initial <= self.start_level
        capped: np.ndarray = np.minimum(parts, (first if usable else self.start_level) + self.scale)
        return capped

    def material(self, c: Counterfactual) -> bool | None:
        """Whether a counterfactual gains materially: True, False, or None for in between.

        It does if it removes a quarter of all there was to remove; or a tenth where the unchanged training has stalled:
        in its second half it removes less than a third of what the remedy removes of the excess at the middle. The
        (a remedy that lets more parameters train nearly always lowers the training loss somewhat: for it, only the first
        counts). The difference must be beyond three standard errors, as the best of a dozen counterfactuals is looked at.
        """
        # On the whole of a finite data set the loss is what the training minimises, and no estimate of it.
        exact = self.batches.size is not None and self.probes[0].rows >= self.batches.size
        if c.failed or not c.difference > (0.0 if exact else T.SIGMAS * c.difference_se):
            return False
        if c.shortfall >= T.MATERIAL:
            return True
        middle = self.middle
        excess = middle - min(self.best, middle)
        more_capacity = self.adds_capacity(c.remedy)
        if c.shortfall >= T.STALLED and excess > 0 and c.on == "training" and not more_capacity:
            ours, remedys = (middle - self.final) / excess, (middle - c.loss_remedy) / excess
            if remedys >= 0.5 and ours <= remedys / T.TIMES_FASTER:
                return True
        return False if c.shortfall < T.MINOR else None

    @property
    def middle(self) -> float:
        """The training loss half way through the unchanged run."""
        curve = [v for _, v in self.baseline.curve()]
        value = curve[len(curve) // 2]
        return value if math.isfinite(value) else self.final

    @property
    def start_level(self) -> float:
        """The level that progress is counted from: the start, or twice the constant answer's loss if that is lower."""
        start = self.initial
        floor = self.attainable if self.attainable is not None else min(self.best, 0.0) if math.isfinite(self.best) else 0.0
        if self.constant is not None:
            twice = floor + 2 * (self.constant - floor)
            start = min(start, twice) if math.isfinite(start) else twice
        return start if math.isfinite(start) else 1.0

    @property
    def scale(self) -> float:
        """All the loss that there was to remove: from where progress is counted to the best level reached.

        At least a share of what the loss could fall at all: where no run has learnt anything, the differences between
        them are noise, and no gain.
        """
        start = self.start_level
        reached = min(self.best, start)
        lowest = self.attainable if self.attainable is not None else min(reached, 0.0)
        return max(start - reached, T.SCALE_FLOOR * (start - lowest), 1e-12 * max(1.0, abs(start)))

    @property
    def final(self) -> float:
        """The training loss that the unchanged run ended at."""
        return float(np.mean(self.capped(self.baseline.result())))

    @property
    def shortfall(self) -> float:
        """The share of all there was to remove that the unchanged run left, against the best run so far."""
        return (self.final - min(self.best, self.final)) / self.scale

    @property
    def headroom(self) -> float | None:
        """The largest shortfall that any remedy could reveal: against the attainable loss; None where that is unknown."""
        if self.attainable is None:
            return None
        whole = self.start_level - self.attainable
        return (self.final - self.attainable) / whole if whole > 0 else 0.0
