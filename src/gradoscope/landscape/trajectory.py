"""The path of a training through the space of its parameters: along and beside a line, in a plane, from one step to the next.

Everything here needs the inner products of the steps only, shape (T, T): a path of T + 1 points in a million dimensions is read once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = [
    "CHUNK",
    "Path",
    "Principal",
    "Projection",
    "ResidualView",
    "cosines",
    "path_of",
    "principal",
    "project",
    "residual_view",
    "semicircle",
]

CHUNK = 1 << 18  # columns that are turned into float64 at a time


@dataclass(frozen=True)
class Path:
    r"""A path $\theta_0,\dots,\theta_T$, known by the inner products of its steps $s_t=\theta_{t+1}-\theta_t$.

    Args:
        gram: $s_i^\top s_j$, shape (T, T), float64.
        dim: the dimension of the space.
    """

    gram: np.ndarray
    dim: int

    @property
    def norms(self) -> np.ndarray:
        """The lengths of the steps, shape (T,)."""
        return np.sqrt(np.maximum(np.diag(self.gram), 0.0))

    @property
    def positions(self) -> np.ndarray:
        r"""Inner products of the displacements $\theta_t-\theta_0$, shape (T + 1, T + 1)."""
        summed = np.cumsum(np.cumsum(self.gram, axis=0), axis=1)
        return np.pad(summed, ((1, 0), (1, 0)))

    @property
    def distance(self) -> float:
        r"""$|\theta_T-\theta_0|$."""
        return math.sqrt(max(float(self.gram.sum()), 0.0))

    @property
    def detour(self) -> float:
        """The length of the path over the distance of its ends; infinite where it ends where it began."""
        return float(self.norms.sum()) / self.distance if self.distance > 0 else math.inf


def path_of(points: Tensor) -> Path:
    r"""The path through recorded points.

    Args:
        points: $\theta_0,\dots,\theta_T$ as rows, shape (T + 1, dim), T >= 1.

    Returns:
        The path. Steps are subtracted and multiplied in float64.

    Raises:
        Usage: where there are fewer than two points, or a point is not finite.

    Cost: $T^2\cdot$ dim multiplications; a few rows of 262,144 columns of memory.

    Example:
        >>> path = path_of(torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]]))
        >>> path.distance, path.norms.tolist(), path.detour
        (5.0, [3.0, 4.0], 1.4)
    """
    if points.dim() != 2 or len(points) < 2:
        raise Usage(f"a path needs at least two points of shape (points, dim), got {tuple(points.shape)}.")
    count = len(points) - 1
    gram = torch.zeros(count, count, dtype=torch.float64)
    for columns in torch.split(points, CHUNK, dim=1):
        steps = columns.double().diff(dim=0)
        gram += (steps @ steps.T).cpu()
    if not bool(torch.isfinite(gram).all()):
        raise Usage("a path must be finite, but a recorded point holds NaN or infinity. Leave out the points after the run broke.")
    return Path(gram.numpy(), points.shape[1])


@dataclass(frozen=True)
class Projection:
    r"""A path beside the straight line from its start to its end.

    Args:
        alpha: how far along the line, in units of the distance: 0 at the start, 1 at the end; shape (T + 1,).
        beta: how far beside it, in the same units, shape (T + 1,).
        length: the distance $|\theta_T-\theta_0|$.
    """

    alpha: np.ndarray
    beta: np.ndarray
    length: float


def project(path: Path) -> Projection:
    r"""Coordinates along and beside the line from start to end.

    $$u=\frac{\theta_T-\theta_0}{|\theta_T-\theta_0|},\quad\alpha(t)=u^\top(\theta_t-\theta_0),\quad
    \beta(t)=|\theta_t-\theta_0-\alpha(t)u|,$$ both divided by $|\theta_T-\theta_0|$.

    Args:
        path: the path.

    Returns:
        The projection.

    Raises:
        Usage: where the path ends where it began: there is no line then.

    Cost: none beyond T^2 additions.

    Example:
        >>> seen = project(path_of(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])))
        >>> seen.alpha.tolist(), seen.beta.tolist()
        ([0.0, 0.5, 1.0], [0.0, 0.5, 0.0])

    Source: Goodfellow, Vinyals and Saxe 2015, Qualitatively characterizing neural network optimization problems.
    """
    length = path.distance
    if length == 0:
        raise Usage("the path ends where it began, so that there is no line from start to end.")
    positions = path.positions / length**2
    alpha = positions[:, -1]
    beta = np.sqrt(np.maximum(np.diag(positions) - alpha**2, 0.0))
    beta[0] = beta[-1] = 0.0
    return Projection(alpha, beta, length)


def semicircle(alpha: np.ndarray) -> np.ndarray:
    r"""The residual of a random walk in many dimensions: $\beta=\sqrt{\alpha(1-\alpha)}$, whatever the lengths of its steps.

    Independent steps in random directions of a space of high dimension are orthogonal, so with $q_t$ the sum of the squared
    lengths of the first t steps $\alpha=q_t/q_T$ and $\alpha^2+\beta^2=q_t/q_T$.

    Args:
        alpha: positions along the line, in units of the distance, any shape.

    Returns:
        The residuals in the same units; 0 outside of [0, 1].

    Example:
        >>> semicircle(np.array([0.0, 0.5, 1.0])).tolist()
        [0.0, 0.5, 0.0]
    """
    return np.asarray(np.sqrt(np.maximum(alpha * (1 - alpha), 0.0)))


@dataclass(frozen=True)
class Principal:
    """A path in the plane in which it varies most.

    Args:
        scores: coordinates of the points, shape (T + 1, k), in the parameters' own units, centred.
        share: the share of the variance of the points that each axis explains, shape (k,).
        weights: the axes as combinations of displacements from the start, shape (k, T + 1): axis = weights @ (points - points[0]).
    """

    scores: np.ndarray
    share: np.ndarray
    weights: np.ndarray


def principal(path: Path, k: int = 2) -> Principal:
    """Principal components of the points of a path.

    A random walk of equal steps has components too: its first takes about 6 / pi^2 = 61% and its curves are cosines, so neither a
    large share nor a parabola tells of a valley. Compare with `walks`.

    Args:
        path: the path.
        k: how many components, at most T.

    Returns:
        The components; the sign is such that the path ends at a positive score.

    Cost: an eigendecomposition of shape (T + 1, T + 1).

    Example:
        >>> line = principal(path_of(torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 3.0]])))
        >>> [round(float(share), 6) for share in line.share]
        [1.0, 0.0]

    Source: Lorch 2016; Antognini and Sohl-Dickstein 2018, PCA of high dimensional random walks.
    """
    positions = path.positions
    centred = positions - positions.mean(0) - positions.mean(1)[:, None] + positions.mean()
    values, vectors = np.linalg.eigh(centred)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    k = min(k, len(path.gram))
    signs = np.where(vectors[-1, :k] < 0, -1.0, 1.0)
    vectors, root = vectors[:, :k] * signs, np.sqrt(values[:k])
    total = float(values.sum())
    weights = (vectors - vectors.mean(0)).T / np.where(root > 0, root, np.inf)[:, None]
    return Principal(vectors * root, values[:k] / total if total > 0 else np.zeros(k), weights)


def cosines(path: Path, lags: int) -> np.ndarray:
    """The mean cosine between steps that lie 1, 2, ... `lags` apart, shape (lags,); NaN where no two such steps move.

    Example:
        >>> square = path_of(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> cosines(square, 2).tolist()
        [0.0, -1.0]
    """
    norms = path.norms
    with np.errstate(invalid="ignore", divide="ignore"):
        table = path.gram / np.outer(norms, norms)
    out = np.full(lags, math.nan)
    for lag in range(1, min(lags, len(norms) - 1) + 1):
        found = np.diagonal(table, lag)
        found = found[np.isfinite(found)]
        out[lag - 1] = found.mean() if len(found) else math.nan
    return out


@dataclass(frozen=True)
class ResidualView:
    """Where to evaluate the loss for the view of projection against residual.

    Between two columns the direction of the residual changes: the surface is not one plane.

    Args:
        alpha: positions along the line, shape (columns,), in units of the distance.
        beta: positions beside it, shape (rows,), in the same units.
        nearest: for each column the recorded point whose residual gives the direction, shape (columns,).
    """

    alpha: np.ndarray
    beta: np.ndarray
    nearest: np.ndarray


def residual_view(projection: Projection, columns: int = 25, rows: int = 25, margin: float = 0.25) -> ResidualView:
    """The grid of the view: along the line from start to end, and to both sides of it as far as the path strays, and a little more.

    Args:
        projection: of the path.
        columns: positions along the line.
        rows: positions beside it; odd, so that the line itself is among them.
        margin: how far beyond the path, as a share of its extent.

    Returns:
        The grid.

    Raises:
        Usage: where no recorded point lies beside the line, so that there is no direction.

    Cost: none.

    Example:
        >>> bent = project(path_of(torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])))
        >>> view = residual_view(bent, 5, 5)
        >>> view.beta.tolist(), view.nearest.tolist()
        ([-0.625, -0.3125, 0.0, 0.3125, 0.625], [1, 1, 1, 1, 1])

    Source: Goodfellow, Vinyals and Saxe 2015, section 5: the residual's direction is that of the nearest point of the path.
    """
    aside = np.flatnonzero(projection.beta > 1e-6)
    if not len(aside):
        raise Usage("the path is a straight line: no recorded point lies beside it, so that there is no residual to show.")
    low, high = min(0.0, float(projection.alpha.min())), max(1.0, float(projection.alpha.max()))
    reach = margin / 2 * (high - low)
    alpha = np.linspace(low - reach, high + reach, columns)
    side = (1 + margin) * float(projection.beta.max())
    nearest = aside[np.abs(projection.alpha[aside][None] - alpha[:, None]).argmin(1)]
    return ResidualView(alpha, np.linspace(-side, side, rows), nearest)
