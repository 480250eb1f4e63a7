"""A function with known derivatives, as an operation that autograd can differentiate twice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["differentiable"]

Of = Callable[[Tensor], Tensor]


class _Value(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, loss: Of, gradient: Of, hessian: Of) -> Tensor:
        ctx.save_for_backward(w)
        ctx.known = gradient, hessian
        return loss(w)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors
        return slopes[0] * _Slope.apply(w, *ctx.known), None, None, None  # type: ignore[no-untyped-call]  # torch's own


class _Slope(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, gradient: Of, hessian: Of) -> Tensor:
        ctx.save_for_backward(w)
        ctx.hessian = hessian
        return gradient(w)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *vectors: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors
        return ctx.hessian(w) @ vectors[0], None, None


def differentiable(loss: Of, gradient: Of, hessian: Of) -> Of:
    r"""The function w -> loss(w) with the gradient and Hessian that are handed in, for `backward` and for Hessian-vector products.

    Closed forms have limits where the operations that they are written with have none: an angle's derivative at 0, the
    norm's at 0. Here autograd never looks inside.

    Args:
        loss: of w, shape (m,), a scalar.
        gradient: of w, shape (m,).
        hessian: of w, shape (m, m).

    Example:
        >>> f = differentiable(lambda w: (w**4).sum(), lambda w: 4 * w**3, lambda w: torch.diag(12 * w**2))
        >>> w = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> (slope,) = torch.autograd.grad(f(w), w, create_graph=True)
        >>> slope.tolist(), torch.autograd.grad(slope[1], w)[0].tolist()
        ([4.0, -32.0], [0.0, 48.0])
    """

    def function(w: Tensor) -> Tensor:
        return torch.as_tensor(_Value.apply(w, loss, gradient, hessian))  # type: ignore[no-untyped-call]  # torch's own

    return function
