"""Many small networks trained as one: parameters with a leading dimension of seeds, so that one product serves them all."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.errors import CannotRun
from gradoscope.guard import derive_seed

__all__ = [
    "HingeLoss",
    "SlopedLoss",
    "StackedLinear",
    "StackedSequential",
    "blank",
    "bulk",
    "fit",
    "generator",
    "hinge",
    "numpy_generator",
    "stack",
    "start_like_source",
    "truncated_normal",
    "unstack",
]


Draw = Callable[[np.random.Generator, int], tuple[Tensor, ...]]


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


class StackedSequential(nn.Sequential):
    """Layers in turn, each of S networks; `fit` differentiates chains of linear layers and ReLUs by hand."""

    def pairs(self) -> list[tuple[StackedLinear, bool]] | None:
        """The linear layers, each with whether a ReLU follows; None where there is anything else, or a frozen parameter."""
        found: list[tuple[StackedLinear, bool]] = []
        for layer in self:
            if isinstance(layer, StackedLinear) and all(p.requires_grad for p in layer.parameters()):
                found.append((layer, False))
            elif type(layer) is nn.ReLU and found and not found[-1][1]:
                found[-1] = (found[-1][0], True)
            else:
                return None
        return found


@runtime_checkable
class SlopedLoss(Protocol):
    """A loss of outputs and targets whose slope is known, so that `fit` need not ask autograd for it."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each network, shape (S,)."""

    def slope(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean losses, shape (S,), and the derivative of their sum by `output`, of its shape (S, B, out)."""


class HingeLoss:
    r"""The mean hinge loss $\frac1B\sum_b\max(0,1-y_bs_b)$ of each network of a stack; use it as `hinge`.

    Example:
        >>> score = torch.tensor([[[0.5], [2.0], [-1.0]]])
        >>> losses, slope = hinge.slope(score, torch.ones(1, 3, 1))
        >>> round(float(losses), 4), [round(v, 4) + 0.0 for v in slope.flatten().tolist()]
        (0.8333, [-0.3333, 0.0, -0.3333])
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x of shape (S, B, in), y of shape (S, B, 1), -1 or +1; returns (S,)."""
        return torch.relu(1 - y * model(x)).mean((1, 2))

    def slope(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and -y/B where the margin is below one, else 0."""
        slack = torch.relu_(1 - y * output)
        return slack.mean((1, 2)), torch.sign(slack).mul_(y).mul_(-1 / output.shape[1])


hinge = HingeLoss()


class _ByHand:
    r"""Gradients of a stack of linear layers and ReLUs without autograd.

    Small networks spend their steps between operations and on passes over the activations, not on products. Here the first bias
    is one more input, which is always one; activations stay in memory that is used again; and where a layer has one output, so
    that $s=\mathrm{relu}(xW+b)\,w+c$, its gradients are products with the mask $M=[xW+b>0]$, which takes the place of h:
    $\nabla_W=\big((x\odot g)^\top M\big)\odot w$ and $\nabla_x=g\odot M(W\odot w)^\top$, with g the slope of the loss by s.
    """

    def __init__(self, pairs: list[tuple[StackedLinear, bool]], loss: SlopedLoss) -> None:
        self.pairs, self.loss = pairs, loss
        self._memory = [pairs[0][0].weight.new_empty(0) for _ in pairs]

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Set every `.grad` to that of the sum of the losses, and return the losses, shape (S,)."""
        inputs: list[Tensor] = []
        x = x.expand(len(self.pairs[0][0].weight), *x.shape) if x.dim() == 2 else x
        for k, (layer, rectified) in enumerate(self.pairs):
            weight: Tensor = layer.weight
            bias, memory = layer.bias, self._memory[k].resize_(*x.shape[:2], weight.shape[2])
            if k == 0 and bias is not None:
                x, weight = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2), torch.cat([weight, bias], 1)
            inputs.append(x)
            x = torch.bmm(x, weight, out=memory) if k == 0 or bias is None else torch.baddbmm(bias, x, weight, out=memory)
            x = x.relu_() if rectified else x
        losses, slope = self.loss.slope(x, y)
        self._back(inputs, slope)
        return losses

    def _back(self, inputs: list[Tensor], g: Tensor) -> None:
        row: Tensor | None = None  # the slope by the activations is g, or g * row
        for k in range(len(self.pairs) - 1, -1, -1):
            layer, rectified = self.pairs[k]
            x, weight, below = inputs[k], layer.weight, k > 0
            mask = self._memory[k].sign_() if rectified else None
            if row is not None and mask is not None:
                by_weight = torch.bmm((x * g).transpose(1, 2), mask).mul_(row)
                by_bias = torch.bmm(g.transpose(1, 2), mask).mul_(row) if below and layer.bias is not None else None
                if below:
                    g = torch.bmm(mask, (weight * row).transpose(1, 2)).mul_(g)
                row = None
            else:
                g = g if mask is None else mask.mul_(g)
                alone = weight.shape[2] == 1
                by_weight = torch.bmm(g.transpose(1, 2), x).transpose(1, 2) if alone else torch.bmm(x.transpose(1, 2), g)
                by_bias = g.sum(1, keepdim=True) if below and layer.bias is not None else None
                if below and alone and self.pairs[k - 1][1]:
                    row = weight.transpose(1, 2)
                elif below:
                    g = torch.bmm(g, weight.transpose(1, 2))
            if not below and layer.bias is not None:
                by_weight, by_bias = by_weight[:, :-1], by_weight[:, -1:]
            weight.grad = by_weight
            if layer.bias is not None:
                layer.bias.grad = by_bias


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
        return StackedSequential(*(stack(column) for column in zip(*parts, strict=True)))
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

    A chain of linear layers and ReLUs with a loss of known slope (`hinge`) is differentiated by hand: at d = 5 inputs and ten
    networks that takes half the time. The gradients are those of autograd up to rounding.

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
    pairs = model.pairs() if isinstance(model, StackedSequential) and isinstance(losses, SlopedLoss) else None
    by_hand = _ByHand(pairs, losses) if pairs and isinstance(losses, SlopedLoss) else None
    for step in range(start, start + steps):
        if by_hand is not None:
            last = by_hand.step(*next(batches))
            if look is not None and every and step % every == 0:
                look(step, last)
            optimizer.step()
            continue
        optimizer.zero_grad(set_to_none=True)
        each = losses(model, *next(batches))
        last = each.detach()
        if look is not None and every and step % every == 0:
            look(step, last)
        each.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if look is not None:
        look(start + steps, last)


def blank(inputs: int, outputs: int, *, bias: bool = True, dtype: torch.dtype | None = None) -> nn.Linear:
    """A linear layer whose start is still to be set: none is drawn for it from the global stream.

    Example:
        >>> blank(3, 2).weight.shape
        torch.Size([2, 3])
    """
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, dtype=dtype)  # type: ignore[no-untyped-call]  # torch's own
    return layer


def generator(seed: int, *keys: int, device: str = "cpu") -> torch.Generator:
    """A generator of its own for (seed, keys), for initial weights and data of one seed of a study."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *keys))


def numpy_generator(seed: int, *keys: int) -> np.random.Generator:
    """The same from numpy, whose bits and integers are several times as fast."""
    return np.random.Generator(np.random.SFC64(derive_seed(seed, *keys)))


def bulk(
    seeds: Sequence[int],
    draw: Draw | Sequence[Draw],
    *keys: int,
    chunk: int = 100,
) -> Iterator[tuple[Tensor, ...]]:
    """Fresh batches for a stack, one tuple of tensors (S, ...) per step, drawn for `chunk` steps at once per seed.

    What a seed gets depends on the seed, the keys and the chunk alone, not on the seeds that it is stacked with.

    Args:
        seeds: S seeds.
        draw: `draw(random, n)`, tensors of shape (n, ...) for n steps of one seed; or one such function for each seed.
        keys: what distinguishes this stream from others of the seed.
        chunk: steps drawn at once.

    Example:
        >>> draw = lambda random, n: (torch.from_numpy(random.random((n, 2))),)
        >>> together, alone = bulk([0, 1], draw), bulk([1], draw)
        >>> bool(torch.equal(next(together)[0][1], next(alone)[0][0]))
        True
    """
    randoms = [numpy_generator(seed, *keys) for seed in seeds]
    draws = [draw] * len(randoms) if callable(draw) else list(draw)
    while True:
        parts = [one(random, chunk) for one, random in zip(draws, randoms, strict=True)]
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
