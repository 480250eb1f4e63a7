"""What autograd's graph of a loss tells: its operations, and which of them cannot be trusted to differentiate twice."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["has_node", "nodes", "once_differentiable"]


def nodes(loss: Tensor) -> Iterator[Any]:
    """The operations that a tensor was made by, each once.

    Example:
        >>> import torch
        >>> [node.name() for node in nodes(torch.ones(2, requires_grad=True).sum())]
        ['SumBackward0', 'torch::autograd::AccumulateGrad']
    """
    ahead: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        ahead += [previous for previous, _ in node.next_functions]


def has_node(loss: Tensor, name: str) -> bool:
    """Whether the graph of a loss has a node of this name."""
    return any(node.name() == name for node in nodes(loss))


def once_differentiable(loss: Tensor) -> list[str]:
    """The functions of a user's own in a loss whose second derivative is silently wrong: they are marked `once_differentiable`.

    Example:
        >>> import torch
        >>> class Double(torch.autograd.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         return 2 * x
        ...
        ...     @staticmethod
        ...     @torch.autograd.function.once_differentiable
        ...     def backward(ctx, slope):
        ...         return 2 * slope
        >>> once_differentiable(Double.apply(torch.ones(1, requires_grad=True)))
        ['Double']
    """
    found = []
    for node in nodes(loss):
        if isinstance(node, BackwardCFunction):
            function = node._forward_cls  # type: ignore[attr-defined]  # set by the metaclass of autograd functions
            code = getattr(function.backward, "__code__", None)
            # The mark leaves no attribute: it is a wrapper that torch defines beside itself.
            if code is not None and code.co_filename == _own_file() and function.__name__ not in found:
                found.append(function.__name__)
    return found


def _own_file() -> str:
    from torch.autograd.function import once_differentiable as mark

    return mark.__code__.co_filename
