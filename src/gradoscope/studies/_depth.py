"""What the study of depth computes: signals and gradients through a thousand rectified layers, and whether such networks learn."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.problems._data import digits
from gradoscope.stacked import StackedLinear, StackedSequential, fit, generator, numpy_generator
from gradoscope.study import Context, Result, Row
from gradoscope.theory.depth import HE, log_growth, random_walk_gain

__all__ = ["GAINS", "PARTS", "CrossEntropy", "gain_of", "network", "weights"]

KEY = 733  # of this study's random streams: 1 weights, 2 the slope at the top, 3 the order of the images
GAINS = ("random walk", "he", "0.9 he", "random walk by layers")
PAIRS = 32  # images whose angles to the first are looked at
CLASSES = 10


def gain_of(name: str, width: int, layers: int) -> float:
    """The gain g of a start: weights are normal with standard deviation g / sqrt(width)."""
    if name == "random walk by layers":  # the formula with its N misread as the number of layers
        return random_walk_gain(layers)
    return {"random walk": random_walk_gain(width), "he": HE, "0.9 he": 0.9 * HE}[name]


def weights(seed: int, width: int, layers: int, gain: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """The hidden layers' weights of one seed, shape (layers, width, width); the draws are the same for every gain, and for fewer layers."""
    random = generator(seed, KEY, 1)
    drawn = [torch.randn(width, width, generator=random) for _ in range(layers)]
    return (torch.stack(drawn) * (gain / math.sqrt(width))).to(dtype)


def signals(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The size of the signal after each layer, the angle between images, and the gradient by each layer's weights; at the start.

    Signals and gradients are scaled back to one at every layer, and their logarithms added, so that nothing underflows; whether they
    would have in float32 is told by the sums.
    """
    width, layers, result = values["width"], values["layers"], Result()
    gain = gain_of(values["gain"], width, layers)
    drift, spread = log_growth(width, gain)
    w = torch.stack([weights(seed, width, layers, gain, torch.float64) for seed in seeds], 1)
    x = torch.stack([digits(seed)[0][0][:PAIRS].double() for seed in seeds])
    h, logs, angles, kept = x, [torch.zeros(len(seeds), dtype=torch.float64)], [_angle(x)], []
    length = x[:, :1].norm(dim=2, keepdim=True)
    for layer in range(layers):
        z = torch.bmm(h, w[layer])
        kept.append((h[:, 0], z[:, 0] > 0))
        h = z.relu()
        size = h[:, :1].norm(dim=2, keepdim=True) / length
        logs.append(logs[-1] + size[:, 0, 0].log())
        h = h / size  # the first image's signal is as long as the image again
        angles.append(_angle(h))
        if layer % 50 == 0:
            context.tick(0.7 * layer / layers)
    slopes = _slopes(seeds, w, kept, torch.stack(logs))
    log, angle = torch.stack(logs).numpy(), torch.stack(angles).numpy()
    looks = np.unique(np.concatenate([np.arange(0, 10), np.geomspace(10, layers, 60).round().astype(int)]).clip(0, layers))
    for i, seed in enumerate(seeds):
        row: Row = {"seed": seed, "signal": float(log[-1, i]), "z": float((log[-1, i] - layers * drift) / (spread * math.sqrt(layers)))}
        steps = np.diff(log[:, i])
        row |= {"step_mean": float((steps.mean() - drift) / (spread / math.sqrt(layers))), "step_std": float(steps.std(ddof=1) / spread)}
        row |= {"gradient_first": float(slopes[0, i]), "gradient_last": float(slopes[-1, i]), "angle": float(angle[-1, i])}
        result.rows.append(row | {"drift": drift, "spread": spread})
        for k in looks.tolist():
            point: Row = {"seed": seed, "layer": k, "signal": float(log[k, i]), "angle": float(angle[k, i])}
            point["gradient"] = float(slopes[min(k, layers - 1), i])
            result.curves.append(point)
    return result


def _angle(h: Tensor) -> Tensor:
    """The mean angle between the first image's signal and the others', shape (S,); by the chord, since cosines near one are rounded."""
    unit = nn.functional.normalize(h, dim=2)
    chord = (unit[:, 1:] - unit[:, :1]).norm(dim=2)
    mean: Tensor = 2 * (chord / 2).clamp(max=1).asin().mean(1)
    return mean


def _slopes(seeds: Sequence[int], w: Tensor, kept: list[tuple[Tensor, Tensor]], logs: Tensor) -> Tensor:
    """ln of the norm of the derivative by each layer's weights, for a normal slope of length one at the top and the first image.

    It is the product of the signal that enters and the slope that comes back, since the derivative is their outer product.
    """
    random = [generator(seed, KEY, 2) for seed in seeds]
    back = torch.stack([torch.randn(w.shape[2], generator=r, dtype=torch.float64) for r in random])
    back = back / back.norm(dim=1, keepdim=True)
    total, found = torch.zeros(len(seeds), dtype=torch.float64), []
    for layer in range(len(kept) - 1, -1, -1):
        enters, open_ = kept[layer]
        at = back * open_
        found.append(total + at.norm(dim=1).log() + enters.norm(dim=1).log() + logs[layer])
        back = torch.bmm(w[layer], at[..., None])[..., 0]
        size = back.norm(dim=1, keepdim=True)
        total, back = total + size[:, 0].log(), back / size
    return torch.stack(found[::-1])


class CrossEntropy:
    """The mean cross-entropy of each network of a stack, with the slope that `fit` asks for.

    Example:
        >>> scores = torch.zeros(1, 2, 10)
        >>> losses, slope = CrossEntropy().slope(scores, torch.tensor([3, 7]))
        >>> round(float(losses), 4), [round(v, 3) for v in slope[0, 0, 2:4].tolist()]
        (2.3026, [0.05, -0.45])
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x of shape (B, in) or (S, B, in), y of shape (B,) or (S, B); returns (S,)."""
        return self.slope(model(x), y)[0]

    def slope(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, shape (S,), and (softmax - one hot)/B."""
        told = output.log_softmax(-1)
        index = y.expand(output.shape[:2])[..., None]
        slope = told.exp().scatter_add_(2, index, torch.full_like(index, -1, dtype=told.dtype)) / output.shape[1]
        return -told.gather(2, index).mean((1, 2)), slope


def network(seeds: Sequence[int], width: int, layers: int, gain: str) -> StackedSequential:
    """A stack of ReLU networks 64-width-...-10 with `layers` layers of weights: the gain inside, 1/sqrt(width) at the top, no offsets."""
    hidden = torch.stack([weights(seed, width, layers - 1, gain_of(gain, width, layers)) for seed in seeds], 1)
    last = torch.stack([torch.randn(width, CLASSES, generator=generator(seed, KEY, 4)) / math.sqrt(width) for seed in seeds])
    parts: list[nn.Module] = []
    for layer in range(layers - 1):
        parts += [StackedLinear(hidden[layer].clone(), torch.zeros(len(seeds), 1, width)), nn.ReLU()]
    return StackedSequential(*parts, StackedLinear(last, torch.zeros(len(seeds), 1, CLASSES)))


def training(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Networks of one depth and one start on digits, by Adam with a rate that falls to zero; all seeds as one stack."""
    layers, steps, batch = values["layers"], values["steps"], values["batch"]
    model, loss = network(seeds, values["width"], layers, values["gain"]), CrossEntropy()
    (x, y), (x_valid, y_valid) = digits(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"], betas=(0.9, 0.99), foreach=True)
    result, every = Result(), max(1, steps // 40)

    def batches() -> Iterator[tuple[Tensor, ...]]:
        random = numpy_generator(0, KEY, 3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = values["lr"] * (1 - step / steps)
            chosen = torch.from_numpy(random.integers(0, len(x), batch))
            yield x[chosen], y[chosen]

    def look(step: int, losses: Tensor) -> None:
        result.curves += [{"seed": seed, "step": step, "loss": float(value)} for seed, value in zip(seeds, losses, strict=True)]
        context.tick(step / steps)

    fit(model, optimizer, batches(), loss, steps, look=look, every=every)
    with torch.no_grad():
        scores, held = model(x[:EVALUATED]), model(x_valid)
        final = loss.slope(scores, y[:EVALUATED])[0]
        right, right_held = ((s.argmax(-1) == t).double().mean(1) for s, t in ((scores, y[:EVALUATED]), (held, y_valid)))
    for i, seed in enumerate(seeds):
        result.rows.append({"seed": seed, "loss": float(final[i]), "right": float(right[i]), "valid": float(right_held[i])})
    return result


EVALUATED = 512  # training images of the final loss

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {"signals": signals, "training": training}
