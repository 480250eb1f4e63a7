"""Scene graphs from a noisy detector: with and without context between the boxes of an image."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.structured.detections import Detected, Loader, as_batch, detections, join
from gradoscope.structured.scene_model import Link, SceneModel, scene_loss
from gradoscope.structured.scenes import SceneGraph, Scenes, Vocabulary, has, vrd
from gradoscope.training import Training

__all__ = ["attention", "detected", "gpi", "has_vrd", "no_context", "rate", "scenes", "synthetic"]

SOURCE = "Herzig, Raboh, Chechik, Berant and Globerson 2018, Mapping images to scene graphs; Globerson's slides"
CLASSES, PREDICATES, KINDS = 30, 12, 6  # of the synthetic scenes
KEY = 417  # of the random streams here: 1 templates, 2 images, 3 detectors, 4 order
Outputs = list[tuple[Tensor, Tensor]]


def has_vrd() -> bool:
    """Whether the folder that GRADOSCOPE_DATA names holds the scene graphs of VRD."""
    return has("vrd-scene-graphs", "vocab.json", "train.jsonl", "test.jsonl")


def synthetic(seed: int, count: int, split: str = "train", *, least: int = 3, most: int = 8) -> Scenes:
    """Scenes in which things that belong together occur together, so that the other boxes tell what a box is likely to be.

    30 classes fall into 6 kinds of scene with 5 classes each. An image is of one kind; nine of ten boxes show a class of that kind, the
    others any. Half of the pairs of classes have a relation of their own, which seven of ten such pairs of boxes show. Sizes and places of
    boxes depend a little on the class.

    Args:
        seed: what the template and the images are drawn from; both splits share the template.
        count: images.
        split: "train" or "test".
        least: fewest boxes of an image.
        most: most boxes of an image.

    Returns:
        Scenes with classes "kind 0, thing 0" and so on.

    Example:
        >>> some = synthetic(0, 10)
        >>> len(some), len(some.names.objects), min(len(g) for g in some.graphs) >= 3
        (10, 30, True)
    """
    if split not in ("train", "test") or count < 1 or not 1 <= least <= most:
        raise Usage(f"`split` must be train or test, with images of 1 or more boxes; got {split!r}, {count}, {least} to {most}.")
    random = generator(seed, KEY, 1)
    place = torch.rand(CLASSES, 2, generator=random)
    size = 0.1 + 0.3 * torch.rand(CLASSES, 2, generator=random)
    related = torch.rand(CLASSES, CLASSES, generator=random) < 0.5
    predicate = torch.randint(PREDICATES, (CLASSES, CLASSES), generator=random)
    random = generator(seed, KEY, 2, int(split == "test"))
    each = CLASSES // KINDS
    names = Vocabulary(
        tuple(f"kind {k}, thing {j}" for k in range(KINDS) for j in range(each)), tuple(f"relation {p}" for p in range(PREDICATES))
    )
    graphs = []
    for image in range(count):
        n = int(torch.randint(least, most + 1, (), generator=random))
        kind = int(torch.randint(KINDS, (), generator=random))
        own = kind * each + torch.randint(each, (n,), generator=random)
        labels = torch.where(torch.rand(n, generator=random) < 0.9, own, torch.randint(CLASSES, (n,), generator=random))
        centre = place[labels] + 0.3 * torch.randn(n, 2, generator=random)
        extent = size[labels] * torch.exp(0.5 * torch.randn(n, 2, generator=random))
        boxes = 1000 * torch.cat([centre - extent / 2, centre + extent / 2], 1).clamp(0, 1)
        shown = related[labels[:, None], labels[None]] & (torch.rand(n, n, generator=random) < 0.7) & ~torch.eye(n, dtype=torch.bool)
        s, o = shown.nonzero().unbind(1)
        triplets = torch.stack([s, predicate[labels[s], labels[o]], o], 1)
        graphs.append(SceneGraph(f"{split} {image}", boxes, labels, triplets, size=(1000, 1000)))
    return Scenes(tuple(graphs), names, "synthetic")


@lru_cache(maxsize=2)
def _vrd(split: str) -> Scenes:
    return vrd(split).at_least(2)


def scenes(data: str, seed: int, train: int = 0, test: int = 0) -> tuple[Scenes, Scenes]:
    """Scenes to train and to test on.

    Args:
        data: "synthetic" or "vrd" (images with at least two boxes).
        seed: what synthetic scenes are drawn from; the splits of VRD are fixed.
        train: how many, the first ones; 0 for all of VRD, or 400.
        test: how many, the first ones; 0 for all of VRD, or 200.

    Raises:
        Usage: for other data, or where the user has no VRD.
    """
    if data == "synthetic":
        return synthetic(seed, train or 400), synthetic(seed, test or 200, "test")
    if data != "vrd":
        raise Usage(f"`data` must be synthetic or vrd, got {data!r}.")
    first, other = _vrd("train"), _vrd("test")
    return (
        Scenes(first.graphs[: train or None], first.names, first.source),
        Scenes(other.graphs[: test or None], other.names, other.source),
    )


def detected(data: str, seed: int, train: int = 0, test: int = 0) -> tuple[Scenes, Scenes, list[Detected], list[Detected]]:
    """The scenes of both splits, and what a simulated detector makes of them; its noise is fixed for each split.

    Args:
        data: as in `scenes`.
        seed: what scenes and noise are drawn from.
        train: how many images to train on.
        test: how many to test on.
    """
    first, other = scenes(data, seed, train, test)
    sizes = len(first.names.objects), len(first.names.predicates)
    seen, unseen = (detections(s.graphs, *sizes, generator(seed, KEY, 3, k)) for k, s in enumerate((first, other)))
    return first, other, seen, unseen


def rate(step: int, steps: int) -> float:
    """The share of the step size that a step takes: it rises for a tenth of the steps and falls as a half cosine."""
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2


def loss(output: Outputs, target: tuple[Tensor, Tensor]) -> Tensor:
    """`scene_loss` of what the model gives."""
    return scene_loss(output, *target)


def entity_accuracy(output: Outputs, target: tuple[Tensor, Tensor]) -> float:
    """The share of boxes whose class is right after the last step."""
    labels = target[0]
    there = labels >= 0
    return float((output[-1][0].argmax(-1) == labels)[there].double().mean())


def _training(
    name: str, link: Link, data: str, seed: int, train: int, test: int, width: int, hidden: int, steps: int, lr: float
) -> Training:
    data = data or ("vrd" if has_vrd() else "synthetic")
    first, _, seen, unseen = detected(data, seed, train, test)
    sizes = len(first.names.objects), len(first.names.predicates) + 1
    return Training(
        name=f"{name} ({data})",
        model=lambda: SceneModel(
            *sizes,
            link=link,
            width=width,
            hidden=[hidden],
            steps=1 if link == "none" else 2,  # without context a second step would see nothing new
            dropout=0.1,
            features="faint" if link == "none" else "centred",  # with plainer features it learns the noise by heart
            rectified=True,
        ),
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=loss,
        data=Loader(seen, 25, generator(seed, KEY, 4)),
        validation=[as_batch(join(unseen))],  # one batch, since a metric is given all outputs in one piece
        schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps)),
        metric=entity_accuracy,
        steps=steps,
    )


@problem(
    "scene-graphs:gpi",
    obstacle="healthy",
    says="Classes and relations from a noisy detector by permutation-invariant steps: the other boxes of an image help.",
    source=SOURCE,
)
def gpi(
    *,
    seed: int = 0,
    data: str = "",
    train: int = 800,
    test: int = 150,
    width: int = 32,
    hidden: int = 64,
    lr: float = 1e-2,
    steps: int = 200,
) -> Training:
    """Two steps with shared weights that pool the mean over neighbours and over boxes.

    Args:
        seed: what synthetic scenes, noise and order are drawn from.
        data: "synthetic" or "vrd"; VRD where it is there, by default. The training's name says which.
        train: images to train on; 0 for all that there are.
        test: images to validate on; 0 for all that there are.
        width: of what is pooled.
        hidden: units of the hidden layer of each MLP.
        lr: step size of Adam.
        steps: optimizer steps of up to 25 images.
    """
    return _training("scene-graphs:gpi", "mean", data, seed, train, test, width, hidden, steps, lr)


@problem(
    "scene-graphs:attention",
    obstacle="healthy",
    says="The same with attention over neighbours and over boxes, one weight per feature.",
    source=SOURCE,
)
def attention(
    *,
    seed: int = 0,
    data: str = "",
    train: int = 800,
    test: int = 150,
    width: int = 32,
    hidden: int = 64,
    lr: float = 1e-2,
    steps: int = 200,
) -> Training:
    """`scene-graphs:gpi` with softmax weights in place of means; the options are its."""
    return _training("scene-graphs:attention", "feature", data, seed, train, test, width, hidden, steps, lr)


@problem(
    "scene-graphs:no-context",
    obstacle="healthy",
    says="The same without context, a box and a pair by themselves: it trains well, to the lower accuracy that single boxes allow.",
    source=SOURCE,
)
def no_context(
    *,
    seed: int = 0,
    data: str = "",
    train: int = 800,
    test: int = 150,
    hidden: int = 96,
    lr: float = 1e-2,
    steps: int = 200,
) -> Training:
    """Nothing obstructs this training: what is missing is in the form of the function, not in its gradient. The options are those of
    `scene-graphs:gpi`, without `width`.
    """
    return _training("scene-graphs:no-context", "none", data, seed, train, test, 1, hidden, steps, lr)
