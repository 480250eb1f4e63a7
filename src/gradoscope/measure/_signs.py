"""How many eigenvalues of the Hessian are negative, zero and positive: counted in a small model, estimated in a large one."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.measure._source import Source
from gradoscope.measure.curvature import curvature_along, extreme_eigenvalues
from gradoscope.measure.geometry import batch_hessians
from gradoscope.objective import Objective

__all__ = ["Signs", "all_signs", "estimated_signs"]

PROBES = 4  # random starts whose quadratures estimate the index of a large model


@dataclass(frozen=True)
class Signs:
    """Eigenvalues, ascending, with residuals and tolerances, how many have which sign, and the length of Newton's step."""

    values: np.ndarray
    residuals: np.ndarray
    tolerance: np.ndarray
    negative: float
    zero: float
    positive: float
    se: float
    exact: bool
    distance: float


def all_signs(objective: Objective, gradient: Tensor, sampled: bool) -> Signs:
    """Every eigenvalue, from the whole Hessian. Cost: dim products with each batch's Hessian."""
    parts = batch_hessians(objective)
    whole = parts.mean(0)
    values, vectors = torch.linalg.eigh(whole)
    residuals = (whole @ vectors - vectors * values).norm(dim=0)
    rounding = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    # the Hessian itself is rounded, and taken a rounding error away from the point: hence never less than ten units
    tolerance = torch.full_like(values, max(len(values), 10) * rounding * float(values.abs().max()))
    if sampled and len(parts) > 1:
        along = torch.einsum("ij,kil,lj->kj", vectors, parts, vectors)
        tolerance = torch.maximum(tolerance, 1.96 * along.std(0) / math.sqrt(len(parts)))
    down, up = int((values < -tolerance).sum()), int((values > tolerance).sum())
    along = (vectors.T @ gradient.double().cpu()).numpy()
    distance = _distance(objective, values.numpy(), along, float(tolerance.max()))
    return Signs(values.numpy(), residuals.numpy(), tolerance.numpy(), down, len(values) - down - up, up, 0.0, True, distance)


def _distance(objective: Objective, values: np.ndarray, along: np.ndarray, tolerance: float) -> float:
    """The length of Newton's step, without what is rounding: of the gradient's parts, and of eigenvalues next to zero."""
    epsilon = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    noise = 4 * epsilon * float(np.abs(values).max()) * max(1.0, float(objective.theta().norm()))
    known = (np.abs(values) > tolerance) & (np.abs(along) > noise)
    return float(np.linalg.norm(along[known] / values[known]))


def estimated_signs(objective: Objective, gradient: Tensor, products: int, sampled: bool, seed: int) -> Signs:
    """The ends of the spectrum with residuals, and shares of the spectral density. Cost: `PROBES` Lanczos runs of `products`."""
    dim = objective.dim
    runs = [extreme_eigenvalues(objective, k=3, tolerance=1e-12, max_products=products, seed=seed + i) for i in range(PROBES)]
    first = runs[0]
    values = np.r_[first.bottom, first.top[::-1]]
    residuals = np.r_[first.bottom_residuals, first.top_residuals[::-1]]
    rounding = max(torch.finfo(p.dtype).eps for p in objective.parameters)
    tau = max(dim, 10) * rounding * float(np.abs(values).max())
    tolerance = np.full(len(values), tau)
    if sampled and len(objective.batches) > 1:
        vectors = torch.cat([first.bottom_vectors, first.top_vectors.flip(0)])
        widths = [1.96 * float(curvature_along(objective, v).se or 0.0) for v in vectors]
        tolerance = np.maximum(tolerance, widths)
    worst = float(tolerance.max())
    shares = np.array([[r.weights[r.nodes < -worst].sum(), r.weights[np.abs(r.nodes) <= worst].sum()] for r in runs])
    down, flat = shares.mean(0)
    sure_down = values[0] + residuals[0] < -tolerance[0]
    sure_up = values[-1] - residuals[-1] > tolerance[-1]
    above = values[0] - residuals[0] > tolerance[0]
    below = values[-1] + residuals[-1] < -tolerance[-1]
    # the ends decide what is there at all, the densities how much of it
    negative = max(down * dim, 1.0) if sure_down else 0.0
    positive = max((1 - down - flat) * dim, 1.0) if sure_up else 0.0
    zero = 0.0 if above or below else max(dim - negative - positive, 0.0 if sure_down and sure_up else 1.0)
    total = negative + zero + positive
    scale = dim / total if total > 0 else 1.0
    se = float(shares[:, 0].std(ddof=1)) / math.sqrt(PROBES)
    distance, norm = 0.0, float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if norm > 0:
        space = Source(objective, "hessian").krylov(products, seed, start=gradient, stop=lambda s: bool(s.beta[-1] == 0))
        nodes, coefficients = space.ritz()
        distance = _distance(objective, nodes, norm * coefficients[0], worst)
    return Signs(values, residuals, tolerance, negative * scale, zero * scale, positive * scale, se, False, distance)
