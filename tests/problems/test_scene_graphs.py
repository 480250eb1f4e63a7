"""Scene graphs in the catalogue: what the synthetic scenes promise, and that context is worth something in training."""

import json

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.loop import advance
from gradoscope.problems import find
from gradoscope.problems.scene_graphs import CLASSES, KINDS, PREDICATES, detected, entity_accuracy, has_vrd, scenes, synthetic
from gradoscope.training import Live, split

NAMES = ("gpi", "attention", "no-context")


def unseen(target: str, seed: int = 0) -> tuple[float, float, list[float]]:
    """Entity accuracy on other images, that of the detector, and the losses of a training."""
    training, losses = find(target, seed=seed), []
    live = Live.of(training, seed=seed)
    advance(live, 0, training.steps, [lambda _live, _step, loss: losses.append(loss)])
    live.model.eval()
    right = there = plain = 0.0
    with torch.no_grad():
        for batch in training.validation:
            inputs, target_ = split(batch)
            count = int((target_[0] >= 0).sum())
            right += count * entity_accuracy(live.model(*inputs), target_)
            plain += count * entity_accuracy([(inputs[0][..., :CLASSES], inputs[1])], target_)
            there += count
    return right / there, plain / there, losses


def test_classes_of_a_kind_occur_together():
    found = synthetic(3, 200)
    same = total = 0
    for graph in found.graphs:
        kinds = graph.labels // (CLASSES // KINDS)
        same += int((kinds[:, None] == kinds[None]).sum()) - len(graph)
        total += len(graph) * (len(graph) - 1)
    # both boxes are of the image's kind with probability .9 + .1/6 each; otherwise they agree by chance
    own = 0.9 + 0.1 / KINDS
    expected = own**2 + 5 * ((1 - own) / 5) ** 2
    assert same / total == pytest.approx(expected, abs=0.04)
    assert {len(g) for g in found.graphs} == set(range(3, 9))
    assert all(int(g.relations[:, 1].max()) < PREDICATES for g in found.graphs if len(g.relations))
    assert not any(bool((g.relations[:, 0] == g.relations[:, 2]).any()) for g in found.graphs)


def test_scenes_are_a_function_of_the_seed_and_splits_share_the_template():
    one, two, other = synthetic(1, 5), synthetic(1, 5), synthetic(2, 5)
    assert all(torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels) for a, b in zip(one.graphs, two.graphs, strict=True))
    assert not torch.equal(one.graphs[0].boxes, other.graphs[0].boxes)
    rule: dict[tuple[int, int], set[int]] = {}
    for graph in (*synthetic(1, 150).graphs, *synthetic(1, 150, "test").graphs):
        for s, p, o in graph.relations.tolist():
            rule.setdefault((int(graph.labels[s]), int(graph.labels[o])), set()).add(p)
    assert all(len(predicates) == 1 for predicates in rule.values())


def test_context_helps_in_training():
    accuracy = {name: unseen(f"scene-graphs:{name},data=synthetic,train=600,test=100,steps=150") for name in NAMES}
    assert accuracy["gpi"][0] > accuracy["no-context"][0] + 0.04
    assert accuracy["attention"][0] > accuracy["no-context"][0] + 0.04
    assert accuracy["no-context"][0] > accuracy["no-context"][1] - 0.02  # the detector itself
    assert all(sum(losses[-20:]) < 0.7 * sum(losses[:20]) for _, _, losses in accuracy.values())


def test_the_name_says_which_data(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADOSCOPE_DATA", str(tmp_path))
    assert not has_vrd()
    assert find("scene-graphs:gpi").name == "scene-graphs:gpi (synthetic)"
    with pytest.raises(Usage, match="GRADOSCOPE_DATA"):
        find("scene-graphs:gpi,data=vrd")
    folder = tmp_path / "vrd-scene-graphs"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"objects": ["cup", "table"], "predicates": ["on"]}))
    line = {"image": "a", "boxes": [[0, 0, 1, 1], [0, 0, 2, 2]], "labels": [0, 1], "relations": [[0, 0, 1]]}
    alone = {"image": "b", "boxes": [[0, 0, 1, 1]], "labels": [0], "relations": []}
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in (line, line, alone)))
    from gradoscope.problems import scene_graphs

    scene_graphs._vrd.cache_clear()
    try:
        training = find("scene-graphs:no-context,steps=2")
        assert training.name == "scene-graphs:no-context (vrd)"
        assert [len(s) for s in scenes("vrd", 0)] == [2, 2]  # the image with one box is left out
        live = Live.of(training)
        advance(live, 0, 2, [])
    finally:
        scene_graphs._vrd.cache_clear()


def test_noise_differs_between_splits_and_seeds():
    _, _, seen, unseen_ = detected("synthetic", 0, 3, 3)
    _, _, again, _ = detected("synthetic", 0, 3, 3)
    assert torch.equal(seen[0].nodes, again[0].nodes)
    assert seen[0].nodes.flatten()[0] != unseen_[0].nodes.flatten()[0]


def test_bad_options():
    with pytest.raises(Usage, match="synthetic or vrd"):
        find("scene-graphs:gpi,data=coco")
    with pytest.raises(Usage, match="1 or more"):
        synthetic(0, 0)
