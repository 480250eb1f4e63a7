"""Independent reference learners: what can be predicted from the inputs at all, without gradients on this model."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Score", "parity_solution", "reference_scores"]


@dataclass(frozen=True)
class Score:
    """How a learner does on examples it was not fitted to.

    Args:
        learner: its name.
        skill: share of the constant answer's error that it removes: 1 - error / constant error.
        se: standard error of the skill.
    """

    learner: str
    skill: float
    se: float

    @property
    def better(self) -> bool:
        """Whether it is better than a constant answer beyond doubt (three standard errors)."""
        return self.skill > max(3 * self.se, 0.01)


def reference_scores(inputs: Tensor, target: Tensor, *, seed: int = 0) -> list[Score]:
    """Fit independent learners on one half of the rows and score them on the other.

    A linear model, nearest neighbours, a forest of trees and, for inputs of two values each, parities of any subset by
    Gaussian elimination over GF(2): none of them follows a gradient of the model under diagnosis.

    Args:
        inputs: (N, ...) numbers, flattened per row.
        target: (N,) classes (integers, or floats of two values), or (N,) or (N, m) real values.
        seed: for the forest.

    Returns:
        One score per learner that applies; empty where targets are of no kind that can be learnt here.

    Cost: a few seconds at most for N = 4,000; no pass through any network.
    """
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    x = inputs.detach().cpu().double().reshape(len(inputs), -1).numpy()
    y = target.detach().cpu().numpy()
    if len(x) < 20 or not np.isfinite(x).all():
        return []
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    classes = y.ndim == 1 and (np.issubdtype(y.dtype, np.integer) or len(np.unique(y)) == 2)
    if classes:
        y = np.unique(y, return_inverse=True)[1]
    elif y.ndim > 2 or np.issubdtype(y.dtype, np.integer):
        return []
    half = len(x) // 2
    x = StandardScaler().fit(x[:half]).transform(x)
    learners: dict[str, Any]
    if classes:
        learners = {
            "linear": LogisticRegression(max_iter=200),
            "nearest neighbours": KNeighborsClassifier(5),
            "trees": ExtraTreesClassifier(60, min_samples_leaf=2, random_state=seed % 2**31, n_jobs=1),
        }
    else:
        learners = {
            "linear": Ridge(1.0),
            "nearest neighbours": KNeighborsRegressor(5),
            "trees": ExtraTreesRegressor(60, min_samples_leaf=2, random_state=seed % 2**31, n_jobs=1),
        }
    scores = []
    for name, learner in learners.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                predicted = learner.fit(x[:half], y[:half]).predict(x[half:])
            except ValueError:  # one class only in the half it is fitted on
                continue
        scores.append(_score(name, predicted, y[:half], y[half:], classes))
    if classes and len(np.unique(y)) == 2:
        solution = parity_solution(x[:half], y[:half])
        if solution is not None:
            scores.append(_score("parity (Gaussian elimination)", solution(x[half:]), y[:half], y[half:], True))
    return scores


def _score(name: str, predicted: np.ndarray, fitted: np.ndarray, truth: np.ndarray, classes: bool) -> Score:
    if classes:
        constant = np.bincount(fitted).argmax()
        error, base = (predicted != truth).astype(float), (truth != constant).astype(float)
    else:
        error, base = (predicted - truth) ** 2, (truth - fitted.mean(0)) ** 2
        if error.ndim == 2:
            error, base = error.mean(1), base.mean(1)
    whole = max(float(base.mean()), 1e-300)
    difference = base - error
    return Score(name, float(difference.mean()) / whole, float(difference.std(ddof=1)) / math.sqrt(len(truth)) / whole)


def parity_solution(x: np.ndarray, y: np.ndarray) -> Any | None:
    """The parity (or its negation) that fits every example, found by Gaussian elimination over GF(2), or None.

    Args:
        x: (N, d) inputs whose columns take at most two values each.
        y: (N,) labels 0 or 1.

    Returns:
        A function from inputs to labels, or None where the inputs are not binary or no parity fits.

    Cost: O(N d^2) bit operations; about d + 10 examples determine the answer.
    """
    low, high = x.min(0), x.max(0)
    if x.shape[1] > 4096 or not np.all((x == low) | (x == high)):
        return None
    middle = (low + high) / 2

    def bits(rows: np.ndarray) -> np.ndarray:
        return np.hstack([(rows > middle), np.ones((len(rows), 1), bool)]).astype(np.uint8)

    n = min(len(x), x.shape[1] + 64)
    system = np.hstack([bits(x[:n]), y[:n, None].astype(np.uint8)])
    pivots: list[int] = []
    row = 0
    for column in range(system.shape[1] - 1):
        hits = np.flatnonzero(system[row:, column])
        if not len(hits):
            continue
        system[[row, row + hits[0]]] = system[[row + hits[0], row]]
        others = np.flatnonzero(system[:, column])
        system[others[others != row]] ^= system[row]
        pivots.append(column)
        row += 1
        if row == n:
            break
    if system[row:, -1].any():
        return None
    mask = np.zeros(system.shape[1] - 1, np.uint8)
    mask[pivots] = system[: len(pivots), -1]
    if not np.array_equal(bits(x) @ mask % 2, y):
        return None
    return lambda rows: bits(rows) @ mask % 2


def as_examples(batches: list[Any]) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets of (x, y) batches as two tensors, or None where they are of another kind."""
    xs, ys = [], []
    for b in batches:
        if not (isinstance(b, (tuple, list)) and len(b) == 2 and all(isinstance(t, Tensor) for t in b)):
            return None
        xs.append(b[0])
        ys.append(b[1])
    try:
        return torch.cat(xs), torch.cat(ys)
    except RuntimeError:
        return None
