"""What a step was predicted to do and what it did: Taylor's terms, curvature along the gradient, uphill steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.measurement import Measurement
from gradoscope.objective import Objective

__all__ = ["StepPrediction", "effective_size", "predict_step", "step_curvature", "uphill_share", "wilson"]


@dataclass(frozen=True)
class StepPrediction:
    r"""Taylor's prediction of a step s against what happened.

    Attributes:
        first: $g^\top s$, in units of the loss.
        second: $g^\top s+\tfrac12s^\top Hs$.
        actual: $J(\theta+s)-J(\theta)$ on the same batches.
        curvature: $s^\top Hs$.
        rho: $(\mathrm{actual}-\mathrm{second})/(|g^\top s|+|\tfrac12s^\top Hs|)$: how far from quadratic the loss is on
            the scale of the step; 0 on a quadratic, NaN for a step that changes nothing.
        negligible: whether `actual` is within rounding of J, so that `rho` says nothing.
    """

    first: float
    second: float
    actual: float
    curvature: float
    rho: float
    negligible: bool

    @property
    def uphill_by_curvature(self) -> bool:
        """Whether the step descends to first order and ascends to second order."""
        return self.first < 0 < self.second

    def to_measurement(self, step: int | None = None) -> Measurement:
        """`rho` with the other terms as details."""
        details = {k: getattr(self, k) for k in ("first", "second", "actual", "curvature", "negligible")}
        return Measurement("step_prediction", self.rho, step=step, details=details)


def predict_step(objective: Objective, step: Tensor, *, gradient: Tensor | None = None) -> StepPrediction:
    r"""Compare $J(\theta+s)-J(\theta)$ with its Taylor terms $g^\top s$ and $g^\top s+\frac12s^\top Hs$.

    A change is negligible below $10^{-10}|J|$, or a few units of rounding of the loss's own type: without this guard
    converged runs look far from quadratic.

    Args:
        objective: the loss, at the parameters before the step.
        step: s, shape (dim,), of any optimizer.
        gradient: g if it is known already, shape (dim,).

    Returns:
        The prediction and what happened.

    Cost: 2 K forward passes, one Hessian-vector product, and one gradient where none is given.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.ones(1, 1).double()])
        >>> abs(predict_step(objective, torch.tensor([0.5]).double()).rho) < 1e-12
        True

    Source: Taylor's theorem; Goodfellow, Bengio and Courville 2016, section 4.3.
    """
    g = (objective.gradient() if gradient is None else gradient).double()
    s = step.detach().double()
    before = objective.losses()
    curvature = float(torch.dot(s, objective.hvp(step.detach()).double()))
    after = objective.at(objective.theta() + step.detach())
    with np.errstate(invalid="ignore"):  # infinite before and after, where a training has broken
        actual = float((after - before).mean())
    first = float(torch.dot(g, s))
    second = first + 0.5 * curvature
    scale = abs(first) + abs(0.5 * curvature)
    epsilon = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    floor = max(1e-10, 4 * epsilon) * float(np.abs(before).mean())
    return StepPrediction(
        first=first,
        second=second,
        actual=actual,
        curvature=curvature,
        rho=(actual - second) / scale if scale > 0 else math.nan,
        negligible=not abs(actual) > floor and math.isfinite(actual),
    )


def step_curvature(objective: Objective, gradient: Tensor | None = None) -> Measurement:
    r"""The curvature along the gradient $\kappa=g^\top Hg/g^\top g$ and the optimal step $\epsilon^*=g^\top g/g^\top Hg$.

    Args:
        objective: the loss.
        gradient: g if it is known already, shape (dim,).

    Returns:
        $\kappa$; `details` hold "optimal_step" (infinity where the curvature is not positive: every step improves in
        the quadratic model), "gHg" and "gg". NaN where the gradient is zero.

    Cost: one Hessian-vector product, and one gradient where none is given.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.ones(1, 1)])
        >>> step_curvature(objective).details["optimal_step"]
        0.5

    Source: Goodfellow, Bengio and Courville 2016, section 4.3.
    """
    g = objective.gradient() if gradient is None else gradient.detach()
    size = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if size == 0 or not math.isfinite(size):
        details = {"optimal_step": math.nan, "gHg": math.nan, "gg": size**2}
        return Measurement("step_curvature", math.nan, method=objective.method, details=details)
    unit = g / size  # so that g'Hg of a tiny gradient does not underflow
    kappa = float(torch.dot(unit.double(), objective.hvp(unit).double()))
    return Measurement(
        "step_curvature",
        kappa,
        unit="loss",
        method=objective.method,
        details={"optimal_step": 1 / kappa if kappa > 0 else math.inf, "gHg": kappa * size**2, "gg": size**2},
    )


def uphill_share(losses: Sequence[float] | np.ndarray) -> Measurement:
    r"""The share of steps on which the loss rose, with Wilson's interval on the effective number of steps.

    Neighbouring steps depend on each other: W steps count as $W/(1+2\sum_k\rho_k)$, $\rho_k$ being the autocorrelation
    of the indicator, summed as long as pairs of neighbours are positive.

    Args:
        losses: the loss after each step on one fixed set of examples, or on each step's own batch, shape (W + 1,);
            never a mixture of both. Steps from or to a loss that is not finite are left out.

    Returns:
        The share, its standard error, n the effective number (rounded down, at least 1); `details` hold "interval" (95%),
        "steps" and "effective_steps".

    Raises:
        Usage: where there are fewer than two losses.

    Cost: none.

    Example:
        >>> share = uphill_share([4.0, 3.0, 3.5, 2.0, 1.0])
        >>> share.value, [round(x, 2) for x in share.details["interval"]]
        (0.25, [0.05, 0.7])

    Source: Wilson 1927; Geyer 1992, Practical Markov chain Monte Carlo (initial positive sequence).
    """
    series = np.asarray(losses, dtype=np.float64).reshape(-1)
    with np.errstate(invalid="ignore"):
        change = np.diff(series)
    up = (change[np.isfinite(change)] > 0).astype(np.float64)
    if len(up) == 0:
        raise Usage(f"the share of uphill steps needs at least two finite losses in a row, got {len(series)} losses.")
    n = effective_size(up)
    share = float(up.mean())
    return Measurement(
        "uphill_share",
        share,
        se=math.sqrt(share * (1 - share) / n),
        n=max(1, int(n)),
        details={"interval": wilson(share, n), "steps": len(up), "effective_steps": n},
    )


def effective_size(series: np.ndarray) -> float:
    r"""How many independent values a series of dependent ones is worth, between 1 and its length.

    Args:
        series: shape (W,).

    Returns:
        $W/(1+2\sum\rho_k)$; W for a constant series.

    Cost: none.

    Example:
        >>> effective_size(np.array([0.0, 0, 0, 0, 1, 1, 1, 1])) < 4
        True
    """
    count = len(series)
    centred = series - series.mean()
    power = float(centred @ centred)
    if power == 0:
        return float(count)
    rho = np.correlate(centred, centred, "full")[count - 1 :] / power
    total = -1.0  # 1 + 2 sum of rho_k from k = 1 is -1 + 2 sum from k = 0
    for k in range(0, count - 1, 2):
        pair = rho[k] + rho[k + 1]
        if pair <= 0:
            break
        total += 2 * pair
    return float(count / min(max(total, 1.0), count))


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    r"""Wilson's interval for a share of n independent trials; n need not be whole.

    Args:
        share: the share observed, in [0, 1].
        n: the number of trials, positive.
        z: the normal quantile, 1.96 for 95%.

    Returns:
        The lower and the upper end, within [0, 1].

    Cost: none.

    Example:
        >>> [round(x, 3) for x in wilson(0.0, 10)]
        [0.0, 0.278]
    """
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
