"""Multilabel sets: ARFF files as Mulan publishes them, and a generated one for where there are no files."""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.stacked import generator

__all__ = ["FOLDER", "KNOWN", "Multilabel", "available", "generated", "held_out", "load", "read_arff", "read_labels", "standardised"]

FOLDER = "GRADOSCOPE_DATA"  # the environment variable that names the folder in which `multilabel` is a folder
KNOWN = ("bibtex", "delicious", "emotions", "enron", "scene", "yeast")  # sets that are published in this form, among others
_NAME = re.compile(r"""\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s{},'"%][^\s{},]*))""")


@dataclass(frozen=True)
class Multilabel:
    """Examples with several labels each.

    Args:
        name: of the set.
        x: features, float32 of shape (n, d).
        y: labels, 0 or 1, float32 of shape (n, L).
        features: their names.
        labels: their names.
    """

    name: str
    x: Tensor
    y: Tensor
    features: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, index: Tensor | slice) -> "Multilabel":
        """Some of the examples."""
        return replace(self, x=self.x[index], y=self.y[index])


@dataclass(frozen=True)
class _Column:
    name: str
    values: tuple[str, ...]  # of a nominal attribute; empty for a number

    @property
    def default(self) -> float:
        """What a sparse row means where it says nothing: 0, or the first of the nominal values."""
        return self.code(self.values[0]) if self.values else 0.0

    def code(self, word: str) -> float:
        """The number that stands for a word; nominal values that are not numbers count from 0.

        Raises:
            ValueError: where it is no value of this attribute.
        """
        if not self.values:
            return float(word)
        place = self.values.index(word)
        try:
            return float(word)
        except ValueError:
            return float(place)


def _wrong(path: Path, line: int, what: str) -> Usage:
    return Usage(f"{path.name}, line {line}: {what}.")


def _name(text: str) -> tuple[str, str]:
    """A name at the start of the text, quoted or not, and what follows it."""
    found = _NAME.match(text)
    if found is None:
        raise ValueError("a name is missing")
    quoted = found[1] if found[1] is not None else found[2]
    return (found[3] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)), text[found.end() :]


def _column(text: str) -> _Column:
    name, rest = _name(text)
    rest = rest.strip()
    if rest.startswith("{"):
        if not rest.endswith("}"):
            raise ValueError("the list of nominal values does not end")
        values = tuple(_name(word)[0] for word in rest[1:-1].split(","))
        return _Column(name, values)
    if rest.split(" ")[0].lower() in ("numeric", "real", "integer"):
        return _Column(name, ())
    raise ValueError(f"attributes of type {rest or 'nothing'!r} are not supported; there are numeric, real, integer and nominal ones")


def _header(path: Path, lines: list[str]) -> tuple[list[_Column], int]:
    """The attributes, and the index of the first line of data."""
    columns: list[_Column] = []
    for number, line in enumerate(lines):
        text = line.strip()
        word = text.split(None, 1)[0].lower() if text else ""
        if word == "@data":
            if not columns:
                raise _wrong(path, number + 1, "there is no @attribute before @data")
            return columns, number + 1
        if word == "@attribute":
            try:
                columns.append(_column(text[len(word) :]))
            except ValueError as error:
                raise _wrong(path, number + 1, str(error)) from error
        elif text and word != "@relation" and not text.startswith("%"):
            raise _wrong(path, number + 1, f"expected @relation, @attribute, @data or a comment, got {text[:40]!r}")
    raise Usage(f"{path.name}: there is no @data; is the file cut off?")


def _words(row: str) -> list[str]:
    """The values of a dense row."""
    words = row.split(",")
    return [_name(word)[0] if "'" in word or '"' in word else word.strip() for word in words]


def _dense(row: str, columns: list[_Column], into: np.ndarray) -> None:
    words = _words(row)
    if len(words) != len(columns):
        raise ValueError(f"{len(words)} values for {len(columns)} attributes")
    for place, (word, column) in enumerate(zip(words, columns, strict=True)):
        into[place] = _code(column, word)


def _sparse(row: str, columns: list[_Column], into: np.ndarray) -> None:
    if not row.endswith("}"):
        raise ValueError("a sparse row does not end with }")
    seen = set()
    for pair in row[1:-1].split(","):
        if not pair.strip():
            continue
        index, _, word = pair.strip().partition(" ")
        if not index.isdigit() or int(index) >= len(columns):
            raise ValueError(f"{index!r} is no index of {len(columns)} attributes (they count from 0)")
        if index in seen:
            raise ValueError(f"attribute {index} occurs twice")
        seen.add(index)
        into[int(index)] = _code(columns[int(index)], _words(word)[0])


def _code(column: _Column, word: str) -> float:
    if word == "?":
        raise ValueError(f"the value of {column.name!r} is missing (?), which is not supported")
    try:
        return column.code(word)
    except ValueError as error:
        allowed = f"one of {', '.join(column.values)}" if column.values else "a number"
        raise ValueError(f"the value of {column.name!r} must be {allowed}, got {word!r}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of the labels out of Mulan's .xml, in its order, nested ones included.

    Raises:
        Usage: where it is no such file.
    """
    try:
        root = ET.fromstring(path.read_bytes())
    except ET.ParseError as error:
        raise Usage(f"{path.name}, line {error.position[0]}: no well-formed XML ({error}).") from error
    names = tuple(node.get("name", "") for node in root.iter() if node.tag.rpartition("}")[2] == "label")
    if not names or "" in names:
        fault = "one without a name" if names else "none"
        raise Usage(f"{path.name}: expected elements <label name='...'>, got {fault}.")
    return names


def read_arff(path: Path, labels: Sequence[str], name: str = "") -> Multilabel:
    """One ARFF file, dense or sparse rows, with these attributes as labels.

    Args:
        path: of the file; numeric and nominal attributes, `%` comments, quoted names.
        labels: names of attributes with values 0 and 1.
        name: of the set; the file's, by default.

    Raises:
        Usage: where it is malformed, with file and line; or a label is no attribute, or has other values than 0 and 1.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    columns, first = _header(path, lines)
    rows = [(number + 1, line.strip()) for number, line in enumerate(lines) if number >= first]
    rows = [(number, text) for number, text in rows if text and not text.startswith("%")]
    values = np.empty((len(rows), len(columns)), dtype=np.float32)
    values[:] = [column.default for column in columns]
    for into, (number, text) in zip(values, rows, strict=True):
        try:
            (_sparse if text.startswith("{") else _dense)(text, columns, into)
        except ValueError as error:
            raise _wrong(path, number, str(error)) from error
    places = {column.name: place for place, column in enumerate(columns)}
    absent = [label for label in labels if label not in places]
    if absent:
        raise Usage(f"{path.name} has no attribute for {len(absent)} of {len(labels)} labels, e.g. {absent[0]!r}.")
    if len(places) < len(columns):
        raise Usage(f"{path.name}: two attributes have the same name.")
    chosen = [places[label] for label in labels]
    others = [place for place in range(len(columns)) if place not in set(chosen)]
    y = torch.from_numpy(values[:, chosen])
    bad = ((y != 0) & (y != 1)).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise _wrong(path, rows[row][0], f"label {labels[column]!r} must be 0 or 1, got {float(y[row, column]):g}")
    x = torch.from_numpy(values[:, others])
    return Multilabel(name or path.stem, x, y, tuple(columns[place].name for place in others), tuple(labels))


def _files(name: str) -> list[Path]:
    folder = os.environ.get(FOLDER)
    ends = ("-train.arff", "-test.arff", ".xml")
    return [Path(folder) / "multilabel" / name / f"{name}{end}" for end in ends] if folder else []


def available(name: str) -> bool:
    """Whether the folder that GRADOSCOPE_DATA names holds this set."""
    return bool(_files(name)) and all(path.is_file() for path in _files(name))


def load(name: str) -> tuple[Multilabel, Multilabel]:
    """The training and the test part of a set in the user's data folder, as published: features are not standardised.

    Args:
        name: e.g. "bibtex": the files are multilabel/bibtex/bibtex-train.arff, -test.arff and .xml.

    Raises:
        Usage: where the files are not there, or malformed.
    """
    if not available(name):
        raise Usage(
            f"there is no multilabel set {name!r}: set {FOLDER} to a folder that holds multilabel/{name}/{name}-train.arff, "
            f"{name}-test.arff and {name}.xml (Mulan's format; e.g. {', '.join(KNOWN)}), or use set=synthetic."
        )
    train, test, labels = _files(name)
    return _load(name, train, test, labels)


@lru_cache(maxsize=2)
def _load(name: str, train: Path, test: Path, labels: Path) -> tuple[Multilabel, Multilabel]:
    names = read_labels(labels)
    first, second = read_arff(train, names, name), read_arff(test, names, name)
    if first.features != second.features:
        raise Usage(f"{train.name} and {test.name} have different attributes.")
    return first, second


def standardised(train: Multilabel, *others: Multilabel) -> tuple[Multilabel, ...]:
    r"""Features shifted and scaled by mean and standard deviation of the training part, $x'_j=(x_j-\bar x_j)/s_j$; constant ones give 0.

    Args:
        train: what the numbers are taken from.
        others: what they are applied to as well.

    Returns:
        All of them, `train` first.

    Example:
        >>> train, test = standardised(*generated(0))
        >>> bool(train.x.mean(0).abs().max() < 1e-5), bool((train.x.std(0) - 1).abs().max() < 1e-5)
        (True, True)
    """
    mean, deviation = train.x.double().mean(0), train.x.double().std(0)
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=1e-12), torch.zeros_like(deviation))
    return tuple(replace(part, x=((part.x.double() - mean) * scale).float()) for part in (train, *others))


def held_out(data: Multilabel, share: float, seed: int) -> tuple[Multilabel, Multilabel]:
    """A random split of the examples: (the rest, `share` of them).

    Example:
        >>> rest, part = held_out(generated(0)[0], 0.2, seed=1)
        >>> len(rest), len(part)
        (480, 120)
    """
    order = torch.randperm(len(data), generator=generator(seed, 631))
    count = round(share * len(data))
    return data.rows(order[count:]), data.rows(order[:count])


def generated(
    seed: int, *, train: int = 600, test: int = 400, features: int = 60, labels: int = 40, topics: int = 10, noise: float = 1.0
) -> tuple[Multilabel, Multilabel]:
    r"""A sparse multilabel set with correlated labels, for where there are no files.

    An example has a mix of topics $h\sim N(0,I)$; features are $Bh$ with noise. Label l scores $a_l\cdot h+$ Gumbel noise, and the
    example has its k labels of the largest scores, $k=1+\mathrm{Binomial}(5,\sigma(2h_1))$: which labels an example has is uncertain, so
    that few have a probability above one half, while their number is visible in the features.

    Args:
        seed: what everything is drawn from.
        train: examples of the training part.
        test: examples of the other.
        features: d.
        labels: L.
        topics: size of h; fewer than labels, so that labels go together.
        noise: scale of the noise on scores and features.

    Returns:
        The training and the test part.

    Example:
        >>> train, test = generated(0)
        >>> train.x.shape, test.y.shape, bool(2 < train.y.sum(1).mean() < 5)
        (torch.Size([600, 60]), torch.Size([400, 40]), True)
    """
    random = generator(seed, 632, features, labels)
    count = train + test
    mix = torch.randn(count, topics, generator=random)
    loads = torch.randn(topics, features, generator=random) / topics**0.5
    x = mix @ loads + 0.5 * noise * torch.randn(count, features, generator=random)
    words = torch.randn(topics, labels, generator=random)
    gumbel = -torch.log(-torch.log(torch.rand(count, labels, generator=random).clamp(1e-7, 1 - 1e-7)))
    scores = mix @ words + noise * gumbel
    chance = torch.sigmoid(2 * mix[:, 0])
    number = 1 + (torch.rand(count, 5, generator=random) < chance[:, None]).sum(1)
    rank = scores.argsort(1, descending=True).argsort(1)
    y = (rank < number[:, None]).float()
    names = tuple(f"x{i}" for i in range(features)), tuple(f"label {i}" for i in range(labels))
    whole = Multilabel("synthetic", x, y, *names)
    return whole.rows(slice(0, train)), whole.rows(slice(train, None))
