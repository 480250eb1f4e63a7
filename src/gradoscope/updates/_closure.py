"""The loss of a closure as an Objective: with second derivatives where it leaves a graph, by finite differences where it calls backward."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.guard import derive_seed, private_random
from gradoscope.objective import Objective, flat

__all__ = ["ClosureObjective", "check_step"]


class ClosureObjective(Objective):
    """What one closure computes, as a function of an optimizer's parameters.

    A closure that only returns the loss is differentiated twice by autograd. One that calls backward, as closures for torch's
    optimizers do, leaves no graph: products with the Hessian are then differences of the gradients that it leaves in `.grad`. Random
    streams are seeded alike for every call, so that masks are the same throughout a step; the global ones are put back.

    Args:
        parameters: the leaves to differentiate by.
        closure: gives the loss, the same function of the parameters at each call: same batch.
        seed: what random streams inside are seeded by.

    Raises:
        TypeError: where the closure returns no loss.

    Attributes:
        value: the loss where the parameters stood when this was made.
        slope: the gradient there, shape (dim,).
    """

    def __init__(self, parameters: Sequence[Tensor], closure: Callable[[], Any], seed: int) -> None:
        self._closure = closure
        named = [(str(i), p) for i, p in enumerate(parameters)]
        super().__init__(nn.Module(), lambda model, batch: self._call(), [None], parameters=named, seed=seed)
        self.value = float("nan")
        self.slope = self.batch_gradient(0)

    def _call(self) -> Tensor:
        loss = self._closure()
        if loss is None:
            raise TypeError("the closure must return the loss, but it returned None.")
        return loss if isinstance(loss, Tensor) else torch.as_tensor(float(loss))

    def inside(self, k: int) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(private_random(derive_seed(self.seed, k)))
        return stack

    def batch_gradient(self, k: int) -> Tensor:
        with self.inside(k), torch.enable_grad():
            for p in self.parameters:
                p.grad = None
            loss = self.batch_loss(k)
            left = [p.grad for p in self.parameters]
            if any(g is not None for g in left):
                self.distrust("the closure calls backward")
                self._no_grad = False
                slope = flat(left, self.parameters)
            else:
                slope = flat(self._differentiate(loss, create_graph=False), self.parameters)
            self.value = float(loss.detach())
        self.spend(k, 1, 1)
        return slope.detach()

    def point(self) -> tuple[Any, ...]:
        return tuple((p.data_ptr(), p._version) for p in self.parameters)

    def loss_at(self, theta: Tensor) -> float:
        """The loss at a vector of parameters, which are put back. Cost: one call of the closure."""
        with self.moved(theta):
            return self.loss()


def check_step(rule: str, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
    """The parameters of an optimizer that moves them all together.

    Raises:
        ValueError: where there are several groups, or complex parameters.
    """
    if len(groups) != 1:
        raise ValueError(f"{rule} moves all parameters together along one direction: expected one group of parameters, got {len(groups)}.")
    parameters: list[Tensor] = groups[0]["params"]
    if any(p.is_complex() for p in parameters):
        raise ValueError(f"{rule} takes real parameters only: use torch.view_as_real for complex ones.")
    return parameters
