"""Directions through parameter space along which a landscape is drawn: random, principal, of the Hessian, through three points."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective

__all__ = ["Eigen", "Plane", "Principal", "hessian", "plane", "principal", "random"]


class Principal(NamedTuple):
    """Principal components of a path.

    Attributes:
        directions: orthonormal rows, by decreasing share, shape (k, dim).
        shares: the share of the path's variance that each explains, shape (k,).
        centre: what the path was centred on, shape (dim,).
        coordinates: the path's points in the plane through the centre, shape (T, k).
    """

    directions: Tensor
    shares: np.ndarray
    centre: Tensor
    coordinates: np.ndarray


class Eigen(NamedTuple):
    """Eigenvectors of the Hessian.

    Attributes:
        directions: unit rows, shape (k, dim).
        values: their eigenvalues, signed, shape (k,).
        residuals: bounds of |Hv - lambda v|, shape (k,).
        converged: whether the residuals are within the tolerance that was asked for.
        method: how the products were computed.
    """

    directions: Tensor
    values: np.ndarray
    residuals: np.ndarray
    converged: bool
    method: str


class Plane(NamedTuple):
    """The plane through three points.

    Attributes:
        origin: the first point, shape (dim,).
        directions: two orthonormal rows, the first towards the second point, shape (2, dim).
        coordinates: of the three points, shape (3, 2).
    """

    origin: Tensor
    directions: Tensor
    coordinates: np.ndarray


def random(
    objective: Objective,
    generator: torch.Generator,
    *,
    k: int = 2,
    normalise: Literal["filter", "layer", "none"] = "filter",
    keep_vectors: bool = False,
) -> Tensor:
    r"""Gaussian directions scaled like the parameters: $d_{ij}\leftarrow\lVert\theta_{ij}\rVert\,d_{ij}/\lVert d_{ij}\rVert$ per filter.

    A network with ReLUs computes the same when one layer is scaled up and the next one down; a step of fixed length would then look
    steeper or flatter. Directions of the parameters' own size do not depend on that. A filter is what makes one output: a row of a
    matrix, a slice `weight[i]` of anything with two dimensions or more.

    Args:
        objective: gives the parameters, which are read where they stand.
        generator: where the normal numbers are drawn from (on the CPU, whatever the device).
        k: how many.
        normalise: "filter"; "layer", which scales a whole tensor to the parameter's norm; or "none".
        keep_vectors: whether biases and the parameters of normalisation layers take part. By default their part is zero, as in
            the source; where a model has nothing else, they take part all the same. With "none" they always take part.

    Returns:
        Rows, shape (k, dim), of the parameters' type.

    Cost: no passes.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.eye(3)])
        >>> d = random(objective, torch.Generator().manual_seed(0), k=1)[0]
        >>> bool(torch.allclose(d[:3].norm(), model.weight[0].norm())), d[6:].tolist()
        (True, [0.0, 0.0])

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, Visualizing the loss landscape of neural nets, section 4.
    """
    if normalise not in ("filter", "layer", "none"):
        raise Usage(f"`normalise` must be 'filter', 'layer' or 'none', got {normalise!r}.")
    if k < 1:
        raise Usage(f"`k` must be at least 1, got {k}.")
    flat_ones = [] if keep_vectors or normalise == "none" else [not _has_filters(objective, p) for p in objective.parameters]
    left_out = flat_ones if not all(flat_ones) else [False] * len(flat_ones)
    rows = []
    for _ in range(k):
        parts = []
        for i, p in enumerate(objective.parameters):
            d = torch.randn(p.shape, generator=generator, dtype=torch.float64 if p.dtype == torch.float64 else torch.float32).to(p)
            if left_out and left_out[i]:
                d = torch.zeros_like(d)
            elif normalise == "filter" and p.dim() > 1:
                d = d * _ratio(p.detach().flatten(1).norm(dim=1), d.flatten(1).norm(dim=1)).reshape(-1, *[1] * (p.dim() - 1))
            elif normalise != "none":
                d = d * _ratio(p.detach().norm(), d.norm())
            parts.append(d.reshape(-1))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def _ratio(wanted: Tensor, has: Tensor) -> Tensor:
    return torch.where(has > 0, wanted / has.clamp_min(torch.finfo(has.dtype).tiny), torch.zeros_like(has))


def _has_filters(objective: Objective, p: Tensor) -> bool:
    """Whether a parameter is a matrix or a kernel, and not a bias or a normalisation's scale."""
    if p.dim() < 2:
        return False
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    return not any(p is q for m in objective.model.modules() if isinstance(m, norms) for q in m.parameters(recurse=False))


def principal(path: Tensor | Sequence[Tensor], k: int = 2, *, centre: Literal["mean", "end"] = "mean") -> Principal:
    r"""The directions in which a path varies most: the leading right singular vectors of its centred points.

    Args:
        path: the points, shape (T, dim), T >= 2.
        k: how many directions.
        centre: "mean" (principal components proper), or "end": of the differences to the last point, so that the plane goes through it.

    Returns:
        The directions, the share of the sum of squares that each explains, the centre and the coordinates. A path that does not span k
        directions is completed by random orthogonal ones with share zero.

    Cost: no passes; a Gram matrix of T squared products.

    Example:
        >>> path = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [3.0, 1.0, 0.0]])
        >>> principal(path).shares.sum().round(6)
        np.float64(1.0)

    Note:
        A random walk in many dimensions has a first share near 6/pi^2, and smooth curves as coordinates: read no structure into that
        alone (Antognini and Sohl-Dickstein 2018).
    """
    points = path if isinstance(path, Tensor) else torch.stack(list(path))
    if points.dim() != 2 or len(points) < 2 or not 1 <= k <= points.shape[1]:
        raise Usage(f"a path needs at least two points, shape (T, dim), and 1 <= k <= dim; got shape {tuple(points.shape)}, k = {k}.")
    dtype = points.dtype
    points = points.detach().double()
    middle = points.mean(0) if centre == "mean" else points[-1]
    shifted = points - middle
    values, vectors = torch.linalg.eigh(shifted @ shifted.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = float(values.sum())
    most = min(k, len(values))
    rank = int((values[:most] > 1e-13 * float(values[0])).sum()) if total > 0 else 0
    rows = vectors[:, :rank].T @ shifted
    basis = _complete(rows, k)
    shares = np.zeros(k)
    shares[:rank] = (values[:rank] / total).cpu().numpy() if total > 0 else 0.0
    return Principal(basis.to(dtype), shares, middle.to(dtype), (shifted @ basis.T).cpu().numpy())


def _complete(rows: Tensor, k: int) -> Tensor:
    """Orthonormal rows that span `rows` in their order, and as many random ones as are lacking; the signs are those of `rows`."""
    random_rows = torch.randn(k - len(rows), rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=rows.dtype).to(rows.device)
    q, r = torch.linalg.qr(torch.cat([rows, random_rows]).T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    basis: Tensor = (q * signs).T.contiguous()
    return basis


def hessian(
    objective: Objective,
    k: int = 2,
    which: Literal["largest", "smallest", "both"] = "largest",
    *,
    tolerance: float = 1e-2,
    max_products: int = 60,
    seed: int = 0,
) -> Eigen:
    r"""Eigenvectors of the Hessian where the parameters stand: $Hv=\lambda v$.

    Args:
        objective: the loss.
        k: how many.
        which: the largest (steepest first), the smallest (most negative first), or "both": half of each, the largest first.
        tolerance: the residual at which to stop, relative to the largest magnitude.
        max_products: the most Hessian-vector products to spend.
        seed: what the start vector is drawn from.

    Cost: at most `max_products` Hessian-vector products (`measure.curvature.extreme_eigenvalues`).

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> saddle = Objective(torch.nn.ParameterList([weight]), lambda m, _: 5 * m[0][0] ** 2 - m[0][1] ** 2, [None])
        >>> hessian(saddle, 2, "both").values.round(6).tolist()
        [10.0, -2.0]
    """
    if which not in ("largest", "smallest", "both"):
        raise Usage(f"`which` must be 'largest', 'smallest' or 'both', got {which!r}.")
    if not 1 <= k <= objective.dim:
        raise Usage(f"`k` must be between 1 and the number of parameters, {objective.dim}; got {k}.")
    ups, downs = {"largest": (k, 0), "smallest": (0, k), "both": (k - k // 2, k // 2)}[which]
    s = extreme_eigenvalues(objective, k=max(ups, downs), tolerance=tolerance, max_products=max_products, seed=seed)
    return Eigen(
        torch.cat([s.top_vectors[:ups], s.bottom_vectors[:downs]]),
        np.r_[s.top[:ups], s.bottom[:downs]],
        np.r_[s.top_residuals[:ups], s.bottom_residuals[:downs]],
        s.converged,
        s.method,
    )


def plane(a: Tensor, b: Tensor, c: Tensor) -> Plane:
    r"""The plane through three points: $e_1=\frac{b-a}{\lVert b-a\rVert}$, $e_2\propto(c-a)-e_1e_1^\top(c-a)$.

    Raises:
        Usage: where the points lie on one line.

    Example:
        >>> plane(torch.zeros(3), torch.tensor([2.0, 0, 0]), torch.tensor([1.0, 0, 3.0])).coordinates.tolist()
        [[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]

    Source: Garipov et al. 2018, Loss surfaces, mode connectivity, and fast ensembling of DNNs, section 3.
    """
    u, v = b.detach().double() - a.detach().double(), c.detach().double() - a.detach().double()
    width = float(u.norm())
    first = u / width if width > 0 else u
    along = float(first @ v)
    rest = v - along * first
    rest = rest - (first @ rest) * first
    height = float(rest.norm())
    if width == 0 or height <= 1e-7 * max(width, float(v.norm())):
        raise Usage("the three points lie on one line: they span no plane. Choose a third point, or draw a line.")
    directions = torch.stack([first, rest / height]).to(a.dtype)
    return Plane(a.detach().clone(), directions, np.array([[0.0, 0.0], [width, 0.0], [along, height]]))
