"""Bounds on how many boxes of an image show a class: decoded exactly, and as a projection of the probabilities."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradoscope.structured.detections import Detected
from gradoscope.structured.projections import project_between
from gradoscope.study import Row

__all__ = ["CountHead", "at_most", "bounds", "with_counts"]

Scores = Sequence[Tensor]  # logarithms of the classes' probabilities, one (n, C) per image


def at_most(scores: Tensor, bound: int, column: int) -> Tensor:
    """The likeliest labels of an image's boxes of which at most `bound` are of one class.

    Exact: the boxes that would be of the class keep it in the order of what a change costs, and the others take their second best.

    Args:
        scores: shape (n, C), C >= 2.
        bound: c.
        column: the class.

    Returns:
        int64, shape (n,).

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).log()
        >>> at_most(scores, 1, 0).tolist()
        [0, 1, 1]
    """
    labels = scores.argmax(1)
    rest = scores.clone()
    rest[:, column] = -torch.inf
    second, other = rest.max(1)
    loss = torch.where(labels == column, scores[:, column] - second, -torch.inf)
    freed = loss.sort(descending=True, stable=True).indices[bound:]
    freed = freed[labels[freed] == column]
    labels[freed] = other[freed]
    return labels


def with_counts(scores: Tensor, counts: Tensor) -> Tensor:
    """The likeliest labels of which at most `counts` are of each class: an assignment of boxes to places.

    Args:
        scores: shape (n, C).
        counts: shape (C,), together at least n.

    Returns:
        int64, shape (n,).

    Example:
        >>> with_counts(torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log(), torch.tensor([1, 1])).tolist()
        [0, 1]
    """
    places = torch.repeat_interleave(torch.arange(len(counts)), counts)
    rows, columns = linear_sum_assignment(-scores[:, places].double().numpy())
    labels = scores.argmax(1)
    labels[torch.from_numpy(rows)] = places[torch.from_numpy(columns)]
    return labels


class CountHead:
    """How many boxes of an image are of one class, from the detector's scores alone: multinomial logistic regression.

    Features of an image are its three largest probabilities of the class, their logarithms, the sum over all boxes, and the number of
    boxes.

    Args:
        images: to learn from.
        classes: C.
        column: the class.
        most: larger counts are taken for this one.
    """

    def __init__(self, images: Sequence[Detected], classes: int, column: int, most: int = 3) -> None:
        from sklearn.linear_model import LogisticRegression

        self.classes, self.column = classes, column
        counts = np.array([min(most, int((i.labels == column).sum())) for i in images])
        x = self._features(images)
        self.mean, self.spread = x.mean(0), x.std(0) + 1e-9
        self.only = int(counts[0]) if len(set(counts.tolist())) == 1 else None
        self.model = None if self.only is not None else LogisticRegression(max_iter=500).fit(self._standard(x), counts)

    def _features(self, images: Sequence[Detected]) -> np.ndarray:
        rows = []
        for image in images:
            p = image.nodes[:, : self.classes].double().softmax(1)[:, self.column]
            top = torch.zeros(3, dtype=p.dtype)
            best = p.sort(descending=True).values[:3]
            top[: len(best)] = best
            rows.append(torch.cat([top, (top + 1e-4).log(), p.sum()[None], p.new_tensor([len(p)])]).numpy())
        return np.stack(rows)

    def _standard(self, x: np.ndarray) -> np.ndarray:
        return np.asarray((x - self.mean) / self.spread)

    def __call__(self, images: Sequence[Detected]) -> list[int]:
        """The likeliest count of each image."""
        if self.model is None:
            return [int(self.only or 0)] * len(images)
        return [int(c) for c in self.model.predict(self._standard(self._features(images)))]


def bounds(scores: Scores, images: Sequence[Detected], column: int, predicted: Sequence[int]) -> Row:
    """What bounds change for one model.

    "given": at most as many boxes of the class as there truly are; "predicted": at most as many as the count head says; "every": at most
    as many of each class as there truly are. A violation is an image with more boxes of the class than there truly are.

    Args:
        scores: of the model.
        images: with the truth.
        column: the class.
        predicted: counts from the detector.

    Returns:
        For each kind of bound the entity accuracy, its change, violations, and of the boxes that got another label how many were right
        before and are right now; the same for the projection of the probabilities (`projected`), which is not decoded.
    """
    truth = [i.labels for i in images]
    given = [int((t == column).sum()) for t in truth]
    free = [s.argmax(1) for s in scores]
    total = sum(len(t) for t in truth)
    row: Row = {"bounds_free": _right(free, truth) / total, "bounds_free_violations": _violations(free, given, column)}
    classes = scores[0].shape[1]
    answers = {
        "given": [at_most(s, c, column) for s, c in zip(scores, given, strict=True)],
        "predicted": [at_most(s, c, column) for s, c in zip(scores, predicted, strict=True)],
        "every": [with_counts(s, torch.bincount(t, minlength=classes)) for s, t in zip(scores, truth, strict=True)],
        "projected": [_projected(s, c, column) for s, c in zip(scores, given, strict=True)],
    }
    for kind, labels in answers.items():
        changed = [a != b for a, b in zip(free, labels, strict=True)]
        before, after = (sum(int((x == t)[c].sum()) for x, t, c in zip(answer, truth, changed, strict=True)) for answer in (free, labels))
        row |= {
            f"bounds_{kind}": _right(labels, truth) / total,
            f"bounds_{kind}_gain": (after - before) / total,
            f"bounds_{kind}_violations": _violations(labels, given, column),
            f"bounds_{kind}_changed": sum(int(c.sum()) for c in changed),
            f"bounds_{kind}_before": before,
            f"bounds_{kind}_after": after,
        }
    row["count_accuracy"] = sum(p == min(g, 3) for p, g in zip(predicted, given, strict=True)) / len(given)
    row["count_zero"] = sum(g == 0 for g in given) / len(given)
    return row


def _projected(scores: Tensor, bound: int, column: int) -> Tensor:
    """The best classes after the class's probabilities went to the nearest ones whose sum is at most the bound."""
    u = scores.double().exp()
    u[:, column] = project_between(u[:, column], upper=float(bound))
    return u.argmax(1)


def _right(labels: Sequence[Tensor], truth: Sequence[Tensor]) -> int:
    return sum(int((a == b).sum()) for a, b in zip(labels, truth, strict=True))


def _violations(labels: Sequence[Tensor], given: Sequence[int], column: int) -> int:
    return sum(int((a == column).sum()) > c for a, c in zip(labels, given, strict=True))
