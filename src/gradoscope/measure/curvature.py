"""Curvature of the loss: extreme eigenvalues at both ends, spectral density, Newton directions, all from few products."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.measure._gauss_newton import gauss_newton_product
from gradoscope.measure._krylov import Krylov, Matvec, lanczos
from gradoscope.measure._newton import krylov_newton, newton_direction
from gradoscope.measure._source import Operator, Source, working_dtype
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = [
    "Krylov",
    "Spectrum",
    "curvature_along",
    "density",
    "extreme_eigenvalues",
    "gauss_newton_product",
    "krylov_newton",
    "lanczos",
    "newton_direction",
    "top_eigenvalues",
]


@dataclass(frozen=True)
class Spectrum:
    """Both ends of a spectrum and its density, from one Lanczos run.

    Attributes:
        top: the k largest eigenvalues, signed, descending, shape (k,).
        bottom: the k smallest, signed, ascending, shape (k,).
        top_residuals: bounds of |Hv - lambda v|; an eigenvalue lies within this distance of each value, shape (k,).
        bottom_residuals: the same for the bottom.
        top_vectors: unit eigenvectors as rows, shape (k, dim).
        bottom_vectors: the same for the bottom.
        nodes: nodes of the Gauss quadrature of the density that the start vector sees, ascending, shape (m,).
        weights: its weights, which sum to 1, shape (m,).
        products: how many matrix-vector products were spent.
        converged: whether all residuals are within the tolerance.
        symmetric_error: how far the operator was from symmetric, relative to its size.
        method: how the products were computed, and what limited them.
        cost: the passes spent.
    """

    top: np.ndarray
    bottom: np.ndarray
    top_residuals: np.ndarray
    bottom_residuals: np.ndarray
    top_vectors: Tensor
    bottom_vectors: Tensor
    nodes: np.ndarray
    weights: np.ndarray
    products: int
    converged: bool
    symmetric_error: float
    method: str
    cost: Cost = field(default_factory=Cost)

    def __repr__(self) -> str:
        ends = f"smallest={self.smallest:.4g}±{self.bottom_residuals[0]:.1g}, largest={self.largest:.4g}±{self.top_residuals[0]:.1g}"
        return f"Spectrum({ends}, products={self.products}, converged={self.converged}, method={self.method!r})"

    @property
    def largest(self) -> float:
        """The largest eigenvalue, with its sign."""
        return float(self.top[0])

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue, with its sign: negative at a saddle."""
        return float(self.bottom[0])

    @property
    def largest_magnitude(self) -> float:
        """The largest |eigenvalue|, which is what power iteration would find."""
        return max(abs(self.largest), abs(self.smallest))

    def to_measurement(self, step: int | None = None) -> Measurement:
        """The two ends with their residual bounds in place of standard errors."""
        return Measurement(
            "extreme_eigenvalues",
            {"largest": self.largest, "smallest": self.smallest, "largest_magnitude": self.largest_magnitude},
            se={
                "largest": float(self.top_residuals[0]),
                "smallest": float(self.bottom_residuals[0]),
                "largest_magnitude": float((self.top_residuals if self.largest >= -self.smallest else self.bottom_residuals)[0]),
            },
            step=step,
            method=self.method,
            cost=self.cost,
            details={
                "top": self.top,
                "bottom": self.bottom,
                "top_residuals": self.top_residuals,
                "bottom_residuals": self.bottom_residuals,
                "nodes": self.nodes,
                "weights": self.weights,
                "products": self.products,
                "converged": self.converged,
                "symmetric_error": self.symmetric_error,
            },
        )


def extreme_eigenvalues(
    objective: Objective,
    *,
    k: int = 1,
    tolerance: float = 1e-2,
    max_products: int = 40,
    seed: int = 0,
    operator: Operator | Matvec = "hessian",
    scale: Tensor | None = None,
) -> Spectrum:
    r"""The k largest and the k smallest eigenvalues with residual bounds, and the density, from one Lanczos run.

    The run ends as soon as all 2k residual bounds $|Hv-\lambda v|$ are at most `tolerance` times the largest
    magnitude, or after `max_products`. The error of an eigenvalue that stands apart from the others is far smaller than
    its residual. Each step tests at no cost whether the products are symmetric: a double backward that lies (an
    autograd function that is only once differentiable) is found out, and `objective` changes to finite differences.

    Args:
        objective: the loss.
        k: how many eigenvalues at each end.
        tolerance: the residual bound at which to stop, relative to the largest magnitude.
        max_products: the most products to spend; fewer where the basis would take more than 2 GB.
        seed: what the random start vector is drawn from.
        operator: "hessian", "gauss_newton", or a function v -> Av for symmetric A of shape (dim, dim).
        scale: a vector s >= 0, shape (dim,): the operator is then $S^{1/2}HS^{1/2}$, the curvature in the metric of a
            preconditioned step $-s\,g$ (see `measure.metric.preconditioner`).

    Returns:
        The spectrum. Of a multiple eigenvalue one copy is found before the space is exhausted.

    Raises:
        CannotRun: where a product is not finite.

    Cost: at most `max_products` products, usually 10 to 20 for k = 1; max_products * dim numbers of memory.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> model = torch.nn.ParameterList([weight])
        >>> saddle = Objective(model, lambda m, _: 5 * m[0][0] ** 2 - m[0][1] ** 2, [None])
        >>> spectrum = extreme_eigenvalues(saddle)
        >>> round(spectrum.largest, 6), round(spectrum.smallest, 6)
        (10.0, -2.0)

    Source: Golub and Van Loan, Matrix Computations, chapter 10; Ghorbani et al. 2019 for the density.
    """
    if k < 1 or tolerance <= 0 or max_products < 1:
        raise Usage(f"k and max_products must be at least 1 and tolerance positive, got {k}, {max_products}, {tolerance}.")
    source = Source(objective, operator)
    k, before = min(k, objective.dim), objective.cost
    space = source.krylov(max_products, seed, stop=lambda space: _done(space, k, tolerance), scale=scale)
    passes = Cost(*(getattr(objective.cost, f) - getattr(before, f) for f in ("forward", "backward", "examples")))
    return replace(
        _spectrum(space, k, tolerance),
        products=source.products,
        symmetric_error=source.asymmetry,
        cost=passes,
        method=f"Lanczos on the {source.name}, {source.method}",
    )


def _done(space: Krylov, k: int, tolerance: float) -> bool:
    """Whether both ends are known well enough.

    In an invariant space every eigenvalue has one copy only: k further start vectors find up to k copies of each.
    """
    if space.exhausted:
        return True
    invariant = space.beta[-1] == 0
    if space.size < k or (len(space.starts) < k and (invariant or len(space.starts) > 1)):
        return False
    # Small residuals in a small space can miss an eigenvector that the start vector hardly contains.
    dim = space.basis.shape[1]
    if not invariant and space.size < (dim if dim <= 16 else 2 * k + 4):
        return False
    values, coefficients = space.ritz()
    residuals = space.residuals(coefficients)
    ends = np.r_[residuals[:k], residuals[-k:]]
    return bool(ends.max() <= tolerance * np.abs(values).max())


def _spectrum(space: Krylov, k: int, tolerance: float) -> Spectrum:
    values, coefficients = space.ritz()
    residuals = space.residuals(coefficients)
    k = min(k, space.size)
    low, high = slice(0, k), slice(-1, -k - 1, -1)
    worst = max(residuals[low].max(), residuals[high].max())
    rounding = 4 * torch.finfo(space.basis.dtype).eps * space.scale
    return Spectrum(
        top=values[high].copy(),
        bottom=values[low].copy(),
        top_residuals=residuals[high].copy(),
        bottom_residuals=residuals[low].copy(),
        top_vectors=space.vectors(coefficients[:, high]),
        bottom_vectors=space.vectors(coefficients[:, low]),
        nodes=values,
        weights=coefficients[0] ** 2,
        products=space.size,
        converged=bool(worst <= max(tolerance * np.abs(values).max(), rounding)),
        symmetric_error=space.asymmetry,
        method="Lanczos",
    )


def top_eigenvalues(objective: Objective, k: int = 5, *, tolerance: float = 1e-3, max_products: int = 80, seed: int = 0) -> Measurement:
    r"""The k largest eigenvalues of the Hessian, signed, descending, with residual bounds as `se`.

    Args:
        objective: the loss.
        k: how many.
        tolerance: the residual bound at which to stop, relative to the largest magnitude.
        max_products: the most Hessian-vector products to spend.
        seed: what the start vector is drawn from.

    Returns:
        A measurement with `value` and `se` of shape (k,); the whole `Spectrum` is in `details["spectrum"]`.

    Cost: at most `max_products` Hessian-vector products.

    Example:
        >>> model = torch.nn.Linear(3, 1, bias=False).double()
        >>> x = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
        >>> top_eigenvalues(Objective(model, lambda m, b: m(b).square().sum() / 2, [x]), k=2).value.round(6).tolist()
        [9.0, 4.0]
    """
    spectrum = extreme_eigenvalues(objective, k=k, tolerance=tolerance, max_products=max_products, seed=seed)
    return Measurement(
        "top_eigenvalues",
        spectrum.top,
        se=spectrum.top_residuals,
        method=spectrum.method,
        cost=spectrum.cost,
        details={"spectrum": spectrum},
    )


def density(spectrum: Spectrum, grid: np.ndarray | None = None, width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    r"""The spectral density $\sum_i w_i\,N(x;\lambda_i,\sigma^2)$ on a grid.

    Args:
        spectrum: what `extreme_eigenvalues` returned; a run that did not stop early (a small tolerance) shows more.
        grid: where to evaluate, shape (n,); 400 points over the spectrum and five widths more by default.
        width: the standard deviation $\sigma$; 1% of the spectrum's range by default.

    Returns:
        The grid and the density on it, which integrates to 1.

    Cost: none.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.eye(2).double()])
        >>> x, p = density(extreme_eigenvalues(objective))
        >>> round(float(p.sum() * (x[1] - x[0])), 4)
        1.0

    Source: Lin, Saad and Yang 2016, Approximating spectral densities of large matrices.
    """
    nodes, weights = spectrum.nodes, spectrum.weights
    if width is None:
        span = float(nodes.max() - nodes.min())
        width = 0.01 * (span if span > 1e-9 * np.abs(nodes).max() else float(np.abs(nodes).max()) or 1.0)
    if grid is None:
        grid = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, 400)
    z = (grid[:, None] - nodes) / width
    return grid, np.exp(-0.5 * z**2) @ weights / (width * math.sqrt(2 * math.pi))


def curvature_along(objective: Objective, direction: Tensor) -> Measurement:
    r"""The curvature $v^\top Hv/v^\top v$ along a direction, with its standard error over the batches.

    Args:
        objective: the loss; choose v on other batches, or the estimate is biased towards what v was chosen for.
        direction: v, shape (dim,), not zero.

    Returns:
        A measurement; the K values of the batches are in `details["by_batch"]`.

    Cost: one Hessian-vector product.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.eye(2)])
        >>> curvature_along(objective, torch.tensor([3.0, 0.0])).value
        2.0
    """
    v = direction.detach().double()
    products = objective.batch_hvps(direction.detach().to(working_dtype(objective))).double()
    values = ((products @ v) / torch.dot(v, v)).cpu().numpy()
    count = len(values)
    se = float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Measurement(
        "curvature_along", float(values.mean()), se=se, n=count, unit="loss", method=objective.method, details={"by_batch": values}
    )
