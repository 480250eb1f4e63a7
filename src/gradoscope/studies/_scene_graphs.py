"""What the study of scene graphs runs."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradoscope.guard import derive_seed, private_random
from gradoscope.problems.scene_graphs import detected, rate
from gradoscope.stacked import generator
from gradoscope.structured.detections import Detected, Loader, join
from gradoscope.structured.recall import KS, Mode, evaluate, matches, mean_recall, rank
from gradoscope.structured.scene_model import Features, Link, SceneModel, predictions, scene_loss
from gradoscope.structured.scenes import SceneGraph, Scenes
from gradoscope.studies._scene_bounds import CountHead, bounds
from gradoscope.study import Context, Result, Row

__all__ = ["BOUNDED", "KEY", "LINKS", "build", "run", "train"]

KEY = 823  # of this study's random streams: 1 starts, 2 orders, 3 dropout, 4 permutations, 5 word vectors
LINKS: dict[str, tuple[Link, bool, Features]] = {  # how context is pooled, whether a ReLU follows phi and alpha, the scale of the features
    "no context": ("none", False, "centred"),
    "no context, faint": ("none", False, "faint"),
    "mean, linear": ("mean", False, "centred"),
    "mean": ("mean", True, "centred"),
    "sum": ("sum", True, "centred"),
    "neighbour attention": ("neighbour", True, "centred"),
    "feature attention": ("feature", True, "centred"),
    "linguistic": ("feature", True, "centred"),
}
BOUNDED = "table"  # the class that is bounded; in synthetic scenes the first one
WORDS = 16  # numbers of a learnt word vector
Batch = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]


def build(values: Mapping[str, Any], classes: int, predicates: int, seed: int) -> SceneModel:
    """The model of a setting, P + 1 predicates with "no relation"."""
    link, rectified, features = LINKS[values["model"]]
    words = None
    if values["model"] == "linguistic":
        random = generator(seed, KEY, 5)
        words = torch.randn(classes, WORDS, generator=random), torch.randn(predicates, WORDS, generator=random)
    hidden = values["hidden"] if link != "none" else values["alone"]
    return SceneModel(
        classes,
        predicates,
        link=link,
        width=values["width"],
        hidden=[hidden],
        steps=values["recurrent"],
        dropout=values["dropout"],
        words=words,
        learn_words=True,
        features=features,
        rectified=rectified,
        generator=generator(seed, KEY, 1),
    )


def _forever(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def train(net: SceneModel, images: Sequence[Detected], values: Mapping[str, Any], seed: int, context: Context) -> float:
    """Adam with a step size that rises for a tenth of the steps and falls as a half cosine; returns the mean loss of the last tenth."""
    steps = values["steps"]
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=values["lr"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    batches, last = _forever(Loader(images, values["batch"], generator(seed, KEY, 2))), []
    with private_random(derive_seed(seed, KEY, 3)):
        net.train()
        for step in range(steps):
            nodes, edges, mask, truth = next(batches)
            loss = scene_loss(net(nodes, edges, mask), *truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            optimizer.step()
            schedule.step()
            if step >= steps - max(1, steps // 10):
                last.append(float(loss.detach()))
            if step % 50 == 0:
                context.tick(step / steps)
    return sum(last) / len(last)


def run(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """One model, trained and scored on other images, for each seed."""
    result = Result()
    for seed in seeds:
        first, other, seen, unseen = detected(values["data"], seed, values["train"], values["test"])
        classes, predicates = len(first.names.objects), len(first.names.predicates)
        row: Row = {"seed": seed, "images": len(first), "tested": len(other), "parameters": 0}
        net, begun = None, time.perf_counter()
        if values["model"] != "detector":
            net = build(values, classes, predicates + 1, seed)
            row["parameters"] = sum(p.numel() for p in net.parameters())
            row["loss"] = train(net, seen, values, seed, context)
            row["defect"] = _defect(net, unseen[:20], seed)
        result.timings[f"training {seed}"] = time.perf_counter() - begun
        found = predictions(net, unseen, classes)
        row |= {f"accuracy_{k}": _accuracy(p, unseen) for k, p in enumerate(found, 1)}
        row["accuracy"] = _accuracy(found[-1], unseen)
        row |= _recalls(result, seed, found[-1], other.graphs)
        column = first.names.objects.index(BOUNDED) if BOUNDED in first.names.objects else 0
        head = CountHead(seen, classes, column)
        row |= bounds([e for e, _ in found[-1]], unseen, column, head(unseen))
        if net is None:
            row["ceiling"] = _ceiling(unseen, other.graphs, predicates)
        if seed == 0:
            result.arrays |= _example(found[-1], other)
        result.rows.append(row)
    return result


def _accuracy(found: Sequence[tuple[Tensor, Tensor]], images: Sequence[Detected]) -> float:
    right = sum(int((e.argmax(1) == i.labels).sum()) for (e, _), i in zip(found, images, strict=True))
    return right / sum(len(i.labels) for i in images)


def _recalls(result: Result, seed: int, found: Sequence[tuple[Tensor, Tensor]], graphs: Sequence[SceneGraph]) -> Row:
    row: Row = {}
    modes: tuple[Mode, ...] = ("sgcls", "predcls")
    for mode in modes:
        for constrained in (True, False):
            values = mean_recall(evaluate(found, graphs, mode, constrained=constrained))
            name = mode if constrained else f"{mode}_free"
            row |= {f"{name}_{k}": v for k, v in zip(KS, values, strict=True)}
            result.curves += [{"seed": seed, "score": name, "k": k, "recall": v} for k, v in zip(KS, values, strict=True)]
    return row


def _ceiling(images: Sequence[Detected], graphs: Sequence[SceneGraph], predicates: int) -> float:
    """R@100 of an answer that knows every class and the predicate of every pair: pairs with several predicates give only one."""
    known = []
    for image in images:
        pairs = torch.nn.functional.one_hot(image.predicates.clamp(min=0), predicates + 1).double()
        known.append((torch.zeros(len(image.labels), 1, dtype=torch.float64), (pairs + 1e-6).log()))
    return mean_recall(evaluate(known, graphs, "predcls"))[-1]


def _defect(net: SceneModel, images: Sequence[Detected], seed: int) -> float:
    """The largest difference between the outputs of renamed boxes and the renamed outputs, in double precision."""
    twin = copy.deepcopy(net).double().eval()
    batch = join(images)
    graphs = batch.graphs.to(torch.float64)
    order = torch.stack([torch.randperm(graphs.mask.shape[1], generator=generator(seed, KEY, 4, b)) for b in range(len(images))])
    other = graphs.permuted(order)
    worst = 0.0
    with torch.no_grad():
        for (e, r), (f, q) in zip(twin(graphs.nodes, graphs.edges, graphs.mask), twin(other.nodes, other.edges, other.mask), strict=True):
            renamed = graphs.replaced(nodes=e, edges=r).permuted(order)
            there, pairs = other.mask[..., None], other.pair_mask()[..., None]
            worst = max(worst, float(((renamed.nodes - f) * there).abs().max()), float(((renamed.edges - q) * pairs).abs().max()))
    return worst


def _example(found: Sequence[tuple[Tensor, Tensor]], scenes: Scenes) -> dict[str, Tensor]:
    """A typical image of up to seven boxes and five to ten relations, with as many of its likeliest triplets as it has relations.

    Typical: the share of its triplets that are right is nearest to the mean over such images.
    """
    small = [k for k, g in enumerate(scenes.graphs) if len(g) <= 7 and 5 <= len(g.relations) <= 10] or [0]
    tops = {k: rank(*found[k], scenes.graphs[k].boxes, most=max(3, len(scenes.graphs[k].relations))) for k in small}
    shares = {k: float(matches(tops[k], scenes.graphs[k]).any(1).double().mean()) for k in small}
    mean = sum(shares.values()) / len(shares)
    best = min(small, key=lambda k: (abs(shares[k] - mean), k))
    graph, (entities, _), top = scenes.graphs[best], found[best], tops[best]
    return {
        "example": torch.tensor([best]),
        "boxes": graph.boxes,
        "truth": graph.labels,
        "labels": entities.argmax(1),
        "ends": top.ends,
        "words": top.words,
        "right": matches(top, graph).any(1),
        "objects": _bytes(scenes.names.objects),
        "predicates": _bytes(scenes.names.predicates),
    }


def _bytes(words: Sequence[str]) -> Tensor:
    """Names among the arrays, so that a figure can be drawn without the data."""
    return torch.tensor(list("\n".join(words).encode()), dtype=torch.uint8)
