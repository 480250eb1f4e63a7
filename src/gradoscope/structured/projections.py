r"""Projections on the sets of structured prediction: labels between 0 and 1 whose number, or numbers in groups, are bounded.

Each row is projected by itself; everything is batched. The nearest point $u$ of
$\{0\le u\le1,\ \sum u=z\}$ is $u=\mathrm{clip}(y-t,0,1)$ with the one $t$ at which the sum is right. Where it is free
($F=\{i: 0<u_i<1\}$) it moves with $y$ and $z$, elsewhere it does not:

$$\frac{\partial u}{\partial y}=P_F-\frac{\mathbf 1_F\mathbf 1_F^\top}{|F|},\qquad \frac{\partial u}{\partial z}=\frac{\mathbf 1_F}{|F|},$$

and both are 0 where no coordinate is free. The functions here that give a converged projection search the free coordinates without
autograd and then compute the point from them by one formula, whose derivative is this one: memory does not grow with the iterations,
and gradients of gradients and `torch.func` work as for any other formula.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "alternating",
    "dykstra",
    "dykstra_sets",
    "free_coordinates",
    "jacobian",
    "project_between",
    "project_groups",
    "project_simplex",
    "project_sum",
    "slope_in_sum",
    "smooth_simplex",
]

Number = Tensor | float
_ROUNDING = 8  # units of rounding that a coordinate may be away from 0 or 1 and still count as there


def _per_row(value: Number, like: Tensor) -> Tensor:
    """A number per row of `like`, shape (..., 1)."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).expand(like.shape[:-1])[..., None]


def _root(y: Tensor, z: Tensor, members: Tensor | None = None) -> Tensor:
    r"""The t at which $\sum_i m_i\,\mathrm{clip}(y_i-t,0,1)=z$: the sum is linear between its sorted corners $y_i-1$ and $y_i$.

    Where the sum is flat at z, the lowest such t.
    """
    weight = torch.ones_like(y) if members is None else members.to(y.dtype).expand_as(y)
    corners, order = torch.cat([y - 1, y], -1).sort(-1)
    free = torch.cat([weight, -weight], -1).gather(-1, order).cumsum(-1).round()  # free coordinates right of each corner
    falls = torch.cumsum(free[..., :-1] * corners.diff(dim=-1), -1)
    heights = weight.sum(-1, keepdim=True) - torch.cat([torch.zeros_like(falls[..., :1]), falls], -1)
    z = torch.minimum(z.clamp(min=0), weight.sum(-1, keepdim=True))
    at = (heights > z).sum(-1, keepdim=True).sub(1).clamp(0, y.shape[-1] * 2 - 2)  # the last corner that is still too high
    slope = free.gather(-1, at)
    here, height = corners.gather(-1, at), heights.gather(-1, at)
    step = torch.where(slope > 0, (height - z) / slope.clamp(min=1), torch.zeros_like(height))
    t = here + torch.minimum(step.clamp(min=0), corners.gather(-1, at + 1) - here)
    # differences of far corners have rounded: one step of Newton's method on the sum itself, whose terms are at most 1
    value = (y - t).clamp(0, 1)
    count = (weight * ((value > 0) & (value < 1))).sum(-1, keepdim=True)
    return t + ((weight * value).sum(-1, keepdim=True) - z) / count.clamp(min=1)


def _free(y: Tensor, t: Tensor, slack: float) -> tuple[Tensor, Tensor]:
    """clip(y - t) with what is within rounding of 0 or 1 put there, and which coordinates are at neither."""
    rough = (y - t).clamp(0, 1)
    margin = slack * (1 + y.abs() + t.abs())
    rough = torch.where(rough < margin, 0.0, torch.where(rough > 1 - margin, 1.0, rough))
    return rough, (rough > 0) & (rough < 1)


def _settled(y: Tensor, z: Tensor, t: Tensor, members: Tensor | None = None) -> Tensor:
    """clip(y - t) with t as a function of y and z while the free coordinates stay the same."""
    with torch.no_grad():
        rough, free = _free(y, t, _ROUNDING * torch.finfo(y.dtype).eps)
        if members is not None:
            free = free & members
        ones = (rough >= 1) if members is None else (rough >= 1) & members
        count = free.sum(-1, keepdim=True)
        full = ones.sum(-1, keepdim=True).to(y.dtype)
    exact = (torch.where(free, y, 0.0).sum(-1, keepdim=True) + full - z) / count.clamp(min=1)
    found = torch.where(free, y - exact, rough)
    return found + (found.clamp(0, 1) - found).detach()  # rounding may put a coordinate out of [0, 1] by one unit


def project_sum(y: Tensor, z: Number) -> Tensor:
    r"""The nearest point of $\{0\le u\le1,\ \sum_i u_i=z\}$ to each row, exact up to rounding.

    Args:
        y: shape (..., L).
        z: the sum, a number or of shape (...); below 0 it counts as 0 and above L as L.

    Returns:
        shape (..., L), differentiable in y and z: the module's formula.

    Cost: one sort of 2L numbers per row; no iteration.

    Example:
        >>> u = project_sum(torch.tensor([2.0, 0.6, 0.2, -1.0]), 1.5)
        >>> [round(v, 3) for v in u.tolist()]
        [1.0, 0.45, 0.05, 0.0]
    """
    sums = _per_row(z, y).clamp(0, y.shape[-1])
    with torch.no_grad():
        t = _root(y, sums)
    return _settled(y, sums, t)


def project_between(y: Tensor, *, lower: Number | None = None, upper: Number | None = None) -> Tensor:
    r"""The nearest point of $\{0\le u\le1,\ a\le\sum_i u_i\le c\}$: $\mathrm{clip}(y)$ where its sum is allowed, else as for the bound.

    Args:
        y: shape (..., L).
        lower: a, a number or of shape (...); None for none.
        upper: c, the same; where it is below a, it counts.

    Returns:
        shape (..., L), differentiable in y, and in the bounds where they bind.

    Example:
        >>> project_between(torch.tensor([[0.5, 0.25], [0.75, 0.75]]), upper=1.0).tolist()
        [[0.5, 0.25], [0.5, 0.5]]
    """
    return _between(y, None, lower, upper)


def _between(y: Tensor, members: Tensor | None, lower: Number | None, upper: Number | None) -> Tensor:
    t, bound = _shift(y, members, lower, upper)
    box = y.clamp(0, 1)
    found = torch.where(t == 0, box, _settled(y, bound, t, members))
    return found if members is None else torch.where(members, found, box)


def _shift(y: Tensor, members: Tensor | None, lower: Number | None, upper: Number | None) -> tuple[Tensor, Tensor]:
    """The multiplier of the bound that binds, 0 where none does, and that bound; shapes (..., 1)."""
    size = torch.full_like(y[..., :1], y.shape[-1]) if members is None else members.sum(-1, keepdim=True).to(y.dtype).expand_as(y[..., :1])
    low = torch.zeros_like(size) if lower is None else torch.minimum(_per_row(lower, y).clamp(min=0), size)
    high = size if upper is None else torch.minimum(_per_row(upper, y).clamp(min=0), size)
    with torch.no_grad():
        t = torch.zeros_like(size)
        if lower is not None:
            t = torch.minimum(t, _root(y, low, members))
        if upper is not None:
            t = torch.where(_sum(y, members) > high, _root(y, high, members).clamp(min=0), t)
    return t, torch.where(t < 0, low, high)


def _sum(y: Tensor, members: Tensor | None) -> Tensor:
    box = y.clamp(0, 1)
    return (box if members is None else torch.where(members, box, 0.0)).sum(-1, keepdim=True)


def project_groups(
    y: Tensor,
    groups: Tensor,
    *,
    lower: Number | None = None,
    upper: Number | None = None,
    tolerance: float = 1e-10,
    rounds: int = 10_000,
) -> Tensor:
    r"""The nearest point of $\{0\le u\le1,\ a_g\le\sum_{i\in S_g}u_i\le c_g \text{ for every group } g\}$.

    Disjoint groups are projected one by one, exactly. For overlapping ones Dykstra's algorithm runs to convergence in its dual form
    (Hildreth): $u=\mathrm{clip}(y-M^\top\lambda)$, each $\lambda_g$ in turn is the shift that its own bounds ask for given the others.
    The gradient is then that of the free coordinates under the bounds that bind,
    $P_F-M_{AF}^\top(M_{AF}M_{AF}^\top)^+M_{AF}$.

    Args:
        y: shape (..., L).
        groups: which coordinates belong to which group, boolean of shape (G, L), or (..., G, L) where rows have groups of their own.
        lower: a_g, a number or of shape (..., G); None for none.
        upper: c_g, the same.
        tolerance: for overlapping groups: the rounds end when no multiplier moves by more.
        rounds: at most so many.

    Returns:
        shape (..., L), differentiable in y and in the bounds that bind.

    Raises:
        ValueError: where the rounds do not converge, as for bounds that contradict each other.

    Cost: disjoint groups one sort of 2L numbers per group and row; overlapping ones that in each round.

    Example:
        >>> groups = torch.tensor([[True, True, False], [False, True, True]])
        >>> [round(v, 4) for v in project_groups(torch.tensor([0.8, 0.9, 0.4]), groups, upper=1.0).tolist()]
        [0.45, 0.55, 0.4]
    """
    members = groups.bool().to(y.device).expand(*y.shape[:-1], *groups.shape[-2:])
    bounds = [None if b is None else torch.as_tensor(b, dtype=y.dtype, device=y.device).expand(members.shape[:-1]) for b in (lower, upper)]
    if not bool((members.sum(-2) > 1).any()):
        each = _between(y[..., None, :].expand(members.shape), members, *bounds)
        return torch.where(members.any(-2), torch.where(members, each, 0.0).sum(-2), y.clamp(0, 1))
    with torch.no_grad():
        shifts = _dual_rounds(y, members, bounds[0], bounds[1], tolerance, rounds)
    return _settled_groups(y, members, shifts, bounds[0], bounds[1], slack=10 * _tolerance(y, tolerance))


def _tolerance(y: Tensor, asked: float) -> float:
    return max(asked, _ROUNDING * torch.finfo(y.dtype).eps)


def _dual_rounds(y: Tensor, members: Tensor, lower: Tensor | None, upper: Tensor | None, tolerance: float, rounds: int) -> Tensor:
    """The multipliers of overlapping groups, shape (..., G)."""
    weights = members.to(y.dtype)
    shifts = torch.zeros_like(weights[..., 0])
    tolerance = _tolerance(y, tolerance)
    for _ in range(rounds):
        moved = torch.zeros((), dtype=y.dtype, device=y.device)
        for g in range(members.shape[-2]):
            others = y - (shifts[..., None] * weights).sum(-2) + shifts[..., g, None] * weights[..., g, :]
            t, _ = _shift(others, members[..., g, :], None if lower is None else lower[..., g], None if upper is None else upper[..., g])
            moved = torch.maximum(moved, (t[..., 0] - shifts[..., g]).abs().max())
            shifts[..., g] = t[..., 0]
        if float(moved) <= tolerance:
            return shifts
    raise ValueError(f"the projection did not converge in {rounds} rounds (last change {float(moved):.1e}); do the bounds contradict?")


def _settled_groups(y: Tensor, members: Tensor, shifts: Tensor, lower: Tensor | None, upper: Tensor | None, slack: float) -> Tensor:
    """The point of these multipliers, as a function of y and the binding bounds while free coordinates and binding groups stay."""
    weights = members.to(y.dtype)
    size = members.sum(-1).to(y.dtype)
    low = torch.zeros_like(size) if lower is None else lower
    bound = torch.where(shifts < 0, low, size if upper is None else upper)
    with torch.no_grad():
        rough, free = _free(y, (shifts[..., None] * weights).sum(-2), slack)
        binding = weights * ((shifts != 0)[..., None] & free[..., None, :])
        inverse = torch.linalg.pinv(binding @ binding.mT, hermitian=True)
        ones = (weights * (rough >= 1)[..., None, :]).sum(-1)
    left = (binding @ y[..., None])[..., 0] + (ones - bound) * (binding.sum(-1) > 0)
    exact = y - (binding.mT @ (inverse @ left[..., None]))[..., 0]
    found = torch.where(free, exact, rough)
    return found + (found.clamp(0, 1) - found).detach()


def project_simplex(y: Tensor, z: Number) -> Tensor:
    r"""The nearest point of $\{u\ge0,\ \sum_i u_i=z\}$: $\max(y-\theta,0)$, $\theta=(\sum_{j\le\rho}y_{(j)}-z)/\rho$.

    Args:
        y: shape (..., L).
        z: the sum, above 0, a number or of shape (...).

    Returns:
        shape (..., L), differentiable in y and z.

    Cost: one sort of L numbers per row.

    Example:
        >>> project_simplex(torch.tensor([2.0, 1.0, -1.0]), 1.5).tolist()
        [1.25, 0.25, 0.0]
    """
    sums = _per_row(z, y)
    with torch.no_grad():
        ordered = y.sort(-1, descending=True).values
        rank = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
        excess = ordered.cumsum(-1) - sums
        last = (rank * ordered > excess).sum(-1, keepdim=True).clamp(min=1)
        free = y > excess.gather(-1, last - 1) / last
        count = free.sum(-1, keepdim=True).clamp(min=1)
    theta = (torch.where(free, y, 0.0).sum(-1, keepdim=True) - sums) / count
    return torch.where(free, y - theta, 0.0)


def smooth_simplex(y: Tensor, z: Number, sharpness: float = 1.0, inner: float = 1.0) -> Tensor:
    r"""The step that Predict and Constrain takes in place of `project_simplex`: a soft choice of $\rho$, so that every label has a slope.

    $\theta=(\sum_j w_j s_j-z)/\sum_j w_j j$ with $s_j=\sum_{i\le j}y_{(i)}$ and
    $w=\mathrm{softmax}_j\big(\kappa j\,\mathrm{softsign}(\iota\,\mathrm{relu}(j y_{(j)}-s_j+z))\big)$. It is no projection:
    the sum is not z. However large kappa is alone, a bias stays, as the largest $j\,\mathrm{softsign}(\cdot)$ need not be at $\rho$;
    it goes with both.

    Args:
        y: shape (..., L).
        z: a number or of shape (...).
        sharpness: kappa; 1 is the published form.
        inner: iota; 1 is the published form.

    Returns:
        shape (..., L), differentiable in y and z.

    Example:
        >>> y = torch.tensor([2.0, 1.0, -1.0])
        >>> [round(float(smooth_simplex(y, 1.5, *sharp).sum()), 2) for sharp in ((1, 1), (100, 100))]
        [2.01, 1.5]
    """
    sums = _per_row(z, y)
    ordered = y.sort(-1, descending=True).values
    rank = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
    heights = ordered.cumsum(-1)
    gap = torch.relu(rank * ordered - heights + sums)
    weight = torch.softmax(sharpness * rank * torch.nn.functional.softsign(inner * gap), -1)
    theta = ((weight * heights).sum(-1, keepdim=True) - sums) / (weight * rank).sum(-1, keepdim=True)
    return torch.relu(y - theta)


def dykstra(y: Tensor, z: Number, rounds: int = 2, *, smooth: bool = False, sharpness: float = 1.0, inner: float = 1.0) -> Tensor:
    r"""Rounds of Dykstra's algorithm between $\{u\le1\}$ and the simplex $\{u\ge0,\sum u=z\}$, with autograd through all of them.

    Two rounds, as published, are far from the projection; the entries may exceed 1.

    Args:
        y: shape (..., L).
        z: the sum, a number or of shape (...).
        rounds: R.
        smooth: `smooth_simplex` in place of `project_simplex`, as published.
        sharpness: of that.
        inner: of that.

    Returns:
        shape (..., L), differentiable in y and z.

    Cost: R sorts of L numbers per row; autograd keeps all of them.

    Example:
        >>> y = torch.tensor([2.0, 0.6, 0.2, -1.0], dtype=torch.float64)
        >>> [f"{float((dykstra(y, 1.5, r) - project_sum(y, 1.5)).abs().max()):.0e}" for r in (1, 2, 50)]
        ['1e-01', '3e-02', '1e-16']
    """
    found, p, q = y, torch.zeros_like(y), torch.zeros_like(y)
    for _ in range(rounds):
        box = torch.clamp(found + p, max=1)
        p = p + found - box
        found = smooth_simplex(box + q, z, sharpness, inner) if smooth else project_simplex(box + q, z)
        q = q + box - found
    return found


def alternating(y: Tensor, z: Number, rounds: int) -> Tensor:
    """The same two projections in turn without Dykstra's corrections: it ends in the set, and not at the nearest point.

    Args:
        y: shape (..., L).
        z: the sum, a number or of shape (...).
        rounds: how many.
    """
    for _ in range(rounds):
        y = project_simplex(y.clamp(max=1), z)
    return y


def dykstra_sets(
    y: Tensor, projections: Sequence[Callable[[Tensor], Tensor]], *, tolerance: float = 1e-12, rounds: int = 10_000
) -> tuple[Tensor, int]:
    """The nearest point of the intersection of convex sets, given the projection on each: Dykstra's algorithm to convergence.

    Args:
        y: any shape.
        projections: one function per set, all at once on the whole of y.
        tolerance: it ends when no number moved by more in a whole round.
        rounds: at most so many.

    Returns:
        The point, without gradient, and the rounds that it took.

    Raises:
        ValueError: where it does not converge in so many rounds.

    Example:
        >>> sets = [lambda u: u.clamp(max=1), lambda u: project_simplex(u, 1.5)]
        >>> u, _ = dykstra_sets(torch.tensor([2.0, 0.6, 0.2, -1.0], dtype=torch.float64), sets)
        >>> [round(v, 3) for v in u.tolist()]
        [1.0, 0.45, 0.05, 0.0]
    """
    with torch.no_grad():
        found = y
        corrections = [torch.zeros_like(y) for _ in projections]
        for r in range(rounds):
            moved = torch.zeros((), dtype=y.dtype, device=y.device)
            for k, project in enumerate(projections):
                nearest = project(found + corrections[k])
                correction = corrections[k] + found - nearest
                moved = torch.maximum(moved, (correction - corrections[k]).abs().max())
                corrections[k], found = correction, nearest
            if float(moved) <= tolerance:
                return found, r + 1
    raise ValueError(f"Dykstra's algorithm did not converge in {rounds} rounds (last change {float(moved):.1e}).")


def free_coordinates(u: Tensor, margin: float = 0.0) -> Tensor:
    """Which coordinates of a projection lie strictly between 0 and 1 (by more than `margin`): those that a gradient can move."""
    return (u > margin) & (u < 1 - margin)


def jacobian(u: Tensor, margin: float = 0.0) -> Tensor:
    r"""$P_F-\mathbf 1_F\mathbf 1_F^\top/|F|$ of `project_sum` at its result u of shape (..., L); shape (..., L, L).

    Example:
        >>> jacobian(torch.tensor([1.0, 0.5, 0.5, 0.0])).tolist()[1]
        [0.0, 0.5, -0.5, 0.0]
    """
    free = free_coordinates(u, margin).to(u.dtype)
    count = free.sum(-1)[..., None, None].clamp(min=1)
    return torch.diag_embed(free) - free[..., :, None] * free[..., None, :] / count


def slope_in_sum(u: Tensor, margin: float = 0.0) -> Tensor:
    r"""$\partial u/\partial z=\mathbf 1_F/|F|$ at the result u of `project_sum`: 0 where nothing is free, so that z gets no gradient.

    Example:
        >>> slope_in_sum(torch.tensor([[1.0, 0.5, 0.5, 0.0], [1.0, 1.0, 0.0, 0.0]])).tolist()
        [[0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    free = free_coordinates(u, margin).to(u.dtype)
    return free / free.sum(-1, keepdim=True).clamp(min=1)
