"""What the five questions about a path rest on: critical points, barriers between recorded points, turns; each with its error."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gradoscope import thresholds as T
from gradoscope.landscape.points import evaluate
from gradoscope.landscape.trajectory import Path, cosines
from gradoscope.landscape.walks import walks
from gradoscope.measure.curvature import Spectrum, curvature_along, extreme_eigenvalues
from gradoscope.measure.noise import noise_statistics
from gradoscope.measure.steps import effective_size
from gradoscope.objective import Objective

__all__ = ["TOP", "Bumps", "Canyon", "Place", "bumps", "canyon", "place"]

TOP = 5  # eigenvectors that span the steep directions
INNER = 5  # points inside each segment


@dataclass(frozen=True)
class Place:
    r"""Gradient and curvature at one point of a run.

    Args:
        step: where.
        loss: J on the examples that were used.
        gradient: $\sqrt{\max(U,0)}$ with its 95% interval, U the unbiased estimate of $|G|^2$ (`measure.noise`).
        gamma: $|G|/\sqrt{2E|\lambda|}$ with its interval: the gradient as a share of what the curvature could supply, E the excess loss.
        spectrum: both ends of the Hessian's spectrum on one half of the examples.
        negative: $v^\top Hv$ along the lowest eigenvector, on the other half: mean and standard error over its parts.
        steep: the share of the squared gradient of the other half in the space of the top 5 eigenvectors: value, lower, upper end.
        chance: that share for a direction chosen at random, 5 / dim.
    """

    step: int
    loss: float
    gradient: tuple[float, float, float]
    gamma: tuple[float, float, float]
    spectrum: Spectrum
    negative: tuple[float, float]
    steep: tuple[float, float, float]
    chance: float

    @property
    def near(self) -> bool | None:
        """Whether a critical point is near; None where the interval of gamma holds the threshold."""
        if self.gamma[2] < T.GAMMA_CRITICAL:
            return True
        return False if self.gamma[1] >= T.GAMMA_CRITICAL else None

    @property
    def downhill(self) -> bool:
        """Whether there is negative curvature, beyond the error of sampling and worth the name."""
        mean, se = self.negative
        return mean + 1.96 * se < 0 and -mean > T.NEGATIVE_SHARE * max(self.spectrum.largest, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the eigenvectors."""
        s = self.spectrum
        return {
            "step": self.step,
            "loss": self.loss,
            "gradient": list(self.gradient),
            "gamma": list(self.gamma),
            "top": s.top.tolist(),
            "top_residuals": s.top_residuals.tolist(),
            "bottom": s.bottom.tolist(),
            "bottom_residuals": s.bottom_residuals.tolist(),
            "negative": list(self.negative),
            "steep": list(self.steep),
            "chance": self.chance,
            "near": self.near,
            "downhill": self.downhill,
            "products": s.products,
            "method": s.method,
        }


def place(
    objective: Objective, others: Objective | None, point: Tensor, *, step: int, reference: float, scale: float, seed: int = 0
) -> Place:
    r"""Gradient and curvature at a point: is it near a critical point, and does negative curvature lead down from it?

    On a sample, eigenvectors come from one half of the examples and what is said of them from the other: a direction that was
    chosen as the lowest looks lower on the examples it was chosen on. On the whole data set nothing is estimated, and the only error
    is the eigenvalue's residual.

    Args:
        objective: the loss on one half of the examples, in parts; or on the whole data set.
        others: on the other half, in parts of equal size; None where `objective` has the whole data set.
        point: the parameters, shape (dim,).
        step: the step of the run.
        reference: the lowest loss that is known.
        scale: the loss that there was to remove. The excess loss counts as at least a quarter of it, so that the question
            is whether the gradient is small against an excess that would matter.
        seed: of the start vector.

    Returns:
        The reading.

    Cost: one gradient on all examples, up to 60 Hessian-vector products on the first half and one on the other.

    Example:
        >>> class Saddle(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> half = Objective(Saddle(), lambda m, _: m.w[0] ** 2 - m.w[1] ** 2, [None, None])
        >>> found = place(half, half, torch.zeros(2, dtype=torch.float64), step=0, reference=-1.0, scale=1.0)
        >>> found.near, found.downhill
        (True, True)
    """
    with objective.moved(point.to(objective.theta())):
        loss = objective.loss() if others is None else 0.5 * (objective.loss() + others.loss())
        gradients = objective.batch_gradients()
        spectrum = extreme_eigenvalues(objective, k=min(TOP, objective.dim), tolerance=0.02, max_products=60, seed=seed)
        objective.release()
        bound = float(spectrum.bottom_residuals[0])
        if others is None:
            norm = float(torch.linalg.vector_norm(gradients.double().mean(0)))
            length = (norm, norm, norm)
            negative = (spectrum.smallest, bound)
            steep = _steep(gradients.mean(0, keepdim=True), spectrum)
        else:
            away = others.batch_gradients()
            along = curvature_along(others, spectrum.bottom_vectors[0])
            others.release()
            length = _norm(torch.cat([gradients, away]))
            negative = (float(along.value), max(float(along.se or 0.0), bound))
            steep = _steep(away, spectrum)
    excess = max(loss - reference, T.MATERIAL * scale)
    unit = math.sqrt(2 * excess * spectrum.largest_magnitude)
    gamma = tuple(g / unit if unit > 0 else (math.inf if g > 0 else 0.0) for g in length)
    return Place(step, loss, length, (gamma[0], gamma[1], gamma[2]), spectrum, negative, steep, min(TOP / objective.dim, 1.0))


def _norm(gradients: Tensor) -> tuple[float, float, float]:
    """The norm of the expected gradient with its 95% interval, from the gradients of parts."""
    signal = noise_statistics(gradients, 1, flips=1)
    se = signal.signal_se if math.isfinite(signal.signal_se) else 0.0
    low, value, high = (math.sqrt(max(signal.signal + z * se, 0.0)) for z in (-1.96, 0.0, 1.96))
    return value, low, high


def _steep(gradients: Tensor, spectrum: Spectrum) -> tuple[float, float, float]:
    """The share of the squared mean gradient in the space of the top eigenvectors, with a jackknife interval over the parts."""
    inside = (gradients.double() @ spectrum.top_vectors.to(gradients).double().T).cpu().numpy()
    gram = (gradients.double() @ gradients.double().T).cpu().numpy()
    k = len(gram)

    def share(keep: np.ndarray) -> float:
        whole = float(gram[np.ix_(keep, keep)].sum())
        return float((inside[keep].sum(0) ** 2).sum()) / whole if whole > 0 else math.nan

    value = share(np.arange(k))
    if k < 2 or not math.isfinite(value):
        return value, value, value
    without = np.array([share(np.delete(np.arange(k), i)) for i in range(k)])
    width = float(stats.t.ppf(0.975, k - 1)) * math.sqrt((k - 1) / k * float(((without - without.mean()) ** 2).sum()))
    return value, max(value - width, 0.0), min(value + width, 1.0)


@dataclass(frozen=True)
class Bumps:
    """Barriers on the straight segments between consecutive recorded points.

    Args:
        steps: where each segment begins and ends, shape (segments, 2).
        barrier: the highest loss inside minus the higher end, at least 0, shape (segments,), on all examples.
        tested: the same on the examples that did not choose the highest point, shape (segments,).
        se: its standard error, paired over examples, shape (segments,).
        significant: whether it is above zero, at 5% for all segments together (Bonferroni), shape (segments,).
        unit: what was paired: "examples" or "batches".
    """

    steps: np.ndarray
    barrier: np.ndarray
    tested: np.ndarray
    se: np.ndarray
    significant: np.ndarray
    unit: str


def bumps(
    objective: Objective,
    points: Tensor,
    steps: Sequence[int],
    *,
    inner: int = INNER,
    batch_norm: str = "stored",
    progress: Callable[[float], None] | None = None,
) -> Bumps:
    """Barriers between consecutive points of a run: did it jump over anything that a small step would have had to climb?

    The highest of several points lies above both ends by chance. So every second example chooses the point, and the others are asked.

    Args:
        objective: the loss on fixed examples, without masks.
        points: recorded parameters, shape (n, dim), n >= 2.
        steps: the steps they stand at.
        inner: points inside each segment.
        batch_norm: as in `points.evaluate`.
        progress: called with the share done.

    Returns:
        The barriers.

    Cost: (n - 1)(inner + 2) forward passes, less where points can be factored.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> hill = Objective(model, lambda m, b: -m(b).square().mean(), [torch.ones(1, 1) * x for x in (1.0, 1.1, 0.9, 1.0)])
        >>> found = bumps(hill, torch.tensor([[-1.0], [1.0]]), [0, 9], inner=3)
        >>> round(float(found.barrier[0]), 2), bool(found.significant[0])
        (1.0, True)
    """
    like = objective.theta()
    at = np.linspace(0, 1, inner + 2)[:, None]
    count = len(points) - 1
    rows: list[tuple[float, float, float]] = []
    unit = "batches"
    for k in range(count):
        start = points[k].to(like)
        values = evaluate(
            objective,
            start,
            (points[k + 1].to(like) - start)[None],
            at,
            per_example=True,
            batch_norm="recomputed" if batch_norm == "recomputed" else "stored",
        )
        assert values.per_example is not None
        assert values.weights is not None
        rows.append(_barrier(values.per_example, values.weights))
        unit = values.unit
        if progress is not None:
            progress((k + 1) / count)
    barrier, tested, se = np.array(rows).T
    with np.errstate(invalid="ignore", divide="ignore"):
        significant = tested / se > stats.norm.isf(0.05 / count)
    return Bumps(np.stack([steps[:-1], steps[1:]], axis=1), barrier, tested, se, significant | ((se == 0) & (tested > 0)), unit)


def _barrier(losses: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """Barrier on all examples, on those that did not choose its place, and the standard error of the latter."""

    def top(w: np.ndarray) -> tuple[int, int, float]:
        mean = losses @ w
        highest = 1 + int(np.argmax(mean[1:-1]))
        end = 0 if mean[0] >= mean[-1] else len(mean) - 1
        return highest, end, float(mean[highest] - mean[end])

    if not np.isfinite(losses).all():
        return math.nan, math.nan, math.nan
    rounding = 1e-6 * float(np.abs(losses @ weights).max())  # a flat segment's ups and downs are those of float32
    height = top(weights)[2]
    height = height if height > rounding else 0.0
    if losses.shape[1] < 4:
        return height, math.nan, math.nan
    choose, ask = (np.where(np.arange(losses.shape[1]) % 2 == r, weights, 0.0) for r in (0, 1))
    highest, end, _ = top(choose / choose.sum())
    kept = ask > 0
    each, w = (losses[highest] - losses[end])[kept], ask[kept] / ask[kept].sum()
    mean = float(each @ w)
    n = len(each)
    se = math.sqrt(n / (n - 1) * float((w**2) @ (each - mean) ** 2))
    return height, mean if abs(mean) > rounding else 0.0, se


@dataclass(frozen=True)
class Canyon:
    """How a path turns, beside random walks of the same steps.

    Args:
        lags: how many recorded points apart, shape (n,).
        cosine: mean cosine of displacements that lie so far apart, shape (n,).
        se: its standard error, on the effective number of pairs, shape (n,).
        low: 2.5% quantile of the same for random walks, shape (n,).
        high: 97.5% quantile, shape (n,).
    """

    lags: np.ndarray
    cosine: np.ndarray
    se: np.ndarray
    low: np.ndarray
    high: np.ndarray


def canyon(path: Path, *, count: int = 200, seed: int = 0) -> Canyon:
    """The cosines of successive displacements at lags 1, 2, 4, ... up to half of the path, against random walks.

    Args:
        path: the path.
        count: of walks.
        seed: what they are drawn from.

    Returns:
        The cosines.

    Cost: count T^3 multiplications.

    Example:
        >>> from gradoscope.landscape.trajectory import path_of
        >>> seen = canyon(path_of(torch.arange(9.0)[:, None] * torch.ones(1, 40)))
        >>> seen.lags.tolist(), seen.cosine.round(6).tolist()
        ([1, 2, 4], [1.0, 1.0, 1.0])
    """
    longest = max(1, len(path.gram) // 2)
    lags = 2 ** np.arange(int(math.log2(longest)) + 1)
    table = np.array([cosines(walk.path, longest)[lags - 1] for walk in walks(path, count, seed=seed)])
    low, high = np.nanquantile(table, (0.025, 0.975), axis=0)
    norms = np.where(path.norms > 0, path.norms, math.nan)
    pairs = [p[np.isfinite(p)] for p in (np.diagonal(path.gram / np.outer(norms, norms), lag) for lag in lags)]
    se = np.array([p.std(ddof=1) / math.sqrt(effective_size(p)) if len(p) > 1 else math.nan for p in pairs])
    return Canyon(lags, np.array([p.mean() if len(p) else math.nan for p in pairs]), se, low, high)
