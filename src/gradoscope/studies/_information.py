"""The parts of the study of information in the gradient: what one unit of each measures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradoscope.measure.target_variance import (
    TargetVariance,
    cube,
    half_squared,
    hinge,
    mask_sizes,
    sampled_target_variance,
    target_variance,
)
from gradoscope.problems.parity import hidden_subset
from gradoscope.stacked import bulk, fit, generator, stack, start_like_source, unstack
from gradoscope.study import Context, Result, Row
from gradoscope.theory.information import (
    oracle_departures,
    pair_distances,
    printed_target_part,
    share_above,
    target_part,
)

__all__ = ["PARTS", "TOLERANCES", "network", "trained_index"]

KEY = 731
LOSSES = {"squared": half_squared, "hinge": hinge}
TOLERANCES = (0.1, 0.03)  # of the oracle, in units of G at the start


def network(d: int, seed: int, width_factor: int = 10, depth: int = 1) -> nn.Sequential:
    """`depth` ReLU layers of width `width_factor * d` and a linear score, started as the paper's code does."""
    sizes = [d, *[width_factor * d] * depth]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))
    start_like_source(model, generator(seed, KEY, d, width_factor, depth))
    return model


def trained_index(d: int, seed: int) -> int:
    """The index of the parity that a seed trains on, among all 2^d."""
    return sum(1 << j for j, taken in enumerate(hidden_subset(d, seed).tolist()) if taken)


def _summary(found: TargetVariance) -> Row:
    return {
        "ratio": found.ratio,
        "missing": (1 - found.ratio) * 2**found.d,
        "closed_error": abs(found.closed / found.variance - 1),
        "parseval": found.parseval,
        "typical": found.typical(),
        "carried": found.carried_by(2),
        "over_size": found.variance / found.size,
        "size": found.size,
    }


def start(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The variance over every parity at the start, for both losses, with the spectrum by size."""
    d, coding = int(values["d"]), values["coding"]
    factor, depth = int(values["width_factor"]), int(values["depth"])
    result = Result()
    for i, seed in enumerate(seeds):
        model = network(d, seed, factor, depth)
        for j, (name, loss) in enumerate(LOSSES.items()):
            found = target_variance(model, d, loss=loss, inputs=coding)
            by_size = found.by_size()
            even = float(by_size[4] / by_size[3]) if d >= 4 else math.nan
            result.rows.append({"seed": seed, "loss": name, **_summary(found), "full": float(by_size[d]), "even_over_odd": even})
            result.curves += [{"seed": seed, "loss": name, "size": k, "over_bound": v} for k, v in enumerate(by_size.tolist())]
            context.tick((i + (j + 1) / 2) / len(seeds))
    return result


def large(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The same for a d whose cube is too large, from drawn examples, and from drawn targets of 0, 1 and 2 bits."""
    d, result, names = int(values["d"]), Result(), str(values["loss"]).split("+")
    for i, seed in enumerate(seeds):
        model = network(d, seed, int(values["width_factor"]), int(values["depth"]))
        for name in names:
            loss = LOSSES[name]
            found = sampled_target_variance(
                model, d, loss=loss, sizes=(0, 1, 2), per_size=64, examples=int(values["examples"]), batches=4, seed=seed
            )
            small = {f"size_{k}": found.by_size[k] / found.bound for k in (0, 1, 2)}
            row = {"ratio": found.closed / found.bound, "ratio_se": found.closed_se / found.bound, "small": found.variance / found.bound}
            over_size = found.closed / found.size
            result.rows.append({"seed": seed, "loss": name, **row, "small_se": found.se / found.bound, "over_size": over_size, **small})
        context.tick((i + 1) / len(seeds))
    return result


def training(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Train on one parity each (hinge loss, plain SGD, fresh samples) and take the variance over all of them on the way."""
    d, steps, looks = int(values["d"]), int(values["steps"]), int(values["looks"])
    masks = torch.stack([hidden_subset(d, seed) for seed in seeds]).float()
    own = [trained_index(d, seed) for seed in seeds]
    points = cube(d)
    labels = 1 - 2 * ((1 - points) / 2 @ masks.double().T % 2)
    singles = [network(d, seed) for seed in seeds]
    model = stack(singles)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(values["lr"]))

    def draw(random: np.random.Generator, n: int) -> tuple[Tensor, ...]:
        return (torch.from_numpy(random.integers(0, 2, (n, 128, d), dtype=np.int8)),)

    def losses(net: nn.Module, bits: Tensor) -> Tensor:
        b = bits.float()
        y = 1 - 2 * ((b * masks[:, None]).sum(-1) % 2)
        return torch.relu(1 - y * net(1 - 2 * b)[..., 0]).mean(1)

    batches: Iterator[tuple[Tensor, ...]] = bulk(seeds, draw, KEY, 1, d)
    result, done = Result(), 0
    for stop in sorted({0, *np.geomspace(1, steps, looks).round().astype(int).tolist()}):
        fit(model, optimizer, batches, losses, stop - done, start=done)
        done = stop
        for i, seed in enumerate(seeds):
            net = unstack(model, i, singles[i])
            with torch.no_grad():
                right = float((net(points.float())[:, 0].double() * labels[:, i] > 0).double().mean())
            result.curves.append({"seed": seed, "step": stop, "accuracy": right, **_along(net, d, own[i])})
        context.tick(stop / steps)
    for seed, index in zip(seeds, own, strict=True):
        mine = [c for c in result.curves if c["seed"] == seed]
        row = {f"largest_{k}": max(c[k] for c in mine) for k in ("ratio_hinge", "ratio_squared", "closed_error", "parseval", "own")}
        subset = int(mask_sizes(d)[index])
        result.rows.append(
            {
                "seed": seed,
                "subset_size": subset,
                "accuracy": mine[-1]["accuracy"],
                **row,
                "own_start": mine[0]["own"],
                "last_hinge": mine[-1]["ratio_hinge"],
            }
        )
    return result


def _along(net: nn.Module, d: int, own: int) -> Row:
    row: Row = {"closed_error": 0.0, "parseval": 0.0}
    for name, loss in LOSSES.items():
        found = target_variance(net, d, loss=loss)
        row[f"ratio_{name}"] = found.ratio
        row["closed_error"] = max(row["closed_error"], abs(found.closed / found.variance - 1))
        row["parseval"] = max(row["parseval"], found.parseval)
        if name == "hinge":
            row |= {"own": float(found.distances[own]) / found.bound, "typical": found.typical()}
    return row


def pairs(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The distances of all pairs of targets' gradients, and of single ones from the mean, against Markov and Chebyshev."""
    d, result = int(values["d"]), Result()
    multiples = np.geomspace(0.01, 2.0**d, 60)
    for i, seed in enumerate(seeds):
        found = target_variance(network(d, seed), d, keep=True)
        assert found.gradients is not None
        between, n = pair_distances(found.gradients), 2**d  # n of them are pairs of a target with itself, and are not close pairs
        share = share_above(between, (multiples * found.bound).tolist())  # |grad F_h - grad F_h'|^2 >= m G^2 / 2^d
        tail = share_above(found.distances, (multiples * found.variance).tolist())
        result.curves += [
            {"seed": seed, "multiple": float(m), "share": float(s), "tail": float(t)}
            for m, s, t in zip(multiples, share, tail, strict=True)
        ]
        m = torch.from_numpy(multiples)
        result.rows.append(
            {
                "seed": seed,
                "mean_error": abs(float(between.mean()) / (2 * found.variance) - 1),
                "markov": float((share * m / 2).max()),
                "chebyshev": float((tail * m).max()),
                "close": float((between < 4 * found.bound).double().sum() - n) / (n * (n - 1)),
            }
        )
        context.tick((i + 1) / len(seeds))
    return result


def oracle(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gradient descent on the mean gradient: at which step does each of the 2^d targets show itself?"""
    d, steps, lr = int(values["d"]), int(values["steps"]), float(values["lr"])
    result = Result()
    for i, seed in enumerate(seeds):
        model: nn.Module = network(d, seed).double()
        unit = math.sqrt(target_variance(model, d).size)

        def advance(net: nn.Module) -> tuple[nn.Module, Tensor]:
            found = target_variance(net, d)
            vector = nn.utils.parameters_to_vector(net.parameters()).detach()
            with torch.no_grad():
                nn.utils.vector_to_parameters(vector - lr * found.mean_gradient, net.parameters())
            return net, found.distances.sqrt()

        first, bound = oracle_departures(model, advance, [t * unit for t in TOLERANCES], steps)
        for j, tolerance in enumerate(TOLERANCES):
            departed = torch.stack([(first[j] <= t).double().mean() for t in range(steps)])
            met = first[j][first[j] < steps].double()
            at = {"seed": seed, "tolerance": tolerance}
            excess = float((departed - bound[:, j]).max())
            result.rows.append(
                {
                    **at,
                    "departed": float(departed[-1]),
                    "at_once": float(departed[0]),
                    "excess": excess,
                    "when": float(met.median()) if len(met) else math.nan,
                }
            )
            result.curves += [{**at, "step": t, "departed": float(v)} for t, v in enumerate(departed)]
        context.tick((i + 1) / len(seeds))
    return result


def proof(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The part of the hinge loss's gradient that depends on the target: as derived, as printed, and by plain differentiation."""
    d, result = int(values["d"]), Result()
    points = cube(d)
    for seed in seeds:
        model = network(d, seed).double()
        parameters = list(model.parameters())
        p = model(points)[:, 0]
        random = generator(seed, KEY, 2)
        masks = torch.randint(0, 2, (2, d), generator=random).double()
        masks[1, 0] = 1 - masks[0, 0]  # two different targets
        h = 1 - 2 * ((1 - points) / 2 @ masks.T % 2)

        def flat(value: Tensor) -> Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])  # noqa: B023 - called within its turn

        true = flat(torch.relu(1 - p * h[:, 0]).mean()) - flat(torch.relu(1 - p * h[:, 1]).mean())
        row: Row = {"seed": seed, "unsure": float((p.abs() < 1).double().mean())}
        for name, part in (("derived", target_part), ("printed", printed_target_part)):
            factor = part(lambda t: -(t < 1).double(), p.detach())
            row[name] = float((flat(((h[:, 0] - h[:, 1]) * factor * p).mean()) - true).norm() / true.norm())
        result.rows.append(row)
    context.tick(1.0)
    return result


PARTS = {"start": start, "large": large, "training": training, "pairs": pairs, "oracle": oracle, "proof": proof}
