"""Random walks with the steps of a path, so that nobody reads structure into noise: is the path straighter than they are?"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

from gradoscope.errors import Usage
from gradoscope.landscape.trajectory import Path, cosines, project

__all__ = ["Straightness", "Walk", "straightness", "walks"]


@dataclass(frozen=True)
class Walk:
    """A random walk, in coordinates of a space just large enough that all its lengths and angles have the law of the large space.

    Args:
        steps: the steps, shape (T, m) with m <= T + 2. The first two coordinates are those along two fixed axes of the large space.
        dim: the dimension of the large space.
    """

    steps: np.ndarray
    dim: int
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.steps @ self.steps.T, self.dim))

    @property
    def fixed_plane(self) -> np.ndarray:
        """The walk in a plane that was chosen without looking at it, from 0, shape (T + 1, 2)."""
        plane = np.zeros((len(self.steps) + 1, 2))
        plane[1:, : self.steps.shape[1]] = np.cumsum(self.steps[:, :2], axis=0)
        return plane

    @property
    def own_plane(self) -> np.ndarray:
        """The walk in the plane of its own end and one fixed axis, from 0, in units of the distance, shape (T + 1, 2)."""
        places = np.vstack([np.zeros(self.steps.shape[1]), np.cumsum(self.steps, axis=0)])
        end = places[-1] / np.linalg.norm(places[-1])
        axis = -end[0] * end
        axis[0] += 1.0
        other = axis / max(float(np.linalg.norm(axis)), 1e-300)
        return np.stack([places @ end, places @ other], axis=1) / float(np.linalg.norm(places[-1]))


def walks(path: Path, count: int = 200, *, lags: int = 0, seed: int = 0) -> Iterator[Walk]:
    r"""Random walks with the same dimension and the same lengths of steps as a path.

    With `lags` = 0 the directions are independent and uniform. Otherwise each coordinate of the directions is an autoregressive
    process of order `lags` whose first autocorrelations are those of the path's own steps: a walk with momentum.

    The inner products of T Gaussian vectors in dim > T dimensions are drawn by Bartlett's decomposition $LL^\top$: L is lower
    triangular, below the diagonal standard normal, on it chi-distributed with dim, dim - 1, ... degrees of freedom. So a walk in
    a million dimensions takes T^2 numbers and has exactly the law of one that is drawn there.

    Args:
        path: the path to compare with.
        count: how many walks.
        lags: how many autocorrelations are matched, less than T.
        seed: what they are drawn from.

    Returns:
        The walks, one after the other.

    Cost: T^3 multiplications and T^2 numbers of memory each.

    Example:
        >>> [walk.path.norms.round(9).tolist() for walk in walks(Path(np.eye(3), 99), 1)]
        [[1.0, 1.0, 1.0]]

    Source: Bartlett 1933; Muirhead 1982, Aspects of Multivariate Statistical Theory, theorem 3.2.14.
    """
    steps, norms = len(path.gram), path.norms
    root = None if lags == 0 or steps < 2 else _root(_correlation(path, min(lags, steps - 1)))
    for k in range(count):
        vectors = _gaussian(steps, path.dim, np.random.default_rng((seed, 731, lags, k)))
        if root is not None:
            vectors = root @ vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        yield Walk(vectors / np.where(lengths > 0, lengths, 1.0) * norms[:, None], path.dim)


def _root(matrix: np.ndarray) -> np.ndarray:
    """A square root R R' of a correlation matrix; rounding may have left one of nearly straight paths a little below zero."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _gaussian(count: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors with the inner products, and the first two coordinates, of `count` standard normal ones in `dim` dimensions."""
    if dim <= count + 2:
        return rng.standard_normal((count, dim))
    free = dim - 2
    lower = np.tril(rng.standard_normal((count, count)), -1)
    lower[np.diag_indices(count)] = np.sqrt(rng.chisquare(free - np.arange(count)))
    return np.hstack([rng.standard_normal((count, 2)), lower])


def _correlation(path: Path, lags: int) -> np.ndarray:
    """The correlation of an autoregressive process that has the first autocorrelations of the steps' directions, shape (T, T)."""
    count = len(path.gram)
    measured = np.nan_to_num(cosines(path, lags))
    # Sums over all pairs divided by T, not by the number of pairs: only these are the autocorrelations of some process.
    known = np.r_[1.0, measured * (1 - np.arange(1, lags + 1) / count)]
    known[0] += 1e-6  # directions that are all the same have no process of their own
    weights = linalg.solve_toeplitz(known[:-1], known[1:])
    values = list(known)
    while len(values) < count:
        values.append(float(weights @ values[-1 : -lags - 1 : -1]))
    return np.asarray(linalg.toeplitz(np.array(values[:count]) / known[0]))


@dataclass(frozen=True)
class Straightness:
    """Is a path straighter than a random walk of the same steps?

    Args:
        residual: the largest distance from the line from start to end, in units of its length.
        plain: the same for walks of independent steps, shape (walks,).
        matched: the same for walks whose steps have the path's own autocorrelation, shape (walks,).
        detour: the length of the path over the distance of its ends.
        plain_detour: the same for walks of independent steps, shape (walks,).
        matched_detour: the same for walks with the path's autocorrelation, shape (walks,).
        lags: how many autocorrelations were matched.
        p_straighter: share of matched or plain walks, whichever is larger, that are at least as straight (with one added).
        p_detour: share of plain walks that stray at least as far (with one added).
        verdict: "straighter than chance", "no straighter than chance" or "a detour".
    """

    residual: float
    plain: np.ndarray
    matched: np.ndarray
    detour: float
    plain_detour: np.ndarray
    matched_detour: np.ndarray
    lags: int
    p_straighter: float
    p_detour: float
    verdict: str


def straightness(path: Path, *, count: int = 200, lags: int | None = None, seed: int = 0) -> Straightness:
    """Test whether a path is straighter than chance, against walks with independent steps and walks with momentum.

    A path is straighter than chance where its largest residual is below the 2.5% quantile of both kinds of walks, and a detour where
    it is above the 97.5% quantile of the walks of independent steps, which lie on a semicircle.

    Args:
        path: the path.
        count: walks of each kind.
        lags: autocorrelations to match; a fifth of the steps, from 1 to 10, by default. Momentum makes the steps of any walk alike.
        seed: what the walks are drawn from.

    Returns:
        The test.

    Raises:
        Usage: where the path has fewer than three steps or ends where it began.

    Cost: 2 count T^3 multiplications.

    Example:
        >>> straightness(Path(np.ones((19, 19)), 50)).verdict
        'straighter than chance'
    """
    if len(path.gram) < 3:
        raise Usage(f"whether a path is straight needs at least three steps, got {len(path.gram)}.")
    residual = float(project(path).beta.max())
    lags = max(1, min(10, len(path.gram) // 5)) if lags is None else lags
    kinds = [list(walks(path, count, lags=n, seed=seed)) for n in (0, lags)]
    controls = [np.array([project(w.path).beta.max() for w in kind]) for kind in kinds]
    detours = [np.array([w.path.detour for w in kind]) for kind in kinds]
    lower = max((1 + int((c <= residual).sum())) / (count + 1) for c in controls)
    upper = (1 + int((controls[0] >= residual).sum())) / (count + 1)
    below = all(residual < np.quantile(c, 0.025) for c in controls)
    verdict = "straighter than chance" if below else "no straighter than chance"
    if residual > np.quantile(controls[0], 0.975):
        verdict = "a detour"
    return Straightness(residual, controls[0], controls[1], path.detour, detours[0], detours[1], lags, lower, upper, verdict)
