"""Steps that know the curvature: Newton, damped Newton, and the saddle-free Newton step that uses its absolute value."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from gradoscope.measure._source import Source, working_dtype
from gradoscope.updates._closure import ClosureObjective, check_step
from gradoscope.updates._rule import Range, check
from gradoscope.updates.searched import HALVINGS

__all__ = ["DampedNewton", "Modes", "Newton", "SaddleFreeNewton", "modes"]

DAMPINGS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 0.0)


@dataclass(frozen=True)
class Modes:
    r"""A gradient in the eigenbasis of the Hessian, or of its restriction to a Krylov space of the gradient.

    Attributes:
        values: the eigenvalues, ascending, shape (m,).
        slopes: $v_i^\top g$, shape (m,).
        noise: below this size an eigenvalue cannot be told from zero.
        combine: from coefficients, shape (m,), to $\sum_ic_iv_i$, shape (dim,).
    """

    values: np.ndarray
    slopes: np.ndarray
    noise: float
    combine: Callable[[np.ndarray], Tensor]

    def divided_by(self, curvature: np.ndarray) -> Tensor:
        r"""The step $-\sum_i\frac{v_i^\top g}{c_i}v_i$ for these curvatures; where one is not above the noise, the step is zero."""
        usable = np.abs(curvature) > self.noise
        return self.combine(np.where(usable, -self.slopes / np.where(usable, curvature, 1.0), 0.0))


def modes(objective: ClosureObjective, exact: int, products: int, seed: int = 0) -> Modes:
    """The gradient where an objective stands, in eigenvectors of its Hessian.

    Args:
        objective: the loss.
        exact: up to this many parameters the whole Hessian is made.
        products: beyond it, the dimension of the Krylov space.
        seed: of its random vectors.

    Cost: min(dim, `products`) products with the Hessian, or dim of them where dim is at most `exact`.
    """
    g = objective.slope.to(working_dtype(objective))
    epsilon = torch.finfo(g.dtype).eps
    if objective.dim <= exact:
        rows = torch.stack([objective.hvp(e).double() for e in torch.eye(objective.dim, dtype=g.dtype, device=g.device)])
        values, vectors = torch.linalg.eigh((rows + rows.T) / 2)
        size = float(values.abs().max())
        # What is not symmetric is error: rounding, or that of finite differences.
        noise = max(8 * epsilon * math.sqrt(objective.dim) * size, float((rows - rows.T).abs().max()))
        slopes = (vectors.T @ g.double()).cpu().numpy()
        return Modes(values.cpu().numpy(), slopes, noise, lambda c: (vectors @ torch.as_tensor(c).to(vectors)).to(g))
    norm = float(torch.linalg.vector_norm(g, dtype=torch.float64))
    if norm == 0:
        return Modes(np.zeros(1), np.zeros(1), 0.0, lambda c: torch.zeros_like(g))
    source = Source(objective, "hessian")
    # Outside an invariant space g has no component, so a second start would add nothing.
    space = source.krylov(products, seed, stop=lambda s: bool(s.beta[-1] == 0), start=g)
    ritz, coefficients = space.ritz()
    noise = 8 * max(epsilon * math.sqrt(space.size), 0.0 if source.trusted else space.asymmetry) * float(np.abs(ritz).max())
    return Modes(ritz, norm * coefficients[0], noise, lambda c: space.vectors((coefficients @ c)[:, None])[0])


class _Curved(Optimizer):
    """What the three share: one group, a closure, a bound on the length of a step."""

    ranges: ClassVar[dict[str, Range]] = {
        "lr": Range(),
        "radius": Range(closed=False, optional=True),
        "exact": Range(),
        "products": Range(low=1),
    }

    def __init__(self, params: Any, **defaults: Any) -> None:
        name = type(self).__name__
        check(name, self.ranges, defaults)
        super().__init__(params, defaults)
        check_step(name, self.param_groups)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> float:  # type: ignore[override]
        """One step.

        Args:
            closure: gives the loss, the same function at each call. One that only returns it is differentiated twice by autograd; one
                that calls backward, as for torch's optimizers, by finite differences of its gradients.

        Returns:
            The loss before the step.
        """
        parameters, group = check_step(type(self).__name__, self.param_groups), self.param_groups[0]
        state = self.state[parameters[0]]
        state["t"] = state.get("t", 0) + 1
        objective = ClosureObjective(parameters, closure, state["t"])
        before = objective.value
        found = modes(objective, int(group["exact"]), int(group["products"]), state["t"])
        objective.release()
        direction = self.direction(objective, found, group, state)
        objective._set(objective.theta() + direction.to(objective.slope))
        return before

    def direction(self, objective: ClosureObjective, found: Modes, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """The whole step, shape (dim,)."""
        raise NotImplementedError


class Newton(_Curved):
    r"""Newton's step $\theta-\eta H^{-1}g$, which goes to the nearest critical point: saddle points and maxima attract it too.

    Directions whose curvature cannot be told from zero are left alone. Shown beside `SaddleFreeNewton`; PyTorch has neither.

    Args:
        params: the parameters, one group of real ones.
        lr: $\eta\ge0$.
        radius: longer steps are shortened to this length; None: never.
        exact: up to this many parameters the whole Hessian is made and inverted; beyond, its restriction to a Krylov space of g.
        products: the dimension of that space.

    Raises:
        ValueError: for a hyperparameter out of its range, several groups, or complex parameters.

    Cost per step: a gradient and dim (or `products`) products with the Hessian, each of about two gradients.

    Example:
        >>> x = torch.tensor([0.4, 0.1], dtype=torch.float64, requires_grad=True)
        >>> loss = Newton([x]).step(lambda: 5 * x[0] ** 2 - x[1] ** 2)
        >>> bool(x.abs().max() < 1e-12)  # the saddle
        True
    """

    def __init__(self, params: Any, lr: float = 1.0, *, radius: float | None = None, exact: int = 100, products: int = 40) -> None:
        super().__init__(params, lr=lr, radius=radius, exact=exact, products=products)

    def direction(self, objective: ClosureObjective, found: Modes, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        return _within(found.divided_by(found.values) * group["lr"], group["radius"])


class DampedNewton(_Curved):
    r"""Newton's step on a shifted Hessian, $\theta-\eta(H+\mu I)^{-1}g$ with $\mu=\max(0,-\lambda_{\min})+\delta$.

    The shifted Hessian is positive definite, so that the step descends, also from saddle points; but the shift that the most negative
    curvature asks for shortens the step along all other directions.

    Args:
        params: the parameters, one group of real ones.
        lr: $\eta\ge0$.
        damping: $\delta>0$.
        radius: longer steps are shortened to this length; None: never.
        exact: as for `Newton`.
        products: as for `Newton`.

    Raises:
        ValueError: for a hyperparameter out of its range, several groups, or complex parameters.

    Cost per step: as for `Newton`.

    Example:
        >>> x = torch.tensor([0.4, 0.1], dtype=torch.float64, requires_grad=True)
        >>> loss = DampedNewton([x], damping=0.1).step(lambda: 5 * x[0] ** 2 - x[1] ** 2)
        >>> [round(v, 4) for v in x.tolist()]  # away from the saddle along the second axis
        [0.0694, 2.1]
    """

    ranges: ClassVar[dict[str, Range]] = {**_Curved.ranges, "damping": Range(closed=False)}

    def __init__(
        self, params: Any, lr: float = 1.0, damping: float = 0.1, *, radius: float | None = None, exact: int = 100, products: int = 40
    ) -> None:
        super().__init__(params, lr=lr, damping=damping, radius=radius, exact=exact, products=products)

    def direction(self, objective: ClosureObjective, found: Modes, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        shift = max(0.0, -float(found.values[0])) + group["damping"]
        return _within(found.divided_by(found.values + shift) * group["lr"], group["radius"])


class SaddleFreeNewton(_Curved):
    r"""The saddle-free Newton step $\theta-\eta(|H|+\lambda I)^{-1}g$, $|H|=V|\Lambda|V^\top$: saddle points repel it.

    Up to `exact` parameters |H| is made from the whole Hessian. Beyond, it is exact inside a Krylov space of the gradient, and there is
    no step outside. Among the `dampings` the one whose step lowers the loss most is taken; where none lowers it, the best one is halved
    until it does, so that the loss never rises. With one damping alone there is no search: (0,) is the pure step.

    Args:
        params: the parameters, one group of real ones.
        lr: $\eta\ge0$.
        dampings: the $\lambda$ to choose among.
        radius: longer steps are shortened to this length; None: never.
        exact: up to this many parameters the whole Hessian is made.
        products: beyond it, the dimension of the Krylov space.

    Raises:
        ValueError: for a hyperparameter out of its range, several groups, or complex parameters.

    Cost per step: a gradient, dim (or `products`) products with the Hessian, and a loss for each damping.

    Example:
        >>> x = torch.tensor([0.4, 0.1], dtype=torch.float64, requires_grad=True)
        >>> loss = SaddleFreeNewton([x], dampings=(0.0,)).step(lambda: 5 * x[0] ** 2 - x[1] ** 2)
        >>> [round(v, 4) + 0.0 for v in x.tolist()]  # away from the saddle
        [0.0, 0.2]

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem in high-dimensional non-convex optimization.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        dampings: Sequence[float] = DAMPINGS,
        *,
        radius: float | None = None,
        exact: int = 100,
        products: int = 40,
    ) -> None:
        if not dampings:
            raise ValueError("SaddleFreeNewton: dampings must hold at least one number.")
        for damping in dampings:
            check("SaddleFreeNewton", {"damping": Range()}, {"damping": damping})
        super().__init__(params, lr=lr, dampings=tuple(dampings), radius=radius, exact=exact, products=products)

    def direction(self, objective: ClosureObjective, found: Modes, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        theta, steps = objective.theta(), []
        for damping in group["dampings"]:
            step = found.divided_by(np.abs(found.values) + damping) * group["lr"]
            steps.append((damping, _within(step, group["radius"]).to(theta)))
        if len(steps) == 1:
            return steps[0][1]
        losses = np.array([objective.loss_at(theta + step) for _, step in steps])
        best = int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))
        state["damping"], step = steps[best]
        if losses[best] < objective.value:
            return step
        for _ in range(HALVINGS):
            step = step / 2
            if objective.loss_at(theta + step) < objective.value:
                return step
        return torch.zeros_like(theta)


def _within(step: Tensor, radius: float | None) -> Tensor:
    norm = float(torch.linalg.vector_norm(step, dtype=torch.float64))
    return step if radius is None or norm <= radius else step * (radius / norm)
