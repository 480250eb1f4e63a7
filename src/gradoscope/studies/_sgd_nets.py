"""SGD, momentum and both readings of Nesterov on three networks, each at its best rate; the batch on a network."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradoscope.problems._data import digits
from gradoscope.stacked import StackedSequential, generator, numpy_generator, stack, start_like_source
from gradoscope.studies._sgd import KEY
from gradoscope.studies._sgd_data import cross_entropy
from gradoscope.study import Context, Result, Row
from gradoscope.updates import lecture

__all__ = ["ALPHA", "METHODS", "NETS", "RATES", "methods", "network", "network_batches"]

ALPHA = 0.9
METHODS = ("SGD", "Momentum", "NesterovA", "NesterovB")
RATES = tuple(0.4 * 2.0 ** (k / 2) for k in range(1, 12))
BATCH_RATES = tuple(0.02 * 2.0**k for k in range(8))
NETS: dict[str, tuple[tuple[int, ...], type[nn.Module]]] = {
    "ReLU 64-32-10": ((32,), nn.ReLU),
    "tanh 64-32-32-10": ((32, 32), nn.Tanh),
    "sigmoid 64-32-10": ((32,), nn.Sigmoid),
}


def network(name: str) -> nn.Sequential:
    """A single network of the study."""
    hidden, activation = NETS[name]
    layers: list[nn.Module] = []
    before = 64
    for width in hidden:
        layers += [nn.Linear(before, width), activation()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, 10))


def make(method: str, parameters: Any) -> Optimizer:
    """A rule of the lecture at rate one: losses are scaled by the rates instead, which is the same for rules linear in the gradient.

    NesterovA sums gradients where the others average them, so that its step is 1 - alpha, for steps of the same length.
    """
    if method == "SGD":
        return lecture.SGD(parameters, lr=1.0)
    if method == "NesterovA":
        return lecture.NesterovA(parameters, lr=1.0 - ALPHA, alpha=ALPHA)
    return {"Momentum": lecture.Momentum, "NesterovB": lecture.NesterovB}[method](parameters, lr=1.0, alpha=ALPHA)


class Family:
    """One network per seed and rate, as one stack: the same start and batches for all rates of a seed.

    Attributes:
        model: the stack, seed after seed, within them rate after rate.
        rates: of every network, shape (S,).
        x: each seed's training images, (seeds, N, 64).
        y: their labels.
    """

    def __init__(self, net: str, seeds: Sequence[int], rates: Sequence[float], key: int) -> None:
        singles = [start_like_source(network(net), generator(seed, KEY, 21)) for seed in seeds]
        self.model = stack([single for single in singles for _ in rates])
        assert isinstance(self.model, StackedSequential)
        parts = [digits(seed)[0] for seed in seeds]
        self.x, self.y = (torch.stack([part[i] for part in parts]) for i in (0, 1))
        self.rates, self.many = torch.tensor(list(rates) * len(seeds)), len(rates)
        self.randoms = [numpy_generator(seed, KEY, key) for seed in seeds]

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Random examples of each seed's own, the same for its rates."""
        n = self.x.shape[1]
        chosen = torch.stack([torch.from_numpy(r.permutation(n)[:size] if size > 16 else r.integers(0, n, size)) for r in self.randoms])
        slot = torch.arange(len(self.randoms))[:, None]
        x, y = self.x[slot, chosen], self.y[slot, chosen]
        return x.repeat_interleave(self.many, 0), y.repeat_interleave(self.many, 0)

    def step(self, optimizer: Optimizer, x: Tensor, y: Tensor) -> None:
        """One step of every network at its own rate."""

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = (cross_entropy(self.model, x, y) * self.rates).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]

    @torch.no_grad()
    def losses(self) -> Tensor:
        """The loss of every network on all its training images, shape (seeds, rates)."""
        x, y = self.x.repeat_interleave(self.many, 0), self.y.repeat_interleave(self.many, 0)
        return cross_entropy(self.model, x, y).reshape(-1, self.many).double()


def methods(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One network under one rule at every rate: the training loss at the end, and on the way."""
    family = Family(values["net"], seeds, RATES, 22)
    optimizer = make(values["method"], family.model.parameters())
    steps = values["steps"]
    curves: list[Row] = []
    for t in range(steps + 1):
        if t % max(1, steps // 10) == 0 or t == steps:
            losses = family.losses()
            for s, seed in enumerate(seeds):
                curves += [{"seed": seed, "rate": rate, "step": t, "loss": float(losses[s, k])} for k, rate in enumerate(RATES)]
            context.tick(t / steps)
        if t < steps:
            family.step(optimizer, *family.batch(64))
    rows: list[Row] = [{"seed": seed, "rate": r, "loss": float(losses[s, k])} for s, seed in enumerate(seeds) for k, r in enumerate(RATES)]
    return Result(rows, curves)


def network_batches(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Steps of SGD until the training loss is at most 0.3, at the rate that takes the fewest, for one batch size."""
    family = Family("ReLU 64-32-10", seeds, BATCH_RATES, 23)
    optimizer, size = make("SGD", family.model.parameters()), values["batch"]
    reached: dict[int, tuple[int, float]] = {}
    t, ahead = 0, 1
    while len(reached) < len(seeds) and t < values["most"]:
        family.step(optimizer, *family.batch(size))
        t += 1
        if t >= ahead:
            ahead = max(t + 1, math.ceil(1.1 * t))  # looked at often enough to know the steps to a tenth
            losses = family.losses().nan_to_num(math.inf)
            for s in range(len(seeds)):
                if s not in reached and float(losses[s].min()) <= 0.3:
                    reached[s] = t, BATCH_RATES[int(losses[s].argmin())]
            context.tick(len(reached) / len(seeds))
    rows: list[Row] = []
    for s, seed in enumerate(seeds):
        steps, rate = reached.get(s, (math.inf, math.nan))
        rows.append({"seed": seed, "steps": steps, "rate": rate, "examples": steps * size})
    second, middle = _seconds(size), sorted(row["steps"] for row in rows)[len(rows) // 2]
    timings = {f"batch {size}: one step": second, f"batch {size}: one example": second / size}
    if math.isfinite(middle):
        timings[f"batch {size}: to the target"] = second * middle
    return Result(rows, timings=timings)


def _seconds(size: int) -> float:
    """Seconds of a step of one network alone, the median of five rounds: for the eye, since it decides nothing."""
    model = network("ReLU 64-32-10")
    optimizer = lecture.SGD(model.parameters(), lr=0.1)
    random = generator(0, KEY, 24)
    x, y = torch.randn(size, 64, generator=random), torch.randint(0, 10, (size,), generator=random)
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        rounds.append((time.perf_counter() - began) / 5)
    return sorted(rounds)[2]
