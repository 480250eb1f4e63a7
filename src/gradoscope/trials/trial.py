"""What a trial is: a training whose obstacle is known, with the repair that proves it."""

import hashlib
import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from gradoscope.errors import Usage
from gradoscope.training import Training

__all__ = ["HEALTHY", "Architecture", "Change", "Difficulty", "Family", "Make", "Success", "Trial", "all_families", "all_trials", "select"]

Architecture = Literal["linear", "mlp", "cnn", "recurrent", "transformer", "graph"]
Difficulty = Literal["easy", "medium", "hard"]
Make = Callable[[int], Training]
HEALTHY = "healthy"


@dataclass(frozen=True)
class Success:
    """When a run has succeeded: where it ends, on the good side of a level.

    Args:
        on: the loss on the training data, on the validation data, or the training's own metric on its validation data.
        level: what must be reached. It is fixed by theory or by what the repaired task allows, never by a verdict.
        above: whether more is better.

    Example:
        >>> Success("training", 0.1).reached(0.05), Success("metric", 0.9, above=True).reached(0.85)
        (True, False)
        >>> Success("training", 0.1).reached(float("nan"))
        False
    """

    on: Literal["training", "validation", "metric"]
    level: float
    above: bool = False

    def reached(self, value: float) -> bool:
        """Whether a run that ends at this value has succeeded."""
        return math.isfinite(value) and (value >= self.level if self.above else value <= self.level)

    def __str__(self) -> str:
        name = {"training": "training loss", "validation": "validation loss", "metric": "metric"}[self.on]
        return f"{name} {'>=' if self.above else '<='} {self.level:g}"


@dataclass(frozen=True)
class Change:
    """Another training: the repaired one, a rival explanation, or an alternative of a healthy one; with a sentence."""

    says: str
    make: Make


@dataclass(frozen=True)
class Trial:
    """A training with a known truth.

    Args:
        name: "family/variant".
        family: the construction that it belongs to; families are split, never their trials.
        architecture: the kind of model.
        difficulty: how far the planted fault is from its healthy neighbour, or how worrying a healthy training looks.
        truth: the obstacles that are there, the primary one first; ("healthy",) where there is none.
        says: what is built, and why theory demands this truth.
        build: the training for a seed, which varies data and start.
        success: what a run must reach to have ended well.
        repair: the smallest change that removes the obstacle, or both of them; None for healthy trainings.
        rivals: for faulty trainings: changes that would help if another obstacle were the cause, and that do not reach success. For
            healthy ones: the stated alternatives, none of which ends materially better.
        accepts: names that are true as well, by the obstacles' definitions: no false alarm, and right at first.
        margin: the share of all there was to remove that an alternative of a healthy training may gain.
        step_seconds: what a step is taken to last.
    """

    name: str
    family: str
    architecture: Architecture
    difficulty: Difficulty
    truth: tuple[str, ...]
    says: str
    build: Make
    success: Success
    repair: Change | None = None
    rivals: tuple[Change, ...] = ()
    accepts: tuple[str, ...] = ()
    margin: float = 0.1
    step_seconds: float = 1e-3

    @property
    def healthy(self) -> bool:
        """Whether nothing obstructs it."""
        return self.truth == (HEALTHY,)

    @property
    def right(self) -> frozenset[str]:
        """Every name that is true of it."""
        return frozenset((*self.truth, *self.accepts))


@dataclass
class Family:
    """A construction family: one task with one kind of model. Its module holds it as `FAMILY`.

    Args:
        name: what the split hashes; never renamed.
        architecture: of all its trials.
        step_seconds: what a step is taken to last on one core.
        trials: what `faulty` and `healthy` have added.

    Example:
        >>> family = Family("nothing", "linear")
        >>> family.healthy("calm", "easy", "It falls.", lambda seed: None, Success("training", 0.1)).name
        'nothing/calm'
    """

    name: str
    architecture: Architecture
    step_seconds: float = 1e-3
    trials: list[Trial] = field(default_factory=list)

    def faulty(
        self,
        variant: str,
        truth: str | tuple[str, ...],
        difficulty: Difficulty,
        says: str,
        build: Make,
        repair: tuple[str, Make],
        success: Success,
        *,
        rivals: tuple[tuple[str, Make], ...] = (),
        accepts: tuple[str, ...] = (),
    ) -> Trial:
        """Add a training with one obstacle, or two."""
        names = (truth,) if isinstance(truth, str) else truth
        return self._add(variant, difficulty, names, says, build, success, Change(*repair), rivals, accepts, 0.0)

    def healthy(
        self,
        variant: str,
        difficulty: Difficulty,
        says: str,
        build: Make,
        success: Success,
        *,
        alternatives: tuple[tuple[str, Make], ...] = (),
        accepts: tuple[str, ...] = (),
        margin: float = 0.1,
    ) -> Trial:
        """Add a healthy training; without alternatives of its own, the proof tries three standard ones."""
        return self._add(variant, difficulty, (HEALTHY,), says, build, success, None, alternatives, accepts, margin)

    def _add(
        self,
        variant: str,
        difficulty: Difficulty,
        truth: tuple[str, ...],
        says: str,
        build: Make,
        success: Success,
        repair: Change | None,
        others: tuple[tuple[str, Make], ...],
        accepts: tuple[str, ...],
        margin: float,
    ) -> Trial:
        trial = Trial(
            name=f"{self.name}/{variant}",
            family=self.name,
            architecture=self.architecture,
            difficulty=difficulty,
            truth=truth,
            says=says,
            build=build,
            success=success,
            repair=repair,
            rivals=tuple(Change(*other) for other in others),
            accepts=accepts,
            margin=margin,
            step_seconds=self.step_seconds,
        )
        self.trials.append(trial)
        return trial


@cache
def all_families() -> tuple[Family, ...]:
    """Every family, by name."""
    from gradoscope.trials import families

    names = sorted(info.name for info in pkgutil.iter_modules(families.__path__) if not info.name.startswith("_"))
    found = [importlib.import_module(f"gradoscope.trials.families.{name}").FAMILY for name in names]
    return tuple(sorted(found, key=lambda family: family.name))


def all_trials() -> dict[str, Trial]:
    """Every trial by name."""
    return {trial.name: trial for family in all_families() for trial in family.trials}


def select(only: str | None = None, half: Literal["tune", "report", "all"] = "all") -> list[Trial]:
    """The trials of a half whose name matches a pattern, such as "digits-mlp/*", or holds it.

    Raises:
        Usage: where there is none.
    """
    from gradoscope.trials.split import half_of

    found = [
        trial
        for trial in all_trials().values()
        if half in ("all", half_of(trial.family)) and (only is None or only in trial.name or fnmatchcase(trial.name, only))
    ]
    if not found:
        raise Usage(
            f"no trial of {'both halves' if half == 'all' else f'the half {half!r}'} matches {only!r} (see: gradoscope trials --list)."
        )
    return found


@cache
def made(family: str) -> str:
    """A digest of how a family's trainings are made: results of a family that has changed are not taken for new."""
    from gradoscope.trials import families

    folder = Path(families.__path__[0])
    text = "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in ("_make", family.replace("-", "_")))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
