"""What the study of the shared filter runs where the guarantees end: hard inputs, overlap, other networks; and the diagnosis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.diagnose import diagnose
from gradoscope.problems import find
from gradoscope.stacked import generator
from gradoscope.studies._convnet import KEY
from gradoscope.study import Context, Result, Row
from gradoscope.theory import relu_students as students
from gradoscope.theory import set_splitting as splitting
from gradoscope.theory.overlap import SharedFilter, descend, on_sphere

__all__ = ["FOUND", "bad_minimum", "connected", "diagnosed", "directions", "hardness", "overlap", "reduction", "teachers", "two_layers"]

FOUND = 1e-6  # the loss that counts as success


def reduction(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Set splitting by brute force against the network: its loss at all filters of +1 and -1, and where descent gets."""
    result, d = Result(), values["elements"]
    signs = 1.0 - 2.0 * ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).double()
    for done, seed in enumerate(seeds):
        random = generator(seed, KEY, 11)
        for number in range(values["instances"]):
            count = int(torch.randint(2 * d, 5 * d, (1,), generator=random))
            instance = splitting.random_instance(d, count, random)
            solution = splitting.solvable(instance)
            x, y = splitting.samples(instance)
            zero = bool((splitting.empirical_loss(signs, x, y) < 1e-12).any())  # no other filter can have zero loss
            starts = torch.randn(values["runs"], d, generator=random, dtype=torch.float64)
            ends = splitting.descend(starts, x, y, step=1.0, steps=values["steps"])
            least = float(splitting.empirical_loss(ends, x, y).min()) * len(y)
            row: Row = {"seed": seed, "instance": number, "sets": count, "solvable": solution is not None}
            result.rows.append(row | {"zero": zero, "agree": float(zero == (solution is not None)), "least": least})
        context.tick((done + 1) / len(seeds))
    return result


def hardness(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One planted instance per seed: descent from random starts on its inputs, or on Gaussian ones with the same teacher."""
    result, d = Result(), values["elements"]
    sets, law = round(values["ratio"] * d), values["inputs"]
    for done, seed in enumerate(seeds):
        random = generator(seed, KEY, 12, d, sets)
        instance = splitting.planted(d, sets, random)
        assert instance.sides is not None
        starts = torch.randn(values["starts"], d, generator=random, dtype=torch.float64)
        x, y = splitting.samples(instance)
        if law != "splitting":
            rows = len(y) if law == "gaussian" else 10 * d
            x, y = splitting.gaussian_samples(rows, 2, instance.sides, generator(seed, KEY, 13, d, rows))
        w = splitting.descend(starts, x, y, step=1.0, steps=values["steps"])
        losses = splitting.empirical_loss(w, x, y)
        row: Row = {"seed": seed, "success": float((losses < FOUND).double().mean()), "rows": len(y)}
        row |= {"least": float(losses.min()) * len(y), "unsplit": float(splitting.unsplit(w, instance).double().mean())}
        result.rows.append(row)
        context.tick((done + 1) / len(seeds))
    return result


def overlap(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Random teachers and starts: how many descents find the teacher, and where the others end."""
    result, m, n = Result(), values["m"], values["pairs"]
    net = SharedFilter(m, values["stride"], values["k"])
    drawn = [on_sphere(2 * n, m, generator(seed, KEY, 14, m, values["stride"], values["k"])) for seed in seeds]
    targets, starts = (torch.cat([d[part] for d in drawn]) for part in (slice(0, n), slice(n, None)))
    ends = descend(net, starts, targets, step=0.8, steps=values["steps"])
    least = torch.linalg.eigvalsh(net.hessian(ends.w, targets))[:, 0]
    for at, seed in enumerate(seeds):
        own = slice(at * n, (at + 1) * n)
        losses, found = ends.losses[own], ends.losses[own] < FOUND
        rest = ~found & (ends.gradients[own] < 1e-9)
        strict = rest & (least[own] > 1e-9)
        row: Row = {"seed": seed, "success": float(found.double().mean()), "bad": int(rest.sum()), "strict": int(strict.sum())}
        row |= {"unfinished": int((~found & ~rest).sum()), "loss": float(losses[rest].median()) if bool(rest.any()) else math.nan}
        result.rows.append(row)
    return result


def teachers(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Many starts for each of many teachers: how likely the least lucky teacher is found."""
    result, m = Result(), values["m"]
    net = SharedFilter(m, 1, values["k"])
    for done, seed in enumerate(seeds):
        random = generator(seed, KEY, 15, m)
        targets = on_sphere(values["teachers"], m, random).repeat_interleave(values["starts"], 0)
        ends = descend(net, on_sphere(len(targets), m, random), targets, step=0.8, steps=values["steps"])
        shares = (ends.losses < FOUND).double().view(values["teachers"], -1).mean(1)
        result.rows.append({"seed": seed, "worst": float(shares.min()), "mean": float(shares.mean())})
        context.tick((done + 1) / len(seeds))
    return result


def directions(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Filters of two numbers: the success for each direction of the teacher, over a ring of starts."""
    k, n = values["k"], values["starts"]
    degrees = torch.arange(0.0, 180.0, values["spacing"], dtype=torch.float64)  # -w* behaves as the mirror image of w*
    turns = torch.deg2rad(degrees)
    around = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / n)
    targets = torch.stack([torch.cos(turns), torch.sin(turns)], 1).repeat_interleave(n, 0)
    starts = torch.stack([torch.cos(around), torch.sin(around)], 1).repeat(len(degrees), 1)
    ends = descend(SharedFilter(2, 1, k), starts, targets, step=0.8, steps=values["steps"])
    shares = (ends.losses < FOUND).double().view(len(degrees), n).mean(1)
    return Result([{"degrees": a, "success": b} for a, b in zip(degrees.tolist(), shares.tolist(), strict=True)])


def bad_minimum(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The smallest explicit bad minimum: m = 2, stride 1, k = 2, w* = (-1, 1)/sqrt 2."""
    net = SharedFilter(2, 1, 2)
    target = torch.tensor([-1.0, 1.0], dtype=torch.float64) / math.sqrt(2)
    w = net.best_length(-target, target) * -target
    eigenvalues = torch.linalg.eigvalsh(net.hessian(w, target)).tolist()
    around = (torch.arange(values["starts"], dtype=torch.float64) + 0.5) * (2 * math.pi / values["starts"])
    starts = torch.stack([torch.cos(around), torch.sin(around)], 1)
    ends = descend(net, starts, target, step=0.8, steps=values["steps"])
    there = (ends.w - w).norm(dim=1) < 1e-6
    row: Row = {"w": float(w[0]), "loss": float(net.loss(w, target)), "gradient": float(net.gradient(w, target).norm())}
    return Result([row | {"low": eigenvalues[0], "high": eigenvalues[1], "share": float(there.double().mean())}])


def connected(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """n neurons learn k orthogonal ones, every neuron sees all inputs: descent with momentum on the closed form."""
    result, k, n, count = Result(), values["k"], values["n"], values["starts"]
    teachers = torch.eye(k, dtype=torch.float64)
    drawn = [torch.randn(count, n, k, generator=generator(seed, KEY, 16, k, n), dtype=torch.float64) / math.sqrt(k) for seed in seeds]
    _, losses, gradients = students.descend_connected(torch.cat(drawn), teachers, step=0.1, steps=values["steps"])
    for at, seed in enumerate(seeds):
        own = slice(at * count, (at + 1) * count)
        bad = losses[own] > FOUND
        row: Row = {"seed": seed, "success": float((~bad).double().mean()), "bad": int(bad.sum())}
        row |= {"loss": float(losses[own][bad].median()) if bool(bad.any()) else math.nan}
        result.rows.append(row | {"gradient": float(gradients[own][bad].max()) if bool(bad.any()) else 0.0})
    return result


def two_layers(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Filter and output weights trained together: the share that finds the teacher, and that ends at the bad critical point."""
    result, m, k, q, count = Result(), values["m"], values["k"], values["mean_share"], values["starts"]
    for done, seed in enumerate(seeds):
        random = generator(seed, KEY, 17, round(1000 * q))
        target, target_a = on_sphere(1, m, random)[0], _outputs(k, q, random)
        w, a = on_sphere(count, m, random), on_sphere(count, k, random)
        a = a * torch.rand(count, 1, generator=random, dtype=torch.float64)
        _, _, losses, _ = students.descend_two_layers(w, a, target, target_a, step=0.3, steps=values["steps"])
        bad = students.two_layer_bad_minimum(target, target_a)
        row: Row = {"seed": seed, "success": float((losses < FOUND).double().mean()), "correlation": bad.correlation, "bad_loss": bad.loss}
        result.rows.append(row | {"bad": float(((losses - bad.loss).abs() < 1e-3 * bad.loss).double().mean())})
        context.tick((done + 1) / len(seeds))
    return result


def _outputs(k: int, q: float, random: torch.Generator) -> Tensor:
    """A unit vector of output weights with (sum a)^2 = q k."""
    a = torch.randn(k, generator=random, dtype=torch.float64)
    a = torch.nn.functional.normalize(a - a.mean(), dim=0)
    return math.sqrt(1 - q) * a + math.sqrt(q / k)


def diagnosed(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """What the diagnosis says of a training of the catalogue, from the evidence alone."""
    result = Result()
    for done, seed in enumerate(seeds):
        told = diagnose(find(values["target"], seed=seed), seed=seed)
        present = [f.obstacle for f in told.findings if f.status == "present"]
        row: Row = {"seed": seed, "verdict": told.verdict, "named": present[0] if present else ""}
        result.rows.append(row | {name: told[name].status for name in ("saddle_point", "local_minimum")})
        context.tick((done + 1) / len(seeds))
    return result
