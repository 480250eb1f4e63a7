r"""Graph-permutation-invariant layers: $y_k=\rho\big(z_k,\,s_k,\,\sum_i\alpha(z_i,s_i)\big)$ with $s_i=\sum_{j\ne i}\phi(z_i,z_{ij},z_j)$.

Herzig, Raboh, Chechik, Berant and Globerson, "Mapping images to scene graphs with permutation-invariant structured prediction" (2018):
every map of this form commutes with renaming the nodes, and every map that commutes has this form.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope.errors import CannotRun
from gradoscope.stacked import blank
from gradoscope.structured.graphs import Graphs

__all__ = ["GPI", "Attention", "Composed", "Labels", "OnConcatenation", "OnParts", "PartsLinear", "Pooling", "outputs_as_features", "pool"]

Attention = Literal["none", "neighbour", "feature"]
Pooling = Literal["sum", "mean"]
Layer = Callable[..., Tensor]


class PartsLinear(nn.Module):
    r"""A linear layer on the concatenation of its arguments, which is never formed: $y=\sum_p W_px_p+b$.

    The arguments may have dimensions of size 1 where others have more, as the features of a node have against those of its pairs. Each
    product is then taken once per node and not once per pair.

    Args:
        sizes: the number of features of each argument, in order.
        outputs: the number of outputs.
        bias: whether there is one.
        generator: draws the start, that of `nn.Linear`: uniform within $\pm1/\sqrt{\text{inputs}}$; None draws from the global stream.
        dtype: of the parameters.

    Example:
        >>> layer = PartsLinear([2, 3], 4, generator=torch.Generator().manual_seed(0))
        >>> a, b = torch.ones(5, 1, 2), torch.ones(1, 6, 3)
        >>> joined = torch.cat([a.expand(5, 6, 2), b.expand(5, 6, 3)], -1)
        >>> bool(torch.allclose(layer(a, b), F.linear(joined, layer.weight, layer.bias), atol=1e-6))
        True
    """

    def __init__(
        self,
        sizes: Sequence[int],
        outputs: int,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.sizes = list(sizes)
        if sum(self.sizes) == 0:
            raise CannotRun("a layer on parts needs at least one part with features.")
        layer = _linear(sum(self.sizes), outputs, bias=bias, generator=generator, dtype=dtype)
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, *parts: Tensor) -> Tensor:
        """Arguments (..., size_p) that can be broadcast against each other; returns (..., outputs)."""
        weights = torch.split(self.weight, self.sizes, 1)
        total: Tensor | None = None
        bias: Tensor | None = self.bias
        for part, weight in zip(parts, weights, strict=True):
            if weight.shape[1] > 0:
                term = F.linear(part, weight, bias)
                total, bias = term if total is None else total + term, None
        assert total is not None
        return total


class OnParts(nn.Module):
    """Layers in turn, of which the first takes several arguments: `first` is a `PartsLinear`, `rest` acts on single tensors."""

    def __init__(self, first: PartsLinear, rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = first, rest

    @classmethod
    def build(
        cls,
        sizes: Sequence[int],
        widths: Sequence[int],
        *,
        activation: type[nn.Module] = nn.ReLU,
        ends_linear: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> "OnParts":
        """A multilayer perceptron on several arguments.

        Args:
            sizes: the number of features of each argument.
            widths: of the layers, the last is the number of outputs.
            activation: between the layers.
            ends_linear: whether the last layer has no activation.
            generator: draws the start.
            dtype: of the parameters.
        """
        first = PartsLinear(sizes, widths[0], generator=generator, dtype=dtype)
        rest: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            rest += [activation(), _linear(before, after, bias=True, generator=generator, dtype=dtype)]
        if not ends_linear:
            rest.append(activation())
        return cls(first, nn.Sequential(*rest))

    def forward(self, *parts: Tensor) -> Tensor:
        """As `PartsLinear.forward`."""
        outputs: Tensor = self.rest(self.first(*parts))
        return outputs


class OnConcatenation(nn.Module):
    """Any module of one tensor, called with the concatenation of its arguments along the last dimension."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *parts: Tensor) -> Tensor:
        """Arguments (..., size_p) that can be broadcast against each other."""
        lead = [max(sizes) for sizes in zip(*(p.shape[:-1] for p in parts), strict=True)]
        outputs: Tensor = self.module(torch.cat([p.expand(*lead, p.shape[-1]) for p in parts], -1))
        return outputs


@dataclass(frozen=True)
class Labels:
    """What a GPI layer gives back.

    Args:
        nodes: outputs of nodes, shape (B, n, out), zero where there is no node; None without rho.
        pairs: outputs of ordered pairs, shape (B, n, n, out), zero where there is no pair; None without rho_pair.
        graph: the graph vector G, shape (B, width of alpha).
        pooled: what was pooled over the neighbours of each node, s_i, shape (B, n, width of phi).
    """

    nodes: Tensor | None
    pairs: Tensor | None
    graph: Tensor
    pooled: Tensor


class GPI(nn.Module):
    r"""One graph-permutation-invariant step on a batch of graphs, without a loop over graphs or nodes.

    $$s_i=\sum_{j\ne i}\phi(z_i,z_{ij},z_j),\quad G=\sum_i\alpha(z_i,s_i),\quad y_i=\rho(z_i,s_i,G),\quad y_{ij}=\rho_2(z_i,z_{ij},z_j,G)$$

    Sums may be means, or means weighted by a softmax of scores (attention): over the neighbours of a node, and over the nodes. A score
    layer with one output weights whole vectors, one with as many outputs as there are features weights each feature by itself.
    Padded nodes contribute exactly nothing. A node without neighbours has s_i = 0.

    The layers are modules or functions of several tensors, called with features that can be broadcast; `OnParts.build` makes
    perceptrons, `OnConcatenation` wraps what takes a single tensor, and `GPI.build` makes everything from widths.

    Args:
        phi: called as `phi(z_i, z_ij, z_j)` on shapes (B, n, 1, dn), (B, n, n, de), (B, 1, n, dn).
        alpha: called as `alpha(z_i, s_i)` on shapes (B, n, dn), (B, n, p).
        rho: called as `rho(z_i, s_i, G)` on shapes (B, n, dn), (B, n, p), (B, 1, a); None for no outputs of nodes.
        rho_pair: called as `rho_pair(z_i, z_ij, z_j, G)`, G of shape (B, 1, 1, a); None for no outputs of pairs.
        phi_score: scores of neighbours, called as phi; None for no attention over neighbours.
        alpha_score: scores of nodes, called as alpha; None for no attention over nodes.
        pooling: "sum" or "mean", where there is no attention.
        outer: the same for the pooling over nodes, where that is to differ; None for `pooling`.
        diagonal: whether a node is a neighbour of itself, and whether pairs (i, i) have outputs.

    Cost: per graph n^2 evaluations of phi and rho_pair, n of alpha and rho.

    Example:
        >>> model = GPI.build(3, 1, phi=[8], alpha=[8], rho=[8], outputs=2, generator=torch.Generator().manual_seed(0))
        >>> graphs = Graphs.full(torch.randn(4, 5, 3), torch.randn(4, 5, 5, 1))
        >>> order = torch.tensor([3, 1, 4, 0, 2])
        >>> bool(torch.allclose(model(graphs.permuted(order)).nodes, model(graphs).nodes[:, order], atol=1e-5))
        True

    Source: Herzig et al. (2018), theorem 1 and section 4.
    """

    def __init__(
        self,
        phi: Layer,
        alpha: Layer,
        rho: Layer | None = None,
        rho_pair: Layer | None = None,
        *,
        phi_score: Layer | None = None,
        alpha_score: Layer | None = None,
        pooling: Pooling = "sum",
        outer: Pooling | None = None,
        diagonal: bool = False,
    ) -> None:
        super().__init__()
        for word in (pooling, outer or pooling):
            if word not in ("sum", "mean"):
                raise CannotRun(f"pooling is 'sum' or 'mean', not {word!r}.")
        self.phi, self.alpha, self.rho, self.rho_pair = phi, alpha, rho, rho_pair
        self.phi_score, self.alpha_score = phi_score, alpha_score
        self.pooling, self.outer, self.diagonal = pooling, outer or pooling, diagonal

    @classmethod
    def build(
        cls,
        nodes: int,
        edges: int,
        *,
        phi: Sequence[int] = (64,),
        alpha: Sequence[int] = (64,),
        rho: Sequence[int] = (64,),
        outputs: int | None = None,
        rho_pair: Sequence[int] = (64,),
        pair_outputs: int | None = None,
        attention: Attention = "none",
        pooling: Pooling = "sum",
        outer: Pooling | None = None,
        diagonal: bool = False,
        activation: type[nn.Module] = nn.ReLU,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> "GPI":
        """A layer from widths: phi and alpha end with an activation, rho and rho_pair with their outputs; scores are linear.

        Args:
            nodes: the number of features of a node.
            edges: the number of features of a pair; 0 is allowed.
            phi: widths of its layers.
            alpha: widths of its layers.
            rho: widths of its hidden layers; they are used where `outputs` is given.
            outputs: of each node, or None.
            rho_pair: widths of its hidden layers; they are used where `pair_outputs` is given.
            pair_outputs: of each ordered pair, or None.
            attention: over neighbours and over nodes: "none", "neighbour" (a weight for each) or "feature" (one for each of its features).
            pooling: "sum" or "mean", where attention is "none".
            outer: the same for the pooling over nodes; None for `pooling`.
            diagonal: whether a node is its own neighbour.
            activation: between the layers.
            generator: draws the start; None draws from the global stream.
            dtype: of the parameters.
        """
        if attention not in ("none", "neighbour", "feature"):
            raise CannotRun(f"attention is 'none', 'neighbour' or 'feature', not {attention!r}.")
        pair, p, a = [nodes, edges, nodes], phi[-1], alpha[-1]

        def perceptron(sizes: Sequence[int], widths: Sequence[int], *, ends: bool = True) -> OnParts:
            return OnParts.build(sizes, widths, activation=activation, ends_linear=ends, generator=generator, dtype=dtype)

        def scores(sizes: Sequence[int], width: int) -> PartsLinear | None:
            outs = {"none": 0, "neighbour": 1, "feature": width}[attention]
            return PartsLinear(sizes, outs, generator=generator, dtype=dtype) if outs else None

        return cls(
            perceptron(pair, phi, ends=False),
            perceptron([nodes, p], alpha, ends=False),
            None if outputs is None else perceptron([nodes, p, a], [*rho, outputs]),
            None if pair_outputs is None else perceptron([*pair, a], [*rho_pair, pair_outputs]),
            phi_score=scores(pair, p),
            alpha_score=scores([nodes, p], a),
            pooling=pooling,
            outer=outer,
            diagonal=diagonal,
        )

    def forward(self, graphs: Graphs) -> Labels:
        """Outputs for a batch of graphs."""
        z, z_ij = graphs.nodes, graphs.edges
        z_i, z_j = z[..., :, None, :], z[..., None, :, :]
        there = graphs.pair_mask(diagonal=self.diagonal)[..., None]
        messages = self.phi(z_i, z_ij, z_j)
        pooled = pool(messages, there, self.pooling, None if self.phi_score is None else self.phi_score(z_i, z_ij, z_j))
        mask = graphs.mask[..., None]
        graph = pool(self.alpha(z, pooled), mask, self.outer, None if self.alpha_score is None else self.alpha_score(z, pooled))
        nodes = None if self.rho is None else _zero(self.rho(z, pooled, graph[..., None, :]), mask)
        pairs = None if self.rho_pair is None else _zero(self.rho_pair(z_i, z_ij, z_j, graph[..., None, None, :]), there)
        return Labels(nodes, pairs, graph, pooled)


class Composed(nn.Module):
    """GPI steps one after another, or the same steps again and again with shared weights; a composition of GPI maps is GPI.

    Args:
        layers: the steps of one round.
        times: how many rounds.
        update: `update(graphs, labels)`, the graphs that the next step sees. By default its outputs take the place of the features,
            of nodes and of pairs, where there are such outputs. It has to treat all nodes alike.

    Example:
        >>> step = GPI.build(3, 1, phi=[4], alpha=[4], rho=[4], outputs=3, generator=torch.Generator().manual_seed(0))
        >>> graphs = Graphs.full(torch.randn(2, 4, 3), torch.randn(2, 4, 4, 1))
        >>> len(Composed([step], times=3)(graphs))
        3
    """

    def __init__(self, layers: Sequence[nn.Module], *, times: int = 1, update: Callable[[Graphs, Labels], Graphs] | None = None) -> None:
        super().__init__()
        self.layers, self.times = nn.ModuleList(layers), times
        self.update: Any = outputs_as_features if update is None else update

    def forward(self, graphs: Graphs) -> list[Labels]:
        """The labels after each step."""
        found: list[Labels] = []
        for _ in range(self.times):
            for layer in self.layers:
                if found:
                    graphs = self.update(graphs, found[-1])
                found.append(layer(graphs))
        return found


def outputs_as_features(graphs: Graphs, labels: Labels) -> Graphs:
    """The graphs with the outputs of a step in the place of their features, as far as there are outputs."""
    return graphs.replaced(nodes=labels.nodes, edges=labels.pairs)


def pool(values: Tensor, there: Tensor, pooling: Pooling, scores: Tensor | None = None) -> Tensor:
    r"""Sum, mean or softmax-weighted mean over the last but one dimension of what is there; 0 where nothing is.

    Args:
        values: shape (..., n, p), or with 1 where values do not depend on n.
        there: boolean, shape (..., n, 1).
        pooling: "sum" or "mean", where there are no scores.
        scores: shape (..., n, 1) or (..., n, p): the weights are $e^{u_j}/\sum_j e^{u_j}$ over what is there.
    """
    values = _zero(values, there)
    if scores is not None:
        # The lowest finite number and not -inf, whose softmax over nothing at all would be NaN, with its gradient.
        weights = torch.where(there, scores, torch.finfo(scores.dtype).min).softmax(-2)
        return (values * weights).sum(-2)
    total = values.sum(-2)
    return total / there.sum(-2).clamp_min(1) if pooling == "mean" else total


def _zero(values: Tensor, there: Tensor) -> Tensor:
    """Exact zeros where nothing is, whatever the values there are, NaN too."""
    return torch.where(there, values, values.new_zeros(()))


def _linear(inputs: int, outputs: int, *, bias: bool, generator: torch.Generator | None, dtype: torch.dtype | None) -> nn.Linear:
    """A linear layer with the usual start, drawn from the given stream."""
    layer = blank(inputs, outputs, bias=bias, dtype=dtype)
    bound = 1 / math.sqrt(max(1, inputs))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
