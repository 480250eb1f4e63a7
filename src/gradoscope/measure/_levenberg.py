"""Descent on the norm of a gradient: Levenberg-Marquardt on many points at once, or on one through products alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.measure._source import Source
from gradoscope.objective import Objective

__all__ = ["Descended", "levenberg_marquardt", "matrix_free"]

Field = Callable[[Tensor], Tensor]
STATIONARY = 1e-9  # |Hg| / (|H| |g|) at which the norm has stopped falling although the gradient is not zero


@dataclass(frozen=True)
class Descended:
    """Where descents on the gradient's norm came to.

    Attributes:
        points: shape (N, d).
        gradient_norms: there, shape (N,).
        stationarity: |Hg| / (|H| |g|) there, shape (N,): near 0 where g lies in the null space of H, and nothing is gained any more.
        iterations: of each descent, shape (N,).
    """

    points: Tensor
    gradient_norms: Tensor
    stationarity: Tensor
    iterations: Tensor


def levenberg_marquardt(
    gradient: Field,
    hessian: Field,
    starts: Tensor,
    *,
    limit: float = 1e-8,
    iterations: int = 300,
    retract: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Descended:
    r"""Descend on $\frac12|g|^2$ from every start, with the exact Hessian as the Jacobian of g.

    The step is $s=-V\frac{\lambda}{\lambda^2+\mu}V^\top g$ with $H=V\Lambda V^\top$; $\mu$ follows the ratio of the actual to the
    predicted gain (Nielsen 1999). Each start has its own $\mu$, and its path does not depend on the others.

    Args:
        gradient: points (n, d) -> (n, d), for any n.
        hessian: points (n, d) -> (n, d, d), symmetric.
        starts: shape (N, d), float64.
        limit: the norm that counts as zero; descents go on to a thousandth of it as long as that is cheap.
        iterations: the most for each start.
        retract: (points, steps) -> points, where they live on a manifold; then gradient and Hessian are Riemannian.

    Returns:
        Where each came to, critical or not.

    Cost: a gradient and an eigendecomposition per iteration and start.

    Example:
        >>> found = levenberg_marquardt(
        ...     lambda p: torch.stack([10 * p[:, 0], p[:, 1] ** 3 - 2 * p[:, 1]], 1),
        ...     lambda p: torch.stack(
        ...         [torch.tensor([10.0, 0.0]).expand(len(p), 2), torch.stack([0 * p[:, 1], 3 * p[:, 1] ** 2 - 2], 1)], 1
        ...     ).double(),
        ...     torch.tensor([[0.4, 0.1], [0.4, 1.0]], dtype=torch.float64),
        ... )
        >>> [[round(abs(v), 6) for v in p] for p in found.points.tolist()]
        [[0.0, 0.0], [0.0, 1.414214]]

    Source: Levenberg 1944, Marquardt 1963; Nielsen 1999, Damping parameter in Marquardt's method.
    """
    x, g = starts.clone(), gradient(starts)
    count = len(x)
    values, vectors = torch.linalg.eigh(hessian(x))
    size = values.abs().amax(1).clamp_min(1e-300)
    mu, nu = 1e-2 * size.square(), torch.full((count,), 2.0, dtype=x.dtype)
    used = torch.zeros(count, dtype=torch.long)
    active = torch.arange(count)
    for _ in range(iterations):
        norms = g[active].norm(dim=1)
        pulled = _apply(values[active], vectors[active], g[active]).norm(dim=1)
        open_ = (norms > 1e-3 * limit) & (mu[active] < 1e12 * size[active].square())
        open_ &= pulled > STATIONARY * size[active] * norms
        active = active[open_]
        if len(active) == 0:
            break
        lam, vec, damping = values[active], vectors[active], mu[active, None]
        along = (g[active, None] @ vec).squeeze(1)
        step = -(vec @ (along * lam / (lam.square() + damping))[:, :, None]).squeeze(2)
        # |g + Hs|^2 = sum (mu / (lambda^2 + mu))^2 along^2, and the same without cancellation for the gain
        predicted = (along.square() * lam.square() * (lam.square() + 2 * damping) / (lam.square() + damping).square()).sum(1)
        new = x[active] + step if retract is None else retract(x[active], step)
        tried = gradient(new)
        gain = (g[active].square().sum(1) - tried.square().sum(1)) / predicted.clamp_min(1e-300)
        better = (gain > 1e-4) & torch.isfinite(tried).all(1)
        used[active] += 1
        moved, held = active[better], active[~better]
        x[moved], g[moved] = new[better], tried[better]
        mu[moved] *= (1 - (2 * gain[better] - 1) ** 3).clamp(1 / 3, 2.0)
        mu[moved] = torch.maximum(mu[moved], 1e-24 * size[moved].square())
        nu[moved] = 2.0
        mu[held] *= nu[held]
        nu[held] *= 2.0
        if len(moved):
            values[moved], vectors[moved] = torch.linalg.eigh(hessian(x[moved]))
            size[moved] = values[moved].abs().amax(1).clamp_min(1e-300)
    norms = g.norm(dim=1)
    pulled = _apply(values, vectors, g).norm(dim=1)
    return Descended(x, norms, pulled / (size * norms).clamp_min(1e-300), used)


def _apply(values: Tensor, vectors: Tensor, g: Tensor) -> Tensor:
    """Lambda V'g: Hg up to a rotation, shape (n, d)."""
    return values * (g[:, None] @ vectors).squeeze(1)


def matrix_free(objective: Objective, start: Tensor, *, limit: float, iterations: int, krylov: int, seed: int) -> Descended:
    r"""The same for one point of a large model: the step minimises $|g+Hs|^2+\mu|s|^2$ over a Krylov space of g.

    With the basis Q of m Lanczos steps from g, $HQ=Q_+\bar T$, the problem is one of m unknowns, $|\,|g|e_1+\bar Ty|^2+\mu|y|^2$,
    solved for any $\mu$ by one singular value decomposition of $\bar T$.

    Args:
        objective: the loss; its parameters are moved and put back.
        start: shape (dim,).
        limit: the norm that counts as zero.
        iterations: the most.
        krylov: m.
        seed: for restarts of Lanczos.

    Returns:
        One point, shape (1, dim).

    Cost: m products and a gradient per accepted iteration, a gradient per rejected one.

    Source: the subproblem is that of MINRES (Paige and Saunders 1975) with damping.
    """
    theta, used, stationarity = start.clone(), 0, 1.0
    mu, nu = -1.0, 2.0
    with objective.moved(theta):
        objective.release()  # moved parameters carry the version of those before: what was kept would be taken for theirs
        g = objective.gradient()
        space = _space(objective, g, krylov, seed)
        # g may see no curvature at all: what is small is told by a random direction
        size = Source(objective, "hessian").krylov(8, seed).scale
        objective.release()
    while True:
        norm = float(g.norm())
        spectrum = max(float(space.singular[0]), size, 1e-300)
        stationarity = space.pulled / spectrum
        mu = 1e-2 * spectrum**2 if mu < 0 else mu
        if used == iterations or norm <= 1e-3 * limit or stationarity <= STATIONARY or mu > 1e12 * spectrum**2:
            break
        step, predicted = space.step(norm, mu)
        used += 1
        moved = theta + step.to(theta)
        with objective.moved(moved):
            objective.release()
            tried = objective.gradient()
            gain = (norm**2 - float(tried.norm()) ** 2) / max(predicted, 1e-300)
            better = gain > 1e-4 and bool(torch.isfinite(tried).all())
            if better:
                theta, g = moved, tried
                space = _space(objective, g, krylov, seed)
            objective.release()
        mu = max(mu * min(max(1 / 3, 1 - (2 * gain - 1) ** 3), 2.0), 1e-24 * spectrum**2) if better else mu * nu
        nu = 2.0 if better else nu * 2
    return Descended(theta[None], g.norm()[None].double(), torch.tensor([stationarity]), torch.tensor([used]))


@dataclass(frozen=True)
class _Space:
    """A Krylov space of g, with the singular values of the Hessian in it, descending, and |Hg|/|g|."""

    basis: Tensor
    left: np.ndarray
    singular: np.ndarray
    right: np.ndarray
    pulled: float

    def step(self, norm: float, mu: float) -> tuple[Tensor, float]:
        """The damped step from a gradient of this norm, and by how much it is to reduce the square of the norm."""
        along = norm * self.left
        s2 = self.singular**2
        y = -self.right @ (along * self.singular / (s2 + mu))
        predicted = float((along**2 * s2 * (s2 + 2 * mu) / (s2 + mu) ** 2).sum())
        return torch.as_tensor(y, dtype=self.basis.dtype, device=self.basis.device) @ self.basis, predicted


def _space(objective: Objective, g: Tensor, krylov: int, seed: int) -> _Space:
    space = Source(objective, "hessian").krylov(krylov, seed, start=g, stop=lambda s: bool(s.beta[-1] == 0))
    m = space.size
    extended = np.zeros((m + 1, m))
    extended[:m] = np.diag(space.alpha) + np.diag(space.beta[:-1], 1) + np.diag(space.beta[:-1], -1)
    extended[m, m - 1] = 0.0 if space.exhausted else space.beta[-1]
    left, singular, right = np.linalg.svd(extended, full_matrices=False)
    return _Space(space.basis, left[0], singular, right.T, float(np.hypot(space.alpha[0], extended[1, 0])))
