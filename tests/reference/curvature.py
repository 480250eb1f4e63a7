"""Slow, obvious curvature in float64: whole Hessians and Gauss-Newton matrices, from torch's own functional API."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradoscope.guard import derive_seed, untouched


class _At:
    """The model at other parameters, to be called as the model is; shared parameters are replaced everywhere."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        self.model, self.values = model, values

    def __call__(self, *inputs: Any) -> Any:
        return functional_call(self.model, self.values, inputs)


def function_of_theta(model: nn.Module, function: Callable[[Any, Any], Tensor], batch: Any) -> Callable[[Tensor], Tensor]:
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def of_theta(theta: Tensor) -> Tensor:
        pieces = theta.split([p.numel() for _, p in named])
        return function(_At(model, {n: v.reshape(p.shape) for (n, p), v in zip(named, pieces, strict=True)}), batch)

    return of_theta


def theta_of(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]).clone()


def dense_hessian(model: nn.Module, loss: Callable[[Any, Any], Tensor], batches: Sequence[Any], *, mode: str = "train") -> Tensor:
    total = torch.zeros(())
    for k, batch in enumerate(batches):
        with untouched(model), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            model.train(mode == "train")

            def seeded(theta: Tensor, k: int = k, batch: Any = batch) -> Tensor:
                with untouched(model, seed=derive_seed(0, k)):
                    return function_of_theta(model, loss, batch)(theta)

            total = total + torch.autograd.functional.hessian(seeded, theta_of(model))
    return total / len(batches)


def dense_gauss_newton(
    model: nn.Module, forward: Callable[[Any, Any], Tensor], loss_of_output: Callable[[Tensor, Any], Tensor], batch: Any
) -> Tensor:
    output = function_of_theta(model, lambda m, b: forward(m, b).reshape(-1), batch)
    theta = theta_of(model)
    jacobian = torch.autograd.functional.jacobian(output, theta)
    shape = forward(model, batch).shape
    inner = torch.autograd.functional.hessian(lambda z: loss_of_output(z.reshape(shape), batch), output(theta))
    return jacobian.T @ inner @ jacobian
