"""Local geometry: the whole Hessian of a small model, and what share of a direction lies along which curvature."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradoscope.errors import CannotRun
from gradoscope.guard import second_order_kernels
from gradoscope.measure._source import Source, working_dtype
from gradoscope.objective import Objective, asymmetry_limit, flat

__all__ = ["DENSE", "Shares", "batch_hessians", "curvature_shares", "hessian", "kantorovich_bound"]

DENSE = 256
"""Parameters up to which the whole Hessian is taken: as many products as there are parameters, and their square of memory."""


def batch_hessians(objective: Objective) -> Tensor:
    r"""The whole Hessian of each batch, made symmetric: by double backward row by row, or from products where that fails.

    Args:
        objective: the loss, of at most a few thousand parameters.

    Returns:
        Shape (K, dim, dim), float64.

    Raises:
        CannotRun: where it would take more than 2 GB.

    Cost: dim products with each batch's Hessian.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> batch_hessians(Objective(model, lambda m, b: m(b).square().sum(), [torch.eye(2).double()]))[0]
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    dim, count = objective.dim, len(objective.batches)
    if count * dim * dim * 8 > 2 << 30:
        raise CannotRun(f"the whole Hessian of {dim:,} parameters on {count} batches takes more than 2 GB: use products.")
    if objective.method == "autograd":
        try:
            found = torch.stack([_rows(objective, k) for k in range(count)])
        except (RuntimeError, NotImplementedError):
            found = _columns(objective)  # products know what to do where there is no double backward, or no memory
        else:
            asymmetry = float((found - found.transpose(1, 2)).abs().max())
            if asymmetry > asymmetry_limit(objective) * max(float(found.abs().max()), 1e-300):
                objective.distrust(f"the double backward is not symmetric (by {asymmetry:.2g}), so it is wrong")
                found = _columns(objective)
    else:
        found = _columns(objective)
    return (found + found.transpose(1, 2)) / 2


def _rows(objective: Objective, k: int) -> Tensor:
    """The Hessian of one batch row by row, within one guard, which is most of what a product of a small model costs."""
    grads = objective.differentiable_gradient(k)
    found = torch.zeros((objective.dim, objective.dim), dtype=torch.float64)
    if all(g is None or not g.requires_grad for g in grads):
        return found  # a loss that is linear in the parameters
    with objective.inside(k), second_order_kernels(objective.model), torch.enable_grad():
        whole = flat(grads, objective.parameters)
        for i in range(objective.dim):
            row = torch.autograd.grad(whole[i], objective.parameters, retain_graph=True, allow_unused=True)
            found[i] = flat(row, objective.parameters).double().cpu()
    objective.spend(k, 0, 2 * objective.dim)
    return found


def _columns(objective: Objective) -> Tensor:
    first = objective.parameters[0]
    found = torch.empty((len(objective.batches), objective.dim, objective.dim), dtype=torch.float64)
    for i in range(objective.dim):
        unit = torch.zeros(objective.dim, dtype=working_dtype(objective), device=first.device)
        unit[i] = 1
        found[:, :, i] = objective.batch_hvps(unit).double().cpu()
    return found


def hessian(objective: Objective) -> Tensor:
    r"""The whole Hessian of the mean loss, shape (dim, dim), float64. Cost: dim Hessian-vector products.

    Args:
        objective: the loss.

    Returns:
        Symmetric.

    Raises:
        CannotRun: where it would take more than 2 GB.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False).double()
        >>> float(hessian(Objective(model, lambda m, b: m(b).square().sum(), [torch.ones(1, 1).double()])))
        2.0
    """
    return batch_hessians(objective).mean(0)


@dataclass(frozen=True)
class Shares:
    r"""Which curvature a direction d sees: $\cos^2\angle(v_i,d)$ over the eigenvalues $\lambda_i$.

    Attributes:
        eigenvalues: ascending, shape (m,): all of them, or the nodes of a Gauss quadrature that stand for them.
        shares: $(v_i^\top d)^2/d^\top d$, shape (m,), which sum to 1.
        exact: whether these are all eigenvalues. From a quadrature the curvature is exact all the same, and the efficiency an
            estimate.
        products: Hessian-vector products spent.
    """

    eigenvalues: np.ndarray
    shares: np.ndarray
    exact: bool
    products: int

    @property
    def curvature(self) -> float:
        r"""$d^\top Hd/d^\top d=\sum_i\lambda_i\cos^2\angle(v_i,d)$."""
        return float(self.eigenvalues @ self.shares)

    @property
    def optimal_step(self) -> float:
        r"""$\epsilon^*=d^\top d/d^\top Hd$ for d the gradient; infinite where every step improves in the quadratic model."""
        return 1 / self.curvature if self.curvature > 0 else math.inf

    @property
    def efficiency(self) -> float:
        r"""Kantorovich's ratio $(g^\top g)^2/(g^\top Hg\;g^\top H^{-1}g)$, d being the gradient g; NaN where an eigenvalue is not positive.

        It is the share of what Newton's step removes that the best step along -g removes too: 1 where g is an eigenvector. It is
        no verdict on a trajectory: descent removes the steep part first, and g is then an eigenvector of the flat part.
        """
        if not self.eigenvalues.min() > 0:
            return math.nan
        return float(1 / (self.curvature * (self.shares @ (1 / self.eigenvalues))))


def curvature_shares(objective: Objective, direction: Tensor, *, products: int = 40, dense: int = DENSE) -> Shares:
    r"""How the length of a direction is spread over the curvatures of the loss.

    In a small model by all eigenvectors. In a large one by Lanczos from the direction itself: its nodes and weights are the Gauss
    quadrature of the same distribution, with the same moments $d^\top H^jd$ up to j = 2m - 1.

    Args:
        objective: the loss.
        direction: d, shape (dim,), not zero: a gradient, a step, a random direction.
        products: m, the length of the Lanczos run in a large model.
        dense: the number of parameters up to which a model is small.

    Returns:
        Eigenvalues and shares.

    Raises:
        CannotRun: for a direction of length 0, or one that is not finite.

    Cost: dim products in a small model, else `products`.

    Example:
        >>> model = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64))])
        >>> saddle = Objective(model, lambda m, _: 5 * m[0][0] ** 2 - m[0][1] ** 2, [None])
        >>> found = curvature_shares(saddle, torch.tensor([1.0, 1.0], dtype=torch.float64))
        >>> found.eigenvalues.round(6).tolist(), found.shares.round(6).tolist(), round(found.curvature, 6)
        ([-2.0, 10.0], [0.5, 0.5], 4.0)

    Source: Goodfellow 2015, Montreal slides, "Directional curvature"; Golub and Meurant 2010 for the quadrature.
    """
    length = float(torch.linalg.vector_norm(direction, dtype=torch.float64))
    if length == 0 or not math.isfinite(length):
        raise CannotRun(f"the curvature along a direction of length {length} is not defined.")
    if objective.dim <= dense:
        values, vectors = torch.linalg.eigh(hessian(objective))
        along = vectors.T @ (direction.detach().double().cpu() / length)
        return Shares(values.numpy(), along.square().numpy(), True, objective.dim)
    source = Source(objective, "hessian")
    unit = (direction.detach() / length).to(working_dtype(objective))
    space = source.krylov(products, 0, start=unit, stop=lambda s: bool(s.beta[-1] == 0))
    nodes, coefficients = space.ritz()
    return Shares(nodes, coefficients[0] ** 2, bool(space.beta[-1] == 0), source.products)


def kantorovich_bound(condition: float) -> float:
    r"""The least efficiency of a gradient under this condition number: $4k/(1+k)^2$.

    Args:
        condition: $k=\lambda_{max}/\lambda_{min}\ge1$.

    Example:
        >>> round(kantorovich_bound(100.0), 4)
        0.0392

    Source: Kantorovich 1948.
    """
    return 4 * condition / (1 + condition) ** 2
