"""Recall at K with plain loops and Python numbers."""

import math
from collections.abc import Sequence

Box = Sequence[float]


def slow_iou(a: Box, b: Box) -> float:
    """Of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def slow_recall(
    entities: Sequence[Sequence[float]],
    relations: Sequence[Sequence[Sequence[float]]],
    boxes: Sequence[Box],
    true_boxes: Sequence[Box],
    true_labels: Sequence[int],
    true_relations: Sequence[Sequence[int]],
    k: int,
    *,
    known: bool,
    constrained: bool,
) -> float:
    """R@K of one image from probabilities (not their logarithms)."""
    candidates = []
    for s in range(len(entities)):
        for o in range(len(entities)):
            if s == o:
                continue
            class_s = true_labels[s] if known else max(range(len(entities[s])), key=lambda c: entities[s][c])
            class_o = true_labels[o] if known else max(range(len(entities[o])), key=lambda c: entities[o][c])
            sure = 1.0 if known else entities[s][class_s] * entities[o][class_o]
            predicates = list(range(len(relations[s][o]) - 1))
            if constrained:
                predicates = [max(predicates, key=lambda p: relations[s][o][p])]
            candidates += [(-math.log(sure * relations[s][o][p]), s, o, class_s, p, class_o) for p in predicates]
    candidates.sort(key=lambda c: c[0])
    hits = 0
    for s, p, o in true_relations:
        for _, i, j, class_s, predicate, class_o in candidates[:k]:
            words = (class_s, predicate, class_o) == (true_labels[s], p, true_labels[o])
            if words and slow_iou(boxes[i], true_boxes[s]) >= 0.5 and slow_iou(boxes[j], true_boxes[o]) >= 0.5:
                hits += 1
                break
    return hits / len(true_relations)
