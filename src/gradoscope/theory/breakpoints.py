"""Breakpoints read off predicted changes of slope, and how many of them are right."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

__all__ = ["Score", "read", "score"]


@dataclass(frozen=True)
class Score:
    """How well the breakpoints of curves were found, over all curves together.

    Attributes:
        precision: share of the breakpoints read that are at a true place, exactly.
        recall: share of the true breakpoints that were read at their place, exactly.
        precision_near: the same within `reach` points, each true breakpoint matched at most once.
        recall_near: the same.
        slope_error: mean |change read - true change| over the true breakpoints, where one that is not found near counts as 0 read.
        slope_size: mean |true change|, which is `slope_error` of a detector that finds nothing.
    """

    precision: float
    recall: float
    precision_near: float
    recall_near: float
    slope_error: float
    slope_size: float

    def to_dict(self) -> dict[str, float]:
        """Plain data for a row."""
        return asdict(self)


def read(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""The curve's parameters $\{\theta_r, a_r\}$: places and values of the k largest $|p_i|$, by place.

    Args:
        p: changes of slope, shape (N, n).
        k: breakpoints per curve, 1 <= k <= n.

    Returns:
        Places theta, shape (N, k), ascending, and changes a, shape (N, k). A change of exactly 0 is no breakpoint: it stands in the
        last columns with the place n.

    Example:
        >>> theta, a = read(torch.tensor([[0.0, 3.0, 0.1, -2.0], [0.0, 0.0, 1.0, 0.0]]), k=2)
        >>> theta.tolist(), a.tolist()
        ([[1, 3], [2, 4]], [[3.0, -2.0], [1.0, 0.0]])
    """
    places = p.abs().topk(k, dim=1).indices
    changes = p.gather(1, places)
    places = places.masked_fill(changes == 0, p.shape[1])
    places, order = places.sort(dim=1)
    return places, changes.gather(1, order)


def score(estimate: Tensor, truth: Tensor, k: int, *, reach: int = 1) -> Score:
    """Read k breakpoints off an estimate and compare them with the true changes of slope.

    Matches within `reach` are one to one, and as many as possible: both sides are gone through from left to right, which is optimal
    for places on a line.

    Args:
        estimate: predicted changes of slope, shape (N, n).
        truth: true ones, shape (N, n), not zero at k places at most.
        k: breakpoints per curve.
        reach: how far off "near" may be, in points.

    Returns:
        The shares; a precision without any breakpoint read is 0.

    Cost: k * k comparisons of columns of N places.

    Example:
        >>> truth = torch.tensor([[0.0, 1.0, 0.0, 0.0, -2.0, 0.0]])
        >>> found = score(torch.tensor([[0.0, 0.0, 0.9, 0.0, -2.0, 0.0]]), truth, k=2)
        >>> found.recall, found.recall_near, round(found.slope_error, 3)
        (0.5, 1.0, 0.05)
    """
    n = truth.shape[1]
    places, changes = read(estimate.double(), k)
    true_places, true_changes = read(truth.double(), k)
    wanted, found = (true_places < n).sum(), (places < n).sum()
    exact = _matches(places, true_places, n, 0)
    near = _matches(places, true_places, n, reach)
    columns = near.clamp(min=0)
    got = torch.where(near >= 0, changes.gather(1, columns), 0.0)
    total = max(int(wanted), 1)
    hits, hits_near = int((exact >= 0).sum()), int((near >= 0).sum())
    return Score(
        precision=hits / max(int(found), 1),
        recall=hits / total,
        precision_near=hits_near / max(int(found), 1),
        recall_near=hits_near / total,
        slope_error=float(((got - true_changes).abs() * (true_places < n)).sum()) / total,
        slope_size=float(true_changes.abs().sum()) / total,
    )


def _matches(places: Tensor, true_places: Tensor, n: int, reach: int) -> Tensor:
    """For each true breakpoint the column of the one read that it is matched with, or -1; both ascending, shape (N, k)."""
    matched = torch.full_like(true_places, -1)
    taken = torch.zeros_like(places, dtype=torch.bool)
    for r in range(true_places.shape[1]):
        for c in range(places.shape[1]):
            fits = ((places[:, c] - true_places[:, r]).abs() <= reach) & (places[:, c] < n) & (true_places[:, r] < n)
            fits &= ~taken[:, c] & (matched[:, r] < 0)
            matched[:, r] = torch.where(fits, c, matched[:, r])
            taken[:, c] |= fits
    return matched
