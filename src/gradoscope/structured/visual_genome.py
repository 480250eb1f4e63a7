"""Visual Genome as it is published: its own JSON files, the compact subset, the VG-150 names, and the split of Xu et al."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gradoscope.errors import Usage
from gradoscope.structured.scenes import SceneGraph, Scenes, Vocabulary, checked, found, read_json

__all__ = ["compact_vg", "vg150_vocabulary", "vg_sgg", "visual_genome"]

SAMPLE = "visual-genome-sample"
BOX_SCALE = 1024  # of the boxes in VG-SGG.h5: the longer side of every image
SPLITS = {"train": 0, "test": 2}  # as VG-SGG.h5 marks them


def visual_genome(folder: Path | str | None = None, names: Vocabulary | None = None) -> Scenes:
    """Visual Genome, version 1.2 or 1.4: `objects.json`, `relationships.json`, and, where they lie beside, `attributes.json` and
    `image_data.json`.

    Names are compared in lower case without outer spaces. Ends of relations that are not among the objects of their image become boxes.

    Args:
        folder: where the files lie; None for `visual-genome-sample` in the user's data.
        names: classes and predicates to keep; boxes and relations with other names are left out. None takes all that occur, the
            most frequent first.

    Raises:
        Usage: where a file is missing, or a record malformed, with the image and the number of its record.
    """
    things, relations = found(folder, SAMPLE, "objects.json", "relationships.json")
    raw = _by_image(things, "objects")
    links = _by_image(relations, "relationships")
    words = _optional(things.with_name("attributes.json"), "attributes")
    sizes = _sizes(things.with_name("image_data.json"))
    images = [
        _Image(image, raw[image], links.get(image, []), words.get(image, []), sizes.get(image), things.name, relations.name)
        for image in raw
    ]
    if names is None:
        names = Vocabulary(_frequent(o for i in images for o in i.labels.values()), _frequent(p for i in images for _, p, _ in i.relations))
    return Scenes(tuple(i.graph(names) for i in images), names, "visual-genome")


def _by_image(path: Path, key: str) -> dict[str, list[dict[str, Any]]]:
    raw = read_json(path)
    if not isinstance(raw, list):
        raise Usage(f"{path.name}: expected a list of images, got a {type(raw).__name__}.")

    def one(record: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        if not isinstance(record[key], list):
            raise TypeError(f"{key} is a {type(record[key]).__name__}, expected a list")
        # images of relationships.json of the first release carry their number in the field "id"
        return str(record["image_id"] if "image_id" in record else record["id"]), record[key]

    return dict(checked(f"{path.name}, image record {k}", partial(one, record)) for k, record in enumerate(raw))


def _optional(path: Path, key: str) -> dict[str, list[dict[str, Any]]]:
    return _by_image(path, key) if path.is_file() else {}


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    if not path.is_file():
        return {}

    def one(record: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        return str(record["image_id"] if "image_id" in record else record["id"]), (int(record["width"]), int(record["height"]))

    return dict(checked(f"{path.name}, image record {k}", partial(one, record)) for k, record in enumerate(read_json(path)))


def _frequent(words: Any) -> tuple[str, ...]:
    return tuple(sorted((count := Counter(words)), key=lambda w: (-count[w], w)))


def _plain(word: str) -> str:
    return word.strip().lower()


def _name(thing: dict[str, Any]) -> str:
    """Objects have `names`; ends of relations have `name` up to version 1.2, `names` since."""
    return _plain(thing["names"][0] if "names" in thing else thing["name"])


class _Image:
    """The records of one image, by the numbers of its objects."""

    def __init__(
        self,
        image: str,
        things: Sequence[dict[str, Any]],
        links: Sequence[dict[str, Any]],
        words: Sequence[dict[str, Any]],
        size: tuple[int, int] | None,
        *files: str,
    ) -> None:
        self.image, self.size, self.where = image, size, f"{files[0]}, image {image}"
        self.labels: dict[int, str] = {}
        self.boxes: dict[int, list[float]] = {}
        self.attributes: dict[int, list[str]] = {}
        self.relations: list[tuple[int, str, int]] = []
        for k, thing in enumerate(things):
            checked(f"{self.where}, record {k}", partial(self._thing, thing))
        for k, link in enumerate(links):
            checked(f"{files[1]}, image {image}, record {k}", partial(self._link, link))
        for k, thing in enumerate(words):
            checked(f"attributes.json, image {image}, record {k}", partial(self._words, thing))

    def _thing(self, thing: dict[str, Any]) -> int:
        key = int(thing["object_id"])
        if key not in self.labels:
            x, y, w, h = (float(thing[k]) for k in "xywh")
            self.labels[key], self.boxes[key] = _name(thing), [x, y, x + w, y + h]
        return key

    def _link(self, link: dict[str, Any]) -> None:
        ends = [self._thing(link[k]) for k in ("subject", "object")]
        self.relations.append((ends[0], _plain(link["predicate"]), ends[1]))

    def _words(self, thing: dict[str, Any]) -> None:
        self.attributes[int(thing["object_id"])] = [_plain(w) for w in thing.get("attributes", ())]

    def graph(self, names: Vocabulary) -> SceneGraph:
        """What has a name in the vocabulary."""
        classes = {w: k for k, w in enumerate(names.objects)}
        predicates = {w: k for k, w in enumerate(names.predicates)}
        kept = [key for key, word in self.labels.items() if word in classes]
        place = {key: k for k, key in enumerate(kept)}
        relations = [[place[s], predicates[p], place[o]] for s, p, o in self.relations if s in place and o in place and p in predicates]
        labels = [classes[self.labels[key]] for key in kept]
        words = [self.attributes.get(key, []) for key in kept] if self.attributes else []
        return checked(
            self.where, lambda: SceneGraph.of(self.image, [self.boxes[key] for key in kept], labels, relations, words, self.size)
        )


def compact_vg(folder: Path | str | None = None) -> Scenes:
    """The compact subset of Visual Genome: `relations.txt`, and `attributes.txt` where it lies beside.

    A line of the first is `image,xs,ys,ws,hs,xo,yo,wo,ho,predicate` (left, top, width and height of subject and object), one of the
    second `image,x,y,w,h,attribute`. The classes of boxes are not part of it: every label is -1. Equal boxes of an image are one.

    Args:
        folder: where the files lie; None for `visual-genome-sample/compact-vg` in the user's data.

    Raises:
        Usage: where the file is missing or a line malformed, with its number.
    """
    (path,) = found(folder, f"{SAMPLE}/compact-vg", "relations.txt")
    images: dict[str, tuple[dict[tuple[float, ...], int], list[tuple[int, str, int]]]] = {}
    for where, cells in _rows(path, 10):
        places, relations = images.setdefault(cells[0], ({}, []))
        ends = checked(where, lambda cells=cells: [_corners(cells[1:5]), _corners(cells[5:9])])  # type: ignore[misc]  # the loop's value, bound now
        s, o = (places.setdefault(end, len(places)) for end in ends)
        relations.append((s, cells[9], o))
    words: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    second = path.with_name("attributes.txt")
    for where, cells in _rows(second, 6) if second.is_file() else ():
        key = checked(where, lambda cells=cells: (cells[0], _corners(cells[1:5])))  # type: ignore[misc]  # the loop's value, bound now
        words.setdefault(key, []).append(cells[5])
    names = Vocabulary((), _frequent(p for _, relations in images.values() for _, p, _ in relations))
    number = {w: k for k, w in enumerate(names.predicates)}
    graphs = []
    for image, (places, relations) in images.items():
        attributes = [words.get((image, box), []) for box in places] if words else []
        links = [[s, number[p], o] for s, p, o in relations]
        graphs.append(SceneGraph.of(image, list(places), [-1] * len(places), links, attributes))
    return Scenes(tuple(graphs), names, "compact-vg")


def _rows(path: Path, cells: int) -> list[tuple[str, list[str]]]:
    """Lines of comma-separated cells, each with where it stands."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = [c.strip() for c in line.split(",")]
        if len(parts) != cells and line.strip():
            raise Usage(f"{path.name}, line {number}: expected {cells} cells, got {len(parts)}.")
        if line.strip():
            rows.append((f"{path.name}, line {number}", parts))
    return rows


def _corners(cells: Sequence[str]) -> tuple[float, ...]:
    x, y, w, h = (float(c) for c in cells)
    if w < 0 or h < 0:
        raise ValueError(f"a box of width {w:g} and height {h:g}")
    return x, y, x + w, y + h


def vg150_vocabulary(folder: Path | str | None = None) -> tuple[Vocabulary, dict[str, str]]:
    """The 150 classes and 50 predicates of the benchmark: `vg150_object_types.txt` and `vg150_relation_types.txt`.

    A line is a name, a tab, and its coarse type; the first is the background, which is left out.

    Args:
        folder: where the files lie; None for `visual-genome-sample` in the user's data.

    Returns:
        The vocabulary in the order of the files, and the coarse type of every name; where both files have one, that of the predicate.

    Raises:
        Usage: where a file is missing or a line malformed.
    """
    columns, types = [], {}
    for path in found(folder, SAMPLE, "vg150_object_types.txt", "vg150_relation_types.txt"):
        column = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, tab, kind = line.partition("\t")
            if not tab or not name:
                raise Usage(f"{path.name}, line {number}: expected a name, a tab and a type.")
            if name != "__background__":
                column.append(name)
                types[name] = kind.strip()
        columns.append(tuple(column))
    return Vocabulary(columns[0], columns[1]), types


def vg_sgg(split: str, folder: Path | str | None = None, *, limit: int = 0) -> Scenes:
    """The split of Xu et al. (2017) of Visual Genome: `VG-SGG.h5` and `VG-SGG-dicts.json`.

    Boxes are stored as centre, width and height where the longer side of the image is 1024, classes and predicates from 1 on. Images
    without boxes or relations are left out, as is usual.

    Args:
        split: "train" or "test".
        folder: where the files lie; None for `vg-sgg` in the user's data.
        limit: at most so many images; 0 for all.

    Raises:
        Usage: where h5py or a file is missing, or the files are of another kind.
    """
    if split not in SPLITS:
        raise Usage(f"`split` must be train or test, got {split!r}.")
    path, words = found(folder, "vg-sgg", "VG-SGG.h5", "VG-SGG-dicts.json")
    raw = read_json(words)
    names = checked(words.name, lambda: Vocabulary(_ordered(raw["idx_to_label"]), _ordered(raw["idx_to_predicate"])))
    try:
        h5py: Any = import_module("h5py")
    except ImportError as error:
        raise Usage(f"{path.name} needs the package h5py to be read: pip install h5py.") from error
    fields = (
        "split",
        "labels",
        f"boxes_{BOX_SCALE}",
        "relationships",
        "predicates",
        *(f"img_to_{a}_{b}" for a in ("first", "last") for b in ("box", "rel")),
    )
    with h5py.File(path, "r") as file:
        missing = [f for f in fields if f not in file]
        if missing:
            raise Usage(f"{path.name}: there is no {', '.join(missing)} in it.")
        table = {f: np.asarray(file[f]) for f in fields}
    return Scenes(tuple(_of_tables(path.name, table, SPLITS[split], limit)), names, "vg-sgg")


def _ordered(names: dict[str, str]) -> tuple[str, ...]:
    return tuple(names[k] for k in sorted(names, key=int))


def _of_tables(where: str, table: dict[str, np.ndarray], split: int, limit: int) -> list[SceneGraph]:
    centre, extent = (table[f"boxes_{BOX_SCALE}"][:, a].astype(float) for a in (slice(0, 2), slice(2, 4)))
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], 1)
    labels, predicates = table["labels"].reshape(-1) - 1, table["predicates"].reshape(-1) - 1
    chosen = np.flatnonzero((table["split"] == split) & (table["img_to_first_box"] >= 0) & (table["img_to_first_rel"] >= 0))
    graphs = []
    for image in chosen[: limit or None].tolist():
        first, last = int(table["img_to_first_box"][image]), int(table["img_to_last_box"][image]) + 1
        rel = slice(int(table["img_to_first_rel"][image]), int(table["img_to_last_rel"][image]) + 1)
        ends = table["relationships"][rel].astype(int) - first
        triplets = np.stack([ends[:, 0], predicates[rel].astype(int), ends[:, 1]], 1)
        make: Callable[[], SceneGraph] = partial(
            SceneGraph.of, str(image), boxes[first:last].tolist(), labels[first:last].astype(int).tolist(), triplets.tolist()
        )
        graphs.append(checked(f"{where}, image {image}", make))
    return graphs
