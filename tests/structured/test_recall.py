"""Recall at K against plain loops, and cases that are counted by hand."""

import math

import pytest
import torch

from gradoscope.errors import CannotRun
from gradoscope.structured.recall import evaluate, iou, matches, mean_recall, rank, recall
from gradoscope.structured.scenes import SceneGraph
from tests.reference.scenes import slow_iou, slow_recall


def scene(seed: int, n: int = 6, classes: int = 4, predicates: int = 3) -> tuple[SceneGraph, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random image with a detector's answer: truth, classes' and predicates' log-probabilities, boxes that are a little off."""
    random = torch.Generator().manual_seed(seed)
    low = 10 * torch.rand(n, 2, generator=random)
    boxes = torch.cat([low, low + 1 + 6 * torch.rand(n, 2, generator=random)], 1)
    labels = torch.randint(classes, (n,), generator=random)
    pairs = (torch.rand(n, n, generator=random) < 0.4) & ~torch.eye(n, dtype=torch.bool)
    s, o = pairs.nonzero().unbind(1)
    truth = SceneGraph("a", boxes, labels, torch.stack([s, torch.randint(predicates, (len(s),), generator=random), o], 1))
    entities = 2 * torch.randn(n, classes, generator=random, dtype=torch.float64)
    entities[torch.arange(n), labels] += 2
    relations = torch.randn(n, n, predicates + 1, generator=random, dtype=torch.float64)
    moved = boxes + 0.6 * torch.randn(n, 4, generator=random)
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2])], 1)
    return truth, entities.log_softmax(-1), relations.log_softmax(-1), moved


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("constrained", [True, False])
def test_equal_to_plain_loops(known, constrained):
    ks, values = (1, 3, 10, 100), []
    for seed in range(6):
        truth, entities, relations, moved = scene(seed)
        boxes = truth.boxes if known else moved
        mode = "predcls" if known else "sgcls"
        found = evaluate([(entities, relations)], [truth], mode, constrained=constrained, ks=ks, boxes=None if known else [boxes])[0]
        slow = [
            slow_recall(
                entities.exp().tolist(),
                relations.exp().tolist(),
                boxes.tolist(),
                truth.boxes.tolist(),
                truth.labels.tolist(),
                truth.relations.tolist(),
                k,
                known=known,
                constrained=constrained,
            )
            for k in ks
        ]
        assert found.tolist() == pytest.approx(slow, abs=1e-12)
        values += slow
    assert 0 < sum(values) < len(values)  # neither all nor nothing was found


def test_overlap_of_boxes():
    random = torch.Generator().manual_seed(0)
    low = 5 * torch.rand(40, 2, generator=random, dtype=torch.float64)
    boxes = torch.cat([low, low + 4 * torch.rand(40, 2, generator=random, dtype=torch.float64)], 1)
    boxes[0, 2:] = boxes[0, :2]  # no area
    slow = torch.tensor([[slow_iou(a, b) for b in boxes.tolist()] for a in boxes.tolist()], dtype=torch.float64)
    assert torch.allclose(iou(boxes[:, None], boxes[None]), slow, atol=1e-12)


def by_hand() -> tuple[SceneGraph, torch.Tensor, torch.Tensor]:
    """Three boxes; 0 is on 1 and near 1 (two predicates for one pair), 2 is near 0."""
    truth = SceneGraph.of("a", [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], [0, 1, 0], [[0, 0, 1], [0, 1, 1], [2, 1, 0]])
    entities = torch.log(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))  # the last is wrong
    relations = torch.full((3, 3, 3), 0.01)
    relations[..., 2] = 0.98
    relations[0, 1] = torch.tensor([0.5, 0.4, 0.1])
    relations[2, 0] = torch.tensor([0.1, 0.8, 0.1])
    return truth, entities, relations.log()


def test_by_hand():
    truth, entities, relations = by_hand()
    found = rank(entities, relations, truth.boxes)
    # 2 near 0 with .8 * .6 * .9 = .432 comes first, with the wrong class for 2; 0 on 1 has .5 * .9 * .8 = .36
    assert [round(float(v), 3) for v in found.scores.exp()[:2]] == [0.432, 0.36]
    assert found.words[:2].tolist() == [[1, 1, 0], [0, 0, 1]]
    assert recall(found, truth, (1, 2, 100)).tolist() == pytest.approx([0, 1 / 3, 1 / 3])
    several = rank(entities, relations, truth.boxes, constrained=False)
    assert recall(several, truth, (1, 2, 3, 100)).tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])  # both predicates of the pair
    known = rank(entities, relations, truth.boxes, labels=truth.labels)
    assert recall(known, truth, (1, 2)).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert known.scores.exp()[:2].tolist() == pytest.approx([0.8, 0.5])


def test_a_triplet_counts_once_and_boxes_must_overlap():
    truth, entities, relations = by_hand()
    shifted = truth.boxes.clone()
    shifted[1] += 0.5  # overlap of a seventh
    assert not matches(rank(entities, relations, shifted), truth).any()
    one = SceneGraph.of("b", [[0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]], [0, 0, 1], [[0, 0, 2]])
    answer = torch.zeros(3, 2)
    answer[:2, 0] = answer[2, 1] = 5.0
    pairs = torch.zeros(3, 3, 2)
    pairs[..., 0] = 3.0
    found = rank(answer.log_softmax(-1), pairs.log_softmax(-1), one.boxes)
    assert int(matches(found, one).sum()) == 2  # two predictions are the same true triplet
    assert recall(found, one, (100,)).tolist() == [1.0]


def test_images_without_relations_are_left_out_of_the_mean():
    truth, entities, relations = by_hand()
    bare = SceneGraph(truth.image, truth.boxes, truth.labels, torch.zeros(0, 3, dtype=torch.int64))
    rows = evaluate([(entities, relations)] * 2, [truth, bare], ks=(2, 100))
    assert math.isnan(rows[1, 0])
    assert mean_recall(rows) == pytest.approx([1 / 3, 1 / 3])
    assert evaluate([], []).shape == (0, 4)


def test_one_box_has_no_triplets():
    assert len(rank(torch.zeros(1, 2), torch.zeros(1, 1, 3), torch.zeros(1, 4))) == 0


def test_what_does_not_fit():
    truth, entities, relations = by_hand()
    with pytest.raises(CannotRun, match="expected entities"):
        rank(entities, relations[:2], truth.boxes)
    with pytest.raises(CannotRun, match="sgcls or predcls"):
        evaluate([(entities, relations)], [truth], "sgdet")
    with pytest.raises(CannotRun, match="boxes of the truth"):
        evaluate([(entities, relations)], [truth], "predcls", boxes=[truth.boxes])
