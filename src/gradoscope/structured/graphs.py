"""Batches of graphs whose nodes and ordered pairs of nodes carry features: padding with masks, buckets by size, another order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradoscope.errors import CannotRun

__all__ = ["Graphs", "buckets", "collate", "padding_cost"]


@dataclass(frozen=True)
class Graphs:
    """B graphs of at most n nodes; what is padded is false in the mask, and zero where `collate` made it.

    Args:
        nodes: the features z_i, shape (B, n, dn). Further leading dimensions (a stack of batches) are allowed everywhere.
        edges: the features z_ij of ordered pairs, shape (B, n, n, de); the diagonal is there and is read only by who asks for it.
        mask: which nodes there are, boolean, shape (B, n).

    Raises:
        CannotRun: where the shapes do not fit.

    Example:
        >>> graphs = collate([(torch.ones(2, 3), torch.zeros(2, 2, 1)), (torch.ones(4, 3), torch.zeros(4, 4, 1))])
        >>> graphs.nodes.shape, graphs.sizes.tolist()
        (torch.Size([2, 4, 3]), [2, 4])
    """

    nodes: Tensor
    edges: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        lead = self.nodes.shape[:-1]
        if self.nodes.dim() < 3 or self.edges.shape[:-1] != (*lead, lead[-1]) or self.mask.shape != lead or self.mask.dtype != torch.bool:
            raise CannotRun(
                "graphs need nodes (B, n, dn), edges (B, n, n, de) and a boolean mask (B, n); these have shapes "
                f"{tuple(self.nodes.shape)}, {tuple(self.edges.shape)} and {tuple(self.mask.shape)} ({self.mask.dtype})."
            )

    @classmethod
    def full(cls, nodes: Tensor, edges: Tensor) -> "Graphs":
        """Graphs of one size, without padding."""
        return cls(nodes, edges, torch.ones(nodes.shape[:-1], dtype=torch.bool, device=nodes.device))

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: Any) -> "Graphs":
        """Some of the graphs, by a slice, a list or a tensor over the first dimension."""
        return Graphs(self.nodes[index], self.edges[index], self.mask[index])

    @property
    def sizes(self) -> Tensor:
        """The number of nodes of each graph, shape (B,)."""
        return self.mask.sum(-1)

    def pair_mask(self, *, diagonal: bool = False) -> Tensor:
        """Which ordered pairs there are, boolean, shape (B, n, n); pairs (i, i) only where `diagonal`."""
        there = self.mask[..., :, None] & self.mask[..., None, :]
        if not diagonal:
            n = self.mask.shape[-1]
            there = there & ~torch.eye(n, dtype=torch.bool, device=there.device)
        return there

    def permuted(self, order: Tensor) -> "Graphs":
        r"""The same graphs with their nodes in another order: $(\sigma z)_i=z_{\sigma(i)}$, $(\sigma z)_{ij}=z_{\sigma(i)\sigma(j)}$.

        Args:
            order: a permutation of all n places, shape (n,), or one per graph, shape (B, n).
        """
        order = order.to(self.nodes.device).expand(self.mask.shape)
        rows = order[..., None]
        edges = self.edges.gather(-3, rows[..., None].expand(self.edges.shape))
        columns = order[..., None, :, None].expand(self.edges.shape)
        return Graphs(self.nodes.gather(-2, rows.expand(self.nodes.shape)), edges.gather(-2, columns), self.mask.gather(-1, order))

    def to(self, *args: Any, **kwargs: Any) -> "Graphs":
        """To a device or a floating-point type, as `Tensor.to`; the mask stays boolean."""
        nodes = self.nodes.to(*args, **kwargs)
        return Graphs(nodes, self.edges.to(*args, **kwargs), self.mask.to(nodes.device))

    def replaced(self, *, nodes: Tensor | None = None, edges: Tensor | None = None) -> "Graphs":
        """The same graphs with other features."""
        return replace(self, nodes=self.nodes if nodes is None else nodes, edges=self.edges if edges is None else edges)

    def single(self, index: int) -> tuple[Tensor, Tensor]:
        """Nodes (k, dn) and edges (k, k, de) of one graph, without padding."""
        there = self.mask[index]
        return self.nodes[index][there], self.edges[index][there][:, there]


def collate(graphs: Sequence[tuple[Tensor, Tensor]]) -> Graphs:
    """One batch of graphs of different sizes, padded with zeros to the largest.

    Args:
        graphs: nodes (n_b, dn) and edges (n_b, n_b, de) of each.

    Raises:
        CannotRun: for no graph at all, or features of different widths.

    Example:
        >>> collate([(torch.ones(2, 1), torch.ones(2, 2, 1)), (torch.ones(3, 1), torch.ones(3, 3, 1))]).mask.tolist()
        [[True, True, False], [True, True, True]]
    """
    if not graphs or any(z.dim() != 2 or e.shape[:-1] != (len(z), len(z)) for z, e in graphs):
        raise CannotRun("collate needs at least one graph, each a pair of nodes (n, dn) and edges (n, n, de).")
    if len({(z.shape[1], e.shape[2]) for z, e in graphs}) != 1:
        raise CannotRun("the graphs of a batch must have the same number of features per node and per pair.")
    first_nodes, first_edges = graphs[0]
    count, n = len(graphs), max(len(z) for z, _ in graphs)
    nodes = first_nodes.new_zeros(count, n, first_nodes.shape[1])
    edges = first_edges.new_zeros(count, n, n, first_edges.shape[2])
    mask = torch.zeros(count, n, dtype=torch.bool, device=first_nodes.device)
    for b, (z, e) in enumerate(graphs):
        k = len(z)
        nodes[b, :k], edges[b, :k, :k], mask[b, :k] = z, e, True
    return Graphs(nodes, edges, mask)


def buckets(sizes: Sequence[int] | Tensor, batch: int, *, stretch: float = 2.0, generator: torch.Generator | None = None) -> list[Tensor]:
    """Batches of graphs of similar size: padding everything to the maximum can cost many times the work.

    The graphs are sorted by size and cut into batches; a batch also ends where its largest graph would have more than `stretch` times
    the pairs of its smallest, so a graph of n nodes is never paid for as more than `stretch` n^2 pairs.

    Args:
        sizes: the number of nodes of each graph.
        batch: the most graphs in a batch.
        stretch: the most that the pairs of a graph may grow by padding; 1 puts only equal sizes together.
        generator: shuffles graphs of equal size, and the order of the batches; None keeps the order of the sizes.

    Returns:
        The indices of each batch; every graph is in exactly one.

    Example:
        >>> [b.tolist() for b in buckets([3, 9, 3, 4, 10], 2)]
        [[0, 2], [3], [1, 4]]
    """
    if batch < 1 or stretch < 1:
        raise CannotRun(f"buckets need a batch of at least one graph and a stretch of at least 1, not {batch} and {stretch}.")
    count = torch.as_tensor(sizes, dtype=torch.long).cpu()
    shuffled = torch.arange(len(count)) if generator is None else torch.randperm(len(count), generator=generator)
    order = shuffled[count[shuffled].sort(stable=True).indices]
    ordered = count[order].tolist()
    cuts, start = [], 0
    for k in range(1, len(ordered) + 1):
        full = k < len(ordered) and (k - start == batch or ordered[k] ** 2 > stretch * max(1, ordered[start]) ** 2)
        if full or k == len(ordered):
            cuts.append(order[start:k])
            start = k
    return cuts if generator is None else [cuts[k] for k in torch.randperm(len(cuts), generator=generator).tolist()]


def padding_cost(sizes: Sequence[int] | Tensor, batches: Sequence[Tensor]) -> float:
    r"""How many pairs are worked on for each pair that there is: $\sum_b |b| \max_{g\in b}n_g^2 \big/ \sum_g n_g^2$.

    Example:
        >>> padding_cost([1, 3], [torch.tensor([0, 1])]), padding_cost([1, 3], [torch.tensor([0]), torch.tensor([1])])
        (1.8, 1.0)
    """
    count = torch.as_tensor(sizes, dtype=torch.double).cpu()
    paid = sum(len(b) * float(count[b].max()) ** 2 for b in batches)
    return paid / float(count.square().sum())
