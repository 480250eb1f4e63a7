"""A study: an experiment of a source as a grid of settings and seeds, with its figures and its claims."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from gradoscope.claims import Claim
from gradoscope.errors import Usage

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["Context", "Figure", "Result", "Results", "Scale", "Setting", "Study", "Table", "Unit", "all_studies", "find"]

Scale = Literal["quick", "paper"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One cell of a grid.

    Args:
        values: what distinguishes it: names with numbers, words or booleans. It is everything that `Study.run` gets to know, so
            steps and sizes belong into it; scales that share a setting share its results.
        seeds: how many seeds the study runs unless the user says otherwise; 0 for what has no seeds (run once, whatever `--seeds`).
        block: seeds that run together as one unit of work, stacked or in turn.
        cost: rough relative seconds of one seed, for the time left.
    """

    values: Mapping[str, Any]
    seeds: int = 5
    block: int = 5
    cost: float = 1.0

    def units(self, study: "Study", seeds: int | None) -> Iterator["Unit"]:
        """The blocks of seeds, fixed by the grid alone: not by workers, and not by what is there already."""
        if self.seeds == 0:
            yield Unit(study.name, study.version, self.values, (), self.cost)
            return
        count = self.seeds if seeds is None else seeds
        for start in range(0, count, self.block):
            block = tuple(range(start, min(start + self.block, count)))
            yield Unit(study.name, study.version, self.values, block, self.cost * len(block))


@dataclass(frozen=True)
class Unit:
    """The unit of work: one setting with one block of seeds; its results are kept under `key`."""

    study: str
    version: int
    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    cost: float

    @property
    def key(self) -> str:
        """A file name that is a pure function of study, version, setting and seeds."""
        text = json.dumps([self.study, self.version, dict(self.values), self.seeds], sort_keys=True)
        words = "_".join(f"{k}={v}" for k, v in self.values.items())
        safe = "".join(c if c.isalnum() or c in "=_.-+" else "-" for c in words)[:80]
        return f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass
class Result:
    """What a unit gives back: everything in it is a pure function of setting and seeds, except `timings`.

    Args:
        rows: outcomes: one flat dict per seed (and whatever else distinguishes them); each has "seed" where there are seeds.
        curves: the same in long form, for what is drawn against a step or a size.
        arrays: pictures, surfaces, matrices by name.
        timings: measured seconds by name; they decide no claim.
    """

    rows: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    arrays: dict[str, torch.Tensor] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a unit may use beside its setting and seeds; nothing of it may change the result beyond rounding on another device.

    Args:
        device: where to compute.
        checkpoint: a file where a long unit may keep where it stands (written whole or not at all), or None.
        tick: call it now and then with the share of the unit that is done.
    """

    device: str = "cpu"
    checkpoint: Path | None = None
    tick: Callable[[float], None] = lambda share: None


class Table(Sequence[Row]):
    """Rows with a few questions: `where`, `column`, `groups`.

    Example:
        >>> table = Table([{"d": 5, "seed": 0, "acc": 1.0}, {"d": 5, "seed": 1, "acc": 0.9}, {"d": 30, "seed": 0, "acc": 0.5}])
        >>> table.where(d=5).column("acc")
        [1.0, 0.9]
        >>> [(key, len(rows)) for key, rows in table.groups("d")]
        [((5,), 2), ((30,), 1)]
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def where(self, **values: Any) -> "Table":
        """The rows with these values; a value that is a list, tuple or set means any of them."""

        def fits(row: Row) -> bool:
            return all(row.get(k) in v if isinstance(v, (list, tuple, set)) else row.get(k) == v for k, v in values.items())

        return Table([row for row in self.rows if fits(row)])

    def column(self, name: str) -> list[Any]:
        """One value of each row; rows without it are an error."""
        return [row[name] for row in self.rows]

    def values(self, name: str) -> list[Any]:
        """The distinct values of a column, in order of appearance."""
        return list(dict.fromkeys(row[name] for row in self.rows if name in row))

    def groups(self, *names: str) -> list[tuple[tuple[Any, ...], "Table"]]:
        """The rows by the values of some columns, in order of appearance."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.get(n) for n in names), []).append(row)
        return [(key, Table(rows)) for key, rows in found.items()]

    def spread(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """A curve per seed as (x of shape (T,), y of shape (seeds, T)); every seed must have the same x."""
        curves = [rows for _, rows in self.groups("seed")]
        return np.array(curves[0].column(x)), np.array([c.column(y) for c in curves], dtype=float)


@dataclass(frozen=True)
class Results:
    """Everything that a study's units gave back, in the order of the grid; each row carries its setting."""

    rows: Table
    curves: Table
    _arrays: Sequence[tuple[Mapping[str, Any], tuple[int, ...], Callable[[], dict[str, torch.Tensor]]]] = ()

    def arrays(self, name: str, **values: Any) -> list[torch.Tensor]:
        """The arrays called `name` of every unit whose setting has these values, read when asked for."""
        fitting = (load for setting, _, load in self._arrays if all(setting.get(k) == v for k, v in values.items()))
        return [found[name] for load in fitting if name in (found := load())]

    def array(self, name: str, **values: Any) -> torch.Tensor:
        """The first such array."""
        found = self.arrays(name, **values)
        if not found:
            raise KeyError(f"no array {name!r} for {values}")
        return found[0]


@dataclass(frozen=True)
class Figure:
    """A figure of a study: a file name, a caption that says what one sees, and how it is drawn (with matplotlib, without pyplot)."""

    name: str
    caption: str
    draw: Callable[[Results], "Drawing"]


class Study(ABC):
    """An experiment of a source. A subclass in its own file of `studies/`, with `STUDY = ThatClass()` at its end.

    Attributes:
        name: what the command line calls it.
        title: one line.
        source: where it comes from.
        about: paragraphs for the page: what was asked, what is shown, where the source is right and where not.
        version: raised when `run` gives other results than before, so that old ones are not taken for new.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    about: ClassVar[tuple[str, ...]]
    version: ClassVar[int] = 1

    @abstractmethod
    def grid(self, scale: Scale) -> list[Setting]:
        """The settings of a scale, in the order of the tables."""

    @abstractmethod
    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One unit: a setting with a block of seeds. It seeds everything by the seeds and leaves the global random state alone."""

    @abstractmethod
    def claims(self, scale: Scale) -> list[Claim]:
        """What is claimed at this scale, with criteria that know nothing of the run."""

    @abstractmethod
    def figures(self, scale: Scale) -> list[Figure]:
        """What is drawn."""


def all_studies() -> dict[str, Study]:
    """Every study by name."""
    from gradoscope.registry import modules

    found = {m.STUDY.name: m.STUDY for m in modules("studies") if hasattr(m, "STUDY")}
    return dict(sorted(found.items()))


def find(name: str) -> Study:
    """The study called `name`.

    Raises:
        Usage: where there is none; the message lists what there is.
    """
    studies = all_studies()
    if name not in studies:
        raise Usage(f"there is no study {name!r}; there are: {', '.join(studies)}, and all.")
    return studies[name]
