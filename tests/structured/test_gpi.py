import itertools

import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.structured.gpi import GPI, Composed, OnConcatenation, OnParts, PartsLinear
from gradoscope.structured.graphs import Graphs, collate
from tests.structured.test_graphs import random_graphs

VARIANTS = [("none", "sum"), ("none", "mean"), ("none", "mixed"), ("neighbour", "sum"), ("feature", "sum")]


def make(attention, pooling, *, diagonal=False, seed=0, **changes):
    return GPI.build(
        3,
        2,
        **{"phi": [7, 6], "alpha": [5], "rho": [8], "outputs": 4, "rho_pair": [6], "pair_outputs": 3} | changes,
        attention=attention,
        pooling="sum" if pooling == "mixed" else pooling,
        outer="mean" if pooling == "mixed" else None,
        diagonal=diagonal,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


def by_hand(model, z, e):
    """One graph, with loops over nodes and pairs and concatenations, straight from the definition."""
    n = len(z)

    def pooled(values, scores, pooling):
        if not values:
            return None
        values = torch.stack(values)
        if scores is not None:
            return (torch.softmax(torch.stack(scores), 0) * values).sum(0)
        return values.mean(0) if pooling == "mean" else values.sum(0)

    s = []
    for i in range(n):
        near = [j for j in range(n) if j != i or model.diagonal]
        scores = None if model.phi_score is None else [model.phi_score(z[i], e[i, j], z[j]) for j in near]
        s.append(pooled([model.phi(z[i], e[i, j], z[j]) for j in near], scores, model.pooling))
    width = model.alpha.first.sizes[1]
    s = [torch.zeros(width, dtype=z.dtype) if one is None else one for one in s]
    scores = None if model.alpha_score is None else [model.alpha_score(z[i], s[i]) for i in range(n)]
    graph = pooled([model.alpha(z[i], s[i]) for i in range(n)], scores, model.outer)
    nodes = torch.stack([model.rho(z[i], s[i], graph) for i in range(n)])
    pairs = torch.stack([torch.stack([model.rho_pair(z[i], e[i, j], z[j], graph) for j in range(n)]) for i in range(n)])
    if not model.diagonal:
        pairs = pairs * (1 - torch.eye(n, dtype=z.dtype))[..., None]
    return nodes, pairs, graph


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_a_padded_batch_gives_what_each_graph_gives_alone(attention, pooling, diagonal):
    model = make(attention, pooling, diagonal=diagonal)
    single = random_graphs([5, 2, 1, 7])
    labels = model(collate(single))
    for b, (z, e) in enumerate(single):
        nodes, pairs, graph = by_hand(model, z, e)
        k = len(z)
        assert torch.allclose(labels.nodes[b, :k], nodes, atol=1e-13)
        assert torch.allclose(labels.pairs[b, :k, :k], pairs, atol=1e-13)
        assert torch.allclose(labels.graph[b], graph, atol=1e-13)
        assert labels.nodes[b, k:].abs().sum() == 0
        assert labels.pairs[b, k:].abs().sum() == 0
        assert labels.pairs[b, :, k:].abs().sum() == 0


@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_renaming_the_nodes_renames_the_outputs(attention, pooling):
    model = make(attention, pooling)
    graphs = collate(random_graphs([4, 4, 3]))
    labels = model(graphs)
    for order in itertools.permutations(range(4)):
        order = torch.tensor(order)
        moved = model(graphs.permuted(order))
        assert (moved.nodes - labels.nodes[:, order]).abs().max() < 1e-12
        assert (moved.pairs - labels.pairs[:, order][:, :, order]).abs().max() < 1e-12
        assert (moved.graph - labels.graph).abs().max() < 1e-12


@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_gradients_pass_the_padding_untouched(attention, pooling):
    """Also where a graph has no neighbours at all."""
    single = random_graphs([3, 1])
    model, alone = make(attention, pooling), make(attention, pooling)
    labels = model(collate(single))
    (labels.nodes.square().sum() + labels.pairs.square().sum()).backward()
    for z, e in single:
        labels = alone(Graphs.full(z[None], e[None]))
        (labels.nodes.square().sum() + labels.pairs.square().sum()).backward()
    for p, q in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.isfinite(p.grad).all()
        assert torch.allclose(p.grad, q.grad, atol=1e-10)


@pytest.mark.parametrize(("attention", "pooling"), VARIANTS)
def test_what_stands_in_the_padding_does_not_matter(attention, pooling):
    graphs, model = collate(random_graphs([3, 1])), make(attention, pooling)
    no_node, no_pair = ~graphs.mask[..., None], ~graphs.pair_mask(diagonal=True)[..., None]
    spoilt = Graphs(graphs.nodes.masked_fill(no_node, torch.nan), graphs.edges.masked_fill(no_pair, torch.inf), graphs.mask)
    labels, other = model(graphs), model(spoilt)
    assert torch.equal(labels.nodes, other.nodes)
    assert torch.equal(labels.pairs, other.pairs)
    assert torch.equal(labels.graph, other.graph)


def test_a_stack_of_batches_is_allowed():
    model, graphs = make("feature", "sum"), collate(random_graphs([4, 3]))
    stacked = Graphs(graphs.nodes.expand(2, 2, 4, 3), graphs.edges.expand(2, 2, 4, 4, 2), graphs.mask.expand(2, 2, 4))
    assert torch.allclose(model(stacked).nodes[1], model(graphs).nodes, atol=1e-14)
    assert torch.allclose(model(stacked).pairs[0], model(graphs).pairs, atol=1e-14)


def test_layers_may_be_given():
    """Any module of one tensor, and plain functions: here the number of neighbours with an edge and the number of edges."""
    graphs = collate(random_graphs([4, 2]))
    model = GPI(lambda z_i, z_ij, z_j: (z_ij[..., :1] > 0).double(), lambda z, s: s, lambda z, s, g: torch.cat([s, g.expand_as(s)], -1))
    labels = model(graphs)
    edges = (graphs.edges[..., 0] > 0) & graphs.pair_mask()
    assert torch.equal(labels.nodes[..., 0], edges.sum(-1).double())
    assert torch.equal(labels.graph[:, 0], edges.sum((1, 2)).double())
    assert labels.pairs is None
    assert (labels.nodes[1, :2, 1] == labels.graph[1]).all()
    wrapped = GPI(OnConcatenation(nn.Linear(8, 5).double()), OnConcatenation(nn.Linear(8, 5).double()))
    assert wrapped(graphs).graph.shape == (2, 5)
    assert wrapped(graphs).nodes is None


def test_layers_that_do_not_depend_on_the_neighbour_are_pooled_as_often():
    graphs = collate(random_graphs([4, 2]))
    model = GPI(lambda z_i, z_ij, z_j: z_i, lambda z, s: s)
    there = graphs.mask[..., None]
    assert torch.allclose(model(graphs).pooled[there[..., 0]], (graphs.nodes * (graphs.sizes[:, None, None] - 1))[there[..., 0]])


def test_parts_are_a_linear_layer_on_the_concatenation():
    random = torch.Generator().manual_seed(5)
    parts = OnParts.build([3, 2, 3], [7, 4], generator=random, dtype=torch.float64)
    whole = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 4)).double()
    with torch.no_grad():
        whole[0].weight.copy_(parts.first.weight)
        whole[0].bias.copy_(parts.first.bias)
        whole[2].load_state_dict(parts.rest[1].state_dict())
    graphs = collate(random_graphs([5, 3]))
    z_i, z_j = graphs.nodes[:, :, None], graphs.nodes[:, None]
    assert torch.allclose(parts(z_i, graphs.edges, z_j), OnConcatenation(whole)(z_i, graphs.edges, z_j), atol=1e-14)
    with pytest.raises(CannotRun, match="at least one part"):
        PartsLinear([0, 0], 3)
    assert PartsLinear([2, 0], 3, bias=False)(torch.zeros(4, 2), torch.zeros(4, 0)).shape == (4, 3)


def test_composition_shares_weights_and_stays_invariant():
    step = make("none", "mean", outputs=3, pair_outputs=2)
    graphs = collate(random_graphs([4, 3]))
    chain = Composed([step], times=3)
    assert sum(p.numel() for p in chain.parameters()) == sum(p.numel() for p in step.parameters())
    found = chain(graphs)
    second = step(graphs.replaced(nodes=found[0].nodes, edges=found[0].pairs))
    assert len(found) == 3
    assert torch.equal(found[1].nodes, second.nodes)
    order = torch.tensor([1, 3, 0, 2])
    assert (chain(graphs.permuted(order))[-1].nodes - found[-1].nodes[:, order]).abs().max() < 1e-12
    residual = Composed(
        [step, make("feature", "sum", outputs=3, seed=1)], update=lambda g, labels: g.replaced(nodes=g.nodes + labels.nodes)
    )
    assert (residual(graphs.permuted(order))[-1].nodes - residual(graphs)[-1].nodes[:, order]).abs().max() < 1e-12


def test_the_start_is_drawn_from_the_given_stream_alone():
    before = torch.get_rng_state()
    one, same, other = make("feature", "sum"), make("feature", "sum"), make("feature", "sum", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_unknown_words_are_refused():
    with pytest.raises(CannotRun, match="attention"):
        make("all", "sum")
    with pytest.raises(CannotRun, match="pooling"):
        make("none", "max")
