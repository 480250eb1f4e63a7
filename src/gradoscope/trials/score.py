"""How right a judge is: shares with intervals over trials, per obstacle, calibration and cost."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from gradoscope.trials.trial import HEALTHY

__all__ = ["AIMS", "BINS", "Row", "Share", "calibration", "cost", "per_obstacle", "report", "share", "stated", "summary"]

LEVEL = 0.95
RESAMPLES = 2000
BINS = (0.0, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
FREE = 60.0  # seconds that a diagnosis may take however short the training
AIMS = {"right at first": (0.95, True), "false alarms": (0.02, False), "recall of each obstacle": (0.85, True)}
"""The aims: right at first in at least 95%, false alarms on at most 2% of healthy trainings, no obstacle under 85% recall."""


@dataclass(frozen=True)
class Row:
    """What a judge said of one trial with one seed.

    Attributes:
        trial: its name; the unit of every interval.
        seed: of data and start.
        judge: who.
        half: "tune" or "report".
        truth: obstacles that are there, or ("healthy",).
        accepts: names that are true as well.
        verdict: "healthy", "obstructed" or "undetermined".
        present: obstacles named, with the probability given, in order.
        absent: obstacles ruled out, with probability.
        confidence: of the verdict `healthy`.
        training: CPU seconds of the training alone.
        judging: CPU seconds of the judge.
        words: architecture and difficulty, for tables by them.
    """

    trial: str
    seed: int
    judge: str
    half: str
    truth: tuple[str, ...]
    accepts: tuple[str, ...]
    verdict: str
    present: tuple[tuple[str, float], ...]
    absent: tuple[tuple[str, float], ...] = ()
    confidence: float = math.nan
    training: float = math.nan
    judging: float = math.nan
    words: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, row: Mapping[str, Any], timings: Mapping[str, float]) -> "Row":
        """From a row of results.csv and the unit's timings."""
        said = [part for part in str(row["findings"]).split(";") if part]
        found: dict[str, list[tuple[str, float]]] = {"present": [], "absent": []}
        for part in said:
            name, _, rest = part.partition("=")
            status, _, sure = rest.partition("@")
            found[status].append((name, float(sure)))
        return cls(
            trial=row["trial"],
            seed=int(row["seed"]),
            judge=row["judge"],
            half=row["half"],
            truth=tuple(row["truth"].split("+")),
            accepts=tuple(a for a in row["accepts"].split("+") if a),
            verdict=row["verdict"],
            present=tuple(found["present"]),
            absent=tuple(found["absent"]),
            confidence=float(row["confidence"]),
            training=timings.get("training", math.nan),
            judging=timings.get("judging", math.nan),
            words=(("architecture", row["architecture"]), ("difficulty", row["difficulty"])),
        )

    @property
    def healthy(self) -> bool:
        """Whether nothing obstructs the training."""
        return self.truth == (HEALTHY,)

    @property
    def names(self) -> tuple[str, ...]:
        """The obstacles named, first one first."""
        return tuple(name for name, _ in self.present) if self.verdict == "obstructed" else ()

    @property
    def first(self) -> str:
        """What it says first: an obstacle, "healthy" or "undetermined"."""
        return self.names[0] if self.names else self.verdict

    @property
    def right(self) -> bool:
        """Right at first: what it says first is true. Of two obstacles, either may come first."""
        return self.first in (*self.truth, *self.accepts)

    @property
    def alarm(self) -> bool:
        """A false alarm: a healthy training, and an obstacle named that is not true of it."""
        return self.healthy and any(name not in self.accepts for name in self.names)


@dataclass(frozen=True)
class Share:
    """A share with its interval.

    Attributes:
        value: mean over trials of their share over seeds; NaN where there are none.
        low: lower end of the 95% interval.
        high: upper end.
        trials: how many it rests on.
    """

    value: float
    low: float
    high: float
    trials: int

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "trials": self.trials}

    def __str__(self) -> str:
        return "-" if not self.trials else f"{self.value:.1%} ({self.low:.0%} to {self.high:.0%})"


def share(rows: Sequence[Row], hit: Callable[[Row], bool]) -> Share:
    r"""The mean over trials of the share of seeds with a hit, with Wilson's interval at n = the number of trials.

    Seeds of one trial are no independent trials. Counting each trial once, whatever its seeds say, is exact where they all say the same
    and too wide where they differ: never too narrow. With $z = 1.96$: $(p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2})/(1 + z^2/n)$.

    Example:
        >>> rows = [Row("a", s, "j", "tune", ("healthy",), (), v, ()) for s, v in enumerate(["healthy", "undetermined"])]
        >>> share(rows, lambda row: row.right).value
        0.5
    """
    means = [float(np.mean(values)) for values in _by_trial(rows, lambda row: float(hit(row)))]
    n = len(means)
    if not n:
        return Share(math.nan, math.nan, math.nan, 0)
    p, z = float(np.mean(means)), float(stats.norm.ppf((1 + LEVEL) / 2))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n)))
    return Share(p, low, high, n)


def _by_trial(rows: Iterable[Row], value: Callable[[Row], float]) -> list[list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.trial, []).append(value(row))
    return list(found.values())


def bootstrap(groups: Sequence[Sequence[float]], statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """The 95% interval of a statistic when whole trials are drawn again, all values of one together."""
    if not groups:
        return math.nan, math.nan
    random = np.random.Generator(np.random.PCG64(20))
    arrays = [np.asarray(g, dtype=float) for g in groups]
    drawn = [statistic(np.concatenate([arrays[i] for i in random.integers(0, len(arrays), len(arrays))])) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def summary(rows: Sequence[Row]) -> dict[str, Share]:
    """The shares over all trials.

    "right at first" is over all; "right on faulty" and "right on healthy" over each kind; "right to the last" asks that exactly the true
    obstacles are named; "both of two" and "primary first" are over trials with two obstacles; "false alarms" are healthy trainings with
    an obstacle named that is not there; "missed" are faulty ones called healthy.
    """
    healthy, faulty = [r for r in rows if r.healthy], [r for r in rows if not r.healthy]
    two = [r for r in faulty if len(r.truth) == 2]
    return {
        "right at first": share(rows, lambda r: r.right),
        "right on faulty": share(faulty, lambda r: r.right),
        "right on healthy": share(healthy, lambda r: r.right),
        "right to the last": share(rows, _exact),
        "both of two": share(two, lambda r: set(r.truth) <= set(r.names)),
        "primary first": share(two, lambda r: r.first == r.truth[0]),
        "false alarms": share(healthy, lambda r: r.alarm),
        "missed": share(faulty, lambda r: r.verdict == HEALTHY and HEALTHY not in r.accepts),
        "undetermined": share(rows, lambda r: r.verdict == "undetermined"),
    }


def _exact(row: Row) -> bool:
    if row.healthy:
        return row.right and not row.alarm
    return set(row.truth) <= set(row.names) and all(name in (*row.truth, *row.accepts) for name in row.names)


def per_obstacle(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Recall (of the trainings that have it, named at any place), recall at first, and precision (of those it is named for, true)."""
    names = sorted({name for r in rows for name in (*r.truth, *r.names)} - {HEALTHY})
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        have = [r for r in rows if name in r.truth]
        told = [r for r in rows if name in r.names]
        found[name] = {
            "recall": share(have, lambda r, n=name: n in r.names),  # type: ignore[misc]  # mypy cannot infer a lambda's default
            "recall at first": share(have, lambda r, n=name: r.first == n),  # type: ignore[misc]  # as above
            "precision": share(told, lambda r, n=name: n in (*r.truth, *r.accepts)),  # type: ignore[misc]  # as above
            "named instead": _counts(r.first for r in have if not r.right),
        }
    return found


def _counts(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def stated(row: Row) -> list[tuple[float, bool]]:
    """(confidence, whether it is true) of everything that a row claims to hold: obstacles present, or the verdict healthy."""
    if row.verdict == HEALTHY:
        claims = [(row.confidence, HEALTHY in (*row.truth, *row.accepts))]
    else:
        claims = [(sure, name in (*row.truth, *row.accepts)) for name, sure in row.present]
    return [(sure, true) for sure, true in claims if math.isfinite(sure)]


def ruled_out(row: Row) -> list[tuple[float, bool]]:
    """(confidence, whether it is true) of every obstacle that a row calls absent."""
    return [(sure, name not in row.truth) for name, sure in row.absent if math.isfinite(sure)]


def calibration(rows: Sequence[Row], claims: Callable[[Row], list[tuple[float, bool]]] = stated) -> dict[str, Any]:
    r"""Does a confidence of 0.9 mean nine in ten? Brier's score $\overline{(c - [true])^2}$ with its interval over trials, and a table.

    Each line of the table is a range of confidence: how many claims, their mean confidence, and the share of them that is true.
    """
    groups: dict[str, list[tuple[float, bool]]] = {}
    for row in rows:
        groups.setdefault(row.trial, []).extend(claims(row))
    pairs = [pair for group in groups.values() for pair in group]
    lines = []
    for low, high in pairwise(BINS):
        inside = [(sure, true) for sure, true in pairs if low <= sure < high or (high == BINS[-1] and sure == high)]
        if inside:
            mean = float(np.mean([sure for sure, _ in inside]))
            lines.append({"from": low, "to": high, "n": len(inside), "confidence": mean, "true": float(np.mean([t for _, t in inside]))})
    squares = [[(sure - true) ** 2 for sure, true in group] for group in groups.values() if group]
    flat = [s for group in squares for s in group]
    low, high = bootstrap(squares, lambda values: float(values.mean()))
    return {"brier": float(np.mean(flat)) if flat else math.nan, "low": low, "high": high, "n": len(flat), "table": lines}


def cost(rows: Sequence[Row]) -> dict[str, float]:
    """CPU time of judging: the median ratio to the training's own, seconds, and the share within the training's own or 60 s."""
    timed = [r for r in rows if math.isfinite(r.judging) and math.isfinite(r.training)]
    if not timed:
        return {}
    ratio = _by_trial(timed, lambda r: r.judging / max(r.training, 1e-9))
    low, high = bootstrap(ratio, lambda values: float(np.median(values)))
    seconds = np.array([r.judging for r in timed])
    return {
        "median ratio": float(np.median([v for group in ratio for v in group])),
        "low": low,
        "high": high,
        "median seconds": float(np.median(seconds)),
        "longest seconds": float(seconds.max()),
        "total seconds": float(seconds.sum()),
        "within": float(np.mean([r.judging <= max(r.training, FREE) for r in timed])),
    }


def report(rows: Sequence[Row], judge: str) -> dict[str, Any]:
    """Everything about one judge: for all trials and for each half, with the trials that it got wrong."""
    own = [r for r in rows if r.judge == judge]
    told: dict[str, Any] = {}
    for half in ("tune", "report", "all"):
        part = [r for r in own if half in (r.half, "all")]
        if not part:
            continue
        told[half] = {
            "trials": len({r.trial for r in part}),
            "faulty": len({r.trial for r in part if not r.healthy}),
            "healthy": len({r.trial for r in part if r.healthy}),
            "rows": len(part),
            "summary": {name: value.to_dict() for name, value in summary(part).items()},
            "obstacles": {name: _plain(values) for name, values in per_obstacle(part).items()},
            "calibration": calibration(part),
            "calibration of absent": calibration(part, ruled_out),
            "cost": cost(part),
            "by": {
                word: {value: share([r for r in part if (word, value) in r.words], lambda r: r.right).to_dict() for value in values}
                for word, values in _values(part).items()
            },
        }
    told["wrong"] = [
        {"trial": r.trial, "seed": r.seed, "half": r.half, "truth": "+".join(r.truth), "said": "+".join(r.names) or r.verdict}
        for r in own
        if not r.right or r.alarm
    ]
    return told


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to_dict() if isinstance(value, Share) else value for key, value in values.items()}


def _values(rows: Sequence[Row]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for word, value in row.words:
            found.setdefault(word, set()).add(value)
    return {word: sorted(values) for word, values in sorted(found.items())}
