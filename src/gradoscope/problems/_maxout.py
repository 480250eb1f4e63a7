"""Maxout networks as their source trains them: columns of bounded norm, momentum that grows, and adversarial examples."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradoscope.stacked import blank

__all__ = ["Adversarial", "BoundedSGD", "Maxout", "both", "fast_gradient_sign", "growing_momentum", "network"]


class Maxout(nn.Module):
    r"""A layer of units that answer the largest of their linear pieces: $h_i=\max_j(x^\top w_{ij}+b_{ij})$.

    Args:
        inputs: how many.
        units: how many.
        pieces: of each unit.
        width: weights start uniformly in [-width, width], biases at 0; None for PyTorch's start of linear layers.

    Example:
        >>> layer = Maxout(3, 5, 2)
        >>> layer(torch.ones(7, 3)).shape
        torch.Size([7, 5])

    Source: Goodfellow, Warde-Farley, Mirza, Courville and Bengio 2013, Maxout networks.
    """

    def __init__(self, inputs: int, units: int, pieces: int, width: float | None = None) -> None:
        super().__init__()
        self.units, self.pieces = units, pieces
        self.linear = _linear(inputs, units * pieces, width)

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (..., inputs); returns (..., units)."""
        pieces: Tensor = self.linear(x)
        return pieces.reshape(*pieces.shape[:-1], self.units, self.pieces).amax(-1)


def _linear(inputs: int, outputs: int, width: float | None) -> nn.Linear:
    if width is None:
        return nn.Linear(inputs, outputs)
    layer = blank(inputs, outputs)
    nn.init.uniform_(layer.weight, -width, width)
    nn.init.zeros_(layer.bias)
    return layer


def network(
    inputs: int,
    units: int,
    pieces: int,
    *,
    layers: int = 2,
    width: float | None = None,
    dropout: float = 0.0,
    hidden_dropout: float = 0.0,
) -> nn.Sequential:
    """Maxout layers and ten scores.

    Args:
        inputs: pixels.
        units: of each hidden layer.
        pieces: of each unit.
        layers: hidden ones.
        width: of the uniform start of all weights; None for PyTorch's.
        dropout: the share of pixels that is left out in training.
        hidden_dropout: the share of hidden units that is left out in training.
    """
    parts: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    for _ in range(layers):
        parts.append(Maxout(inputs, units, pieces, width))
        parts += [nn.Dropout(hidden_dropout)] if hidden_dropout else []
        inputs = units
    return nn.Sequential(*parts, _linear(inputs, 10, width))


class BoundedSGD(SGD):
    """SGD that afterwards scales every column of weights down to a norm of at most `bound`.

    A column is what comes into one unit (or piece): a row of PyTorch's matrices. Biases are free.

    Args:
        params: parameters or groups of them.
        lr: step size.
        momentum: as in SGD.
        bound: the largest norm.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[30.0, 40.0]])
        >>> optimizer = BoundedSGD(layer.parameters(), lr=0.0, bound=5.0)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.round(decimals=3).tolist()
        [[3.0, 4.0]]

    Source: Hinton, Srivastava, Krizhevsky, Sutskever and Salakhutdinov 2012; the maxout recipe's bound is 1.9365.
    """

    def __init__(self, params: Iterable[Any], lr: float, momentum: float = 0.0, bound: float = 1.9365) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        self.bound = bound

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch has overloads here
        """A step of SGD, and the bound."""
        loss: float | None = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.dim() == 2:
                        norms = p.norm(dim=1, keepdim=True)
                        p.mul_(torch.where(norms > self.bound, self.bound / norms.clamp_min(1e-30), 1.0))
        return loss


class _Growing(LambdaLR):
    """A step size that shrinks by a factor at each step, and a momentum that grows linearly and then stays."""

    def __init__(self, optimizer: Optimizer, shrink: float, first: float, last: float, steps: int) -> None:
        self.first, self.last, self.steps = first, last, steps
        super().__init__(optimizer, lambda step: shrink**-step)

    def step(self, epoch: int | None = None) -> None:
        """One optimizer step further."""
        super().step(epoch)
        share = min(1.0, self.last_epoch / self.steps)
        for group in self.optimizer.param_groups:
            group["momentum"] = self.first + share * (self.last - self.first)


def growing_momentum(first: float, last: float, steps: int, shrink: float = 1.000004) -> Callable[[Optimizer], Any]:
    r"""The recipe's schedule: momentum from `first` to `last` over `steps`, and the step size $\eta_t=\eta_0/\text{shrink}^t$.

    Example:
        >>> optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.5)
        >>> schedule = growing_momentum(0.5, 0.7, 4)(optimizer)
        >>> for _ in range(2):
        ...     optimizer.step(), schedule.step()
        (None, None)
        (None, None)
        >>> round(optimizer.param_groups[0]["momentum"], 6)
        0.6
    """
    return lambda optimizer: _Growing(optimizer, shrink, first, last, steps)


def fast_gradient_sign(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    r"""$x+\epsilon\,\mathrm{sign}\nabla_xJ(x)$: the step of this size in each pixel that raises the loss fastest to first order.

    Args:
        model: gives scores, shape (n, classes).
        x: shape (n, pixels).
        y: labels, shape (n,).
        epsilon: in the pixels' unit.

    Returns:
        The adversarial images, without a graph: they count as data.

    Cost: one forward and one backward pass.

    Source: Goodfellow, Shlens and Szegedy 2015, Explaining and harnessing adversarial examples.
    """
    with torch.enable_grad():
        probe = x.detach().clone().requires_grad_(True)
        # The sum, not the mean: an image's own gradient keeps its sign, and large batches do not round it away.
        (slope,) = torch.autograd.grad(F.cross_entropy(model(probe), y, reduction="sum"), probe)
    return x.detach() + epsilon * slope.sign()


class Adversarial(nn.Module):
    """A network with the scores of images and of the adversarial examples that it is given for them.

    Args:
        model: gives scores.
        epsilon: of the adversarial examples; they are made anew at each call, from the parameters as they are then.
    """

    def __init__(self, model: nn.Module, epsilon: float) -> None:
        super().__init__()
        self.model, self.epsilon = model, epsilon

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Images (n, pixels) and labels (n,); returns scores (n, classes, 2), of the images and of their adversarial examples."""
        return torch.stack([self.model(x), self.model(fast_gradient_sign(self.model, x, y, self.epsilon))], dim=-1)


def both(scores: Tensor, y: Tensor) -> Tensor:
    r"""$\tilde J=\frac12J(x)+\frac12J(x+\epsilon\,\mathrm{sign}\nabla_xJ)$ from scores of shape (n, classes, 2)."""
    return F.cross_entropy(scores, y[:, None].expand(-1, scores.shape[-1]))
