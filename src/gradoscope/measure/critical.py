"""Critical points: descend on the gradient's norm to the nearest one, and say of what kind it is."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.measure._levenberg import Descended, levenberg_marquardt, matrix_free
from gradoscope.measure._signs import all_signs, estimated_signs
from gradoscope.measure.geometry import DENSE, batch_hessians
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = [
    "CriticalPoint",
    "Descended",
    "Label",
    "classify",
    "critical_point",
    "in_double",
    "label_of",
    "levenberg_marquardt",
    "objective_at",
    "relative_gradient",
]

Label = Literal["minimum", "maximum", "saddle", "degenerate", "degenerate saddle", "not critical"]
LIMIT = 1e-8  # |g| below which a point counts as critical
TAIL = 1e-2  # of |theta|: how far Newton's step may go from there; next to a critical point it is many times shorter


@dataclass(frozen=True)
class CriticalPoint:
    r"""A point where a descent on the gradient's norm ended, and what the Hessian says there.

    Attributes:
        theta: the parameters, shape (dim,).
        loss: J there.
        gradient_norm: |g| there.
        limit: what |g| had to come under.
        gamma: $|g|/\sqrt{2E|\lambda|_{max}}$, the gradient against what the curvature could supply over the excess E.
        label: its kind; "not critical" where |g| did not get under the limit, or where Newton's step leads far away from what
            seems to be a zero, as on a tail that falls off to infinity.
        reason: why it is not critical, empty where it is.
        eigenvalues: ascending, all of them where `exact`, else the two ends.
        residuals: bounds of $|Hv-\lambda v|$ for each.
        tolerance: an eigenvalue counts as zero within this, one for each.
        negative: n-, how many are below -tolerance; an estimate where not `exact`.
        zero: n0, how many are within it.
        positive: n+.
        index_se: the standard error of the index $\alpha=n_-/d$; 0 where `exact`.
        exact: whether all eigenvalues were computed.
        moved: how far it lies from where the descent began, |theta - theta_0|.
        iterations: of the descent.
        method: how second derivatives were had.
        cost: the passes spent.
    """

    theta: Tensor = field(repr=False)
    loss: float
    gradient_norm: float
    limit: float
    gamma: float
    label: Label
    reason: str
    eigenvalues: np.ndarray = field(repr=False)
    residuals: np.ndarray = field(repr=False)
    tolerance: np.ndarray = field(repr=False)
    negative: float
    zero: float
    positive: float
    index_se: float
    exact: bool
    moved: float
    iterations: int
    method: str
    cost: Cost = field(default_factory=Cost)

    @property
    def critical(self) -> bool:
        """Whether the gradient is zero within the limit."""
        return self.label != "not critical"

    @property
    def index(self) -> float:
        r"""$\alpha=n_-/d$, the share of negative eigenvalues."""
        return self.negative / len(self.theta)

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue, with its sign."""
        return float(self.eigenvalues[0])

    @property
    def largest(self) -> float:
        """The largest eigenvalue, with its sign."""
        return float(self.eigenvalues[-1])

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The index, with its standard error, and all the rest as details."""
        names = ("loss", "gradient_norm", "limit", "gamma", "label", "reason", "eigenvalues", "residuals", "tolerance")
        details = {k: getattr(self, k) for k in (*names, "negative", "zero", "positive", "exact", "moved", "iterations")}
        se = None if self.exact else self.index_se
        return Measurement("critical_point", self.index, se=se, step=step, method=self.method, cost=self.cost, details=details)


def relative_gradient(norm: float, excess: float, magnitude: float) -> float:
    r"""$\gamma=|g|/\sqrt{2E|\lambda|}$: well below 1 near a critical point, whatever the units of loss and parameters.

    A quadratic with curvature $\lambda$ that is E above its minimum has the gradient $\sqrt{2E\lambda}$.

    Args:
        norm: |g|.
        excess: E, the loss above what could be reached.
        magnitude: the largest $|\lambda|$.

    Returns:
        The ratio; NaN where there is no excess or no curvature, 0 where there is no gradient either.

    Example:
        >>> relative_gradient(2.0, 0.5, 4.0)  # x^2 / 2 with curvature 4, at 0.5 above its minimum
        1.0
    """
    if norm == 0:
        return 0.0
    return norm / math.sqrt(2 * excess * magnitude) if excess > 0 and magnitude > 0 else math.nan


def objective_at(function: Callable[[Tensor], Tensor], point: Tensor) -> Objective:
    """A plain function of one tensor as an `Objective` at a point; the tensor itself is copied.

    Args:
        function: a differentiable scalar function of a tensor of the point's shape.
        point: where.

    Example:
        >>> objective_at(lambda p: p.square().sum(), torch.tensor([3.0, 4.0])).gradient()
        tensor([6., 8.])
    """
    model = nn.ParameterList([nn.Parameter(point.detach().clone())])
    return Objective(model, lambda m, _: function(m[0]), [None])  # type: ignore[index]


def in_double(objective: Objective) -> Objective:
    """The same loss in float64, on a copy of the model: in float32 a gradient cannot come under 1e-8.

    Args:
        objective: the loss. It must reach the model through its first argument alone.

    Returns:
        An objective of its own; the model that was handed in is not touched any more.

    Raises:
        CannotRun: where the model cannot be copied, or does not run in float64.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> twin = in_double(Objective(model, lambda m, b: m(b).square().sum(), [torch.eye(2)]))
        >>> twin.gradient().dtype, model.weight.dtype
        (torch.float64, torch.float32)
    """

    def wide(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    try:
        model = copy.deepcopy(objective.model).double()
        named = dict(model.named_parameters())
        names = {id(p): n for n, p in objective.model.named_parameters()}
        parameters = [(n, named[names[id(p)]]) for n, p in objective.named]
        twin = Objective(
            model,
            objective._loss,
            [tree.map_tensors(wide, batch) for batch in objective.batches],
            parameters=parameters,
            mode=objective.mode,
            seed=objective.seed,
            context=objective._context,
        )
        slope = twin.gradient()
    except (RuntimeError, TypeError, KeyError) as error:
        raise CannotRun(f"the model cannot be measured in float64: {error}. Measure it in its own precision.") from error
    if slope.norm() == 0 and objective.gradient().norm() > 0:
        raise CannotRun("the loss does not use the model that it is given: it cannot be measured on a copy.")
    return twin


def label_of(negative: float, zero: float, positive: float) -> Label:
    """The kind of a critical point with these numbers of eigenvalues.

    Example:
        >>> label_of(1, 0, 3), label_of(0, 1, 3), label_of(1, 1, 2)
        ('saddle', 'degenerate', 'degenerate saddle')
    """
    if negative > 0 and positive > 0:
        return "degenerate saddle" if zero > 0 else "saddle"
    if zero > 0:
        return "degenerate"
    return "minimum" if positive > 0 else "maximum"


def critical_point(
    objective: Objective,
    *,
    limit: float | None = None,
    iterations: int = 200,
    krylov: int = 60,
    dense: int = DENSE,
    reference: float = 0.0,
    sampled: bool = True,
    seed: int = 0,
) -> CriticalPoint:
    r"""The critical point nearest to where a training stands, and its kind.

    It descends on $\frac12|\nabla J|^2$, by Levenberg-Marquardt with the exact Hessian as Jacobian (on a Krylov space in a large
    model). Such a descent also stops where $|g|$ cannot be reduced any more, at points with $Hg=0$ that are not critical, and it
    follows a loss that falls off to infinity: the label is then "not critical" and the reason says so. The parameters are put back,
    bit for bit.

    Args:
        objective: the loss at a checkpoint: `Objective.of(live, batches)` for a training, `objective_at(f, x)` for a function. A
            loss that falls off to infinity is followed there: give it a ridge.
        limit: what |g| must come under; 1e-8, or what rounding leaves in the model's own precision (see `in_double`).
        iterations: the most iterations of the descent.
        krylov: Hessian-vector products per iteration in a large model.
        dense: the number of parameters up to which the whole Hessian is taken.
        reference: the loss that E in `gamma` counts from.
        sampled: whether the batches are a sample of the data, so that their spread counts for which eigenvalues are zero; False
            where they are all the data there is.
        seed: for random start vectors.

    Returns:
        Where it ended, classified.

    Cost: dim products per accepted iteration in a small model, `krylov` in a large one, and those of `classify`.

    Example:
        >>> f = lambda p: 5 * p[0] ** 2 - p[1] ** 2 + p[1] ** 4 / 4
        >>> found = critical_point(objective_at(f, torch.tensor([0.4, 0.1], dtype=torch.float64)))
        >>> found.label, found.index, found.eigenvalues.round(6).tolist()
        ('saddle', 0.5, [-2.0, 10.0])

    Source: Dauphin et al. 2014 look for critical points along a training; McIver and Komatsuzaki 1971, Cerjan and Miller 1981 for
    descent on the norm in chemistry, Doye and Wales 2002 on where it stops wrongly.
    """
    before, start = objective.cost, objective.theta()
    floor = limit if limit is not None else LIMIT
    if objective.dim <= dense:
        ended = _dense(objective, start, floor, iterations)
    else:
        ended = matrix_free(objective, start, limit=floor, iterations=iterations, krylov=krylov, seed=seed)
    theta = ended.points[0].to(start)
    with objective.moved(theta):
        objective.release()
        found = classify(objective, limit=limit, dense=dense, reference=reference, sampled=sampled, seed=seed)
        objective.release()
    reason = found.reason
    if found.gradient_norm > found.limit and float(ended.stationarity[0]) < 1e-4:
        reason = f"stopped at a non-critical point: g in null(H), |g| = {found.gradient_norm:.3g} is a minimum of |g| above zero"
    elif found.gradient_norm > found.limit:
        reason = f"|g| = {found.gradient_norm:.3g} after {int(ended.iterations[0])} iterations, above {found.limit:.1g}"
    spent = Cost(*(getattr(objective.cost, f) - getattr(before, f) for f in ("forward", "backward", "examples")))
    moved = float((theta.double() - start.double()).norm())
    return replace(found, reason=reason, moved=moved, iterations=int(ended.iterations[0]), cost=spent)


def _dense(objective: Objective, start: Tensor, limit: float, iterations: int) -> Descended:
    def at(theta: Tensor, measure: Callable[[Objective], Tensor]) -> Tensor:
        with objective.moved(theta[0].to(start)):
            objective.release()
            try:
                return measure(objective).double().cpu()[None]
            finally:
                objective.release()

    return levenberg_marquardt(
        lambda x: at(x, lambda o: o.gradient()),
        lambda x: at(x, lambda o: batch_hessians(o).mean(0)),
        start.double().cpu()[None],
        limit=limit,
        iterations=iterations,
    )


def classify(
    objective: Objective,
    *,
    limit: float | None = None,
    dense: int = DENSE,
    products: int = 100,
    reference: float = 0.0,
    sampled: bool = True,
    seed: int = 0,
) -> CriticalPoint:
    r"""The kind of the point where the parameters stand, without moving them.

    An eigenvalue counts as zero within $\max(d\,\epsilon_{mach}|\lambda|_{max},\,h)$ (d at least 10), h being half of the 95% interval of
    $v^\top Hv$ over the batches. In a large model the two ends have to be clear of zero by their residuals as well, and the
    numbers of eigenvalues are estimates from the spectral densities of four Lanczos runs.

    Args:
        objective: the loss.
        limit: as in `critical_point`.
        dense: as in `critical_point`.
        products: of each Lanczos run in a large model.
        reference: as in `critical_point`.
        sampled: as in `critical_point`.
        seed: for random start vectors.

    Returns:
        The point with its kind.

    Cost: dim Hessian-vector products in a small model, 4 * `products` in a large one.

    Example:
        >>> found = classify(objective_at(lambda p: p[0] ** 2 + p[1] ** 4, torch.zeros(2, dtype=torch.float64)))
        >>> found.label, found.zero
        ('degenerate', 1)
    """
    before = objective.cost
    gradient = objective.gradient()
    if objective.dim <= dense:
        ends = all_signs(objective, gradient, sampled)
    else:
        ends = estimated_signs(objective, gradient, products, sampled, seed)
    loss, norm, theta = objective.loss(), float(torch.linalg.vector_norm(gradient, dtype=torch.float64)), objective.theta()
    magnitude = float(np.abs(ends.values).max())
    rounding = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    if limit is None:  # below the rounding of Hessian times parameters no gradient can come
        limit = max(LIMIT, 4 * rounding * magnitude * max(1.0, float(theta.norm())))
    tail = ends.distance > TAIL * max(1.0, float(theta.norm()))
    reason = f"|g| = {norm:.3g} is above {limit:.1g}"
    if norm <= limit:
        reason = (
            f"|g| is small, but Newton's step to a zero has the length {ends.distance:.3g}: the loss falls off to infinity" if tail else ""
        )
    spent = Cost(*(getattr(objective.cost, f) - getattr(before, f) for f in ("forward", "backward", "examples")))
    return CriticalPoint(
        theta=theta,
        loss=loss,
        gradient_norm=norm,
        limit=limit,
        gamma=relative_gradient(norm, loss - reference, magnitude),
        label="not critical" if reason else label_of(ends.negative, ends.zero, ends.positive),
        reason=reason,
        eigenvalues=ends.values,
        residuals=ends.residuals,
        tolerance=ends.tolerance,
        negative=ends.negative,
        zero=ends.zero,
        positive=ends.positive,
        index_se=ends.se,
        exact=ends.exact,
        moved=0.0,
        iterations=0,
        method=objective.method,
        cost=spent,
    )
