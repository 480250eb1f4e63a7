"""Both ends of a spectrum and its density, from a Krylov space; when they are known well enough."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.measure._krylov import Krylov
from gradoscope.measurement import Cost, Measurement
from gradoscope.objective import Objective

__all__ = ["Accuracy", "Asked", "Ends", "Spectrum", "spectrum_of"]

Ends = Literal["both", "top", "bottom"]
Accuracy = Literal["vectors", "values"]
FRESH = 0.1  # the share of a random vector in a warm start: what is new since then has to be able to show


@dataclass(frozen=True)
class Spectrum:
    r"""Both ends of a spectrum and its density, from one Lanczos run.

    Attributes:
        top: the k largest eigenvalues, signed, descending, shape (k,).
        bottom: the k smallest, signed, ascending, shape (k,).
        top_residuals: bounds of |Hv - lambda v|; an eigenvalue lies within this distance of each value, shape (k,).
        bottom_residuals: the same for the bottom.
        top_vectors: unit eigenvectors as rows, shape (k, dim).
        bottom_vectors: the same for the bottom.
        nodes: nodes of the Gauss quadrature of the density that the start vector sees, ascending, shape (m,).
        weights: its weights, which sum to 1, shape (m,).
        top_errors: estimates of the errors of the eigenvalues at the top, $\min(r, r^2/\mathrm{gap})$, shape (k,). The gap is that to the
            nearest other value found, less twice its residual; it presumes that no eigenvalue between them was missed.
        bottom_errors: the same for the bottom.
        products: how many matrix-vector products were spent.
        converged: whether what was asked for is within the tolerance.
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
    top_errors: np.ndarray
    bottom_errors: np.ndarray
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


class Asked:
    """What a run has to find, and when it is found."""

    def __init__(self, k: int, tolerance: float, ends: Ends, accuracy: Accuracy, start: Spectrum | None) -> None:
        self.k, self.tolerance, self.ends, self.accuracy, self.start = k, tolerance, ends, accuracy, start
        self._close = 0  # the size of the space when the values were last close enough

    def first(self, objective: Objective, seed: int) -> Tensor | None:
        """The start vector: that of a warm start, or None for a random one."""
        if self.start is None:
            return None
        parts = {"top": [self.start.top_vectors], "bottom": [self.start.bottom_vectors]}
        kept = torch.cat([v[: self.k] for end in ("top", "bottom") if self.ends in ("both", end) for v in parts[end]])
        if kept.shape[1] != objective.dim:
            raise Usage(
                f"`start` has vectors of {kept.shape[1]} entries, but the objective has {objective.dim}: it belongs to other parameters."
            )
        fresh = torch.randn(objective.dim, generator=torch.Generator().manual_seed(seed)).to(kept)
        first: Tensor = kept.sum(0) + FRESH * fresh / torch.linalg.vector_norm(fresh)
        return first

    def places(self, size: int) -> np.ndarray:
        """Where the eigenvalues asked for stand among the Ritz values."""
        low, high = np.arange(size)[: self.k], np.arange(size)[-self.k :]
        return high if self.ends == "top" else low if self.ends == "bottom" else np.r_[low, high]

    def gaps(self, values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        """How far each Ritz value is from the nearest other one, less twice that one's residual; no more than it was at the warm start."""
        apart = np.abs(values[:, None] - values) - 2 * residuals
        np.fill_diagonal(apart, np.inf)
        gaps = apart.min(axis=1)
        if self.start is not None and len(self.start.nodes) > self.k:
            old = np.diff(self.start.nodes)
            near, far = (np.minimum(old[::-1], np.r_[np.inf, old[::-1][:-1]])[: self.k], np.minimum(old, np.r_[np.inf, old[:-1]])[: self.k])
            count = min(self.k, len(gaps))
            gaps[-count:] = np.minimum(gaps[-count:], near[:count][::-1])
            gaps[:count] = np.minimum(gaps[:count], far[:count])
        return np.asarray(gaps)

    def errors(self, values: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        gaps = self.gaps(values, residuals)
        with np.errstate(divide="ignore", invalid="ignore"):
            squared = np.where(gaps > 0, residuals**2 / gaps, np.inf)
        return np.asarray(np.minimum(residuals, squared))

    def met(self, values: np.ndarray, residuals: np.ndarray) -> bool:
        places = self.places(len(values))
        if self.accuracy == "values":
            return bool((self.errors(values, residuals)[places] <= self.tolerance * np.abs(values[places])).all())
        return bool(residuals[places].max() <= self.tolerance * np.abs(values).max())

    def done(self, space: Krylov) -> bool:
        """Whether the ends are known well enough.

        In an invariant space every eigenvalue has one copy only: k further start vectors find up to k copies of each.
        """
        if space.exhausted:
            return True
        invariant = space.beta[-1] == 0
        if space.size < self.k or (len(space.starts) < self.k and (invariant or len(space.starts) > 1)):
            return False
        # Small residuals in a small space can miss an eigenvector that the start vector hardly contains.
        dim = space.basis.shape[1]
        least = 2 * self.k + 4 if self.start is None else self.k + 1
        if not invariant and space.size < (dim if dim <= 16 else least):
            return False
        values, coefficients = space.ritz()
        met = self.met(values, space.residuals(coefficients))
        if self.accuracy == "vectors" or self.start is not None or not met:
            return met
        # A gap that is too wide, as a neighbour was not found yet, seldom stays so for two steps.
        before, self._close = self._close, space.size
        return before == space.size - 1


def spectrum_of(space: Krylov, asked: Asked, error: float) -> Spectrum:
    """What a Krylov space knows of the ends of a spectrum, where each product has a relative error of at most `error`."""
    values, coefficients = space.ritz()
    residuals = space.residuals(coefficients) + error * np.abs(values)
    errors = asked.errors(values, residuals) if error == 0 else residuals
    k = min(asked.k, space.size)
    low, high = slice(0, k), slice(-1, -k - 1, -1)
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
        top_errors=errors[high].copy(),
        bottom_errors=errors[low].copy(),
        products=space.size,
        converged=asked.met(values, residuals) or bool(residuals[asked.places(space.size)].max() <= rounding),
        symmetric_error=space.asymmetry,
        method="Lanczos",
    )
