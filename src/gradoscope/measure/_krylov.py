"""Lanczos: a Krylov space of a symmetric operator, with an orthonormal basis that stays orthonormal."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import CannotRun

__all__ = ["Krylov", "Matvec", "lanczos"]

Matvec = Callable[[Tensor], Tensor]


@dataclass
class Krylov:
    r"""What m steps of Lanczos know of an operator A: $AQ = QT + \beta_m q_{m+1}e_m^\top + F$.

    Attributes:
        basis: the orthonormal rows q, shape (m, dim).
        alpha: the diagonal of T, shape (m,).
        beta: below it, and the norm of what is left after the last step, shape (m,).
        discarded: the norms of the columns of F, what T leaves out: zero for a symmetric operator, shape (m,).
        starts: the steps at which a new start vector was taken, as the space before was invariant.
        scale: the largest entry of T in magnitude, a lower bound of the norm of A.
        asymmetry: the largest discarded part relative to the scale when it was seen.
    """

    basis: Tensor
    alpha: np.ndarray
    beta: np.ndarray
    discarded: np.ndarray
    starts: list[int] = field(default_factory=lambda: [0])
    scale: float = 0.0
    asymmetry: float = 0.0

    @property
    def size(self) -> int:
        """The number of steps m, which is the number of products spent."""
        return len(self.alpha)

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size == self.basis.shape[1]

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """The eigenvalues of T, ascending, shape (m,), and its eigenvectors as columns, shape (m, m)."""
        values, vectors = np.linalg.eigh(np.diag(self.alpha) + np.diag(self.beta[:-1], 1) + np.diag(self.beta[:-1], -1))
        return values, vectors

    def residuals(self, coefficients: np.ndarray) -> np.ndarray:
        r"""Bounds of $|Av-\lambda v|$ for the Ritz vectors with these columns: $\beta_m|s_m|+\sum_j|s_j||F_j|$ and rounding."""
        rounding = 4 * torch.finfo(self.basis.dtype).eps * self.scale
        left = 0.0 if self.exhausted else self.beta[-1]
        bound: np.ndarray = left * np.abs(coefficients[-1]) + self.discarded @ np.abs(coefficients) + rounding
        return bound

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """The Ritz vectors with these columns of coefficients (m, k) as rows, shape (k, dim)."""
        return torch.as_tensor(coefficients.T.copy(), dtype=self.basis.dtype, device=self.basis.device) @ self.basis


def lanczos(
    matvec: Matvec,
    dim: int,
    *,
    steps: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device | str,
    start: Tensor | None = None,
    stop: Callable[[Krylov], bool] | None = None,
) -> Krylov:
    r"""Build an orthonormal basis of $\mathrm{span}(q, Aq, A^2q, \dots)$ in which a symmetric A is tridiagonal.

    Every new vector is orthogonalised against all earlier ones, as often as it takes, so that no eigenvalue appears as a ghost copy of
    another. Where the space is invariant, a random start vector outside it takes over: further copies of multiple
    eigenvalues come from there.

    Args:
        matvec: v -> A v, both of shape (dim,).
        dim: the dimension.
        steps: the most products to spend; at most `dim` are.
        generator: where start vectors are drawn from (on the CPU, whatever the device).
        dtype: the type of the basis.
        device: where the basis lives.
        start: the first vector, shape (dim,), of any length but zero; random and normal by default.
        stop: asked after each step; True ends the run.

    Returns:
        The space, of `size` steps.

    Raises:
        CannotRun: where a product is not finite.

    Cost: `steps` products; steps * dim numbers of memory, which is what bounds `steps` for large models.

    Example:
        >>> A = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
        >>> space = lanczos(
        ...     lambda v: A @ v, 3, steps=3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
        ... )
        >>> space.ritz()[0].round(6).tolist()
        [-2.0, 1.0, 3.0]

    Source: Golub and Van Loan, Matrix Computations, chapter 10.
    """
    steps = max(1, min(steps, dim))
    rows = torch.empty((steps, dim), dtype=dtype, device=device)
    epsilon = torch.finfo(dtype).eps

    def draw() -> Tensor:
        return torch.randn(dim, generator=generator, dtype=torch.float32 if dtype != torch.float64 else dtype).to(device, dtype)

    first = draw() if start is None else start.detach().to(device, dtype)
    length = _norm(first)
    rows[0] = first / length if length > 0 else _normal(draw())
    space = Krylov(rows[:1], np.zeros(0), np.zeros(0), np.zeros(0))
    for j in range(steps):
        product = matvec(rows[j]).detach().to(device, dtype)
        space.basis = rows[: j + 1]
        alpha = float(torch.dot(rows[j].double(), product.double()))
        linked = j > 0 and space.beta[-1] > 0
        rest = product - alpha * rows[j] - (space.beta[-1] * rows[j - 1] if linked else 0.0)
        rest, overlap = _orthogonalise(rest, space.basis)
        beta = _norm(rest)
        if not np.isfinite(alpha) or not np.isfinite(beta):
            raise CannotRun("the curvature is not finite here: look for NaN or infinity in the loss, its gradient or the parameters.")
        discarded = float(np.linalg.norm(overlap))  # alpha and beta are kept, what else there is along the basis is not
        space.scale = max(space.scale, abs(alpha), beta)
        space.asymmetry = max(space.asymmetry, discarded / space.scale if space.scale > 0 else 0.0)
        broken = beta <= 16 * epsilon * space.scale
        space.alpha, space.discarded = np.append(space.alpha, alpha), np.append(space.discarded, discarded)
        space.beta = np.append(space.beta, 0.0 if broken else beta)
        if (stop is not None and stop(space)) or j + 1 == steps:
            break
        following = _normal(_orthogonalise(draw(), space.basis)[0] if broken else rest)
        if broken or beta < 1e-3 * _norm(product):
            # Dividing by a small norm magnified what is left of the earlier vectors: hence once more.
            following = _normal(_orthogonalise(following, space.basis)[0])
        rows[j + 1] = following
        if broken:
            space.starts.append(j + 1)
    return space


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _normal(v: Tensor) -> Tensor:
    return v / _norm(v)


def _orthogonalise(v: Tensor, basis: Tensor) -> tuple[Tensor, np.ndarray]:
    """Classical Gram-Schmidt, again where much of v was in the basis: what is left of v, and its coordinates in the basis."""
    total = torch.zeros(len(basis), dtype=torch.float64)
    before = _norm(v)
    for _ in range(3):
        part = basis @ v
        v = v - part @ basis
        total += part.double().cpu()
        after = _norm(v)
        if after > 0.7 * before:
            break
        before = after
    return v, total.numpy()
