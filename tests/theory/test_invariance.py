import itertools

import pytest
import torch

from gradoscope.errors import CannotRun
from gradoscope.structured.gpi import GPI
from gradoscope.structured.graphs import Graphs
from gradoscope.theory.invariance import all_graphs, arbitrary, encoded, seen_by_form, slot_form


@pytest.mark.parametrize(("n", "letters"), [(1, 4), (2, 4), (3, 4), (4, 4), (1, 5), (2, 5), (3, 5)])
def test_any_labelling_has_the_form_on_all_graphs_with_letters_that_differ(n, letters):
    nodes, pairs = all_graphs(n, letters)
    function = arbitrary(n, letters, torch.Generator().manual_seed(n))
    model = slot_form(function, letters)
    for at in range(0, len(nodes), 20_000):
        some, between = nodes[at : at + 20_000], pairs[at : at + 20_000]
        assert torch.equal(model(encoded(some, between, letters)).nodes[..., 0], function(some, between))


def test_the_enumeration_is_complete_and_has_no_graph_twice():
    for n, letters, symmetric, count in [(3, 3, False, 6 * 64), (4, 4, False, 24 * 4096), (4, 1, True, 64), (2, 3, False, 6 * 4)]:
        nodes, pairs = all_graphs(n, letters, symmetric=symmetric)
        flat = torch.cat([nodes.double(), pairs.flatten(1)], 1)
        assert len(flat.unique(dim=0)) == len(flat) == count
        assert pairs.diagonal(dim1=1, dim2=2).abs().max() == 0
        if symmetric:
            assert torch.equal(pairs, pairs.transpose(1, 2))
    with pytest.raises(CannotRun, match="letters"):
        all_graphs(3, 2)


def test_an_arbitrary_labelling_is_equivariant_and_otherwise_free():
    nodes, pairs = all_graphs(3, 4)
    function = arbitrary(3, 4, torch.Generator().manual_seed(0))
    labels = function(nodes, pairs)
    for order in itertools.permutations(range(3)):
        order = torch.tensor(order)
        assert torch.equal(function(nodes[:, order], pairs[:, order][:, :, order]), labels[:, order])
    # Four choices of three letters, 64 graphs each, three nodes: all numbers differ.
    assert len(labels.unique()) == 4 * 64 * 3


def test_labellings_with_a_meaning():
    """Shortest paths to the node of the first letter, which no single sum over neighbours gives."""

    def distance(nodes, pairs):
        reach = pairs + 1e6 * (1 - pairs)
        n = nodes.shape[1]
        reach[:, torch.arange(n), torch.arange(n)] = 0
        for k in range(n):
            reach = torch.minimum(reach, reach[:, :, k, None] + reach[:, None, k])
        return reach.gather(2, nodes.argmin(-1)[:, None, None].expand(-1, n, 1))[..., 0]

    nodes, pairs = all_graphs(4, 4, symmetric=True)
    assert torch.equal(slot_form(distance, 4)(encoded(nodes, pairs, 4)).nodes[..., 0], distance(nodes, pairs))


def test_equal_letters_share_a_slot():
    nodes, pairs = all_graphs(3, 1)
    with pytest.raises(CannotRun, match="share a slot"):
        slot_form(lambda nodes, pairs: pairs.sum(-1), 4)(encoded(nodes, pairs, 4))


def test_classes_up_to_renaming_are_the_known_numbers():
    """Graphs and digraphs: 1, 2, 4, 11, 34 and 1, 3, 16, 218. Degree sequences: 1, 2, 4, 11, 31."""
    assert [seen_by_form(*all_graphs(n, 1, symmetric=True)).graphs for n in range(1, 6)] == [1, 2, 4, 11, 34]
    assert [seen_by_form(*all_graphs(n, 1)).graphs for n in range(1, 5)] == [1, 3, 16, 218]
    assert [seen_by_form(*all_graphs(n, 1, symmetric=True)).graphs_seen for n in range(1, 6)] == [1, 2, 4, 11, 31]
    # Without letters a row of a digraph is its out-degree: multisets of n numbers out of 0..n-1.
    assert [seen_by_form(*all_graphs(n, 1)).graphs_seen for n in range(1, 5)] == [1, 3, 10, 35]


def test_with_letters_that_differ_everything_is_seen():
    for n in (2, 3):
        found = seen_by_form(*all_graphs(n, 3))
        assert found.nodes == found.printed == found.with_row
        assert found.graphs == found.graphs_seen


def test_without_letters_the_printed_form_gives_all_nodes_of_a_graph_one_label():
    """Directly: the path of three nodes, whose middle differs from its ends; any phi, alpha, rho."""
    found = seen_by_form(*all_graphs(3, 1, symmetric=True))
    assert found.printed == found.graphs < found.nodes == found.with_row
    path = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    full = GPI.build(1, 1, outputs=1, generator=random, dtype=torch.float64)
    printed = GPI(full.phi, full.alpha, lambda z, s, g: full.rho(z, torch.zeros_like(s), g))
    graphs = Graphs.full(torch.ones(1, 3, 1, dtype=torch.float64), path[None, ..., None])
    same, other = printed(graphs).nodes[0, :, 0], full(graphs).nodes[0, :, 0]
    assert torch.equal(same, same[:1].expand(3))
    assert abs(other[0] - other[1]) > 1e-3


def test_two_digraphs_that_no_step_of_the_form_tells_apart():
    """A circle of three, and two that point at each other with a third that points at one of them: every row holds one arrow."""
    circle = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.float64)
    model = GPI.build(1, 1, outputs=4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ones = torch.ones(2, 3, 1, dtype=torch.float64)
    outputs = model(Graphs.full(ones, torch.stack([circle, other])[..., None])).nodes
    assert (outputs[0] - outputs[1]).abs().max() < 1e-14
