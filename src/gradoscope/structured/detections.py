"""What a detector tells about images, simulated from the truth, and such images in batches of similar size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradoscope.errors import CannotRun
from gradoscope.structured.graphs import Graphs, buckets, collate
from gradoscope.structured.scenes import SceneGraph

__all__ = ["BOX_FEATURES", "Detected", "Loader", "SceneBatch", "as_batch", "detections", "geometry", "join", "targets"]

BOX_FEATURES = 14
Batch = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]


def geometry(boxes: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """14 numbers for each box, in units of the image, or of what its boxes cover where its size is not known.

    Left, top, right, bottom, centre (2), width, height, area, logarithms of width, height and area, width against height, distance of the
    centre from the image's.

    Args:
        boxes: x1, y1, x2, y2, shape (n, 4).
        size: width and height of the image.

    Returns:
        shape (n, 14).
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, BOX_FEATURES)
    wide = boxes.new_tensor(size) if size is not None else boxes[:, 2:].amax(0)
    low, high = boxes[:, :2] / wide.clamp(min=1e-6), boxes[:, 2:] / wide.clamp(min=1e-6)
    centre, extent = (low + high) / 2, (high - low).clamp(min=1e-4)
    area, logs = extent.prod(1, keepdim=True), extent.log()
    aspect = logs[:, :1] - logs[:, 1:]
    return torch.cat(
        [low, high, centre, extent, area, logs, logs.sum(1, keepdim=True), aspect, (centre - 0.5).norm(dim=1, keepdim=True)], 1
    )


def targets(graph: SceneGraph, predicates: int) -> Tensor:
    """One predicate for each ordered pair: the first that the data name, `predicates` for "no relation", -1 on the diagonal.

    Args:
        graph: one image.
        predicates: P, how many there are.

    Returns:
        int64, shape (n, n).
    """
    found = torch.full((len(graph), len(graph)), predicates)
    s, p, o = graph.relations.flip(0).unbind(1)  # written in reverse order, so that the first one stays
    for k in range(len(p)):
        found[s[k], o[k]] = p[k]
    found.fill_diagonal_(-1)
    return found


@dataclass(frozen=True)
class Detected:
    """One image as the model sees it, with what is true.

    Args:
        nodes: logits of classes beside the numbers of the box, shape (n, C + 14).
        edges: logits of predicates, shape (n, n, P + 1).
        labels: classes, shape (n,).
        predicates: as `targets` gives them, shape (n, n).
    """

    nodes: Tensor
    edges: Tensor
    labels: Tensor
    predicates: Tensor


def detections(
    graphs: Sequence[SceneGraph], classes: int, predicates: int, random: torch.Generator, *, raised: float = 4.0, noise: float = 1.6
) -> list[Detected]:
    r"""A simulated detector: logits are $\text{noise}\cdot\mathcal N(0,1)$, that of the true class is raised, of boxes and pairs alike.

    With 100 classes, a noise of 1.6 and a raise of 4 the likeliest class is the true one for about half of the boxes.

    Args:
        graphs: the truth; every box has a class.
        classes: C.
        predicates: P; "no relation" comes after them.
        random: where the noise comes from, one image after another.
        raised: what the true class gets.
        noise: standard deviation.

    Raises:
        CannotRun: for boxes without class.
    """
    found = []
    for graph in graphs:
        if bool((graph.labels < 0).any()):
            raise CannotRun(f"image {graph.image} has boxes without a class; a detector cannot be simulated for them.")
        truth = targets(graph, predicates)
        nodes = noise * torch.randn(len(graph), classes, generator=random) + raised * F.one_hot(graph.labels, classes)
        edges = noise * torch.randn(*truth.shape, predicates + 1, generator=random)
        edges += raised * F.one_hot(truth.clamp(min=0), predicates + 1) * (truth >= 0)[..., None]
        found.append(Detected(torch.cat([nodes, geometry(graph.boxes, graph.size)], 1), edges, graph.labels, truth))
    return found


@dataclass(frozen=True)
class SceneBatch:
    """Images of similar size, padded to the largest.

    Args:
        graphs: what the model sees.
        labels: shape (B, n), -1 for padding.
        predicates: shape (B, n, n), -1 for padding and on the diagonal.
    """

    graphs: Graphs
    labels: Tensor
    predicates: Tensor


def join(images: Sequence[Detected]) -> SceneBatch:
    """One batch of these images."""
    graphs = collate([(i.nodes, i.edges) for i in images])
    count, n = graphs.mask.shape
    labels, predicates = torch.full((count, n), -1), torch.full((count, n, n), -1)
    for b, image in enumerate(images):
        k = len(image.labels)
        labels[b, :k], predicates[b, :k, :k] = image.labels, image.predicates
    return SceneBatch(graphs, labels, predicates)


def as_batch(made: SceneBatch) -> Batch:
    """The same as (nodes, edges, mask, (labels, predicates)): what the model takes, and the target."""
    return made.graphs.nodes, made.graphs.edges, made.graphs.mask, (made.labels, made.predicates)


class Loader:
    """Batches of similar size in a new order at each pass, as tuples (nodes, edges, mask, (labels, predicates)).

    Args:
        images: of one split.
        batch: the most images in a batch.
        generator: draws the order; None keeps one.

    Example:
        >>> graph = SceneGraph.of("a", [[0, 0, 1, 1], [0, 0, 2, 2]], [0, 1], [[0, 0, 1]])
        >>> loader = Loader(detections([graph] * 5, 3, 2, torch.Generator().manual_seed(0)), 2)
        >>> [tuple(batch[0].shape) for batch in loader]
        [(2, 2, 17), (2, 2, 17), (1, 2, 17)]
    """

    def __init__(self, images: Sequence[Detected], batch: int, generator: torch.Generator | None = None) -> None:
        self.images, self.batch, self.generator = images, batch, generator
        self.sizes = [len(i.labels) for i in images]

    def __iter__(self) -> Iterator[Batch]:
        for index in buckets(self.sizes, self.batch, generator=self.generator):
            yield as_batch(join([self.images[k] for k in index.tolist()]))
