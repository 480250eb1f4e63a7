"""The parts of the study of cardinality that train: labels one by one, networks with a threshold, and unrolled inference."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.guard import derive_seed, private_random
from gradoscope.problems.multilabel import most_labels, parts
from gradoscope.stacked import generator
from gradoscope.structured.cardinality import (
    PredictAndConstrain,
    f1_scores,
    mlp,
    soft_f1_loss,
    stack_networks,
    top_labels,
)
from gradoscope.structured.projections import free_coordinates
from gradoscope.studies._cardinality import KEY
from gradoscope.study import Context, Result

__all__ = ["end_to_end", "relevance", "two_stage"]

SHOWN = 12  # numbers of labels from 0 to 10, and more, in the tables of predicted against true numbers
CHUNK = 500  # examples evaluated at once


class _Data:
    """The set of each seed: the synthetic one is drawn anew, files are the same for all."""

    def __init__(self, name: str, seeds: Sequence[int]) -> None:
        found = [parts(name, seed) for seed in (seeds if name == "synthetic" else seeds[:1])]
        self.seeds = list(seeds)
        self.train = [f[0] for f in found] * (len(seeds) if name != "synthetic" else 1)
        self.test = [f[1] for f in found] * (len(seeds) if name != "synthetic" else 1)
        self.features, self.labels = self.train[0].x.shape[1], self.train[0].y.shape[1]

    def most(self, asked: int) -> int:
        """How many labels a head can predict: as asked, or as the training part has."""
        return asked or max(most_labels(t.y) for t in self.train)

    def batches(self, size: int, epochs: int, stream: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled epochs, x (S, B, d) and y (S, B, L); what is left over at the end of an epoch waits for no other."""
        randoms = [generator(seed, KEY, 10, stream) for seed in self.seeds]
        count = len(self.train[0])
        for _ in range(epochs):
            orders = [torch.randperm(count, generator=random) for random in randoms]
            for start in range(0, count - size + 1, size):
                picked = [order[start : start + size] for order in orders]
                rows = list(zip(self.train, picked, strict=True))
                yield torch.stack([t.x[i] for t, i in rows]), torch.stack([t.y[i] for t, i in rows])

    def per_epoch(self, size: int) -> int:
        """Steps."""
        return len(self.train[0]) // size


def _start(model: Any, seed: int, stream: int) -> Any:
    with private_random(derive_seed(seed, KEY, 11, stream)):
        return model()


def _numbers(labels: Tensor, y: Tensor) -> Tensor:
    """How often each number of labels was predicted (columns) where there are so many (rows), shape (12, 12)."""
    true, found = (t.sum(1).long().clamp(max=SHOWN - 1) for t in (y, labels))
    return torch.bincount(true * SHOWN + found, minlength=SHOWN**2).reshape(SHOWN, SHOWN)


def _cross_entropies(score: nn.Module, head: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the labels (summed) and of their number (up to what the head knows), mean over the batch: one number for each of a stack."""
    most = head(x[:, :1]).shape[-1]
    labels = F.binary_cross_entropy_with_logits(score(x), y, reduction="none").sum(-1).mean(-1)
    number = (y.sum(-1).long() - 1).clamp(0, most - 1)
    return labels + F.cross_entropy(head(x).flatten(0, 1), number.flatten(), reduction="none").reshape(number.shape).mean(-1)


def _fit_parts(score: nn.Module, head: nn.Module, data: _Data, values: Mapping[str, Any], epochs: int, context: Context) -> None:
    """Adam on both networks, each on targets of its own."""
    optimizer = torch.optim.Adam([*score.parameters(), *head.parameters()], lr=1e-3)
    total = epochs * data.per_epoch(values["batch"])
    for step, (x, y) in enumerate(data.batches(values["batch"], epochs, 1)):
        optimizer.zero_grad(set_to_none=True)
        _cross_entropies(score, head, x, y).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()
        context.tick(step / total)


def two_stage(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Cross-entropy on each label; then a threshold of 1/2, the predicted number of labels, or the true one."""
    data = _Data(values["set"], seeds)
    most = data.most(values["most"])
    sizes = data.features, values["hidden"]
    score = stack_networks([_start(lambda: mlp(*sizes, data.labels), s, 1) for s in seeds])
    head = stack_networks([_start(lambda: mlp(*sizes, most), s, 2) for s in seeds])
    began = time.process_time()
    _fit_parts(score, head, data, values, values["epochs"], context)
    found = Result(timings={"seconds": time.process_time() - began})
    with torch.no_grad():
        x = torch.stack([t.x for t in data.test])
        scores, number = score(x), head(x).argmax(-1) + 1
    tables = []
    for k, (seed, test) in enumerate(zip(seeds, data.test, strict=True)):
        true = test.y.sum(1)
        ways = {"threshold": (scores[k] > 0).float(), "top": top_labels(scores[k], number[k]), "oracle": top_labels(scores[k], true)}
        row: dict[str, Any] = {"seed": seed, "most": most}
        for way, labels in ways.items():
            row |= {f"{way}_{name}": value for name, value in f1_scores(labels, test.y).items() if name != "true"}
        row |= {"true": float(true.mean()), "number_accuracy": float((number[k] == true.clamp(max=most)).float().mean())}
        found.rows.append(row)
        tables.append(torch.stack([_numbers(ways[way], test.y) for way in ("threshold", "top")]))
    found.arrays["numbers"] = torch.stack(tables)
    return found


def relevance(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    """Binary relevance: scikit-learn's logistic regression for each label by itself, an independent reference."""
    from sklearn.linear_model import LogisticRegression

    found = Result()
    for seed in seeds or (0,):
        train, test = parts(values["set"], seed)
        x, others = train.x.double().numpy(), test.x.double().numpy()
        scores = np.full((len(others), train.y.shape[1]), -30.0)
        for label in range(train.y.shape[1]):
            y = train.y[:, label].numpy()
            if y.min() < y.max():
                fitted = LogisticRegression(C=values["c"], solver="lbfgs", max_iter=200).fit(x, y)
                scores[:, label] = fitted.decision_function(others)
            context.tick(label / train.y.shape[1])
        guess = torch.from_numpy(scores).float()
        names = {"threshold": (guess > 0).float(), "oracle": top_labels(guess, test.y.sum(1))}
        row = {f"{way}_{k}": v for way, labels in names.items() for k, v in f1_scores(labels, test.y).items() if k != "true"}
        found.rows.append({**({"seed": seed} if seeds else {}), **row, "true": float(test.y.sum(1).mean())})
    return found


def _models(values: Mapping[str, Any], data: _Data, seeds: Sequence[int]) -> PredictAndConstrain:
    def one() -> PredictAndConstrain:
        model = PredictAndConstrain(
            data.features,
            data.labels,
            most=data.most(values["most"]),
            hidden=values["hidden"],
            constraint=values["constraint"],
            steps=values["inner"],
            rounds=values["rounds"],
            drop=(0.2, 0.5) if values["pretrained"] else (0.0, 0.0),
        )
        with torch.no_grad():
            for p in model.score.parameters():
                p.mul_(values["scale"])
        return model

    return PredictAndConstrain.stacked([_start(one, seed, 3) for seed in seeds])


def end_to_end(values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
    r"""Unrolled inference, trained through its projections by AdaGrad on the soft F1 summed over the batch.

    Cost per step: T projections of the batch, forward and backward, and the two networks.
    """
    data = _Data(values["set"], seeds)
    model = _models(values, data, seeds)
    found = Result()
    began = time.process_time()
    with private_random(derive_seed(seeds[0], KEY, 12)):  # for dropout
        if values["pretrained"]:
            _fit_parts(model.score, model.head, data, values, values["pretrained"], context)
        _fit_unrolled(model, data, values, seeds, context, found)
    found.timings["seconds"] = time.process_time() - began
    _evaluate(model, data, values, found)
    return found


def _fit_unrolled(
    model: PredictAndConstrain, data: _Data, values: Mapping[str, Any], seeds: Sequence[int], context: Context, found: Result
) -> None:
    size, epochs = values["batch"], values["epochs"]
    start = values["accumulator"]  # of the squared gradients: 0 in PyTorch, 0.1 in TensorFlow; at 0 the first step is lr in every number
    optimizer = torch.optim.Adagrad(model.parameters(), lr=values["lr"], weight_decay=1e-3, initial_accumulator_value=start)
    per_epoch = data.per_epoch(size)
    losses = torch.zeros(len(seeds))
    for step, (x, y) in enumerate(data.batches(size, epochs, 2)):
        if step % per_epoch == 0:  # the sharpness of the smooth step rises by one factor per epoch
            share = step / per_epoch / max(epochs - 1, 1)
            model.sharpness = model.inner = float(values["sharp"] ** share)
        optimizer.zero_grad(set_to_none=True)
        each = soft_f1_loss(model(x), y) * size
        each.sum().backward()
        optimizer.step()
        losses += each.detach() / size / per_epoch
        if (step + 1) % per_epoch == 0:
            rows = [{"seed": s, "epoch": (step + 1) // per_epoch, "loss": float(v)} for s, v in zip(seeds, losses, strict=True)]
            found.curves += rows
            losses = torch.zeros(len(seeds))
            context.tick((step + 1) / per_epoch / epochs)


def _evaluate(model: PredictAndConstrain, data: _Data, values: Mapping[str, Any], found: Result) -> None:
    """Rows and tables on the test part."""
    model.eval()
    x = torch.stack([t.x for t in data.test])
    with torch.no_grad():
        chunks = [x[:, start : start + CHUNK] for start in range(0, x.shape[1], CHUNK)]
        u = torch.cat([model(chunk)[..., -1, :] for chunk in chunks], 1)
        z = torch.cat([model.count(chunk) for chunk in chunks], 1)
    tables, gaps = [], []
    for k, (seed, test) in enumerate(zip(data.seeds, data.test, strict=True)):
        labels = (u[k] >= 0.5).float()
        gap = u[k].sum(1) - z[k]
        free = free_coordinates(u[k], 1e-6).sum(1).float()
        found.rows.append(
            {
                "seed": seed,
                **f1_scores(labels, test.y),
                "ranked_f1": f1_scores(top_labels(u[k], z[k]), test.y)["f1"],
                "z": float(z[k].mean()),
                "z_low": float((z[k] < 1.05).float().mean()),
                "gap": float(gap.abs().max()),
                "gap_mean": float(gap.abs().mean()),
                "free": float(free.mean()),
                "excess": float(u[k].max() - 1),
            }
        )
        tables.append(_numbers(labels, test.y))
        gaps.append(gap)
    found.arrays |= {"numbers": torch.stack(tables), "gaps": torch.stack(gaps)}
