"""Labels of nodes that do not depend on their order: learnt from few graphs by a network that knows it, and by no other."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.problems._data import generator
from gradoscope.structured.gpi import GPI, Attention
from gradoscope.structured.graphs import Graphs
from gradoscope.training import Training

__all__ = ["FlatNet", "OrderedLSTM", "SetGPI", "draw", "flat", "gpi", "lstm", "majority", "standardised"]

SOURCE = (
    "Herzig, Raboh, Chechik, Berant and Globerson 2018, Mapping images to scene graphs with permutation-invariant structured prediction"
)
Triple = tuple[Tensor, Tensor, Tensor]


def draw(random: torch.Generator, count: int, *, n: int = 10, sets: int = 3) -> Triple:
    r"""Random graphs whose nodes belong to sets; a node's label is how many of its neighbours belong to its own set.

    The set $c_i$ is uniform, an edge is there with probability 1/2, $E_{ij}=E_{ji}$, and $y_i=\sum_jE_{ij}[c_i=c_j]$.

    Args:
        random: where everything is drawn from.
        count: graphs.
        n: nodes.
        sets: K.

    Returns:
        Sets in one-hot code (count, n, sets), edges (count, n, n, 1), labels from 0 to n - 1 (count, n).

    Example:
        >>> nodes, edges, labels = draw(torch.Generator().manual_seed(0), 4)
        >>> nodes.shape, edges.shape, labels.shape
        (torch.Size([4, 10, 3]), torch.Size([4, 10, 10, 1]), torch.Size([4, 10]))
    """
    c = torch.randint(sets, (count, n), generator=random)
    upper = (torch.rand(count, n, n, generator=random) < 0.5).float().triu(1)
    edges = upper + upper.transpose(1, 2)
    labels = (edges * (c[:, :, None] == c[:, None, :])).sum(-1).long()
    return F.one_hot(c, sets).float(), edges[..., None], labels


def majority(labels: Tensor, truth: Tensor) -> float:
    """The accuracy on `truth` of the commonest of `labels`."""
    return float((truth == labels.flatten().bincount().argmax()).double().mean())


class SetGPI(nn.Module):
    r"""One GPI step on (nodes, edges): two hidden layers in phi, one each in alpha and rho; scores of n labels per node.

    Without attention it sums over neighbours, since the label is a count, and takes the mean over nodes.

    Args:
        n: nodes, and labels.
        sets: features of a node.
        width: of all hidden layers.
        attention: as of `GPI.build`.
        row: whether rho sees $s_k$ beside $z_k$ and the mean over all nodes. The printed form of the theorem does without, and then
            nodes of the same set get the same scores.

    Example:
        >>> SetGPI(6, 3, 8)(torch.zeros(2, 6, 3), torch.zeros(2, 6, 6, 1)).shape
        torch.Size([2, 6, 6])
    """

    def __init__(self, n: int, sets: int, width: int, *, attention: Attention = "none", row: bool = True) -> None:
        super().__init__()
        self.row = row
        self.step = GPI.build(sets, 1, phi=[width, width], alpha=[width], rho=[width], outputs=n, attention=attention, outer="mean")
        if not row:
            self.step.rho = _WithoutRow(self.step.rho)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Nodes (B, n, sets), edges (B, n, n, 1); returns (B, labels, n)."""
        scores: Tensor = self.step(Graphs.full(nodes, edges)).nodes
        return scores.transpose(1, 2)


class _WithoutRow(nn.Module):
    """rho of the printed form: what it gets of s is zero."""

    def __init__(self, rho: Callable[..., Tensor] | None) -> None:
        super().__init__()
        self.rho = rho

    def forward(self, z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        assert self.rho is not None
        scores: Tensor = self.rho(z, torch.zeros_like(s), g)
        return scores


class OrderedLSTM(nn.Module):
    """An LSTM that reads the nodes in both directions, each as its set and its row of edges; scores from the two states.

    Example:
        >>> OrderedLSTM(6, 3, 4)(torch.zeros(2, 6, 3), torch.zeros(2, 6, 6, 1)).shape
        torch.Size([2, 6, 6])
    """

    def __init__(self, n: int, sets: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(sets + n, width, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * width, n)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Nodes (B, n, sets), edges (B, n, n, 1); returns (B, labels, n)."""
        scores: Tensor = self.out(self.lstm(torch.cat([nodes, edges[..., 0]], -1))[0])
        return scores.transpose(1, 2)


class FlatNet(nn.Module):
    """Two hidden layers on all numbers of the graph at once, and n times n scores.

    Example:
        >>> FlatNet(6, 3, 4)(torch.zeros(2, 6, 3), torch.zeros(2, 6, 6, 1)).shape
        torch.Size([2, 6, 6])
    """

    def __init__(self, n: int, sets: int, width: int) -> None:
        super().__init__()
        self.n = n
        self.net = nn.Sequential(nn.Linear(n * sets + n * n, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n * n))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Nodes (B, n, sets), edges (B, n, n, 1); returns (B, labels, n)."""
        scores: Tensor = self.net(torch.cat([nodes.flatten(1), edges.flatten(1)], 1))
        return scores.reshape(len(nodes), self.n, self.n)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def standardised(nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The same graphs with features of mean zero and variance one: sets by their known moments, edges as -1 and 1, the diagonal 0."""
    share = 1 / nodes.shape[-1]
    off = 1 - torch.eye(edges.shape[1])[..., None]
    return (nodes - share) / max(share * (1 - share), 1e-12) ** 0.5, (2 * edges - 1) * off


def _training(
    name: str, model: Callable[[], nn.Module], seed: int, n: int, sets: int, graphs: int, validation: int, lr: float, batch: int, steps: int
) -> Training:
    if n < 2 or sets < 1 or graphs < 1 or validation < 1:
        raise Usage(f"set-labels needs n >= 2, sets >= 1 and at least one graph, got n={n}, sets={sets}, graphs={graphs}.")

    def examples(key: int, count: int) -> Triple:
        nodes, edges, labels = draw(generator(seed, key, n, sets), count, n=n, sets=sets)
        return *standardised(nodes, edges), labels

    def rate(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    return Training(
        name=name,
        model=model,
        optimizer=lambda params: torch.optim.Adam(params, lr=lr),
        loss_fn=F.cross_entropy,
        data=examples(71, graphs),
        validation=examples(72, validation),
        metric=_accuracy,
        batch_size=min(batch, graphs),
        steps=steps,
        schedule=rate,
        noise_free=True,
    )


@problem(
    "set-labels:gpi",
    obstacle="healthy",
    says="A node's label is the number of its neighbours in its own set: a network of the permutation-invariant form learns it.",
    source=SOURCE,
)
def gpi(
    *,
    seed: int = 0,
    n: int = 10,
    sets: int = 3,
    graphs: int = 100,
    validation: int = 300,
    width: int = 44,
    attention: str = "none",
    lr: float = 0.01,
    batch: int = 64,
    steps: int = 300,
) -> Training:
    """Adam with a cosine schedule on `SetGPI`, 8,942 weights; its inputs are `standardised`.

    Args:
        seed: what the graphs are drawn from.
        n: nodes of each graph, and labels.
        sets: sets that nodes belong to.
        graphs: to train on; the source's curve goes from 30 to 1,000.
        validation: fresh graphs, never trained on.
        width: of the layers.
        attention: "none", "neighbour" or "feature".
        lr: the largest step size.
        batch: graphs per step.
        steps: optimizer steps; 1,200 in the full experiment.
    """
    kinds: dict[str, Literal["none", "neighbour", "feature"]] = {"none": "none", "neighbour": "neighbour", "feature": "feature"}
    if attention not in kinds:
        raise Usage(f"attention must be one of {', '.join(kinds)}, got {attention!r}.")
    kind = kinds[attention]
    return _training("set-labels:gpi", lambda: SetGPI(n, sets, width, attention=kind), seed, n, sets, graphs, validation, lr, batch, steps)


@problem(
    "set-labels:fully-connected",
    obstacle="missing_symmetry",
    says="The same graphs, flattened, in a fully connected network with more weights: it learns them by heart, in the order they have.",
    source=SOURCE,
)
def flat(
    *,
    seed: int = 0,
    n: int = 10,
    sets: int = 3,
    graphs: int = 100,
    validation: int = 300,
    width: int = 50,
    lr: float = 0.01,
    batch: int = 64,
    steps: int = 300,
) -> Training:
    """`FlatNet`, 14,200 weights; the other options are those of `set-labels:gpi`."""
    name = "set-labels:fully-connected"
    return _training(name, lambda: FlatNet(n, sets, width), seed, n, sets, graphs, validation, lr, batch, steps)


@problem(
    "set-labels:lstm",
    obstacle="missing_symmetry",
    says="The same graphs, read node by node by an LSTM with more weights: what it finds depends on the order of the nodes.",
    source=SOURCE,
)
def lstm(
    *,
    seed: int = 0,
    n: int = 10,
    sets: int = 3,
    graphs: int = 100,
    validation: int = 300,
    width: int = 32,
    lr: float = 0.01,
    batch: int = 64,
    steps: int = 300,
) -> Training:
    """`OrderedLSTM`, 12,682 weights; the other options are those of `set-labels:gpi`."""
    return _training("set-labels:lstm", lambda: OrderedLSTM(n, sets, width), seed, n, sets, graphs, validation, lr, batch, steps)
