"""Newton directions that use positive curvature only."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradoscope.measure._krylov import Matvec
from gradoscope.measure._source import Operator, Source, working_dtype
from gradoscope.objective import Objective

__all__ = ["krylov_newton", "newton_direction"]


def newton_direction(
    objective: Objective, gradient: Tensor, *, max_products: int = 40, damping: float = 0.0, operator: Operator | Matvec = "hessian"
) -> tuple[Tensor, dict[str, Any]]:
    r"""Solve $(H+\mu I)d=-g$ by conjugate gradients as far as the curvature is positive.

    At the first search direction of negative curvature the solution so far is returned, which lives on positive
    curvature only; it is zero where -g itself has negative curvature.

    Args:
        objective: the loss.
        gradient: g, shape (dim,).
        max_products: the most products to spend.
        damping: $\mu\ge0$.
        operator: "hessian", "gauss_newton", or a function v -> Av.

    Returns:
        d, shape (dim,), and {"products", "residual" (|(H+mu I)d+g|/|g|), "negative_curvature"}.

    Cost: at most `max_products` products.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> objective = Objective(model, lambda m, b: m(b).square().sum(), [torch.diag(torch.tensor([1.0, 10.0])).double()])
        >>> direction, info = newton_direction(objective, objective.gradient(), max_products=2)
        >>> bool(torch.allclose(direction, -objective.theta())), info["residual"] < 1e-9
        (True, True)

    Source: Steihaug 1983, The conjugate gradient method and trust regions in large scale optimization.
    """
    matvec = Source(objective, operator).matvec
    g = gradient.detach().to(working_dtype(objective))
    start = float(g.norm())
    d, r = torch.zeros_like(g), -g
    info: dict[str, Any] = {"products": 0, "residual": 1.0 if start > 0 else 0.0, "negative_curvature": False}
    p, rr = r.clone(), float(torch.dot(r.double(), r.double()))
    epsilon = torch.finfo(g.dtype).eps
    while info["products"] < max_products and info["residual"] > 16 * epsilon:
        hp = matvec(p).to(g) + damping * p
        info["products"] += 1
        curvature = float(torch.dot(p.double(), hp.double()))
        # Below rounding a curvature has no sign.
        if curvature <= epsilon * float(p.norm()) * float(hp.norm()):
            info["negative_curvature"] = curvature < 0
            break
        length = rr / curvature
        d, r = d + length * p, r - length * hp
        rr, last = float(torch.dot(r.double(), r.double())), rr
        p = r + (rr / last) * p
        info["residual"] = math.sqrt(rr) / start
    return d, info


def krylov_newton(
    objective: Objective, gradient: Tensor, *, products: int = 40, seed: int = 0, operator: Operator | Matvec = "hessian"
) -> Tensor:
    r"""Newton's direction on the positive curvature of a Krylov space of the gradient.

    $$d=-\sum_{\lambda_i>\tau}v_i\,\frac{v_i^\top g}{\lambda_i}$$
    over the Ritz pairs of $\mathrm{span}(g,Hg,\dots,H^{m-1}g)$. Negative curvature is left alone, and so is what is below
    rounding ($\tau$). It goes on past negative curvature, where `newton_direction` ends.

    Args:
        objective: the loss.
        gradient: g, shape (dim,).
        products: m, the number of products; fewer where the space is invariant or the basis would take more than 2 GB.
        seed: what further start vectors are drawn from.
        operator: "hessian", "gauss_newton", or a function v -> Av.

    Returns:
        d, shape (dim,), zero where there is no positive curvature.

    Cost: `products` products; products * dim numbers of memory.

    Example:
        >>> model = torch.nn.ParameterList([torch.nn.Parameter(torch.tensor([3.0, 0.5], dtype=torch.float64))])
        >>> saddle = Objective(model, lambda m, _: 5 * m[0][0] ** 2 - m[0][1] ** 2, [None])
        >>> [round(x, 6) + 0.0 for x in krylov_newton(saddle, saddle.gradient()).tolist()]
        [-3.0, 0.0]

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem (Krylov subspace); here without
    their steps along negative curvature.
    """
    g = gradient.detach().to(working_dtype(objective))
    norm = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if norm == 0:
        return torch.zeros_like(gradient)
    source = Source(objective, operator)
    # Outside an invariant space g has no component, so a second start would add nothing.
    space = source.krylov(products, seed, stop=lambda s: bool(s.beta[-1] == 0), start=g)
    values, coefficients = space.ritz()
    noise = max(torch.finfo(g.dtype).eps * math.sqrt(space.size), 0.0 if source.trusted else space.asymmetry)
    keep = values > 8 * noise * np.abs(values).max()
    if not keep.any():
        return torch.zeros_like(gradient)
    combined = coefficients[:, keep] @ (coefficients[0, keep] / values[keep])
    return (-norm * space.vectors(combined[:, None])[0]).to(gradient)
