"""Parities, trained: many seeds stacked, their accuracy along the way, and what the end of a failing run looks like."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.measure.curvature import curvature_along, extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems.parity import Reader, bulk_parity, hidden_subset, network
from gradoscope.problems.parity import hinge as mean_hinge
from gradoscope.stacked import bulk, fit, generator, hinge, numpy_generator, stack, start_like_source, unstack
from gradoscope.study import Context, Result
from gradoscope.theory.information import parity_variance, target_part
from gradoscope.theory.parity import lemma3_network

__all__ = ["log2_variance", "path_down", "start", "train", "train_reader"]

START, DATA, FRESH, END = 411, 412, 413, 414  # keys of the random streams
POINTS = 4096  # fresh examples on which accuracy is measured
BATCH = 128
LOOKS = 40
GAIN_POINTS = 16_384  # on which a step along negative curvature is judged: 1% of the loss is more than its noise
CHANCE_D = 30  # from here on the end of every run is looked at closely


def start(values: Mapping[str, Any], seed: int) -> nn.Sequential:
    """The network of a setting at its start: truncated normal weights, zero biases."""
    model = network(values["d"], values["width"] * values["d"], values["depth"])
    start_like_source(model, generator(seed, START, values["d"]))
    return model


def train(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Train one setting with all seeds stacked; a row per seed, and its accuracy and loss at 40 steps."""
    d, steps, inputs = values["d"], values["steps"], values["inputs"]
    subsets = [hidden_subset(d, seed, values["size"]) for seed in seeds]
    model = stack([start(values, seed) for seed in seeds]).to(context.device)
    batches = bulk(seeds, [bulk_parity(s, BATCH, inputs) for s in subsets], DATA, d)
    batches = (tuple(t.to(context.device) for t in batch) for batch in batches) if context.device != "cpu" else batches
    fresh = [bulk_parity(s, POINTS, inputs)(numpy_generator(seed, FRESH, d), 1) for s, seed in zip(subsets, seeds, strict=True)]
    x, y = (torch.cat(column).to(context.device) for column in zip(*fresh, strict=True))
    result = Result()
    solved = [math.nan] * len(seeds)

    def look(step: int, _: Tensor) -> None:
        accuracy, loss = measure(model, x, y)
        for k, seed in enumerate(seeds):
            result.curves.append({"seed": seed, "step": step, "accuracy": accuracy[k], "loss": loss[k], "subset": int(subsets[k].sum())})
            if math.isnan(solved[k]) and accuracy[k] >= 0.99:
                solved[k] = step
        context.tick(0.95 * step / steps)

    optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])
    fit(model, optimizer, batches, hinge, steps, look=look, every=max(1, steps // LOOKS))
    last = result.curves[-len(seeds) :]
    for k, seed in enumerate(seeds):
        row = {"seed": seed, "subset": int(subsets[k].sum()), "accuracy": last[k]["accuracy"], "loss": last[k]["loss"], "solved": solved[k]}
        if d >= CHANCE_D and values["size"] == 0:
            single = start(values, seed)
            unstack(model.cpu(), k, single)
            row |= ending(single, subsets[k], inputs, seed)
        result.rows.append(row)
    return result


@torch.no_grad()
def measure(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """(share on the right side of zero, mean hinge loss) of each network, a part of the points at a time."""
    right, loss = torch.zeros(len(x)), torch.zeros(len(x))
    for begin in range(0, x.shape[1], BATCH):
        part = slice(begin, begin + BATCH)
        margin = (y[:, part] * model(x[:, part])).cpu()
        right += (margin > 0).float().sum((1, 2))
        loss += torch.relu(1 - margin).sum((1, 2))
    return (right.double() / x.shape[1]).tolist(), (loss.double() / x.shape[1]).tolist()


def ending(model: nn.Sequential, subset: Tensor, inputs: str, seed: int, batches: int = 4, size: int = 512) -> dict[str, float]:
    r"""Where a run stands: minimum, saddle, or neither, in numbers.

    Gradient and curvature are those of the mean loss, so each is measured on examples of its own: what a direction was chosen on
    flatters it. `noise` is what the gradient's norm would be if its expectation were zero; `relative_gradient` is the norm over
    what the largest curvature supplies at the distance $|\theta|$.
    """
    draw = bulk_parity(subset, size, inputs)
    x, y = draw(numpy_generator(seed, END), 2 * batches)
    fresh = bulk_parity(subset, GAIN_POINTS, inputs)(numpy_generator(seed, END, 1), 1)
    pairs = list(zip(x, y, strict=True))
    objective, other, many = (
        Objective(model, lambda m, b: mean_hinge(m(b[0]), b[1]), part, seed=seed)
        for part in (pairs[:batches], pairs[batches:], list(zip(*fresh, strict=True)))
    )
    gradients = objective.batch_gradients().double()
    mean = gradients.mean(0)
    spread = float((gradients - mean).square().sum()) / (batches - 1) / batches
    spectrum = extreme_eigenvalues(objective, tolerance=0.05, max_products=20, seed=seed)
    v = spectrum.bottom_vectors[0]
    along = curvature_along(other, v)
    at, before = objective.theta(), float(objective.losses().mean())
    reach = float(at.norm())
    sides = [sign * share * reach for sign in (-1, 1) for share in (0.003, 0.01, 0.03, 0.1, 0.3)]
    best = min(sides, key=lambda t: float(objective.at(at + t * v.to(at)).mean()))
    after = float(many.at(at + best * v.to(at)).mean())
    rise, bottom = path_down(model, subset, inputs, x[batches:].flatten(0, 1), y[batches:].flatten(0, 1))
    return {
        "gradient": float(mean.norm()),
        "noise": math.sqrt(spread),
        "relative_gradient": float(mean.norm()) / max(spectrum.largest_magnitude * reach, 1e-30),
        "largest": spectrum.largest,
        "largest_residual": float(spectrum.top_residuals[0]),
        "smallest": spectrum.smallest,
        "smallest_residual": float(spectrum.bottom_residuals[0]),
        "fresh_curvature": float(along.value),
        "fresh_curvature_se": float(along.se or 0.0),
        "gain": many.loss() - after,
        "below": 1 - after,
        "at_end": before,
        "rise": rise,
        "bottom": bottom,
        "log2_variance": log2_variance(model, x[0]),
    }


@torch.no_grad()
def path_down(model: nn.Sequential, subset: Tensor, inputs: str, x: Tensor, y: Tensor, points: int = 11) -> tuple[float, float]:
    """How far the loss rises on the way from this network to one that computes the parity, and the loss there.

    Three straight legs in the space of this network's own weights: the score's weights go to zero; the layers below go to those
    of lemma 3's network, which changes nothing while the score is zero; the score's weights go to the lemma's. On the last leg
    the score is a growing share of the right answer, so the loss falls in a straight line.

    Returns:
        (the largest loss on the way less the loss at its start, the loss at its end).
    """
    here = [p.detach().clone() for p in model.parameters()]
    there = [p.detach() for p in _solved_like(model, subset, inputs).parameters()]
    silent = [*here[:-2], *(torch.zeros_like(p) for p in here[-2:])]
    ready = [*there[:-2], *(torch.zeros_like(p) for p in here[-2:])]
    losses: list[float] = []
    for begin, end in ((here, silent), (silent, ready), (ready, there)):
        for share in torch.linspace(0, 1, points).tolist():
            for p, a, b in zip(model.parameters(), begin, end, strict=True):
                p.copy_(a + share * (b - a))
            losses.append(float(mean_hinge(model(x), y)))
    for p, a in zip(model.parameters(), here, strict=True):
        p.copy_(a)
    return max(losses) - losses[0], losses[-1]


def _solved_like(model: nn.Sequential, subset: Tensor, inputs: str) -> nn.Sequential:
    """A network of this one's shape that computes the parity: lemma 3's units first, passed on unchanged, the rest zero."""
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]
    solved = network(linear[0].in_features, linear[0].out_features, len(linear) - 1)
    known = lemma3_network(subset, inputs="bits" if inputs == "bits" else "signs")
    hidden, score = known[0], known[2]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(score, nn.Linear)
    layers = [layer for layer in solved if isinstance(layer, nn.Linear)]
    units = hidden.out_features
    for p in solved.parameters():
        p.zero_()
    layers[0].weight[:units] = hidden.weight.float()
    layers[0].bias[:units] = hidden.bias.float()
    for layer in layers[1:-1]:
        layer.weight[:units, :units] = torch.eye(units)
    layers[-1].weight[:, :units] = score.weight.float()
    layers[-1].bias.copy_(score.bias)
    return solved


def log2_variance(model: nn.Sequential, x: Tensor) -> float:
    r"""$\log_2(\mathrm{Var}/G^2)$ over all $2^d$ parities as targets of the hinge loss: at most -d (theorem 1), nearly that by Parseval.

    The squared norm of an example's gradient is $\sum_l(|a_{l-1}|^2+1)|\delta_l|^2$ over the linear layers, with a their inputs and
    $\delta$ the derivatives by their outputs. The term of the point at which all parities agree is below 2^-d of the rest, and left out.
    """
    inputs, outputs = [], []
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(x.detach())
            x = layer(x)
            outputs.append(x)
        else:
            x = layer(x)
    slopes = torch.autograd.grad(x.sum(), outputs)
    square = sum((a.square().sum(1) + 1) * s.square().sum(1) for a, s in zip(inputs, slopes, strict=True))
    assert isinstance(square, Tensor)
    factor = target_part(lambda p: -(p < 1).double(), x.detach()[:, 0].double())
    d = inputs[0].shape[1]
    return math.log2(parity_variance(float((factor.square() * square).mean()), 0.0, d) / float(square.double().mean()))


def train_reader(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Train an LSTM on the full parity, one seed after the other; accuracy on words of d bits."""
    result = Result()
    d, steps, mixed = values["d"], values["steps"], values["mixed"]
    subset = torch.ones(d, dtype=torch.bool)
    for number, seed in enumerate(seeds):
        model = Reader(values["hidden"])
        random = generator(seed, START, d)
        with torch.no_grad():
            for p in model.parameters():  # the default start of an LSTM, from a generator of its own
                p.uniform_(-1 / math.sqrt(values["hidden"]), 1 / math.sqrt(values["hidden"]), generator=random)
        optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"])
        data = numpy_generator(seed, DATA, d)
        x, y = bulk_parity(subset, POINTS, "signs")(numpy_generator(seed, FRESH, d), 1)
        for step in range(steps + 1):
            if step % max(1, steps // LOOKS) == 0:
                with torch.no_grad():
                    score = model(x[0])
                accuracy, loss = float((score * y[0] > 0).double().mean()), float(mean_hinge(score, y[0]))
                result.curves.append({"seed": seed, "step": step, "accuracy": accuracy, "loss": loss, "subset": d})
            if step == steps:
                break
            length = int(data.integers(1, d + 1)) if mixed else d
            word, target = bulk_parity(subset[:length], BATCH)(data, 1)
            optimizer.zero_grad()
            mean_hinge(model(word[0]), target[0]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        hits = [c["step"] for c in result.curves if c["seed"] == seed and c["accuracy"] >= 0.99]
        result.rows.append({"seed": seed, "subset": d, "accuracy": accuracy, "loss": loss, "solved": hits[0] if hits else math.nan})
        context.tick((number + 1) / len(seeds))
    return result
