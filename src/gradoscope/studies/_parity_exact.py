"""Parities without training: the lemma's network, elimination, search without gradients, and the statistical-query oracle."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradoscope.measure.target_variance import cube
from gradoscope.problems.parity import bulk_parity, hidden_subset
from gradoscope.stacked import generator, numpy_generator, stack
from gradoscope.studies import _search as search
from gradoscope.studies._parity_training import start
from gradoscope.study import Context, Result, Row
from gradoscope.theory import linear_periodic
from gradoscope.theory.parity import lemma3_network, parity_solution
from gradoscope.theory.statistical_query import Oracle, descend, tell_apart

__all__ = ["run_cosine", "run_elimination", "run_lemma", "run_oracle", "run_search"]

SAMPLES, SEARCH, QUERY, COSINE = 421, 422, 423, 424
EXAMPLES = 128  # on which the genetic algorithm scores a mask


def run_lemma(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Lemma 3's network on the whole cube, for a subset of each size; errors as printed and as corrected."""
    d, rows = values["d"], []
    for inputs in ("bits", "signs"):
        x = cube(d, "bits" if inputs == "bits" else "signs")
        for size in range(d + 1):
            subset = torch.arange(d) < size
            y = cube(d)[:, subset].prod(1)
            scores = [lemma3_network(subset, corrected=c, inputs="bits" if inputs == "bits" else "signs")(x)[:, 0] for c in (False, True)]
            literal, corrected = (int((s.sign() != y).sum()) for s in scores)
            loss = float(torch.relu(1 - y * scores[1]).mean().detach())
            row = {"inputs": inputs, "subset": size, "literal": literal, "predicted": 2 ** (d - size), "corrected": corrected, "loss": loss}
            rows.append(row | {"units": 3 * (d // 2 + 1)})
    return Result(rows)


def run_elimination(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gaussian elimination over GF(2) from d + `extra` random examples: is the subset found?"""
    d, rows = values["d"], []
    for seed in seeds:
        random = numpy_generator(seed, SAMPLES, d)
        subset = random.integers(0, 2, d)
        x = random.integers(0, 2, (d + values["extra"], d))
        if (x.min(0) == x.max(0)).any():  # a column that never changes tells nothing of its bit
            found = False
        else:
            solution = parity_solution(x, x @ subset % 2)
            found = solution is not None and bool((solution.mask == subset).all()) and solution.constant == 0
        rows.append({"seed": seed, "subset": int(subset.sum()), "examples": d + values["extra"], "found": float(found)})
    return Result(rows)


def run_search(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One method of search with one budget of evaluations."""
    if values["method"] in ("climbing", "gradient"):
        return Result(_on_weights(values, seeds))
    d, budget, method = values["d"], values["budget"], values["method"]
    rows = []
    for seed in seeds:
        random = numpy_generator(seed, SEARCH, d)
        target = random.integers(0, 2, d)
        score = _score(method, target, random)
        run = {"exhaustive": search.exhaustive, "random": search.random_search}.get(method, search.genetic)
        used = run(score, d, budget, random)
        rows.append({"seed": seed, "subset": int(target.sum()), "evaluations": budget if used < 0 else used, "found": float(used > 0)})
    return Result(rows)


def _score(method: str, target: np.ndarray, random: np.random.Generator) -> search.Score:
    if method == "genetic, bits right":  # one-max: every right bit counts
        return lambda masks: np.asarray((masks == target).mean(1))
    if method == "genetic, examples":
        x = random.integers(0, 2, (EXAMPLES, len(target)))
        y = x @ target % 2
        return lambda masks: np.asarray((x @ masks.T % 2 == y[:, None]).mean(0))
    return lambda masks: np.where((masks == target).all(1), 1.0, 0.5)  # two different parities agree on exactly half of the cube


def _on_weights(values: Mapping[str, Any], seeds: Sequence[int]) -> list[Row]:
    """Hill climbing or gradient descent on the same weights and the same loss; a gradient counts as three evaluations.

    The loss is over the whole cube for d up to 12, else over 1,024 examples; accuracy is that on the cube, or on fresh examples.
    """
    d, budget = values["d"], values["budget"]
    subsets = [hidden_subset(d, seed) for seed in seeds]
    if d <= 12:
        x = cube(d).float().expand(len(seeds), -1, -1)
        y = torch.stack([x[0][:, s].prod(1, keepdim=True) for s in subsets])
        fresh: tuple[Tensor, ...] = x, y
    else:
        pairs = [bulk_parity(s, 1024)(numpy_generator(seed, SEARCH, d), 5) for s, seed in zip(subsets, seeds, strict=True)]
        x, y = (torch.stack([part[0] for part in column]) for column in zip(*pairs, strict=True))
        fresh = tuple(torch.stack([part[1:].flatten(0, 1) for part in column]) for column in zip(*pairs, strict=True))
    model = stack([start({"d": d, "width": 10, "depth": 1}, seed) for seed in seeds])
    named = [(name, p.shape[1:]) for name, p in model.named_parameters()]

    def scores(w: Tensor, points: Tensor) -> Tensor:
        parts = torch.split(w, [math.prod(shape) for _, shape in named], dim=1)
        state = {name: part.reshape(-1, *shape) for (name, shape), part in zip(named, parts, strict=True)}
        found: Tensor = functional_call(model, state, (points,))
        return found

    def losses(w: Tensor) -> Tensor:
        return torch.relu(1 - y * scores(w, x)).mean((1, 2))

    w = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    if values["method"] == "climbing":
        with torch.no_grad():
            w = search.climb(losses, w, budget, [generator(seed, SEARCH, d) for seed in seeds]).parameters
    else:
        for _ in range(budget // 3):
            leaf = w.detach().requires_grad_()
            w = leaf.detach() - values["lr"] * torch.autograd.grad(losses(leaf).sum(), leaf)[0]
    with torch.no_grad():
        right, loss = ((scores(w, fresh[0]) * fresh[1]) > 0).double().mean((1, 2)), losses(w)
    return [{"seed": s, "subset": int(subsets[k].sum()), "accuracy": float(right[k]), "loss": float(loss[k])} for k, s in enumerate(seeds)]


def run_oracle(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Gradient descent, and a search through the masks, on the statistical-query oracle of one tolerance."""
    d, tolerance, rows = values["d"], values["tolerance"], []
    points = cube(d)
    signs = _parities(points)
    for number, seed in enumerate(seeds):
        model = start({"d": d, "width": 10, "depth": 1}, seed).double()
        gradients = _Gradients(model, points)
        true = int((hidden_subset(d, seed, d // 2).long() << torch.arange(d)).sum())
        begin = torch.cat([p.detach().flatten() for p in model.parameters()])
        ends, firsts = [], []
        for target in (true, 2**d - 1 - true):  # the hidden subset, and the bits that are not in it
            oracle = Oracle(signs, target, tolerance)
            w, first = descend(oracle, begin, gradients, values["lr"], values["steps"])
            ends.append(w)
            firsts.append(first)
        score = gradients.scores(ends[0])
        oracle = Oracle(signs, true, values["mask_tolerance"])
        order = numpy_generator(seed, QUERY, d).permutation(2**d)
        asked = tell_apart(oracle, _one_by_one(signs, order), 2**d)
        rows.append(
            {
                "seed": seed,
                "subset": bin(true).count("1"),
                "first": firsts[0],
                "silent": float(firsts[0] < 0 and firsts[1] < 0),
                "same": float(torch.equal(ends[0], ends[1])),
                "accuracy": float((score * signs[true] > 0).double().mean()),
                "masks_asked": asked,
                **_first_step(signs, true, gradients(begin)),
            }
        )
        context.tick((number + 1) / len(seeds))
    return Result(rows)


def _parities(points: Tensor) -> Tensor:
    """Every parity at every point of the cube, (-1)^<v,x>, shape (2^d, 2^d)."""
    bits = (1 - points) / 2
    return 1 - 2 * ((bits @ bits.T) % 2)


def _one_by_one(signs: Tensor, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    for mask in order:
        yield torch.zeros(1, signs.shape[1]), signs[int(mask)][None]


class _Gradients:
    """The hinge loss' gradient at each point as c + y s, both of shape (P, N), and the scores, for parameters as one vector."""

    def __init__(self, model: nn.Module, points: Tensor) -> None:
        self.model, self.points = model, points
        self.named = [(name, p.shape) for name, p in model.named_parameters()]
        self._each = vmap(grad(self._score), (None, 0))

    def _score(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(self.model, state, (x[None],)).sum()
        return found

    def _state(self, w: Tensor) -> dict[str, Tensor]:
        parts = torch.split(w, [math.prod(shape) for _, shape in self.named])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.named, parts, strict=True)}

    def scores(self, w: Tensor) -> Tensor:
        """Shape (N,)."""
        found: Tensor = functional_call(self.model, self._state(w), (self.points,))[:, 0].detach()
        return found

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        slopes = self._each(self._state(w), self.points)
        rows = torch.cat([slopes[name].flatten(1) for name, _ in self.named], 1).T
        p = self.scores(w)
        up, down = -(p < 1).double(), -(-p < 1).double()  # the slope of max(0, 1 - t) at t = p and at t = -p
        return rows * ((up - down) / 2), rows * ((up + down) / 2)


def _first_step(signs: Tensor, true: int, found: tuple[Tensor, Tensor]) -> dict[str, float]:
    """How far the first gradient's queries are from their mean over all targets: for the hidden one, and for all (root mean square)."""
    common, signal = found
    size = (common.abs() + signal.abs()).amax(1, keepdim=True).clamp(min=1e-30)
    every = (signal / size) @ signs.T / signs.shape[1]
    away = every - every.mean(1, keepdim=True)
    return {"threshold": float(away[:, true].abs().max()), "typical": float(away.square().mean().sqrt())}


def run_cosine(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The linear-periodic loss in the plane, w* = (c, c): Bayesian optimisation, random points, and gradient descent, one budget."""
    target = torch.full((2,), float(values["centre"]), dtype=torch.float64)
    result = Result()
    for number, seed in enumerate(seeds):
        methods: dict[str, Callable[..., np.ndarray]] = {
            "Bayesian": search.bayesian,
            "random": search.random_points,
            "gradient": partial(_gradient_walk, target),
        }
        for method, run in methods.items():
            best = run(
                lambda p: float(linear_periodic.loss(torch.from_numpy(p), target)),
                values["bound"],
                values["budget"],
                numpy_generator(seed, COSINE),
            )
            result.rows.append({"seed": seed, "method": method, "best": float(best[-1])})
            result.curves += [{"seed": seed, "method": method, "evaluations": k + 1, "best": float(b)} for k, b in enumerate(best)]
        context.tick((number + 1) / len(seeds))
    return result


def _gradient_walk(
    target: Tensor, loss: Callable[[np.ndarray], float], bound: float, budget: int, random: np.random.Generator
) -> np.ndarray:
    """Gradient descent from a random point of the square, one gradient per evaluation: the lowest loss so far."""
    w = torch.from_numpy(random.uniform(-bound, bound, 2))
    losses = []
    for _ in range(budget):
        losses.append(loss(w.numpy()))
        w = w - 0.5 * linear_periodic.gradient(w, target)
    return np.minimum.accumulate(losses)
