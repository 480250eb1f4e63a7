r"""The model that maps detections to scene graphs by graph-permutation-invariant steps, and its loss.

Herzig, Raboh, Chechik, Berant and Globerson, "Mapping images to scene graphs with permutation-invariant structured prediction" (2018).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.errors import CannotRun
from gradoscope.structured.detections import BOX_FEATURES, Detected, join
from gradoscope.structured.gpi import GPI, Labels, OnParts, PartsLinear, Pooling
from gradoscope.structured.graphs import Graphs, buckets

__all__ = ["Features", "Link", "SceneModel", "predictions", "scene_loss"]

Link = Literal["none", "sum", "mean", "neighbour", "feature"]
Features = Literal["published", "faint", "centred"]
TINY = 1e-10  # inside the logarithms of the published model
Outputs = list[tuple[Tensor, Tensor]]


class Gated(nn.Module):
    r"""An MLP that changes logits, and how much of the old ones stays: $\delta(x)$ beside $g(x)$, for $y'=\delta+\sigma(g)y$.

    Args:
        sizes: features of each argument.
        hidden: widths of the hidden layers.
        outputs: logits.
        gates: one gate for all logits, or one for each.
        dropout: share of the hidden units that are dropped in training.
        generator: draws the start.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
        gates: int,
        *,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        made = OnParts.build(sizes, [*hidden, outputs], generator=generator)
        layers: list[nn.Module] = []
        for layer in made.rest.children():
            layers += [layer, nn.Dropout(dropout)] if isinstance(layer, nn.ReLU) and dropout else [layer]
        self.change = OnParts(made.first, nn.Sequential(*layers))
        self.gate = PartsLinear(sizes, gates, generator=generator)

    def forward(self, *parts: Tensor) -> Tensor:
        """Returns (..., outputs + gates)."""
        return torch.cat([self.change(*parts), self.gate(*parts)], -1)


class Alone(nn.Module):
    """The same outputs without context: a node sees itself, a pair itself and its two ends."""

    def __init__(self, rho: nn.Module, rho_pair: nn.Module) -> None:
        super().__init__()
        self.rho, self.rho_pair = rho, rho_pair

    def forward(self, graphs: Graphs) -> Labels:
        """Outputs for a batch of graphs; padding is zero."""
        z, none = graphs.nodes, graphs.nodes.new_zeros(0)
        pairs = self.rho_pair(z[..., :, None, :], graphs.edges, z[..., None, :, :])
        nodes = self.rho(z).masked_fill(~graphs.mask[..., None], 0.0)
        return Labels(nodes, pairs.masked_fill(~graphs.pair_mask()[..., None], 0.0), none, none)


class SceneModel(nn.Module):
    r"""GPI steps with shared weights from a detector's logits to better ones.

    Each step normalises what it is given, $z_i=[\log(\mathrm{softmax}(\text{logits})+10^{-10}),\text{box}]$ and
    $z_{ij}=\log(\mathrm{softmax}(\text{logits})+10^{-10})$; pools linear maps of [z_i, z_ij, z_j] over the neighbours into s_i and linear
    maps of [z_i, s_i] over the nodes into G; and changes the logits by gated MLPs, of [z_i, s_i, G] for boxes and of [z_i, z_ij, z_j, G]
    for pairs. With word vectors the features also hold the vector of the likeliest word times its probability ("linguistic").

    Args:
        classes: C, of boxes.
        predicates: P + 1, with "no relation" last.
        link: how context is pooled: "sum", "mean", attention by "neighbour" or by "feature"; "none" for no context at all.
        width: of s_i and G.
        hidden: hidden layers of both MLPs.
        steps: how often the step is applied.
        dropout: share of the features, and of the hidden units of the MLPs, that are dropped in training.
        words: vectors of the classes (C, D) and of the predicates (P + 1, D'), or None.
        learn_words: whether these are trained; they stay as given otherwise.
        boxes: numbers that describe a box.
        features: what the logarithms are to the layers. "published": as they are; a hundred of them, some -8 each, allow only steps of the
            size that was published, 1e-4. "faint": in units of ten. "centred": minus their mean over the words, in units of two.
        rectified: whether a ReLU follows phi and alpha; as published there is none.
        generator: draws the start; None draws from the global stream.

    Cost: per step and graph, n^2 evaluations of the pairs' MLP and n of the boxes'.

    Example:
        >>> model = SceneModel(5, 3, link="feature", width=8, hidden=[8], generator=torch.Generator().manual_seed(0)).eval()
        >>> graphs = Graphs.full(torch.randn(2, 4, 5 + BOX_FEATURES), torch.randn(2, 4, 4, 3))
        >>> [(tuple(e.shape), tuple(r.shape)) for e, r in model(graphs.nodes, graphs.edges, graphs.mask)]
        [((2, 4, 5), (2, 4, 4, 3)), ((2, 4, 5), (2, 4, 4, 3))]

    Source: Herzig et al. (2018), section 5 and their code; widths, steps and dropout default to theirs.
    """

    def __init__(
        self,
        classes: int,
        predicates: int,
        *,
        link: Link = "feature",
        width: int = 500,
        hidden: Sequence[int] = (500, 500, 500),
        steps: int = 2,
        dropout: float = 0.1,
        words: tuple[Tensor, Tensor] | None = None,
        learn_words: bool = False,
        boxes: int = BOX_FEATURES,
        features: Features = "published",
        rectified: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if link not in ("none", "sum", "mean", "neighbour", "feature") or features not in ("published", "faint", "centred") or steps < 1:
            raise CannotRun(
                "`link` is none, sum, mean, neighbour or feature, `features` are published, faint or centred, with at least one step; "
                f"got {link!r}, {features!r} and {steps}."
            )
        if words is not None and (len(words[0]) != classes or len(words[1]) != predicates):
            raise CannotRun(f"expected {classes} and {predicates} word vectors, got {len(words[0])} and {len(words[1])}.")
        self.classes, self.predicates, self.steps, self.features = classes, predicates, steps, features
        self.dropout = nn.Dropout(dropout)
        self.words = None if words is None else nn.ParameterList(nn.Parameter(w.clone(), requires_grad=learn_words) for w in words)
        wide = (0, 0) if words is None else (words[0].shape[1], words[1].shape[1])
        self.step = _step(
            link, classes, predicates, classes + boxes + wide[0], predicates + wide[1], width, hidden, rectified, dropout, generator
        )

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Outputs:
        """Better logits, after each step.

        Args:
            nodes: the detector's logits beside the numbers of the boxes, shape (B, n, C + boxes).
            edges: the detector's logits of ordered pairs, shape (B, n, n, P + 1).
            mask: which boxes there are, boolean, shape (B, n).

        Returns:
            For each step logits of boxes (B, n, C), and of pairs (B, n, n, P + 1).
        """
        entity, boxes = nodes[..., : self.classes], nodes[..., self.classes :]
        relation, found = edges, []
        for _ in range(self.steps):
            entity, relation = (torch.log(t.softmax(-1) + TINY) for t in (entity, relation))
            labels = self.step(Graphs(*self._features(entity, relation, boxes), mask))
            assert labels.nodes is not None
            assert labels.pairs is not None
            entity = _gated(labels.nodes, entity)
            relation = _gated(labels.pairs, relation)
            found.append((entity, relation))
        return found

    def _features(self, entity: Tensor, relation: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        nodes, edges = [_scaled(entity, self.features), boxes], [_scaled(relation, self.features)]
        if self.words is not None:
            for parts, logs, table in ((nodes, entity, self.words[0]), (edges, relation, self.words[1])):
                sure, likeliest = logs.max(-1)
                parts.append(table[likeliest] * sure.exp()[..., None])
        return self.dropout(torch.cat(nodes, -1)), self.dropout(torch.cat(edges, -1))


def _scaled(logs: Tensor, features: Features) -> Tensor:
    if features == "centred":
        return (logs - logs.mean(-1, keepdim=True)) / 2
    return logs / 10 if features == "faint" else logs


def _gated(outputs: Tensor, old: Tensor) -> Tensor:
    width = old.shape[-1]
    return outputs[..., :width] + torch.sigmoid(outputs[..., width:]) * old


def _step(
    link: Link,
    classes: int,
    predicates: int,
    dn: int,
    de: int,
    width: int,
    hidden: Sequence[int],
    rectified: bool,
    dropout: float,
    generator: torch.Generator | None,
) -> nn.Module:
    pair, inner, with_context = [dn, de, dn], [dn, width], link != "none"
    extra = [width] if with_context else []
    rho = Gated([*(inner if with_context else [dn]), *extra], hidden, classes, classes, dropout=dropout, generator=generator)
    rho_pair = Gated([*pair, *extra], hidden, predicates, 1, dropout=dropout, generator=generator)
    if not with_context:
        return Alone(rho, rho_pair)
    scores = {"neighbour": 1, "feature": width}.get(link, 0)
    pooling: Pooling = "mean" if link == "mean" else "sum"
    phi, alpha = (PartsLinear(sizes, width, generator=generator) for sizes in (pair, inner))
    return GPI(
        OnParts(phi, nn.ReLU()) if rectified else phi,
        OnParts(alpha, nn.ReLU()) if rectified else alpha,
        rho,
        rho_pair,
        phi_score=PartsLinear(pair, scores, generator=generator) if scores else None,
        alpha_score=PartsLinear(inner, scores, generator=generator) if scores else None,
        pooling=pooling,
    )


def scene_loss(outputs: Outputs, labels: Tensor, predicates: Tensor, *, background: float = 3.0, entity: float = 4.0) -> Tensor:
    r"""The published loss: over steps, the sum of the pairs' cross-entropy and four times that of the boxes.

    Pairs without a relation weigh together at most `background` times as much as those with one; both means are over the batch.

    Args:
        outputs: logits after each step, as the model gives them.
        labels: classes, shape (B, n), -1 where there is no box.
        predicates: of ordered pairs, shape (B, n, n), the last class for "no relation", -1 on the diagonal and where there is no pair.
        background: most weight of the pairs without relation against those with one.
        entity: weight of the boxes' term.

    Example:
        >>> outputs = [(torch.zeros(1, 2, 4), torch.zeros(1, 2, 2, 3))]
        >>> loss = scene_loss(outputs, torch.tensor([[0, 3]]), torch.tensor([[[-1, 0], [2, -1]]]))
        >>> round(float(loss), 4)  # log 3 + 4 log 4
        6.6438
    """
    flat, last = predicates.flatten(), outputs[0][1].shape[-1] - 1
    related, not_related = (flat >= 0) & (flat < last), flat == last
    share = (background * related.sum().clamp(min=1) / not_related.sum().clamp(min=1)).clamp(max=1.0)
    weights = related + not_related * share
    weights = weights / weights.sum().clamp(min=TINY)
    total = outputs[0][0].new_zeros(())
    for boxes, pairs in outputs:
        each = F.cross_entropy(pairs.flatten(0, -2), flat, ignore_index=-1, reduction="none")
        total = total + (each * weights).sum() + entity * F.cross_entropy(boxes.flatten(0, -2), labels.flatten(), ignore_index=-1)
    return total


def predictions(model: SceneModel | None, images: Sequence[Detected], classes: int, batch: int = 100) -> list[list[tuple[Tensor, Tensor]]]:
    """Logarithms of the probabilities of classes and predicates, after each step and for each image.

    Args:
        model: used without dropout, and left in the mode that it was in; None for the detector itself.
        images: of one split.
        classes: C.
        batch: images that are worked on at once.

    Returns:
        For each step, one pair (n, C), (n, n, P + 1) per image, in the order of the images.
    """
    if model is None:
        return [[(i.nodes[:, :classes].log_softmax(-1), i.edges.log_softmax(-1)) for i in images]]
    was, steps = model.training, model.steps
    found: list[list[tuple[Tensor, Tensor]]] = [[(torch.empty(0), torch.empty(0))] * len(images) for _ in range(steps)]
    try:
        model.eval()
        for index in buckets([len(i.labels) for i in images], batch):
            graphs = join([images[k] for k in index.tolist()]).graphs
            with torch.no_grad():
                outputs = model(graphs.nodes, graphs.edges, graphs.mask)
            for step, pair in enumerate(outputs):
                boxes, pairs = (t.log_softmax(-1) for t in pair)
                for b, k in enumerate(index.tolist()):
                    n = len(images[k].labels)
                    found[step][k] = boxes[b, :n].clone(), pairs[b, :n, :n].clone()
    finally:
        model.train(was)
    return found
