"""What the study of permutation-invariant labelling runs: defects, training, the theorem on all small graphs, special cases."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.guard import derive_seed, private_random
from gradoscope.measure.symmetry import equivariance_defect, node_permutations
from gradoscope.measurement import Measurement
from gradoscope.problems.set_labels import FlatNet, OrderedLSTM, SetGPI, draw, majority
from gradoscope.stacked import generator
from gradoscope.structured.gpi import Composed
from gradoscope.structured.graphs import collate
from gradoscope.structured.special import BeliefPropagation, DeepSets, MeanField, MessagePassing
from gradoscope.study import Context, Result, Row
from gradoscope.theory.invariance import all_graphs, arbitrary, encoded, seen_by_form, slot_form

__all__ = ["FORMS", "KEY", "MODELS", "OTHERS", "POOL", "defect", "made", "seen", "special", "theorem", "train"]

KEY = 827  # of this study's random streams
POOL = 1000  # graphs of which the training sets are the first ones
LOOKS = 12  # times that accuracy is written down during a training
FORMS = ("gpi", "gpi-neighbour", "gpi-feature")
OTHERS = ("lstm", "fully-connected")
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gpi": lambda n, sets: SetGPI(n, sets, 44),
    "gpi-neighbour": lambda n, sets: SetGPI(n, sets, 44, attention="neighbour"),
    "gpi-feature": lambda n, sets: SetGPI(n, sets, 38, attention="feature"),
    "gpi-printed": lambda n, sets: SetGPI(n, sets, 44, row=False),
    "lstm": lambda n, sets: OrderedLSTM(n, sets, 32),
    "fully-connected": lambda n, sets: FlatNet(n, sets, 50),
}


def made(name: str, n: int, sets: int, seed: int) -> nn.Module:
    """A model with PyTorch's usual start, drawn from a stream of its own."""
    with private_random(derive_seed(seed, KEY, 2)):
        return MODELS[name](n, sets)


def _defect(model: nn.Module, nodes: Tensor, edges: Tensor, samples: int) -> Measurement:
    model = model.double()
    pair = (nodes.double(), edges.double())
    return equivariance_defect(
        lambda z: model(*z), pair, node_permutations(), samples=samples, output_action=lambda order, y: y[..., order], model=model
    )


def defect(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The defect of every model at its start, in double precision, under random renamings of random graphs."""
    result, n, sets = Result(), values["n"], values["sets"]
    for seed in seeds:
        nodes, edges, _ = draw(generator(seed, KEY, 1), values["graphs"], n=n, sets=sets)
        for name in MODELS:
            found = _defect(made(name, n, sets, seed), nodes, edges, values["samples"])
            row: Row = {"seed": seed, "model": name, "defect": found.value, "se": found.se}
            result.rows.append(row | {"worst": found.details["worst"], "absolute": found.details["absolute"]})
    return result


def train(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One model on so many graphs: accuracy per node on them and on new ones, and the defect in the end."""
    result = Result()
    for done, seed in enumerate(seeds):
        _train(values, seed, context, result)
        context.tick((done + 1) / len(seeds))
    return result


def _train(values: Mapping[str, Any], seed: int, context: Context, result: Result) -> None:
    n, sets, steps, device = values["n"], values["sets"], values["steps"], context.device
    pool = draw(generator(seed, KEY, 1), POOL, n=n, sets=sets)
    nodes, edges, labels = (t[: values["graphs"]].to(device) for t in pool)
    test = tuple(t.to(device) for t in draw(generator(seed, KEY, 3), values["test"], n=n, sets=sets))
    model = made(values["model"], n, sets, seed).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=values["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = generator(seed, KEY, 4)
    few = tuple(t[:200] for t in test)
    for step in range(steps):
        if step % max(1, steps // LOOKS) == 0:
            seen = {"train": _accuracy(model, nodes[:200], edges[:200], labels[:200]), "test": _accuracy(model, *few)}
            result.curves.append({"seed": seed, "step": step, **seen})
        index = torch.randperm(len(nodes), generator=order)[: values["batch"]].to(device)
        scores = model(nodes[index], edges[index])
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(scores, labels[index]).backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        schedule.step()
    row: Row = {
        "seed": seed,
        "accuracy": _accuracy(model, *test),
        "train_accuracy": _accuracy(model, nodes, edges, labels),
        "majority": majority(labels, test[2]),
        "ceiling": ceiling(test[0], test[2]),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    predicted = _scores(model, test[0][:1], test[1][:1]).argmax(1)[0]
    found = _defect(model, test[0][:50], test[1][:50], 10)
    result.rows.append(row | {"defect": found.value, "absolute": found.details["absolute"]})
    if "predicted" not in result.arrays:
        example = {"sets": test[0][0].argmax(-1), "edges": test[1][0, :, :, 0], "labels": test[2][0], "predicted": predicted}
        result.arrays |= {name: t.detach().cpu() for name, t in example.items()}


def _scores(model: nn.Module, nodes: Tensor, edges: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(z, e) for z, e in zip(torch.split(nodes, 200), torch.split(edges, 200), strict=True)])


def _accuracy(model: nn.Module, nodes: Tensor, edges: Tensor, labels: Tensor) -> float:
    return float((_scores(model, nodes, edges).argmax(1) == labels).double().mean())


def ceiling(nodes: Tensor, labels: Tensor) -> float:
    """The best accuracy of anything that gives all nodes of one set in a graph the same label: the commonest one of each."""
    kinds = F.one_hot(labels)[:, :, None, :] * nodes.long()[..., None]
    return float(kinds.sum(1).amax(-1).sum()) / labels.numel()


def theorem(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """An arbitrary labelling in the form of the theorem, on every graph up to a size: the largest difference."""
    result, letters = Result(), values["letters"]
    for seed in seeds:
        for n in range(1, values["largest"] + 1):
            nodes, pairs = all_graphs(n, letters)
            function = arbitrary(n, letters, generator(seed, KEY, 5, n))
            model = slot_form(function, letters)
            worst = 0.0
            for z, e in zip(torch.split(nodes, 10_000), torch.split(pairs, 10_000), strict=True):
                found = model(encoded(z, e, letters)).nodes[..., 0]
                worst = max(worst, float((found - function(z, e)).abs().max()))
            result.rows.append({"seed": seed, "nodes": n, "graphs": len(nodes), "difference": worst})
    return result


def seen(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """How many nodes of small graphs the form tells apart: with letters that differ, and with one letter for all."""
    result = Result()
    kinds = [("undirected", n, 1, True) for n in range(1, 6)] + [("directed", n, 1, False) for n in range(1, 5)]
    for kind, n, letters, symmetric in [*kinds, *(("letters differ", n, n, False) for n in (2, 3))]:
        found = seen_by_form(*all_graphs(n, letters, symmetric=symmetric))
        row: Row = {"kind": kind, "n": n, "classes": found.nodes, "printed": found.printed, "with_row": found.with_row}
        result.rows.append(row | {"graphs": found.graphs, "graphs_seen": found.graphs_seen})
    return result


def special(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """The special cases against loops over nodes, on padded batches of random graphs: the largest difference of each."""
    result, k = Result(), values["states"]
    for seed in seeds:
        random = generator(seed, KEY, 6)
        worst: dict[str, float] = dict.fromkeys(("deep sets", "message passing", "mean field", "belief propagation"), 0.0)
        maps = [torch.randn(4, 4, generator=random, dtype=torch.float64) for _ in range(4)]
        single = [_random_graph(n, random) for n in values["sizes"]]
        sums, passed = (layer(collate(single)).nodes for layer in _layers(maps))
        for b, (z, e) in enumerate(single):
            worst["deep sets"] = max(worst["deep sets"], _apart(sums[b], _direct_sets(z, maps)))
            worst["message passing"] = max(worst["message passing"], _apart(passed[b], _direct_messages(z, e, maps)))
        for n in values["sizes"]:
            unary, pairwise = _field(n, k, random)
            steps = Composed([MeanField(k)], times=3)(MeanField.graphs(unary[None], pairwise[None]))
            worst["mean field"] = max(worst["mean field"], _apart(steps[-1].nodes[0, :, k:], _direct_mean_field(unary, pairwise, 3)))
            model = BeliefPropagation(k, times=3)
            beliefs = model.marginals(BeliefPropagation.graphs(unary[None], pairwise[None]))[0]
            worst["belief propagation"] = max(worst["belief propagation"], _apart(beliefs, _direct_beliefs(unary, pairwise, 3)))
        result.rows += [{"seed": seed, "layer": name, "difference": value} for name, value in worst.items()]
    return result


def _apart(found: Tensor, direct: Tensor) -> float:
    return float((found[: len(direct)] - direct).abs().max())


def _random_graph(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    edges = (torch.rand(n, n, 1, generator=random, dtype=torch.float64) < 0.5).double()
    weights = torch.randn(n, n, 1, generator=random, dtype=torch.float64)
    return torch.randn(n, 4, generator=random, dtype=torch.float64), torch.cat([edges, weights], -1)


def _layers(maps: list[Tensor]) -> tuple[DeepSets, MessagePassing]:
    sums = DeepSets(lambda z: torch.tanh(z @ maps[0]), lambda z, g: z @ maps[1] + g)
    return sums, MessagePassing(_message(maps), lambda h, m: torch.tanh(h @ maps[3] + m), adjacency=0)


def _message(maps: list[Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda z_i, z_ij, z_j: torch.tanh(z_i @ maps[0] + z_j @ maps[2] + z_ij[..., 1:])


def _direct_sets(z: Tensor, maps: list[Tensor]) -> Tensor:
    total = sum(torch.tanh(one @ maps[0]) for one in z)
    return torch.stack([one @ maps[1] + total for one in z])


def _direct_messages(z: Tensor, e: Tensor, maps: list[Tensor]) -> Tensor:
    rows, message = [], _message(maps)
    for i, j in itertools.product(range(len(z)), range(len(z))):
        if j == 0:
            rows.append(z[i] @ maps[3])
        if i != j and e[i, j, 0] == 1:
            rows[i] = rows[i] + message(z[i], e[i, j], z[j])
    return torch.tanh(torch.stack(rows))


def _field(n: int, states: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Potentials of a field on a complete graph: (n, K) and (n, n, K, K), with theta_ji the transpose of theta_ij."""
    unary = torch.randn(n, states, generator=random, dtype=torch.float64)
    pairwise = torch.randn(n, n, states, states, generator=random, dtype=torch.float64) * torch.ones(n, n).triu(1)[:, :, None, None]
    return unary, pairwise + pairwise.permute(1, 0, 3, 2)


def _direct_mean_field(unary: Tensor, pairwise: Tensor, times: int) -> Tensor:
    n, states = unary.shape
    q = torch.full_like(unary, 1 / states)
    for _ in range(times):
        new = [(unary[i] + sum(pairwise[i, j] @ q[j] for j in range(n) if j != i)).exp() for i in range(n)]
        q = torch.stack([one / one.sum() for one in new])
    return q


def _direct_beliefs(unary: Tensor, pairwise: Tensor, times: int) -> Tensor:
    n, states = unary.shape
    ones = torch.ones(states, dtype=unary.dtype)
    messages = {(i, j): ones for i in range(n) for j in range(n) if i != j}

    def product(i: int, leave_out: int) -> Tensor:
        arriving = [messages[j, i] for j in range(n) if j not in (i, leave_out)]
        return unary[i].exp() * (torch.stack(arriving).prod(0) if arriving else ones)

    for _ in range(times):
        new = {(i, j): product(i, j) @ pairwise[i, j].exp() for i, j in messages}
        messages = {key: value / value.sum() for key, value in new.items()}
    beliefs = torch.stack([product(i, i) for i in range(n)])
    return beliefs / beliefs.sum(1, keepdim=True)
