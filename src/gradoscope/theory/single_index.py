"""Learning u(<w, x>) without u's derivative: GLMtron, Isotron, and how many iterations they need."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradoscope.errors import Usage

__all__ = ["Trajectory", "error_bound", "glmtron", "isotron", "iterations_bound", "second_moment"]


@dataclass(frozen=True)
class Trajectory:
    """A run of GLMtron or Isotron.

    Attributes:
        weights: after the last iteration, shape (..., d).
        errors: the mean squared error before each iteration and after the last, shape (T + 1, ...).
        distances: the squared distance to the target's weights at the same points, shape (T + 1, ...); None where they were
            not given.
    """

    weights: Tensor
    errors: Tensor
    distances: Tensor | None


def second_moment(x: Tensor) -> Tensor:
    r"""$B^2=\lambda_{\max}\big(\frac1n\sum_i x_ix_i^\top\big)$, at most the largest squared norm of an example.

    Args:
        x: shape (..., n, d).

    Returns:
        Shape (...).

    Cost: n d^2 multiplications and one eigendecomposition of a d x d matrix.

    Example:
        >>> float(second_moment(torch.tensor([[2.0, 0.0], [0.0, 2.0]])))
        2.0
    """
    found: Tensor = torch.linalg.eigvalsh(x.mT @ x / x.shape[-2])[..., -1]
    return found


def error_bound(lipschitz: float, moment: float, distance: float, steps: int) -> float:
    r"""The most that the best error of T iterations of GLMtron or Isotron can be: $\min_{t<T}\varepsilon_t\le L^2B^2\|w_0-w^*\|^2/T$.

    Theorem (noise-free, on the sample). Let $y_i=u(\langle w^*,x_i\rangle)$ with u nondecreasing and L-Lipschitz,
    $\varepsilon_t=\frac1n\sum_i(\hat y_i-y_i)^2$ and step size $1/(LB^2)$. Then every iteration has
    $\|w_t-w^*\|^2-\|w_{t+1}-w^*\|^2\ge\varepsilon_t/(L^2B^2)$, and the sum over t gives the bound.

    Proof. With $e_i=\hat y_i-y_i$, $\Delta=w_t-w^*$ and step $\lambda$, the left side is
    $2\lambda\frac1n\sum_i e_i\langle\Delta,x_i\rangle-\lambda^2\|\frac1n\sum_i e_ix_i\|^2$. The last square is at most
    $B^2\varepsilon_t$. For GLMtron $\hat y_i=u(\langle w_t,x_i\rangle)$, so $e_i\langle\Delta,x_i\rangle\ge e_i^2/L$, as u rises by at
    most L times its argument.
    For Isotron $\hat y$ is the isotonic fit: the residuals sum to zero on each of its blocks, and
    $\sum_i e_i\langle w_t,x_i\rangle\ge 0$; any $s(\hat y_i)$ with $u(s)=\hat y_i$ is constant on blocks, so
    $-\sum_i e_i\langle w^*,x_i\rangle=-\sum_i e_i(\langle w^*,x_i\rangle-s(\hat y_i))\ge\sum_i e_i^2/L$ again. So the left side is at least
    $(2\lambda/L-\lambda^2B^2)\,\varepsilon_t$, which is largest at $\lambda=1/(LB^2)$.

    Args:
        lipschitz: L.
        moment: $B^2$, see `second_moment`.
        distance: $\|w_0-w^*\|$.
        steps: T, at least 1.

    Returns:
        A bound on the smallest mean squared error among the first T iterates, $w_0$ included.

    Raises:
        Usage: where T is less than 1.

    Example:
        >>> error_bound(lipschitz=2.0, moment=1.0, distance=5.0, steps=100)
        1.0

    Source: Kalai and Sastry 2009; Kakade, Kalai, Kanade and Shamir 2011, theorem 1, whose L and B are 1; the constants for
    other L and B, and for Isotron on one sample without noise, follow from the proof above.
    """
    if steps < 1:
        raise Usage(f"steps must be at least 1, got {steps}.")
    return lipschitz**2 * moment * distance**2 / steps


def iterations_bound(lipschitz: float, moment: float, distance: float, epsilon: float) -> int:
    r"""Iterations that suffice for a root mean squared error of $\epsilon$: $\lceil L^2B^2\|w_0-w^*\|^2/\epsilon^2\rceil$.

    This is the sources' $O(L^2/\epsilon^2)$, with $\epsilon$ in the units of y; in terms of the mean squared error it is $O(L^2/\epsilon)$.

    Args:
        lipschitz: L.
        moment: $B^2$, see `second_moment`.
        distance: $\|w_0-w^*\|$.
        epsilon: root mean squared error, in units of y.

    Raises:
        Usage: where epsilon is not positive.

    Example:
        >>> iterations_bound(lipschitz=2.0, moment=1.0, distance=5.0, epsilon=0.1)
        10000
    """
    if epsilon <= 0:
        raise Usage(f"epsilon must be positive, got {epsilon}.")
    # The quotient of two doubles can lie a rounding above a whole number.
    return math.ceil(lipschitz**2 * moment * distance**2 / epsilon**2 * (1 - 1e-12))


def glmtron(
    x: Tensor,
    y: Tensor,
    u: Callable[[Tensor], Tensor],
    *,
    steps: int,
    lipschitz: float = 1.0,
    step_size: Tensor | float | None = None,
    target: Tensor | None = None,
) -> Trajectory:
    r"""GLMtron: $w\leftarrow w+\lambda\frac1n\sum_i(y_i-u(\langle w,x_i\rangle))\,x_i$ from w = 0, for a known u.

    It is gradient descent on the squared loss with 1 in place of u'; a bias is a column of ones in x.

    Args:
        x: shape (n, d), or (S, n, d) for S problems side by side.
        y: shape (n,) or (S, n).
        u: nondecreasing, on tensors of y's shape.
        steps: T iterations.
        lipschitz: L of u, for the step size.
        step_size: $\lambda$; $1/(LB^2)$ by default.
        target: w*, shape (d,) or (S, d), to have the distance to it noted.

    Cost: two products with x per iteration.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> w = torch.tensor([2.0, -1.0])
        >>> run = glmtron(x, torch.relu(x @ w), torch.relu, steps=200)
        >>> bool(run.errors[-1] < 1e-6)
        True

    Source: Kakade, Kalai, Kanade and Shamir 2011, algorithm 1, whose step size is 1.
    """
    return _run(x, y, lambda r, _: u(r), steps, lipschitz, step_size, target)


def isotron(
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lipschitz: float = 1.0,
    step_size: Tensor | float | None = None,
    target: Tensor | None = None,
) -> Trajectory:
    r"""Isotron: GLMtron for an unknown u, replaced in each iteration by the isotonic regression of y on $\langle w,x_i\rangle$.

    One sample is used for all iterations, as in the variants of 2011; the original draws a fresh one for each.

    Args:
        x: shape (n, d), or (S, n, d).
        y: shape (n,) or (S, n).
        steps: T iterations.
        lipschitz: L of the unknown u, for the step size alone.
        step_size: $\lambda$; $1/(LB^2)$ by default.
        target: w*, to have the distance to it noted.

    Cost: two products with x and one sort of n numbers per iteration.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 2.0]])
        >>> y = torch.sign(x @ torch.tensor([2.0, -1.0]))
        >>> bool(isotron(x, y, steps=50).errors[-1] == 0)
        True

    Source: Kalai and Sastry 2009.
    """
    from sklearn.isotonic import IsotonicRegression

    fit = IsotonicRegression(out_of_bounds="clip")

    def one(r: Tensor, target: Tensor) -> Tensor:
        return torch.as_tensor(fit.fit_transform(r.cpu().numpy(), target.cpu().numpy()), dtype=r.dtype, device=r.device)

    def isotonic(r: Tensor, target: Tensor) -> Tensor:
        rows = zip(r.reshape(-1, r.shape[-1]), target.reshape(-1, r.shape[-1]), strict=True)
        return torch.stack([one(*row) for row in rows]).reshape(r.shape)

    return _run(x, y, isotonic, steps, lipschitz, step_size, target)


@torch.no_grad()
def _run(
    x: Tensor,
    y: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lipschitz: float,
    step_size: Tensor | float | None,
    target: Tensor | None,
) -> Trajectory:
    if x.shape[:-1] != y.shape or steps < 1:
        raise Usage(
            f"x of shape (..., n, d) needs y of shape (..., n) and at least one step, got {tuple(x.shape)}, {tuple(y.shape)}, {steps}."
        )
    rate = 1 / (lipschitz * second_moment(x)) if step_size is None else torch.as_tensor(step_size, dtype=x.dtype)
    w = x.new_zeros(*x.shape[:-2], x.shape[-1])
    errors, distances = [], []
    for step in range(steps + 1):
        error = predict((x @ w.unsqueeze(-1)).squeeze(-1), y) - y
        errors.append(error.square().mean(-1))
        if target is not None:
            distances.append((w - target).square().sum(-1))
        if step < steps:
            w = w - rate.unsqueeze(-1) * (error.unsqueeze(-2) @ x).squeeze(-2) / x.shape[-2]
    return Trajectory(w, torch.stack(errors), torch.stack(distances) if distances else None)
