"""The four ways to learn a staircase, with many seeds stacked: targets, batches, networks, what they predict and what they cost."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradoscope.problems.steps import Smooth, classifier, level_index, relu_network, round_down, thresholds
from gradoscope.stacked import generator, stack, start_like_source
from gradoscope.updates.forward_only import ForwardOnly

__all__ = ["BINS", "KEY", "LAW", "LR", "Target", "adam", "batches", "losses", "multiplications", "network", "predict", "score", "steps_to"]

KEY = 641
LR = {"smooth": 0.01, "end-to-end": 0.001, "multi-class": 0.001, "forward-only": 0.001}
LAW = "code"
CHUNK = 16  # batches drawn at once
BINS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 1.0)  # distance to the nearest threshold
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Target:
    """What S seeds have to learn: y = b* + u(<v*, x> + b* - b*), with u's levels lying around b* as in the code.

    Attributes:
        seeds: S of them.
        direction: v*, shape (S, d).
        offset: b*, shape (S, 1, 1).
        std: standard deviation of each input.
    """

    seeds: tuple[int, ...]
    direction: Tensor
    offset: Tensor
    std: float

    @classmethod
    def of(cls, seeds: Sequence[int], d: int, std: float) -> "Target":
        """v* ~ N(0, I) and b* ~ N(0, 1) of each seed, the same for every approach and every std."""
        drawn = [torch.randn(d + 1, generator=generator(seed, KEY, 1)) for seed in seeds]
        both = torch.stack(drawn)
        return cls(tuple(seeds), both[:, :d], both[:, d:].unsqueeze(-1), std)

    def examples(self, randoms: Sequence[torch.Generator], *sizes: int) -> Batch:
        """x of shape (S, *sizes, d), <v*, x> + b* and the index of its level, both of shape (S, *sizes)."""
        x = torch.stack([torch.randn(*sizes, self.direction.shape[1], generator=g).mul_(self.std) for g in randoms])
        r = torch.stack([part @ v for part, v in zip(x, self.direction, strict=True)])
        shape = (len(self.seeds),) + (1,) * len(sizes)
        return x, r + self.offset.reshape(shape), level_index(r, LAW)

    def probe(self, n: int) -> Batch:
        """n examples per seed that no training sees."""
        return self.examples([generator(seed, KEY, 4) for seed in self.seeds], n)

    def values(self, index: Tensor) -> Tensor:
        """The levels themselves, for indices of shape (S, ...)."""
        shape = (len(self.seeds),) + (1,) * (index.dim() - 1)
        return thresholds(LAW)[index] + self.offset.reshape(shape)


def batches(target: Target, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Fresh x of shape (S, size, d) with the index of its level, (S, size); a seed's batches do not depend on the other seeds."""
    randoms = [generator(seed, KEY, 3) for seed in target.seeds]
    while True:
        x, _, index = target.examples(randoms, CHUNK, size)
        for t in range(CHUNK):
            yield x[:, t], index[:, t]


def network(approach: str, target: Target, sharpness: float = 0.0) -> nn.Sequential:
    """The stack of an approach's networks, started as the source does: truncated normal weights, zero biases."""
    d, count = target.direction.shape[1], len(thresholds(LAW))

    def make() -> nn.Module:
        if approach == "end-to-end":
            return relu_network(d)
        return classifier(d, count) if approach == "multi-class" else nn.Sequential(nn.Linear(d, 1))

    singles = [start_like_source(make(), generator(seed, KEY, 2)) for seed in target.seeds]
    stacked = stack(singles)
    assert isinstance(stacked, nn.Sequential)
    if approach == "smooth":
        stacked.append(Smooth(LAW, target.offset, sharpness))
    if approach == "forward-only":
        stacked.append(ForwardOnly(lambda r: round_down(r, LAW, target.offset)))
    return stacked


def adam(model: nn.Module, lr: float) -> torch.optim.Adam:
    """The source's optimizer."""
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-5)


def losses(approach: str, target: Target, model: nn.Module, x: Tensor, index: Tensor) -> Tensor:
    """The loss that each network minimises: the squared one, or cross-entropy; shape (S,)."""
    out = model(x)
    if approach == "multi-class":
        return nn.functional.cross_entropy(out.transpose(1, 2), index, reduction="none").mean(1)
    return torch.as_tensor((out.squeeze(-1) - target.values(index)).square().mean(1))


@torch.no_grad()
def predict(approach: str, target: Target, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What each network says of x: (a number, the index of the level that it means), both of shape (S, n).

    Smooth approximation: u~ and, once trained, the true staircase at the same sum. End-to-end: the output and the level nearest
    to it. Multi-class and forward-only: a level.
    """
    out = model(x)
    if approach == "multi-class":
        index = out.argmax(-1)
        return target.values(index), index
    if approach == "smooth":
        assert isinstance(model, nn.Sequential)
        return out.squeeze(-1), level_index(model[0](x), LAW, target.offset).squeeze(-1)
    # An output that is a level is nearest to itself; the midpoints between levels part the others.
    levels = thresholds(LAW)
    centred = (out - target.offset).squeeze(-1).contiguous()
    return out.squeeze(-1), torch.bucketize(centred, (levels[1:] + levels[:-1]) / 2)


def score(approach: str, target: Target, model: nn.Module, probe: Batch) -> dict[str, list[float]]:
    """On a probe, by name, one number per seed.

    "loss" (of the training), "squared" (of the number), "hard" (squared, of the level), "accuracy" (share of exact levels).
    """
    x, _, index = probe
    said, meant = predict(approach, target, model, x)
    y = target.values(index)
    with torch.no_grad():
        own = losses(approach, target, model, x, index)
    return {
        "loss": own.tolist(),
        "squared": (said - y).square().mean(1).tolist(),
        "hard": (target.values(meant) - y).square().mean(1).tolist(),
        "accuracy": (meant == index).double().mean(1).tolist(),
    }


def multiplications(approach: str, d: int, batch: int, width: int = 100) -> tuple[int, int]:
    """Multiplications of (one prediction, one training step), counted from the layers.

    A layer of a by b units takes a*b forward, a*b for its weights' gradient, and a*b for its input's where another layer lies
    below. A smooth step takes three on either way: slope, sigmoid (counted as one), height. Comparisons are free, and Adam takes
    seven per parameter.

    Example:
        >>> multiplications("forward-only", d=100, batch=256)
        (100, 51907)
    """
    count = len(thresholds(LAW))
    sizes = {"end-to-end": [d, width, width, width, 1], "multi-class": [d, width, width, count]}.get(approach, [d, 1])
    products = [a * b for a, b in pairwise(sizes)]
    parameters = sum(products) + sum(sizes[1:])
    curve = 3 * (count - 1) if approach == "smooth" else 0
    forward = sum(products) + curve
    backward = sum(products) + sum(products[1:]) + curve
    return forward, batch * (forward + backward) + 7 * parameters


def steps_to(curve: Iterable[tuple[int, float]], level: float) -> int | None:
    """The first step at which a curve is at or below a level; None where it never is."""
    return next((step for step, value in curve if value <= level), None)
