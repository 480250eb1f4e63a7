"""Products with the Gauss-Newton matrix: the curvature of the loss in the model's output, pulled back to the parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.errors import CannotRun
from gradoscope.guard import second_order_kernels
from gradoscope.objective import Objective, flat

__all__ = ["GaussNewton", "gauss_newton_product"]


class GaussNewton:
    """The callable that `gauss_newton_product` returns; it keeps one graph per batch until the parameters move."""

    def __init__(
        self,
        objective: Objective,
        forward: Callable[[nn.Module, Any], Any] | None,
        loss_of_output: Callable[[Any, Any], Tensor] | None,
    ) -> None:
        if (forward is None) != (loss_of_output is None):
            raise CannotRun("`forward` and `loss_of_output` belong together: pass both, or neither.")
        self.objective, self.forward, self.loss_of_output = objective, forward, loss_of_output
        self.method = objective.method
        self._graphs: dict[int, _Parts] = {}
        self._stamp: tuple[Any, ...] = ()

    def __call__(self, vector: Tensor) -> Tensor:
        """G v, shape (dim,)."""
        stamp = self.objective.point()
        if stamp != self._stamp:
            self._graphs.clear()
            self._stamp = stamp
        count = len(self.objective.batches)
        total = self._product(0, vector)
        for k in range(1, count):
            total = total + self._product(k, vector)
        return total / count

    def distrust(self) -> None:
        """Take the Jacobian's products by finite differences of the output from now on."""
        self.method = "finite differences"

    def _product(self, k: int, vector: Tensor) -> Tensor:
        objective = self.objective
        if k not in self._graphs:
            self._graphs[k] = self._build(k)
        parts = self._graphs[k]
        if not parts.outputs or all(s is None or not s.requires_grad for s in parts.slopes):
            return torch.zeros_like(vector)  # the loss is linear in the output
        moved = self._output_change(k, parts, vector)
        pairs = [(s, m) for s, m in zip(parts.slopes, moved, strict=True) if s is not None and s.requires_grad]
        with objective.inside(k), second_order_kernels(objective.model):
            try:
                curved = torch.autograd.grad(
                    [s for s, _ in pairs], parts.outputs, [m for _, m in pairs], retain_graph=True, allow_unused=True
                )
            except (RuntimeError, NotImplementedError) as error:
                raise CannotRun(f"the loss has no second derivative in the model's output: {error}. Use operator='hessian'.") from error
            kept = [(z, c) for z, c in zip(parts.outputs, curved, strict=True) if c is not None]
            pulled = torch.autograd.grad(
                [z for z, _ in kept], objective.parameters, [c for _, c in kept], retain_graph=True, allow_unused=True
            )
        objective.spend(k, 0, 3)
        return flat(pulled, objective.parameters).to(vector.dtype)

    def _output_change(self, k: int, parts: "_Parts", vector: Tensor) -> list[Tensor]:
        """The Jacobian-vector product: the derivative along v of J'u, which is linear in the dummy u."""
        if self.method == "autograd":
            try:
                return self._forward_product(k, parts, vector)
            except (RuntimeError, NotImplementedError):
                self.distrust()
        objective = self.objective
        norm = float(vector.norm())
        if norm == 0:
            return [torch.zeros_like(z) for z in parts.outputs]
        theta = objective.theta()
        h = 0.3 * torch.finfo(theta.dtype).eps ** (1 / 3) * max(1.0, float(theta.norm())) / norm
        ends = []
        for sign in (1, -1):
            with objective.moved(theta + sign * h * vector), torch.no_grad():
                ends.append([z.detach() for z in self._run(k)[0]])
        objective.spend(k, 2, 0)
        return [(ahead - behind) / (2 * h) for ahead, behind in zip(*ends, strict=True)]

    def _forward_product(self, k: int, parts: "_Parts", vector: Tensor) -> list[Tensor]:
        objective = self.objective
        with objective.inside(k), second_order_kernels(objective.model), torch.enable_grad():
            if parts.pulled is None:
                parts.dummies = [torch.zeros_like(z, requires_grad=True) for z in parts.outputs]
                parts.pulled = torch.autograd.grad(parts.outputs, objective.parameters, parts.dummies, create_graph=True, allow_unused=True)
            used = [(w, v) for w, v in zip(parts.pulled, objective.split(vector), strict=True) if w is not None]
            moved = torch.autograd.grad([w for w, _ in used], parts.dummies, [v for _, v in used], retain_graph=True, allow_unused=True)
        return [torch.zeros_like(z) if m is None else m for m, z in zip(moved, parts.outputs, strict=True)]

    def _build(self, k: int) -> "_Parts":
        with torch.enable_grad():
            outputs, loss = self._run(k)
            if self.forward is None and any(z.dim() == 0 for z in outputs):
                raise CannotRun(
                    "the model computes its own loss, so that its output cannot be told from it. Pass `forward(model, batch)` and "
                    "`loss_of_output(output, batch)`."
                )
            outputs = [z for z in outputs if z.requires_grad]
            if not loss.requires_grad or not outputs:
                return _Parts([], [])
            with self.objective.inside(k), second_order_kernels(self.objective.model):
                slopes = torch.autograd.grad(loss, outputs, create_graph=True, allow_unused=True)
        self.objective.spend(k, 1, 1)
        return _Parts(outputs, list(slopes))

    def _run(self, k: int) -> tuple[list[Tensor], Tensor]:
        """The outputs of the model on batch k, and the loss made from them."""
        objective = self.objective
        batch = objective.batches[k]
        with objective.inside(k), second_order_kernels(objective.model):
            if self.forward is not None and self.loss_of_output is not None:
                output = self.forward(objective.model, batch)
                return _floats(output), self.loss_of_output(output, batch).reshape(())
            seen: list[Tensor] = []
            hook = objective.model.register_forward_hook(lambda _module, _inputs, output: seen.extend(_floats(output)))
            try:
                loss = objective.batch_loss(k)
            finally:
                hook.remove()
            if not seen:
                raise CannotRun(
                    "the loss does not call the model itself (only parts of it), so its output is not known. Pass "
                    "`forward(model, batch)` and `loss_of_output(output, batch)`."
                )
            return seen, loss


class _Parts:
    """The graphs of one batch: outputs z, slopes dL/dz, and J'u for dummies u."""

    def __init__(self, outputs: list[Tensor], slopes: list[Tensor | None]) -> None:
        self.outputs, self.slopes = outputs, slopes
        self.dummies: list[Tensor] = []
        self.pulled: tuple[Tensor | None, ...] | None = None


def _floats(output: Any) -> list[Tensor]:
    return [t for t in tree.leaves(output) if t.is_floating_point()]


def gauss_newton_product(
    objective: Objective,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss_of_output: Callable[[Any, Any], Tensor] | None = None,
) -> GaussNewton:
    r"""A function v -> Gv with the (generalised) Gauss-Newton matrix $G=\frac1K\sum_k J_k^\top H_{L,k}J_k$.

    $J_k$ is the Jacobian of the model's output on batch k, $H_{L,k}$ the Hessian of the loss in that output. G is the
    Hessian without the curvature of the model itself, and positive semi-definite where the loss is convex in the output.

    Args:
        objective: the loss.
        forward: `forward(model, batch)`, the output. By default it is what the model returns when the loss calls it.
        loss_of_output: `loss_of_output(output, batch)`, a scalar.

    Returns:
        A function of a vector of shape (dim,). It keeps its graphs until the parameters move.

    Raises:
        CannotRun: where the output cannot be told from the loss, or the loss has no second derivative in the output.

    Cost: one forward and 2 K backward passes once, then about 4 K backward passes per product.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m, b: m(b).square().mean(), [torch.eye(2)])
        >>> gauss_newton_product(objective)(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])

    Source: Schraudolph 2002, Fast curvature matrix-vector products.
    """
    return GaussNewton(objective, forward, loss_of_output)
