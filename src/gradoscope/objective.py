"""A training's loss at one point, on fixed batches: loss, gradients, Hessian-vector products."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.guard import derive_seed, math_attention, untouched
from gradoscope.measurement import Cost

__all__ = ["Objective", "flat"]

BatchLoss = Callable[[nn.Module, Any], Tensor]


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """One vector from a list of tensors; a gradient that is None counts as zero."""
    parts = []
    for t, p in zip(tensors, like, strict=True):
        if t is None:
            parts.append(p.new_zeros(p.numel()))
        else:
            parts.append((t.coalesce().to_dense() if t.is_sparse else t).reshape(-1))
    return torch.cat(parts)


class Objective:
    r"""The mean loss $J(\theta)=\frac1K\sum_k J_k(\theta)$ of a model on K fixed batches.

    Masks are fixed: batch k is always run with the random streams seeded by (seed, k), so two passes agree even in
    training mode with dropout. Buffers, `.grad`, modes and random streams are left as they were.

    Args:
        model: the module; its parameters are read where they stand at the time of each call.
        loss: `loss(model, batch)`, a scalar tensor.
        batches: the fixed batches, each counted equally.
        parameters: (name, parameter) pairs to differentiate by; all that require a gradient by default.
        mode: "train" measures the loss that the optimizer sees, "eval" the one that users report.
        seed: what masks are drawn from.
        context: a function giving a context manager around each pass.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> objective = Objective(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), [(x, y)])
        >>> objective.hvp(torch.tensor([1.0, 0.0]))
        tensor([1., 0.])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: BatchLoss,
        batches: Sequence[Any],
        *,
        parameters: Sequence[tuple[str, Tensor]] | None = None,
        mode: Literal["train", "eval"] = "train",
        seed: int = 0,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.batches, self.mode, self.seed = model, list(batches), mode, seed
        named = list(model.named_parameters()) if parameters is None else list(parameters)
        self.named: list[tuple[str, Tensor]] = [(n, p) for n, p in named if p.requires_grad]
        self.parameters = [p for _, p in self.named]
        self.dim = sum(p.numel() for p in self.parameters)
        self.cost = Cost()
        self.method = "autograd"
        self._loss, self._context = loss, context
        self._graph: list[tuple[Tensor, ...]] | None = None

    @classmethod
    def of(cls, live: Any, batches: Sequence[Any], *, mode: Literal["train", "eval"] = "train", seed: int = 0) -> Self:
        """The objective of a live training at the point where it stands."""

        def context() -> AbstractContextManager[Any]:
            stack = ExitStack()
            for change in live.training.changes:
                stack.enter_context(change.forward_context())
            return stack

        on_device = [tree.to_device(b, live.device) for b in batches]
        return cls(
            live.model, live.training.loss, on_device, parameters=live.trainable(), mode=mode, seed=seed, context=context
        )

    def __repr__(self) -> str:
        return f"Objective({type(self.model).__name__}, dim={self.dim:,}, batches={len(self.batches)}, mode={self.mode!r})"

    def _pass(self, k: int) -> Tensor:
        """The loss of batch k under the guard of the caller."""
        return self._loss(self.model, self.batches[k]).reshape(())

    def _inside(self, k: int) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(untouched(self.model, seed=derive_seed(self.seed, k)))
        stack.enter_context(self._context())
        self.model.train(self.mode == "train")
        return stack

    def _spend(self, k: int, forward: int, backward: int) -> None:
        self.cost = self.cost + Cost(forward, backward, tree.rows(self.batches[k]) or 1)

    def losses(self) -> np.ndarray:
        """The loss of each batch, shape (K,), float64. Cost: K forward passes."""
        values = []
        for k in range(len(self.batches)):
            with self._inside(k), torch.no_grad():
                values.append(float(self._pass(k)))
            self._spend(k, 1, 0)
        return np.array(values)

    def loss(self) -> float:
        """The mean over the batches. Cost: K forward passes."""
        return float(self.losses().mean())

    def batch_gradient(self, k: int) -> Tensor:
        """The gradient of batch k, shape (dim,). Cost: one forward and one backward pass."""
        with self._inside(k), torch.enable_grad():
            loss = self._pass(k)
            if not loss.requires_grad:
                return torch.zeros(self.dim, dtype=self.parameters[0].dtype, device=self.parameters[0].device)
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self._spend(k, 1, 1)
        return flat(grads, self.parameters)

    def batch_gradients(self) -> Tensor:
        """The gradients of all batches, shape (K, dim). Cost: K forward and K backward passes."""
        return torch.stack([self.batch_gradient(k) for k in range(len(self.batches))])

    def gradient(self) -> Tensor:
        """The gradient of J, shape (dim,). Cost: K forward and K backward passes."""
        total = self.batch_gradient(0)
        for k in range(1, len(self.batches)):
            total = total + self.batch_gradient(k)
        return total / len(self.batches)

    def release(self) -> None:
        """Drop the kept graph; call it after the parameters have moved."""
        self._graph = None

    def _build_graph(self) -> list[tuple[Tensor, ...]]:
        """One differentiable gradient per batch, kept for all products: 1.5 to 2 times as fast as a fresh one each."""
        if self._graph is None:
            graph = []
            for k in range(len(self.batches)):
                with self._inside(k), math_attention(), torch.enable_grad():
                    loss = self._pass(k)
                    grads = torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)
                self._spend(k, 1, 1)
                graph.append(grads)
            self._graph = graph
        return self._graph

    def hvp(self, vector: Tensor) -> Tensor:
        r"""The Hessian-vector product $\nabla^2 J(\theta)\,v$, shape (dim,).

        The graph of the gradient is kept over calls until `release()`. Where an operation has no double backward, the
        product falls back to central finite differences of gradients, and `method` says so.

        Cost: K double backward passes (the first call adds K forward and K backward passes).
        """
        if self.method == "autograd":
            try:
                return self._hvp_autograd(vector)
            except (RuntimeError, NotImplementedError) as error:
                if "memory" in str(error).lower():
                    raise
                self.method = "finite differences"
                self.release()
        return self._hvp_difference(vector)

    def _hvp_autograd(self, vector: Tensor) -> Tensor:
        parts = [v.reshape(p.shape) for v, p in zip(vector.split([p.numel() for p in self.parameters]), self.parameters, strict=True)]
        total: Tensor | None = None
        for k, grads in enumerate(self._build_graph()):
            used = [(g, v) for g, v in zip(grads, parts, strict=True) if g is not None and g.requires_grad]
            if used:
                with math_attention():
                    product = torch.autograd.grad(
                        [g for g, _ in used], self.parameters, [v for _, v in used], retain_graph=True, allow_unused=True
                    )
                piece = flat(product, self.parameters)
            else:
                piece = torch.zeros_like(vector)  # a loss that is linear in the parameters
            self._spend(k, 0, 2)
            total = piece if total is None else total + piece
        assert total is not None
        return total / len(self.batches)

    def _hvp_difference(self, vector: Tensor) -> Tensor:
        r"""Central difference $(g(\theta+hv)-g(\theta-hv))/2h$ with the step that balances rounding and truncation."""
        norm = float(vector.norm())
        if norm == 0:
            return torch.zeros_like(vector)
        theta = flat([p.detach() for p in self.parameters], self.parameters)
        epsilon = torch.finfo(theta.dtype).eps
        h = epsilon ** (1 / 3) * max(1.0, float(theta.norm())) / norm
        try:
            self._set(theta + h * vector)
            ahead = self.gradient()
            self._set(theta - h * vector)
            behind = self.gradient()
        finally:
            self._set(theta)
        return (ahead - behind) / (2 * h)

    def _set(self, theta: Tensor) -> None:
        with torch.no_grad():
            for p, value in zip(self.parameters, theta.split([p.numel() for p in self.parameters]), strict=True):
                p.copy_(value.reshape(p.shape))

    def at(self, theta: Tensor) -> np.ndarray:
        """The losses of all batches at the parameters `theta`, shape (K,); the model's own are put back."""
        kept = self.theta()
        try:
            self._set(theta)
            return self.losses()
        finally:
            self._set(kept)

    def theta(self) -> Tensor:
        """A copy of the parameters as one vector, shape (dim,)."""
        return flat([p.detach().clone() for p in self.parameters], self.parameters)
