"""What the families share: networks, optimizers, streams of random numbers and the usual repairs."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.guard import derive_seed

__all__ = ["accuracy", "adam", "balanced", "blobs", "generator", "mlp", "overwrite", "planner", "scaled", "sgd", "split_rows"]

Pair = tuple[Tensor, Tensor]
Network = TypeVar("Network", bound=nn.Module)


def generator(*keys: int) -> torch.Generator:
    """A stream of its own for (seed, purpose)."""
    return torch.Generator().manual_seed(derive_seed(7100, *keys))


def planner(make: Callable[..., Any]) -> Callable[..., Any]:
    """A family's `plan(**options)`: its `make` with these options, as a function of the seed."""
    return partial(partial, make)


def sgd(lr: float, **options: Any) -> Callable[[Any], Optimizer]:
    """A function that makes plain gradient descent."""
    return lambda params: torch.optim.SGD(params, lr=lr, **options)


def adam(lr: float, **options: Any) -> Callable[[Any], Optimizer]:
    """A function that makes Adam."""
    return lambda params: torch.optim.Adam(params, lr=lr, **options)


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.ReLU, *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of these sizes with an activation between them, PyTorch's default start."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            if norm:
                layers.append(nn.BatchNorm1d(b))
            layers.append(activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def accuracy(output: Tensor, target: Tensor) -> float:
    """The share of rows (of positions, where the last but one axis is time) whose largest score is at the target."""
    return float((output.argmax(-1) == target).double().mean())


def scaled(model: Network, factor: float) -> Network:
    """Multiply every weight matrix by a factor, in place."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(factor)
    return model


def overwrite(model: Network, **values: Tensor | float) -> Network:
    """Set parameters by name (dots as two underscores), in place."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameter = own[name.replace("__", ".")]
            if isinstance(value, Tensor):
                parameter.copy_(value)
            else:
                parameter.fill_(value)
    return model


def split_rows(data: Pair, train: int) -> tuple[Pair, Pair]:
    """The first rows, and the others."""
    x, y = data
    return (x[:train], y[:train]), (x[train:], y[train:])


def blobs(random: torch.Generator, rows: int, classes: int, d: int, apart: float, shares: Sequence[float] | None = None) -> Pair:
    """Gaussian clouds of unit variance around centres that lie about `apart` from zero; all classes as often, or by shares."""
    centres = torch.randn(classes, d, generator=random)
    centres = apart * centres / centres.norm(dim=1, keepdim=True)
    weights = torch.ones(classes) if shares is None else torch.tensor(list(shares))
    y = torch.multinomial(weights, rows, replacement=True, generator=random)
    return centres[y] + torch.randn(rows, d, generator=random), y


def balanced(x: Tensor, clean: Tensor, noise: float, random: torch.Generator) -> Pair:
    """Each row twice, with opposite noise of just this variance: a squared error is the noise plus what a model lacks, without chance."""
    e = torch.randn(clean.shape, generator=random)
    e = noise**0.5 * e / e.square().mean().sqrt().clamp_min(1e-12)
    return torch.cat([x, x]), torch.cat([clean + e, clean - e])
