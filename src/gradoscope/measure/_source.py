"""Where matrix-vector products come from, and a Lanczos run on them that notices products that lie."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.guard import derive_seed
from gradoscope.measure._gauss_newton import GaussNewton, gauss_newton_product
from gradoscope.measure._krylov import Krylov, Matvec, lanczos
from gradoscope.objective import Objective, asymmetry_limit

__all__ = ["Operator", "Source", "working_dtype"]

Operator = Literal["hessian", "gauss_newton"]
MEMORY = 2 << 30  # bytes that the basis of a Krylov space may take


class Source:
    """Products with the Hessian, the Gauss-Newton matrix or a user's own operator, as long as they can be trusted.

    Attributes:
        matvec: v -> Av.
        name: what A is.
        products: how many were spent in Krylov spaces.
        asymmetry: the largest asymmetry seen, relative to the size of A.
    """

    def __init__(self, objective: Objective, operator: Operator | Matvec) -> None:
        self.objective = objective
        self.matvec: Matvec
        if operator == "hessian":
            # Lanczos tests for symmetry itself, at no cost.
            self.matvec, self.name = partial(objective.hvp, verify=False), "hessian"
        elif operator == "gauss_newton":
            self.matvec, self.name = gauss_newton_product(objective), "gauss_newton"
        elif callable(operator):
            self.matvec, self.name = operator, "operator"
        else:
            raise Usage(f"`operator` must be 'hessian', 'gauss_newton' or a function of a vector, got {operator!r}.")
        self.products, self.asymmetry, self.note = 0, 0.0, ""

    @property
    def method(self) -> str:
        """How the products are computed, and what limited them."""
        if isinstance(self.matvec, GaussNewton):
            return self.matvec.method + self.note
        return ("as given" if self.name == "operator" else self.objective.method) + self.note

    @property
    def trusted(self) -> bool:
        """Whether the products come from a double backward that was not found to lie."""
        if isinstance(self.matvec, GaussNewton):
            return self.matvec.method == "autograd"
        return self.name == "hessian" and self.objective.method == "autograd"

    def krylov(
        self,
        steps: int,
        seed: int,
        *,
        stop: Callable[[Krylov], bool] | None = None,
        start: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Krylov:
        """A Krylov space of A (of S^(1/2) A S^(1/2) where `scale` is s), built anew where the products turn out to lie."""
        objective, dtype = self.objective, working_dtype(self.objective)
        most = max(2, MEMORY // (objective.dim * torch.finfo(dtype).bits // 8))
        if steps > most:
            steps, self.note = most, f", only {most} of {steps} products: the basis is bounded to 2 GB"
        root = None if scale is None else scale.detach().clamp_min(0).sqrt().to(objective.parameters[0].device, dtype)
        limit = asymmetry_limit(objective)

        def product(v: Tensor) -> Tensor:
            self.products += 1
            return self.matvec(v) if root is None else root * self.matvec(root * v)

        def halt(space: Krylov) -> bool:
            return (self.trusted and space.asymmetry > limit) or (stop is not None and stop(space))

        while True:
            space = lanczos(
                product,
                objective.dim,
                steps=steps,
                generator=torch.Generator().manual_seed(derive_seed(seed, 200)),
                dtype=dtype,
                device=objective.parameters[0].device,
                start=start,
                stop=halt,
            )
            self.asymmetry = max(self.asymmetry, space.asymmetry)
            if not self.trusted or space.asymmetry <= limit:
                objective.verified = objective.verified or (self.name == "hessian" and space.size > 2)
                return space
            if isinstance(self.matvec, GaussNewton):
                self.matvec.distrust()
            else:
                objective.distrust(objective.lies(space.asymmetry))


def working_dtype(objective: Objective) -> torch.dtype:
    """The type of the parameters, but at least float32."""
    dtype = torch.float32
    for p in objective.parameters:
        dtype = torch.promote_types(dtype, p.dtype)
    return dtype
