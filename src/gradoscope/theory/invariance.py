r"""What the graph-permutation-invariant form can compute: every function where nodes can be told apart, and fewer where they cannot.

F labels graphs: it takes letters $z_1\ldots z_n$ of the nodes and features $z_{ij}$ of ordered pairs, gives a number for each node, and
renaming the nodes renames its outputs. The theorem of Herzig et al. (2018) says that F has the form
$F(z)_k=\rho\big(z_k,\sum_i\alpha(z_i,\sum_{j\ne i}\phi(z_i,z_{ij},z_j))\big)$. The proof writes the graph into slots, one for each letter.
That needs letters that differ within a graph. Nodes of the same letter share a slot; `seen_by_form` counts what is lost then.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradoscope.errors import CannotRun
from gradoscope.structured.gpi import GPI
from gradoscope.structured.graphs import Graphs

__all__ = ["Labelling", "Seen", "all_graphs", "arbitrary", "encoded", "seen_by_form", "slot_form"]

Labelling = Callable[[Tensor, Tensor], Tensor]


def all_graphs(n: int, letters: int, *, symmetric: bool = False) -> tuple[Tensor, Tensor]:
    """Every graph of n nodes with binary features of pairs, whose letters all differ; with one letter, all nodes have that.

    Args:
        n: nodes.
        letters: size of the alphabet: 1, or at least n.
        symmetric: whether z_ij = z_ji.

    Returns:
        Letters, whole numbers of shape (N, n), and features of pairs, 0 or 1, float64, shape (N, n, n), zero on the diagonal.

    Raises:
        CannotRun: for an alphabet of more than one letter and fewer than n.

    Example:
        >>> len(all_graphs(3, 3)[0]), len(all_graphs(3, 1, symmetric=True)[0])
        (384, 8)
    """
    if 1 < letters < n:
        raise CannotRun(f"{n} nodes need one letter for all, or at least {n} letters, not {letters}.")
    places = [(i, j) for i in range(n) for j in range(n) if (i < j if symmetric else i != j)]
    codes = torch.arange(2 ** len(places))
    pairs = torch.zeros(len(codes), n, n, dtype=torch.float64)
    for bit, (i, j) in enumerate(places):
        pairs[:, i, j] = (codes >> bit & 1).double()
        if symmetric:
            pairs[:, j, i] = pairs[:, i, j]
    words = [[0] * n] if letters == 1 else [list(p) for p in itertools.permutations(range(letters), n)]
    nodes = torch.tensor(words, dtype=torch.long).reshape(len(words), n)
    return nodes.repeat_interleave(len(pairs), 0), pairs.repeat(len(nodes), 1, 1)


def arbitrary(n: int, letters: int, random: torch.Generator) -> Labelling:
    """A labelling without any other property: an independent normal number for each node of each graph with binary pairs.

    It is a table by the graph with its nodes sorted by letter, so it does not depend on their order. The letters of a graph must differ.

    Args:
        n: nodes of the graphs.
        letters: size of the alphabet.
        random: draws the table, of $2^{letters+n(n-1)}n$ numbers.
    """
    table = torch.randn(2**letters, 2 ** (n * (n - 1)), n, generator=random, dtype=torch.float64)
    places = [(i, j) for i in range(n) for j in range(n) if i != j]

    def label(nodes: Tensor, pairs: Tensor) -> Tensor:
        order = nodes.argsort(-1)
        ordered = pairs.gather(1, order[..., None].expand_as(pairs)).gather(2, order[:, None].expand_as(pairs))
        code = torch.zeros(len(nodes), dtype=torch.long)
        for bit, (i, j) in enumerate(places):
            code = code + (ordered[:, i, j] > 0.5).long() * 2**bit
        found = table[(2**nodes).sum(-1), code]
        return found.gather(1, order.argsort(-1))

    return label


def slot_form(function: Labelling, letters: int) -> GPI:
    r"""A given labelling in the form of the theorem: phi, alpha and rho from slots, one for each letter.

    phi writes $(1,z_{ij})$ into the slot of $z_j$, alpha writes $(1,s_i)$ into the slot of $z_i$, so that the sum G is the whole graph in
    the order of the alphabet. rho reads it, applies F, and takes the entry of the letter $z_k$. It uses $z_k$ and G alone.

    Args:
        function: F, on graphs whose letters differ: letters (B, n) and pairs (B, n, n), returns (B, n).
        letters: size of the alphabet.

    Returns:
        A GPI layer on `Graphs` with nodes in one-hot code (B, n, letters) and edges (B, n, n, 1), for graphs without padding;
        `encoded` makes them.

    Example:
        >>> degree = lambda nodes, pairs: pairs.sum(-1)
        >>> nodes, pairs = all_graphs(3, 4)
        >>> found = slot_form(degree, 4)(encoded(nodes, pairs, 4)).nodes[..., 0]
        >>> bool(torch.equal(found, degree(nodes, pairs)))
        True
    """

    def phi(z_i: Tensor, z_ij: Tensor, z_j: Tensor) -> Tensor:
        written = torch.cat([torch.ones_like(z_ij), z_ij], -1)
        return (z_j[..., :, None] * written[..., None, :]).flatten(-2)

    def alpha(z: Tensor, s: Tensor) -> Tensor:
        written = torch.cat([torch.ones_like(s[..., :1]), s], -1)
        return (z[..., :, None] * written[..., None, :]).flatten(-2)

    def rho(z: Tensor, s: Tensor, g: Tensor) -> Tensor:
        n = z.shape[-2]
        slots = g.reshape(len(g), letters, 1 + 2 * letters)
        there = slots[..., 0] > 0.5
        if bool((there.sum(-1) != n).any()):
            raise CannotRun("the letters of a graph must differ: two nodes of one letter share a slot.")
        found = (~there).long().argsort(dim=-1, stable=True)[:, :n]  # the letters that there are, in order
        rows = slots[..., 2::2].gather(1, found[..., None].expand(-1, -1, letters))
        pairs = rows.gather(2, found[:, None, :].expand(-1, n, -1))
        outputs = function(found, pairs)
        rank = there.long().cumsum(-1) - 1
        return outputs.gather(1, rank.gather(1, z.argmax(-1)))[..., None]

    return GPI(phi, alpha, rho)


def encoded(nodes: Tensor, pairs: Tensor, letters: int) -> Graphs:
    """Letters (B, n) and features of pairs (B, n, n) as graphs for `slot_form`."""
    return Graphs.full(F.one_hot(nodes, letters).to(pairs.dtype), pairs[..., None])


@dataclass(frozen=True)
class Seen:
    """How many different nodes there are in a collection of graphs, and how many of them a form can tell apart.

    Args:
        nodes: classes of (graph, node) up to renaming: what an arbitrary labelling may give different labels.
        printed: classes that $\\rho(z_k, G)$ can tell apart, whatever phi and alpha are.
        with_row: classes that $\\rho(z_k, s_k, G)$ can tell apart.
        graphs: classes of graphs up to renaming.
        graphs_seen: classes of graphs that G can tell apart.
    """

    nodes: int
    printed: int
    with_row: int
    graphs: int
    graphs_seen: int


def seen_by_form(nodes: Tensor, pairs: Tensor) -> Seen:
    r"""What the form can tell apart: sums over unordered sets see multisets and nothing else.

    $s_i$ depends on the multiset of $(z_{ij},z_j)$ over j beside $z_i$, and G on the multiset of $(z_i,s_i)$ over i. On a finite domain
    sums can hold these multisets exactly (a one-hot code of each member), so the counts are reached. A labelling has the form if and
    only if it is constant on the classes counted in `printed`; with $s_k$ as a further argument of rho, on those in `with_row`.

    Args:
        nodes: letters, shape (N, n).
        pairs: features of ordered pairs, 0 or 1, shape (N, n, n); the graphs of the collection, all of one size.

    Cost: n! permutations of all graphs.

    Example:
        >>> seen_by_form(*all_graphs(3, 1, symmetric=True))
        Seen(nodes=6, printed=4, with_row=6, graphs=4, graphs_seen=4)
    """
    n, letters = nodes.shape[1], int(nodes.max()) + 1
    bits = pairs.round().long()
    exact_nodes, exact_graphs = _classes(nodes, bits, letters)
    member = bits * letters + nodes[:, None, :]
    member = torch.where(torch.eye(n, dtype=torch.bool), torch.full_like(member, -1), member).sort(-1).values[..., 1:]
    base = 2 * letters
    rows = nodes * base ** (n - 1) + (member * base ** torch.arange(n - 1)).sum(-1)
    whole = rows.sort(-1).values

    def count(*columns: Tensor) -> int:
        return len(np.unique(torch.cat(columns, -1).numpy(), axis=0))

    everywhere = whole[:, None].expand(-1, n, -1).reshape(-1, n)
    return Seen(
        nodes=exact_nodes,
        printed=count(nodes.reshape(-1, 1), everywhere),
        with_row=count(rows.reshape(-1, 1), everywhere),
        graphs=exact_graphs,
        graphs_seen=count(whole),
    )


def _classes(nodes: Tensor, bits: Tensor, letters: int) -> tuple[int, int]:
    """The numbers of classes of (graph, node) and of graphs up to renaming: the least code over all orders names a class."""
    n = nodes.shape[1]
    digits = letters ** torch.arange(n)
    weights = letters**n * 2 ** torch.arange(n * n).reshape(n, n)
    least_graph = torch.full((len(nodes),), torch.iinfo(torch.long).max)
    least_node = torch.full((len(nodes), n), torch.iinfo(torch.long).max)
    for order in itertools.permutations(range(n)):
        index = torch.tensor(order)
        code = (nodes[:, index] * digits).sum(-1) + (bits[:, index][:, :, index] * weights).sum((1, 2))
        least_graph = torch.minimum(least_graph, code)
        least_node = torch.minimum(least_node, code[:, None] * n + index.argsort())
    return len(np.unique(least_node.numpy())), len(np.unique(least_graph.numpy()))
