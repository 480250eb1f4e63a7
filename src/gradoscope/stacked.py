"""Many small networks trained as one: parameters with a leading dimension of seeds, so that one product serves them all."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed

__all__ = [
    "StackedLinear",
    "bulk",
    "fit",
    "generator",
    "numpy_generator",
    "stack",
    "start_like_source",
    "truncated_normal",
    "unstack",
]


class StackedLinear(nn.Module):
    r"""S affine maps side by side: $y_s = x_s W_s + b_s$.

    Args:
        weight: shape (S, in, out): the transposes of the single layers' weights.
        bias: shape (S, 1, out), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias) if bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """x of shape (S, B, in), or (B, in) where all share it; returns (S, B, out)."""
        if x.dim() == 2:
            x = x.expand(len(self.weight), *x.shape)
        if self.weight.shape[2] == 1:  # a product with a single column is several times as slow as a sum
            y = (x * self.weight.transpose(1, 2)).sum(-1, keepdim=True)
            return y if self.bias is None else y + self.bias
        return torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One module that computes what `models` compute, each on its own slice of the first dimension.

    Sequences of linear layers and of activations, which act on single numbers. The parameters are copies.

    Args:
        models: S modules of one structure.

    Raises:
        CannotRun: for a layer of another kind, or models that differ.

    Example:
        >>> models = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(5)]
        >>> x = torch.ones(5, 7, 3)
        >>> bool(torch.allclose(stack(models)(x)[2], models[2](x[2]), atol=1e-6))
        True
    """
    first = models[0]
    if any(type(m) is not type(first) for m in models):
        raise CannotRun("only models of one structure can be stacked.")
    if isinstance(first, nn.Sequential):
        parts = [list(m) for m in models if isinstance(m, nn.Sequential)]
        if len({len(p) for p in parts}) != 1:
            raise CannotRun("only models of one structure can be stacked; these have different numbers of layers.")
        return nn.Sequential(*(stack(column) for column in zip(*parts, strict=True)))
    if isinstance(first, nn.Linear):
        weights = torch.stack([m.weight.detach().T for m in models])  # type: ignore[operator]
        biases = None if first.bias is None else torch.stack([m.bias.detach()[None] for m in models])  # type: ignore[operator]
        return StackedLinear(weights.clone(), biases)
    if any(True for _ in first.parameters()) or not isinstance(first, _ELEMENTWISE):
        raise CannotRun(f"layers of type {type(first).__name__} cannot be stacked; there are Linear, Sequential and activations.")
    return first


_ELEMENTWISE = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Identity, nn.LeakyReLU, nn.GELU, nn.Softplus, nn.SiLU)


def unstack(stacked: nn.Module, index: int, into: nn.Module) -> nn.Module:
    """Copy slice `index` of a stack into a single model of its structure, and return that.

    Example:
        >>> models = [nn.Linear(2, 3) for _ in range(4)]
        >>> bool(torch.equal(unstack(stack(models), 1, nn.Linear(2, 3)).weight, models[1].weight))
        True
    """
    with torch.no_grad():
        for layer, single in zip(stacked.modules(), into.modules(), strict=True):
            if isinstance(layer, StackedLinear):
                single.weight.copy_(layer.weight[index].T)  # type: ignore[operator]
                if layer.bias is not None:
                    single.bias.copy_(layer.bias[index, 0])  # type: ignore[operator]
    return into


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[tuple[Tensor, ...]],
    losses: Callable[..., Tensor],
    steps: int,
    *,
    look: Callable[[int, Tensor], Any] | None = None,
    every: int = 0,
    start: int = 0,
) -> None:
    """Train a stack: at each step the sum of the S losses is minimised, so that no network sees another.

    With an optimizer that treats every number by itself (SGD, Adam, AdaGrad, RMSprop ...) and no clipping, each network moves
    exactly as it would alone, up to rounding.

    Args:
        model: the stack.
        optimizer: over its parameters.
        batches: gives one tuple per step.
        losses: `losses(model, *batch)`, shape (S,): the mean loss of each network.
        steps: how many.
        look: `look(step, losses)` before the step of each index that `every` divides, and after the last step (with the last losses).
        every: 0 looks only after the last step.
        start: the index of the first step.

    Cost: one forward and one backward pass of the stack per step.
    """
    last = torch.zeros(0)
    for step in range(start, start + steps):
        optimizer.zero_grad(set_to_none=True)
        each = losses(model, *next(batches))
        last = each.detach()
        if look is not None and every and step % every == 0:
            look(step, last)
        each.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if look is not None:
        look(start + steps, last)


def generator(seed: int, *keys: int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, keys), for initial weights and data of one seed of a study."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *keys))


def numpy_generator(seed: int, *keys: int) -> np.random.Generator:
    """The same from numpy, whose bits and integers are several times as fast."""
    return np.random.Generator(np.random.SFC64(derive_seed(seed, *keys)))


def bulk(
    seeds: Sequence[int],
    draw: Callable[[np.random.Generator, int], tuple[Tensor, ...]],
    *keys: int,
    chunk: int = 100,
) -> Iterator[tuple[Tensor, ...]]:
    """Fresh batches for a stack, one tuple of tensors (S, ...) per step, drawn for `chunk` steps at once per seed.

    What a seed gets depends on the seed, the keys and the chunk alone, not on the seeds that it is stacked with.

    Args:
        seeds: S seeds.
        draw: `draw(random, n)`, tensors of shape (n, ...) for n steps of one seed.
        keys: what distinguishes this stream from others of the seed.
        chunk: steps drawn at once.

    Example:
        >>> draw = lambda random, n: (torch.from_numpy(random.random((n, 2))),)
        >>> together, alone = bulk([0, 1], draw), bulk([1], draw)
        >>> bool(torch.equal(next(together)[0][1], next(alone)[0][0]))
        True
    """
    randoms = [numpy_generator(seed, *keys) for seed in seeds]
    while True:
        parts = [draw(random, chunk) for random in randoms]
        columns = [torch.stack(column, dim=1) for column in zip(*parts, strict=True)]
        yield from zip(*columns, strict=True)


def truncated_normal(shape: Sequence[int], std: float, random: torch.Generator) -> Tensor:
    """Normal numbers of this standard deviation, drawn anew beyond two of them: the sources' start for weights."""
    return nn.init.trunc_normal_(torch.empty(*shape), std=std, a=-2 * std, b=2 * std, generator=random)


def start_like_source(model: nn.Module, random: torch.Generator) -> nn.Module:
    r"""Start a single model as the sources do: truncated normal weights of std $1/\sqrt{\text{fan in}}$, zero biases."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                fan_in = layer.weight[0].numel()
                layer.weight.copy_(truncated_normal(layer.weight.shape, 1 / math.sqrt(fan_in), random))
                if layer.bias is not None:
                    layer.bias.zero_()
    return model
