"""Scene graphs and the formats that they come in: small files in each format, and the real ones where they are."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.structured.scenes import FOLDER, SceneGraph, Scenes, Vocabulary, has, vrd, vrd_release
from gradoscope.structured.visual_genome import compact_vg, vg150_vocabulary, vg_sgg, visual_genome

HERE = os.environ.get(FOLDER, "")
real = pytest.mark.skipif(not HERE or not Path(HERE).is_dir(), reason=f"{FOLDER} names no folder: the real files are not here")

LINE = {"image": "a.jpg", "boxes": [[0, 0, 9, 9], [2, 3, 5, 6]], "labels": [1, 0], "relations": [[1, 0, 0], [0, 1, 1]]}
NAMES = {"objects": ["cup", "table"], "predicates": ["on", "under"]}


def put(folder: Path, **files: object) -> Path:
    """Write files; what is no text is JSON. `a_b__json` becomes a_b.json."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_a_graph_and_its_words():
    names = Vocabulary(("cup", "table"), ("on", "under"))
    graph = SceneGraph.of("a", [[0, 0, 1, 1], [0, 0, 2, 2]], [0, -1], [[0, 0, 1]])
    assert graph.described(names) == ["cup on ?"]
    assert graph.boxes.dtype == torch.float32
    assert graph.relations.dtype == torch.int64
    empty = SceneGraph.of("b", [], [], [])
    assert (len(empty), empty.relations.shape) == (0, (0, 3))
    assert len(Scenes((graph, empty), names).at_least(1)) == 1


@pytest.mark.parametrize(
    ("boxes", "labels", "relations", "says"),
    [
        ([[0, 0, 1]], [0], [], "expected boxes"),
        ([[0, 0, 1, 1]], [0, 1], [], "1 boxes, 2 labels"),
        ([[2, 0, 1, 1]], [0], [], "ends before it begins"),
        ([[0, 0, 1, 1]], [0], [[0, 0, 1]], "beyond the 1"),
        ([[0, 0, 1, 1]], [0], [[0, -1, 0]], "negative predicate"),
        ([[0, 0, 1, 1]], [0.5], [], "whole number"),
        ([[0, 0, 1, 1]], [True], [], "whole number"),
    ],
)
def test_graphs_that_do_not_fit(boxes, labels, relations, says):
    with pytest.raises(Usage, match=says):
        SceneGraph.of("a", boxes, labels, relations)


def test_numbers_without_names():
    with pytest.raises(Usage, match="class 2"):
        Scenes((SceneGraph.of("a", [[0, 0, 1, 1]], [2], []),), Vocabulary(("cup", "table"), ("on",)))


def test_vrd_lines(tmp_path):
    put(tmp_path, vocab__json=NAMES, train__jsonl=json.dumps(LINE) + "\n\n" + json.dumps({**LINE, "image": "b.jpg"}) + "\n")
    found = vrd("train", tmp_path)
    assert [g.image for g in found.graphs] == ["a.jpg", "b.jpg"]
    assert found.graphs[0].boxes.tolist() == [[0, 0, 9, 9], [2, 3, 5, 6]]
    assert found.graphs[0].described(found.names) == ["cup on table", "table under cup"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"train\.jsonl, line 2: no JSON"),
        (json.dumps({"image": "a", "boxes": [], "labels": []}), r"train\.jsonl, line 2: the record has no 'relations'"),
        (json.dumps({**LINE, "labels": [1]}), r"train\.jsonl, line 2: image a\.jpg: 2 boxes, 1 labels"),
        (json.dumps({**LINE, "labels": [1, 2]}), r"train\.jsonl, line 2: image a\.jpg: class 2"),
        (json.dumps({**LINE, "boxes": [["x", 0, 1, 1], [0, 0, 1, 1]]}), r"train\.jsonl, line 2: could not convert"),
        (json.dumps([1]), r"train\.jsonl, line 2"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, says):
    put(tmp_path, vocab__json=NAMES, train__jsonl=json.dumps(LINE) + "\n" + line)
    with pytest.raises(Usage, match=says):
        vrd("train", tmp_path)


def test_missing_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(Usage, match=r"no vocab\.json, test\.jsonl .*GRADOSCOPE_DATA"):
        vrd("test", tmp_path)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert not has("vrd-scene-graphs", "vocab.json")
    with pytest.raises(Usage, match=r"GRADOSCOPE_DATA.*vrd-scene-graphs/ holds vocab\.json, train\.jsonl"):
        vrd("train")
    monkeypatch.delenv(FOLDER)
    with pytest.raises(Usage, match=r"no objects\.json, relationships\.json"):
        visual_genome()
    for read in (vrd, vrd_release, vg_sgg):
        with pytest.raises(Usage, match="`split`"):
            read("valid", tmp_path)


def test_a_vocabulary_that_is_none(tmp_path):
    put(tmp_path, vocab__json={"objects": ["a", "a"], "predicates": ["on"]}, train__jsonl="")
    with pytest.raises(Usage, match="distinct names"):
        vrd("train", tmp_path)
    put(tmp_path, vocab__json=["a"])
    with pytest.raises(Usage, match="expected objects and predicates"):
        vrd("train", tmp_path)


def release(category: int = 0) -> dict[str, object]:
    cup, table = {"category": category, "bbox": [3, 6, 2, 5]}, {"category": 1, "bbox": [0, 9, 0, 8]}
    return {"a.jpg": [{"predicate": 0, "subject": cup, "object": table}, {"predicate": 1, "subject": table, "object": cup}], "b.jpg": []}


def test_vrd_as_released(tmp_path):
    put(tmp_path, annotations_test__json=release(), objects__json=NAMES["objects"], predicates__json=NAMES["predicates"])
    first, second = vrd_release("test", tmp_path).graphs
    assert first.boxes.tolist() == [[2, 3, 5, 6], [0, 0, 8, 9]]  # two boxes, though each is named twice; y comes first in the file
    assert first.labels.tolist() == [0, 1]
    assert first.relations.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert len(second) == 0


def test_malformed_releases(tmp_path):
    names = {"objects__json": NAMES["objects"], "predicates__json": NAMES["predicates"]}
    put(tmp_path, annotations_train__json=release(7), **names)
    with pytest.raises(Usage, match=r"annotations_train\.json, image a\.jpg: image a\.jpg: class 7"):
        vrd_release("train", tmp_path)
    put(tmp_path, annotations_train__json={"a.jpg": [{"predicate": 0, "subject": {"category": 0, "bbox": [1, 2]}, "object": {}}]})
    with pytest.raises(Usage, match=r"image a\.jpg, record 0: not enough values"):
        vrd_release("train", tmp_path)
    put(tmp_path, annotations_train__json={"a.jpg": 3})
    with pytest.raises(Usage, match="expected a list of relations"):
        vrd_release("train", tmp_path)
    put(tmp_path, annotations_train__json="[\n1,")
    with pytest.raises(Usage, match=r"annotations_train\.json, line 2: no JSON"):
        vrd_release("train", tmp_path)


def thing(number: int, name: str, x: int = 0, key: str = "names", **more: object) -> dict[str, object]:
    word = [name] if key == "names" else name
    return {"object_id": number, key: word, "x": x, "y": 1, "w": 4, "h": 5, "synsets": [], **more}


def genome(folder: Path) -> Path:
    links = [
        {"predicate": "ON ", "subject": thing(1, "Cup"), "object": thing(2, "table", 3, "name"), "relationship_id": 1},
        {"predicate": "near", "subject": thing(1, "cup"), "object": thing(3, "dog", 7, "name"), "relationship_id": 2},
    ]
    return put(
        folder,
        objects__json=[{"image_id": 5, "objects": [thing(1, "Cup"), thing(2, "table", 3)]}],
        relationships__json=[{"image_id": 5, "relationships": links}],
        attributes__json=[{"image_id": 5, "attributes": [thing(2, "table", attributes=["Red"])]}],
        image_data__json=[{"image_id": 5, "width": 20, "height": 10}],
    )


def test_visual_genome(tmp_path):
    found = visual_genome(genome(tmp_path))
    (graph,) = found.graphs
    assert set(found.names.objects) == {"cup", "table", "dog"}  # the end of a relation that is no object became a box
    assert graph.described(found.names) == ["cup on table", "cup near dog"]
    assert graph.boxes.tolist() == [[0, 1, 4, 6], [3, 1, 7, 6], [7, 1, 11, 6]]
    assert (graph.attributes, graph.size, graph.image) == (((), ("red",), ()), (20, 10), "5")
    few = visual_genome(tmp_path, Vocabulary(("table", "cup"), ("on",)))
    assert few.graphs[0].described(few.names) == ["cup on table"]
    for name in ("attributes.json", "image_data.json"):
        (tmp_path / name).unlink()
    bare = visual_genome(tmp_path).graphs[0]
    assert (bare.attributes, bare.size) == ((), None)


def test_malformed_genomes(tmp_path):
    genome(tmp_path)
    put(tmp_path, objects__json=[{"image_id": 5, "objects": [thing(1, "cup"), {"object_id": 2, "names": []}]}])
    with pytest.raises(Usage, match=r"objects\.json, image 5, record 1"):
        visual_genome(tmp_path)
    put(tmp_path, objects__json=[{"image_id": 5}])
    with pytest.raises(Usage, match=r"objects\.json, image record 0: the record has no 'objects'"):
        visual_genome(tmp_path)
    put(tmp_path, objects__json={})
    with pytest.raises(Usage, match="expected a list of images"):
        visual_genome(tmp_path)


def test_compact(tmp_path):
    put(
        tmp_path,
        relations__txt="7,0,1,2,3,4,5,6,7,on\r\n7,4,5,6,7,0,1,2,3,has\r\n8,0,0,1,1,0,0,2,2,on\r\n",
        attributes__txt="7,0,1,2,3,red\n",
    )
    found = compact_vg(tmp_path)
    first, second = found.graphs
    assert found.names.predicates == ("on", "has")
    assert first.boxes.tolist() == [[0, 1, 2, 4], [4, 5, 10, 12]]
    assert first.relations.tolist() == [[0, 0, 1], [1, 1, 0]]
    assert (first.labels.tolist(), first.attributes, len(second)) == ([-1, -1], (("red",), ()), 2)
    put(tmp_path, relations__txt="7,0,1,2,3,4,5,6,7,on\n7,0,1\n")
    with pytest.raises(Usage, match=r"relations\.txt, line 2: expected 10 cells, got 3"):
        compact_vg(tmp_path)
    put(tmp_path, relations__txt="7,0,1,2,3,4,5,6,-7,on\n")
    with pytest.raises(Usage, match=r"relations\.txt, line 1: a box of width 6 and height -7"):
        compact_vg(tmp_path)


def test_vg150(tmp_path):
    put(tmp_path, vg150_object_types__txt="__background__\tbackground\ncup\tobject\n")
    put(tmp_path, vg150_relation_types__txt="__background__\tbackground\non\tgeometric\n")
    names, types = vg150_vocabulary(tmp_path)
    assert (names, types) == (Vocabulary(("cup",), ("on",)), {"cup": "object", "on": "geometric"})
    put(tmp_path, vg150_relation_types__txt="on\n")
    with pytest.raises(Usage, match=r"vg150_relation_types\.txt, line 1"):
        vg150_vocabulary(tmp_path)


DICTS = {"idx_to_label": {"1": "cup", "2": "table"}, "idx_to_predicate": {"1": "on"}}


def test_the_split_needs_h5py(tmp_path, monkeypatch):
    put(tmp_path, **{"VG-SGG__h5": "", "VG-SGG-dicts__json": DICTS})

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("gradoscope.structured.visual_genome.import_module", missing)
    with pytest.raises(Usage, match="pip install h5py"):
        vg_sgg("train", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is not installed: VG-SGG.h5 cannot be written")
def test_the_split(tmp_path):
    import h5py

    put(tmp_path, **{"VG-SGG-dicts__json": DICTS})
    tables = {
        "split": [0, 2, 0, 0],
        "img_to_first_box": [0, 2, -1, 4],
        "img_to_last_box": [1, 3, -1, 4],
        "img_to_first_rel": [0, 1, -1, -1],
        "img_to_last_rel": [0, 1, -1, -1],
        "labels": [[1], [2], [2], [1], [1]],
        "boxes_1024": [[10, 10, 4, 6], [20, 20, 10, 10], [5, 5, 2, 2], [6, 6, 2, 2], [1, 1, 1, 1]],
        "relationships": [[0, 1], [3, 2]],
        "predicates": [[1], [1]],
    }
    with h5py.File(tmp_path / "VG-SGG.h5", "w") as file:
        for name, values in tables.items():
            file[name] = np.array(values)
    (train,), (test,) = vg_sgg("train", tmp_path).graphs, vg_sgg("test", tmp_path).graphs
    assert train.boxes.tolist() == [[8, 7, 12, 13], [15, 15, 25, 25]]
    assert (train.labels.tolist(), train.relations.tolist()) == ([0, 1], [[0, 0, 1]])
    assert (test.labels.tolist(), test.relations.tolist(), test.image) == ([1, 0], [[1, 0, 0]], "1")
    with h5py.File(tmp_path / "VG-SGG.h5", "a") as file:
        del file["split"]
    with pytest.raises(Usage, match="there is no split"):
        vg_sgg("train", tmp_path)


@real
def test_the_real_vrd():
    if not has("vrd-scene-graphs", "test.jsonl"):
        pytest.skip("the data folder holds no VRD")
    found = vrd("test")
    assert (len(found), len(found.names.objects), len(found.names.predicates)) == (955, 100, 70)
    assert sum(len(g.relations) for g in found.graphs) == 7474
    assert max(len(g) for g in found.graphs) <= 21


@real
def test_the_real_sample_of_visual_genome():
    if not has("visual-genome-sample", "objects.json"):
        pytest.skip("the data folder holds no sample of Visual Genome")
    found = visual_genome()
    assert (len(found), sum(len(g) for g in found.graphs), sum(len(g.relations) for g in found.graphs)) == (5, 177, 158)
    assert found.graphs[0].size == (800, 600)
    assert "green" in found.graphs[0].attributes[0]
    names, types = vg150_vocabulary()
    assert (len(names.objects), len(names.predicates), types["airplane"]) == (150, 50, "vehicle")
    known = visual_genome(names=names)
    assert 0 < sum(len(g.relations) for g in known.graphs) < 158
    compact = compact_vg()
    assert (len(compact), len(compact.names.predicates)) == (4416, 10)
