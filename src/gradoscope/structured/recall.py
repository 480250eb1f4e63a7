"""Recall at K of predicted triplets (subject, predicate, object), as scene graphs are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradoscope.errors import CannotRun
from gradoscope.structured.scenes import SceneGraph

__all__ = ["KS", "Mode", "Triplets", "evaluate", "iou", "matches", "mean_recall", "rank", "recall"]

KS = (10, 20, 50, 100)
Mode = Literal["sgcls", "predcls"]


@dataclass(frozen=True)
class Triplets:
    """Predicted triplets of one image, the likeliest first.

    Args:
        ends: the places of subject and object among the boxes, int64 of shape (T, 2).
        words: class of the subject, predicate, class of the object, int64 of shape (T, 3).
        boxes: of subject and object, shape (T, 2, 4).
        scores: logarithms of the products of the three probabilities, shape (T,).
    """

    ends: Tensor
    words: Tensor
    boxes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes x1, y1, x2, y2; of two boxes without area it is 0.

    Args:
        a: shape (..., 4).
        b: shape (..., 4), broadcast against a.

    Returns:
        shape (...).

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
        >>> [round(v, 3) for v in iou(a[:, None], b[None])[0].tolist()]
        [0.333, 0.0]
    """
    common = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    return torch.where(union > 0, common / union.clamp(min=1e-12), torch.zeros_like(common))


def rank(
    entities: Tensor,
    relations: Tensor,
    boxes: Tensor,
    *,
    labels: Tensor | None = None,
    constrained: bool = True,
    most: int = 100,
) -> Triplets:
    """The likeliest triplets of one image; equal scores keep the order of pairs and predicates.

    Args:
        entities: logarithms of the classes' probabilities, shape (n, C). Each box gets its best class.
        relations: those of the predicates of ordered pairs, shape (n, n, P + 1); the last is "no relation". The diagonal is not read.
        boxes: shape (n, 4).
        labels: known classes, shape (n,), which then have probability 1; None predicts them.
        constrained: one predicate for each pair, the best beside "no relation"; otherwise a pair may give several triplets.
        most: at most so many.

    Returns:
        min(most, candidates) triplets.

    Raises:
        CannotRun: where the shapes do not fit.

    Example:
        >>> entities = torch.log(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
        >>> relations = torch.log(torch.tensor([[[1.0, 1, 1], [0.6, 0.1, 0.3]], [[0.1, 0.2, 0.7], [1.0, 1, 1]]]))
        >>> found = rank(entities, relations, torch.zeros(2, 4))
        >>> found.words.tolist(), [round(v, 3) for v in found.scores.exp().tolist()]
        ([[0, 0, 1], [1, 1, 0]], [0.432, 0.144])
    """
    n = len(entities)
    if relations.shape[:2] != (n, n) or boxes.shape != (n, 4) or relations.shape[2] < 2:
        raise CannotRun(
            f"expected entities (n, C), relations (n, n, P + 1) and boxes (n, 4), got {tuple(entities.shape)}, "
            f"{tuple(relations.shape)} and {tuple(boxes.shape)}."
        )
    sure, classes = entities.double().max(1)
    if labels is not None:
        sure, classes = torch.zeros_like(sure), labels
    s, o = (~torch.eye(n, dtype=torch.bool)).nonzero().unbind(1)
    beside = relations[s, o, :-1].double()
    if constrained:
        scores, predicates = (t[:, None] for t in beside.max(1))
    else:
        scores, predicates = beside, torch.arange(beside.shape[1]).expand(beside.shape)
    total = (scores + (sure[s] + sure[o])[:, None]).flatten()
    best = total.sort(descending=True, stable=True).indices[:most]
    pair = best // scores.shape[1]
    ends = torch.stack([s[pair], o[pair]], 1)
    words = torch.stack([classes[ends[:, 0]], predicates.flatten()[best], classes[ends[:, 1]]], 1)
    return Triplets(ends, words, boxes[ends], total[best])


def matches(predicted: Triplets, truth: SceneGraph, overlap: float = 0.5) -> Tensor:
    """Which predictions are which triplets of the truth: all three words are right and both boxes overlap enough.

    Args:
        predicted: T triplets.
        truth: with r relations.
        overlap: intersection over union that boxes need at least.

    Returns:
        boolean, shape (T, r).
    """
    s, p, o = truth.relations.unbind(1)
    words = torch.stack([truth.labels[s], p, truth.labels[o]], 1)
    same = (predicted.words[:, None] == words[None]).all(-1)
    near = [iou(predicted.boxes[:, None, k], truth.boxes[end][None]) >= overlap for k, end in enumerate((s, o))]
    return same & near[0] & near[1]


def recall(predicted: Triplets, truth: SceneGraph, ks: Sequence[int] = KS, overlap: float = 0.5) -> Tensor:
    """The share of the truth's triplets that are among the K likeliest predictions; each counts once, however often it is found.

    Args:
        predicted: the likeliest first, at least max(ks) of them, or all.
        truth: one image.
        ks: how many predictions count.
        overlap: intersection over union that boxes need at least.

    Returns:
        float64 of shape (len(ks),); NaN where the image has no relations.
    """
    found = matches(predicted, truth, overlap)
    return torch.stack([found[:k].any(0).double().mean() for k in ks])


def evaluate(
    predictions: Sequence[tuple[Tensor, Tensor]],
    graphs: Sequence[SceneGraph],
    mode: Mode = "sgcls",
    *,
    constrained: bool = True,
    ks: Sequence[int] = KS,
    boxes: Sequence[Tensor] | None = None,
) -> Tensor:
    """R@K of every image.

    Args:
        predictions: for each image `entities` and `relations` as `rank` takes them.
        graphs: the truth.
        mode: "sgcls": boxes are given, classes and predicates predicted; "predcls": classes are given too.
        constrained: one predicate for each pair.
        ks: how many predictions count.
        boxes: predicted ones; None for those of the truth. Known classes need those of the truth.

    Returns:
        float64 of shape (images, len(ks)), NaN for images without relations.

    Raises:
        CannotRun: for another mode, or different numbers of images.
    """
    if mode not in ("sgcls", "predcls") or len(predictions) != len(graphs):
        raise CannotRun(
            f"`mode` must be sgcls or predcls, with as many predictions as graphs; got {mode!r}, {len(predictions)}, {len(graphs)}."
        )
    if mode == "predcls" and boxes is not None:
        raise CannotRun("predcls takes the boxes of the truth, whose classes are known.")
    rows = []
    for k, ((entities, relations), truth) in enumerate(zip(predictions, graphs, strict=True)):
        labels = truth.labels if mode == "predcls" else None
        where = truth.boxes if boxes is None else boxes[k]
        found = rank(entities, relations, where, labels=labels, constrained=constrained, most=max(ks))
        rows.append(recall(found, truth, ks))
    return torch.stack(rows) if rows else torch.zeros(0, len(ks), dtype=torch.float64)


def mean_recall(rows: Tensor) -> list[float]:
    """The mean over the images that have relations, for each K.

    Example:
        >>> mean_recall(torch.tensor([[0.5, 1.0], [float("nan"), float("nan")], [0.0, 0.5]]))
        [0.25, 0.75]
    """
    return [float(v) for v in rows.nanmean(0)]
