"""Scene graphs: boxes with a class, and relations between them; the formats in which VRD and Visual Genome are published."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["FOLDER", "SceneGraph", "Scenes", "Vocabulary", "found", "has", "read_json", "vrd", "vrd_release"]

FOLDER = "GRADOSCOPE_DATA"  # the environment variable that names the folder of the user's data
VRD = "vrd-scene-graphs"
T = TypeVar("T")


@dataclass(frozen=True)
class Vocabulary:
    """The names behind the numbers.

    Args:
        objects: names of the classes of boxes.
        predicates: names of the relations; "no relation" is not among them, a model that needs it puts it last.
    """

    objects: tuple[str, ...]
    predicates: tuple[str, ...]


@dataclass(frozen=True)
class SceneGraph:
    """One image: its boxes, what they show, and how they relate.

    Args:
        image: its name or number.
        boxes: corners x1, y1, x2, y2 in pixels, shape (n, 4).
        labels: the class of each box, int64 of shape (n,); -1 where the data do not say.
        relations: triplets (subject, predicate, object), int64 of shape (r, 3): places in `boxes`, and in the predicates' names.
        attributes: words on each box, one tuple per box, or none at all.
        size: width and height of the image in pixels, where known.

    Raises:
        Usage: where the shapes do not fit, a relation names a box that is not there, or a box ends before it begins.

    Example:
        >>> graph = SceneGraph.of("a.jpg", [[0, 0, 9, 9], [3, 3, 5, 5]], [4, 1], [[1, 0, 0]])
        >>> len(graph), graph.relations.tolist()
        (2, [[1, 0, 0]])
    """

    image: str
    boxes: Tensor
    labels: Tensor
    relations: Tensor
    attributes: tuple[tuple[str, ...], ...] = ()
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        image: str,
        boxes: Sequence[Sequence[float]],
        labels: Sequence[int],
        relations: Sequence[Sequence[int]],
        attributes: Sequence[Sequence[str]] = (),
        size: tuple[int, int] | None = None,
    ) -> "SceneGraph":
        """The same from plain lists."""
        numbers = torch.tensor([[float(v) for v in b] for b in boxes]).reshape(len(boxes), -1 if boxes else 4)
        triplets = torch.tensor([[_whole(v) for v in r] for r in relations], dtype=torch.int64).reshape(
            len(relations), -1 if relations else 3
        )
        classes = torch.tensor([_whole(v) for v in labels], dtype=torch.int64)
        return cls(image, numbers, classes, triplets, tuple(tuple(a) for a in attributes), size)

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.relations.dim() != 2 or self.relations.shape[1] != 3:
            raise Usage(
                f"image {self.image}: expected boxes (n, 4) and relations (r, 3), got {tuple(self.boxes.shape)} and "
                f"{tuple(self.relations.shape)}."
            )
        if len(self.labels) != n or len(self.attributes) not in (0, n):
            raise Usage(f"image {self.image}: {n} boxes, {len(self.labels)} labels and {len(self.attributes)} lists of attributes.")
        if bool((self.boxes[:, 2:] < self.boxes[:, :2]).any()):
            raise Usage(f"image {self.image}: a box ends before it begins; expected x1 <= x2 and y1 <= y2.")
        ends = self.relations[:, 0::2]
        if bool(((ends < 0) | (ends >= n)).any()) or bool((self.relations[:, 1] < 0).any()):
            raise Usage(f"image {self.image}: a relation names a box beyond the {n} that there are, or a negative predicate.")

    def __len__(self) -> int:
        return len(self.boxes)

    def described(self, names: Vocabulary) -> list[str]:
        """Its relations in words: "person wears shirt"."""
        said = []
        for s, p, o in self.relations.tolist():
            ends = ["?" if k < 0 else names.objects[k] for k in (int(self.labels[s]), int(self.labels[o]))]
            said.append(f"{ends[0]} {names.predicates[p]} {ends[1]}")
        return said


@dataclass(frozen=True)
class Scenes:
    """Scene graphs with their names, and where they come from.

    Args:
        graphs: of one split.
        names: what the numbers mean.
        source: one word, e.g. "vrd".
    """

    graphs: tuple[SceneGraph, ...]
    names: Vocabulary
    source: str = "given"

    def __post_init__(self) -> None:
        for g in self.graphs:
            most = int(g.labels.max()) if len(g) else -1
            last = int(g.relations[:, 1].max()) if len(g.relations) else -1
            if most >= len(self.names.objects) or last >= len(self.names.predicates):
                raise Usage(
                    f"image {g.image}: class {most} or predicate {last} is beyond the {len(self.names.objects)} classes and "
                    f"{len(self.names.predicates)} predicates that have names."
                )

    def __len__(self) -> int:
        return len(self.graphs)

    def at_least(self, boxes: int) -> "Scenes":
        """Those with at least so many boxes."""
        return Scenes(tuple(g for g in self.graphs if len(g) >= boxes), self.names, self.source)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Usage(f"expected a whole number, got {value!r}.")
    return value


def folder_of(given: Path | str | None, name: str) -> Path | None:
    """The folder that was given, or `name` inside the one that the environment names."""
    root = os.environ.get(FOLDER)
    return Path(given) if given is not None else Path(root) / name if root else None


def has(name: str, *files: str) -> bool:
    """Whether the folder that GRADOSCOPE_DATA names has a folder `name` with these files."""
    folder = folder_of(None, name)
    return folder is not None and all((folder / f).is_file() for f in files)


def found(folder: Path | str | None, name: str, *files: str) -> list[Path]:
    """The paths of files that must be there.

    Args:
        folder: where they lie, or None for the folder `name` of the user's data.
        name: of that folder.
        files: which.

    Raises:
        Usage: naming the files that are wanted and the environment variable.
    """
    where = folder_of(folder, name)
    paths = [where / f for f in files] if where is not None else []
    missing = [p.name for p in paths if not p.is_file()] if where is not None else list(files)
    if missing:
        looked = f" (looked in {where})" if where is not None else ""
        raise Usage(
            f"there is no {', '.join(missing)}{looked}: give the folder, or set {FOLDER} to a folder in which {name}/ "
            f"holds {', '.join(files)}."
        )
    return paths


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        Usage: with the line where it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise Usage(f"{path.name}, line {error.lineno}: no JSON ({error.msg}).") from error


def checked(where: str, make: Callable[[], T]) -> T:
    """What `make` gives; whatever it misses in a record becomes an error that says where."""
    try:
        return make()
    except KeyError as error:
        raise Usage(f"{where}: the record has no {error}.") from error
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, Usage) as error:
        raise Usage(f"{where}: {error}".rstrip(".") + ".") from error


def names_of(value: Any, where: str) -> tuple[str, ...]:
    """A list of distinct words.

    Raises:
        Usage: where it is something else.
    """
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value) or len(set(value)) != len(value):
        raise Usage(f"{where}: expected a list of distinct names.")
    return tuple(value)


def vrd(split: str, folder: Path | str | None = None) -> Scenes:
    """Visual Relationship Detection (Lu et al. 2016) as JSON lines: `vocab.json`, and `train.jsonl` or `test.jsonl`.

    A line is `{"image": name, "boxes": [[x1, y1, x2, y2], ...], "labels": [class, ...], "relations": [[s, p, o], ...]}`; the vocabulary
    is `{"objects": [100 names], "predicates": [70 names]}`.

    Args:
        split: "train" or "test".
        folder: where the files lie; None for `vrd-scene-graphs` in the user's data.

    Raises:
        Usage: where a file is missing or a line malformed.
    """
    if split not in ("train", "test"):
        raise Usage(f"`split` must be train or test, got {split!r}.")
    words, lines = found(folder, VRD, "vocab.json", f"{split}.jsonl")
    raw = read_json(words)
    if not isinstance(raw, dict) or not {"objects", "predicates"} <= set(raw):
        raise Usage(f"{words.name}: expected objects and predicates.")
    names = Vocabulary(names_of(raw["objects"], words.name), names_of(raw["predicates"], words.name))
    return Scenes(tuple(_lines(lines, names)), names, "vrd")


def _lines(path: Path, names: Vocabulary) -> Iterator[SceneGraph]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}, line {number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise Usage(f"{where}: no JSON ({error.msg}).") from error
            yield checked(where, partial(_of_line, record, names))


def _of_line(record: dict[str, Any], names: Vocabulary) -> SceneGraph:
    return within(SceneGraph.of(str(record["image"]), record["boxes"], record["labels"], record["relations"]), names)


def within(graph: SceneGraph, names: Vocabulary) -> SceneGraph:
    """The graph itself, if every number has a name.

    Raises:
        Usage: where one has none.
    """
    return Scenes((graph,), names).graphs[0]


def vrd_release(
    split: str, folder: Path | str | None = None, *, objects: str = "objects.json", predicates: str = "predicates.json"
) -> Scenes:
    """The layout in which VRD was released: `annotations_train.json`, `annotations_test.json`, `objects.json`, `predicates.json`.

    The annotations are one object, from an image's name to its relations: `{"predicate": p, "subject": {"category": c, "bbox": [ymin,
    ymax, xmin, xmax]}, "object": {...}}`. Ends with the same class and box are one box. Images without relations have no boxes.

    Args:
        split: "train" or "test".
        folder: where the files lie; None for `vrd` in the user's data.
        objects: the file with the list of class names.
        predicates: the file with the list of predicates.

    Raises:
        Usage: where a file is missing, or a record malformed, with the image and the number of its record.
    """
    if split not in ("train", "test"):
        raise Usage(f"`split` must be train or test, got {split!r}.")
    relations, first, second = found(folder, "vrd", f"annotations_{split}.json", objects, predicates)
    names = Vocabulary(names_of(read_json(first), first.name), names_of(read_json(second), second.name))
    raw = read_json(relations)
    if not isinstance(raw, dict):
        raise Usage(f"{relations.name}: expected one object from image names to relations, got a {type(raw).__name__}.")
    graphs = [_of_release(f"{relations.name}, image {image}", image, records, names) for image, records in raw.items()]
    return Scenes(tuple(graphs), names, "vrd")


def _of_release(where: str, image: str, records: Any, names: Vocabulary) -> SceneGraph:
    if not isinstance(records, list):
        raise Usage(f"{where}: expected a list of relations, got a {type(records).__name__}.")
    places: dict[tuple[float, ...], int] = {}  # by class and corners
    relations = [checked(f"{where}, record {k}", partial(_of_record, record, places)) for k, record in enumerate(records)]
    boxes, labels = [key[1:] for key in places], [int(key[0]) for key in places]
    return checked(where, lambda: within(SceneGraph.of(image, boxes, labels, relations), names))


def _of_record(record: dict[str, Any], places: dict[tuple[float, ...], int]) -> list[int]:
    """One relation, whose ends get places of their own where they are new."""
    ends = []
    for thing in (record["subject"], record["object"]):
        y1, y2, x1, x2 = thing["bbox"]
        ends.append(places.setdefault((_whole(thing["category"]), x1, y1, x2, y2), len(places)))
    return [ends[0], _whole(record["predicate"]), ends[1]]
