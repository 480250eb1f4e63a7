"""Independent reference learners: what can be predicted from the inputs at all, without gradients on this model."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.theory.parity import parity_solution

__all__ = ["PARITY", "THIS_MODEL", "Score", "as_examples", "by_position", "parity_solution", "reference_scores", "repeated_noise"]

THIS_MODEL = "this model"
PARITY = "parity (Gaussian elimination)"
BEFORE, AFTER = 3, 2  # entries of a sequence around a position that learners see
SYMBOLS = 64  # whole numbers of up to so many values become zeros and ones


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


def reference_scores(inputs: Tensor, target: Tensor, *, output: Tensor | None = None, seed: int = 0) -> list[Score]:
    """Fit independent learners on a random half of the rows and score them on the other.

    A linear model, nearest neighbours, a forest of trees and, for inputs of two values each, parities of any subset by
    Gaussian elimination over GF(2): none of them follows a gradient of the model under diagnosis.

    Args:
        inputs: (N, ...) numbers, flattened per row.
        target: (N,) classes (integers, or floats of two values), or (N,) or (N, m) real values.
        output: what the model under diagnosis answers on the same rows, to be scored in the same unit as "this model".
        seed: for the halves and the forest.

    Returns:
        One score per learner that applies; empty where targets are of no kind that can be learnt here.

    Cost: a few seconds at most for N = 4,000; no pass through any network.
    """
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    x = inputs.detach().cpu().double().reshape(len(inputs), -1).numpy()
    y = target.detach().cpu().to(torch.float64 if target.is_floating_point() else target.dtype).numpy()
    if len(x) < 20 or not np.isfinite(x).all():
        return []
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    classes = y.ndim == 1 and (np.issubdtype(y.dtype, np.integer) or len(np.unique(y)) == 2)
    if classes:
        y = np.unique(y, return_inverse=True)[1]
    elif y.ndim > 2 or np.issubdtype(y.dtype, np.integer):
        return []
    order = np.random.default_rng(seed % 2**63).permutation(len(x))  # rows may come sorted by class
    x, y = x[order], y[order]
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
    own = None if output is None else _answers(output, target, classes)
    if own is not None:
        scores.append(_score(THIS_MODEL, own[order][half:], y[:half], y[half:], classes))
    if classes and len(np.unique(y)) == 2:
        solution = parity_solution(x[:half], y[:half])
        if solution is not None:
            scores.append(_score(PARITY, solution(x[half:]), y[:half], y[half:], True))
    return scores


def _answers(output: Tensor, target: Tensor, classes: bool) -> np.ndarray | None:
    """A model's output in the terms of the targets: classes as their rank among the target's values, or numbers."""
    z = output.detach().cpu().double().numpy()
    if z.ndim == 2 and z.shape[1] == 1:
        z = z[:, 0]
    if not np.isfinite(z).all() or len(z) != len(target):
        return None
    if not classes:
        shape = tuple(target.shape[:1]) if target.dim() == 2 and target.shape[1] == 1 else tuple(target.shape)
        if z.shape != shape:
            return None
        truth = target.detach().cpu().double().numpy().reshape(shape)
        if set(np.unique(truth)) <= {0.0, 1.0}:
            # Several yes or no: scores are no probabilities, and the kinder reading of them counts.
            readings = (z, 1 / (1 + np.exp(-np.clip(z, -50, 50))))
            return np.asarray(min(readings, key=lambda answer: float(np.square(answer - truth).mean())))
        return np.asarray(z)
    values = np.unique(target.detach().cpu().numpy())
    if z.ndim == 2 and not target.is_floating_point() and z.shape[1] > values.max():
        return np.asarray(z[:, values.astype(int)].argmax(1))
    if z.ndim == 1 and len(values) == 2:
        # A score of one number: cut where it splits these rows best, which favours the model.
        cuts = np.quantile(z, np.linspace(0.02, 0.98, 49))
        truth = np.unique(target.detach().cpu().numpy().reshape(len(z)), return_inverse=True)[1]
        best = max(cuts, key=lambda c: float(((z > c) == truth).mean()))
        return np.asarray(z > best).astype(int)
    return None


def by_position(inputs: Tensor, target: Tensor, output: Any = None) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Sequences with a class at each position as examples of their own: what stands around the position, and its class.

    A position sees itself, three entries before it and two after it, and where in the sequence it stands. Where the targets are the
    inputs one place on, what comes after is the answer, and is left out.

    Args:
        inputs: (N, T) whole numbers, or (N, T) or (N, T, d) real ones.
        target: (N, T) whole numbers.
        output: the model's scores, (N, T, C) or (N, C, T), or anything else.

    Returns:
        Inputs (N T, features), targets (N T,) and scores (N T, C) or None; None where the shapes are others.

    Cost: no pass.

    Example:
        >>> x = torch.arange(8).reshape(2, 4)
        >>> rows, classes, _ = by_position(x, x % 2)
        >>> rows.shape[0], classes.tolist()
        (8, [0, 1, 0, 1, 0, 1, 0, 1])
    """
    if target.is_floating_point() or target.dim() != 2 or inputs.dim() not in (2, 3) or inputs.shape[:2] != target.shape:
        return None
    n, length = target.shape
    if not inputs.is_floating_point() and inputs.dim() == 2 and int(inputs.min()) >= 0 and int(inputs.max()) < SYMBOLS:
        entries = torch.nn.functional.one_hot(inputs.long()).double()
    else:
        entries = inputs.double().reshape(n, length, -1)
    ahead = inputs.dim() == 2 and length > 1 and bool(((inputs[:, 1:] == target[:, :-1]).double().mean() > 0.99).item())
    padded = torch.nn.functional.pad(entries, (0, 0, BEFORE, AFTER))
    around = [padded[:, k : k + length] for k in range(BEFORE + 1 + (0 if ahead else AFTER))]
    place = torch.linspace(0, 1, length, dtype=torch.float64).expand(n, length)[..., None]
    rows = torch.cat([*around, place], -1).reshape(n * length, -1)
    scores = None
    if isinstance(output, Tensor) and output.dim() == 3:
        scores = output if output.shape[:2] == (n, length) else output.movedim(1, 2) if output.shape[::2] == (n, length) else None
    return rows, target.reshape(-1), None if scores is None else scores.reshape(n * length, -1)


def repeated_noise(inputs: Tensor, target: Tensor) -> tuple[float, int] | None:
    """The share of the targets' variance that is left among rows with equal inputs, and the number of such rows.

    One where inputs say nothing, zero where they determine the targets; None with fewer than 50 repeated rows.
    """
    x = inputs.detach().cpu().double().reshape(len(inputs), -1).numpy()
    y = target.detach().cpu().double().reshape(len(target), -1).numpy()
    _, group, count = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    repeated = count[group] > 1
    total = float(y.var(axis=0, ddof=1).sum())
    if repeated.sum() < 50 or total == 0:
        return None
    means = np.zeros((len(count), y.shape[1]))
    np.add.at(means, group, y)
    means /= count[:, None]
    within = float(((y - means[group]) ** 2).sum()) / max(1, int(repeated.sum() - (count > 1).sum()))
    return within / total, int(repeated.sum())


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


def as_examples(batches: list[Any]) -> tuple[tuple[Tensor, ...], Tensor] | None:
    """Inputs and targets of (x, y) or (x1, x2, ..., y) batches as tensors with a row for each example, or None where they are others."""
    if not all(isinstance(b, (tuple, list)) and len(b) >= 2 and all(isinstance(t, Tensor) and t.dim() > 0 for t in b) for b in batches):
        return None
    try:
        *inputs, target = (torch.cat(list(parts)) for parts in zip(*batches, strict=True))
    except (RuntimeError, ValueError):
        return None
    return (tuple(inputs), target) if all(len(x) == len(target) for x in inputs) else None
