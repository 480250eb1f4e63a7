"""The four panels of the picture of limitations, each computed from a problem of the sources."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradoscope.measure.target_variance import cube, target_variance
from gradoscope.problems.steps import ForwardOnly, Staircase
from gradoscope.stacked import generator, start_like_source
from gradoscope.study import Context, Result
from gradoscope.theory.curves import integrator

__all__ = ["PARTS", "SAMPLES"]

KEY = 751
SAMPLES = 24  # single examples that panel b draws


def _network(d: int, seed: int) -> nn.Module:
    """The parity network at its start, in float64."""
    return start_like_source(nn.Sequential(nn.Linear(d, 10 * d), nn.ReLU(), nn.Linear(10 * d, 1)), generator(seed, KEY, d)).double()


def _parities(d: int, count: int, seed: int) -> Tensor:
    """Different parities of d/2 bits at every point of the cube, shape (2^d, count)."""
    random, found = generator(seed, KEY, 1, d), set[tuple[int, ...]]()
    while len(found) < count:
        found.add(tuple(sorted(torch.randperm(d, generator=random)[: d // 2].tolist())))
    return torch.stack([cube(d)[:, list(mask)].prod(1) for mask in sorted(found)], dim=1)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients])


def _moved(model: nn.Module, ways: Tensor) -> list[dict[str, Tensor]]:
    """Parameters moved along each row of `ways` (K, P)."""
    sizes = [p.numel() for p in model.parameters()]
    parts = [torch.split(way, sizes) for way in ways]
    return [
        {name: p.detach() + part.reshape(p.shape) for (name, p), part in zip(model.named_parameters(), row, strict=True)} for row in parts
    ]


def targets(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """(a) The loss over a random plane through a network's start, for three parities of d/2 bits."""
    d, n, result = int(values["d"]), int(values["points"]), Result()
    points = cube(d)
    for i, seed in enumerate(seeds):
        model = _network(d, seed)
        h = _parities(d, 3, seed)
        total = sum(p.numel() for p in model.parameters())
        plane = torch.linalg.qr(torch.randn((total, 2), generator=generator(seed, KEY, 2), dtype=torch.float64)).Q.T
        axis = torch.linspace(-4, 4, n, dtype=torch.float64)
        surface, apart, sizes = [], [], []
        for moved in _moved(model, torch.cartesian_prod(axis, axis) @ plane):
            leaves = {k: v.requires_grad_() for k, v in moved.items()}
            p = functional_call(model, leaves, (points,))
            losses = (p - h).square().mean(0) / 2
            g = torch.stack([_flat(torch.autograd.grad(f, list(leaves.values()), retain_graph=True)) for f in losses])
            surface.append(losses.detach())
            apart.append(max(float((g[a] - g[b]).norm()) for a, b in ((0, 1), (0, 2), (1, 2))))
            sizes.append(float(g.norm(dim=1).mean()))
        share = float((h[:, 0] == h[:, 1]).double().mean())
        relative = float(np.median(np.array(apart) / np.array(sizes)))
        result.rows.append({"seed": seed, "relative": relative, "labels_agree": share})
        if seed == min(seeds):
            result.arrays = {"surface": torch.stack(surface).reshape(n, n, 3), "axis": axis}
        context.tick((i + 1) / len(seeds))
    return result


def noise(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """(b) Losses of single examples and their mean along the direction in which the mean knows its target."""
    d, result = int(values["d"]), Result()
    points = cube(d)
    for i, seed in enumerate(seeds):
        model = _network(d, seed)
        h = _parities(d, 1, seed)[:, 0]
        parameters = list(model.parameters())
        # of E (p - h)^2 / 2, the part that depends on the target is -E h p
        signal = -_flat(torch.autograd.grad((h * model(points)[:, 0]).mean(), parameters))
        way = signal / signal.norm()

        def along(step: Tensor) -> Tensor:
            moved = _moved(model, (-step * way)[None])[0]  # noqa: B023 - called within its turn
            value: Tensor = functional_call(model, moved, (points,))[:, 0]  # noqa: B023 - called within its turn
            return value

        slopes = torch.as_tensor(torch.func.jvp(along, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))[1])
        each = -h * slopes.detach()  # slope of each example's part that depends on the target, along -signal
        found = target_variance(model, d)
        squared = float(signal.square().sum())
        along_it = float(each.mean() ** 2 / each.var(unbiased=False))
        row = {"snr": squared / (found.size - squared), "of_mean": squared / (found.size - squared) * (2**d - 1), "snr_along": along_it}
        result.rows.append({"seed": seed, **row, "wrong_way": float((each > 0).double().mean())})
        if seed == min(seeds):
            steps = torch.linspace(-0.5, 0.5, 41, dtype=torch.float64)
            with torch.no_grad():
                losses = torch.stack([(along(s) - h).square() / 2 for s in steps], dim=1)
            chosen = torch.randperm(len(h), generator=generator(seed, KEY, 3))[:SAMPLES]
            result.arrays = {"steps": steps, "single": losses[chosen], "mean": losses.mean(0)}
        context.tick((i + 1) / len(seeds))
    return result


def conditioning(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """(c) The bowl of linear regression on curves W p, in the plane of its steepest and its flattest direction."""
    n = int(values["n"])
    w = integrator(n)
    curvature = np.linalg.svd(w, compute_uv=False) ** 2
    kappa = float(curvature[0] / curvature[-1])
    angle = np.linspace(0, 2 * np.pi, 720, endpoint=False) + np.pi / 720
    place = np.stack([np.cos(angle), np.sin(angle)])
    pull = np.array([[1.0], [1 / kappa]]) * place
    cosine = (place * pull).sum(0) / np.linalg.norm(pull, axis=0)
    off = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    # the largest stable step is 2/lambda_max; at 1/lambda_max the flat direction keeps 1 - 1/kappa per step
    steps = math.ceil(math.log(0.01) / math.log1p(-1 / kappa))
    return Result([{"points": n, "kappa": kappa, "median_angle": float(np.median(off)), "largest_angle": float(off.max()), "steps": steps}])


def activation(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """(d) The squared loss of a staircase of s <v, x> against one of <v, x>, by s: its slope, and the forward-only update."""
    result = Result()
    scales = torch.linspace(-1.0, 3.0, 401, dtype=torch.float64)
    for seed in seeds:
        z = torch.randn(64, generator=generator(seed, KEY, 4)) * 5
        goal = Staircase()(z)
        slopes: list[float] = []
        updates: list[float] = []
        losses: list[float] = []
        for s in scales.tolist():
            for module, out in ((Staircase(), slopes), (ForwardOnly(), updates)):
                weight = torch.tensor(s, requires_grad=True)
                value = (module(weight * z) - goal).square().mean() / 2
                out.append(float(torch.autograd.grad(value, weight)[0]))
            losses.append(float(value.detach()))
        slope, update, loss = np.array(slopes), np.array(updates), np.array(losses)
        wrong = loss > 0
        right = np.sign(update) == np.sign(scales.numpy() - 1)
        result.rows.append(
            {
                "seed": seed,
                "zero": float((slope == 0).mean()),
                "range": float(loss.max() - loss.min()),
                "towards": float(right[wrong].mean()),
            }
        )
        if seed == min(seeds):
            result.arrays = {
                "scales": scales,
                "loss": torch.from_numpy(loss),
                "slope": torch.from_numpy(slope),
                "update": torch.from_numpy(update),
            }
    return result


PARTS = {"targets": targets, "noise": noise, "conditioning": conditioning, "activation": activation}
