"""Curvature of the loss: extreme eigenvalues at both ends, spectral density, Newton directions, all from few products."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.measure._gauss_newton import gauss_newton_product
from gradoscope.measure._krylov import Krylov, Matvec, lanczos
from gradoscope.measure._newton import krylov_newton, newton_direction
from gradoscope.measure._source import Operator, Source, working_dtype
from gradoscope.measure._spectrum import Accuracy, Asked, Ends, Spectrum, spectrum_of
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = [
    "Krylov",
    "Spectrum",
    "block_spectra",
    "curvature_along",
    "density",
    "extreme_eigenvalues",
    "gauss_newton_product",
    "krylov_newton",
    "lanczos",
    "newton_direction",
    "top_eigenvalues",
]


def extreme_eigenvalues(
    objective: Objective,
    *,
    k: int = 1,
    tolerance: float = 1e-2,
    max_products: int = 40,
    seed: int = 0,
    operator: Operator | Matvec = "hessian",
    scale: Tensor | None = None,
    ends: Ends = "both",
    accuracy: Accuracy = "vectors",
    start: Spectrum | None = None,
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
        ends: at which end the run has to converge. The other end is told as well, as far as it is known by then.
        accuracy: "vectors" stops on residuals, as said above. "values" stops as soon as the error $\min(r, r^2/\mathrm{gap})$ of each
            eigenvalue asked for is at most `tolerance` times that eigenvalue, and so did at the step before: about half the products.
        start: the spectrum at an earlier point of the training. Its eigenvectors, with a random vector a tenth as long, begin the run;
            the density of such a run is not that of the matrix.

    Returns:
        The spectrum. Where products are finite differences, their estimated error is part of the residuals. Of a multiple
        eigenvalue one copy is found before the space is exhausted.

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
    if ends not in ("both", "top", "bottom") or accuracy not in ("vectors", "values"):
        raise Usage(f"`ends` is 'both', 'top' or 'bottom' and `accuracy` 'vectors' or 'values', got {ends!r} and {accuracy!r}.")
    k, before = min(k, objective.dim), objective.cost
    asked = Asked(k, tolerance, ends, accuracy, start)
    space = source.krylov(max_products, seed, stop=asked.done, start=asked.first(objective, seed), scale=scale)
    passes = Cost(*(getattr(objective.cost, f) - getattr(before, f) for f in ("forward", "backward", "examples")))
    differences = source.name == "hessian" and objective.method != "autograd"
    error = objective.difference_error if differences and math.isfinite(objective.difference_error) else 0.0
    return replace(
        spectrum_of(space, asked, error),
        products=source.products,
        symmetric_error=source.asymmetry,
        cost=passes,
        method=f"Lanczos on the {source.name}, {source.method}",
    )


def block_spectra(objective: Objective, blocks: Mapping[str, Sequence[str]] | None = None, **options: Any) -> dict[str, Spectrum]:
    r"""Both ends of the spectrum of each diagonal block $\partial^2J/\partial\theta_b^2$: of each layer, or of chosen parameters.

    Args:
        objective: the loss.
        blocks: name to names of parameters; by default each module that owns trainable parameters is a block.
        options: what `extreme_eigenvalues` takes; an `operator` by its name.

    Returns:
        Block to its spectrum.

    Raises:
        Usage: where a block names a parameter that is not there.

    Cost: for each block that of `extreme_eigenvalues`, with gradients by its own parameters only.

    Example:
        >>> model = torch.nn.Linear(2, 1).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.eye(2).double()])
        >>> found = block_spectra(objective, {"weight": ["weight"], "bias": ["bias"]})
        >>> round(found["weight"].largest, 6), round(found["bias"].largest, 6)
        (2.0, 4.0)
    """
    if blocks is None:
        groups: dict[str, list[str]] = {}
        for name, _ in objective.named:
            groups.setdefault(name.rpartition(".")[0] or type(objective.model).__name__, []).append(name)
        blocks = groups
    return {block: extreme_eigenvalues(objective.restricted(names), **options) for block, names in blocks.items()}


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

    Where the product had to be a finite difference, its estimated error is added to the standard error (in squares).

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
    if objective.method != "autograd" and math.isfinite(objective.difference_error):
        se = math.hypot(se or 0.0, objective.difference_error * float(products.norm(dim=1).mean() / v.norm()))
    return Measurement(
        "curvature_along", float(values.mean()), se=se, n=count, unit="loss", method=objective.method, details={"by_batch": values}
    )
