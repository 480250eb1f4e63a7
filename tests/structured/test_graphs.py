import pytest
import torch

from gradoscope.errors import CannotRun
from gradoscope.structured.graphs import Graphs, buckets, collate, padding_cost


def random_graphs(sizes, dn=3, de=2, seed=0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random, dtype=dtype)

    return [(draw(n, dn), draw(n, n, de)) for n in sizes]


def test_collate_pads_with_zeros_and_gives_the_graphs_back():
    single = random_graphs([2, 5, 1])
    graphs = collate(single)
    assert graphs.nodes.shape == (3, 5, 3)
    assert graphs.edges.shape == (3, 5, 5, 2)
    assert graphs.sizes.tolist() == [2, 5, 1]
    assert len(graphs) == 3
    for b, (z, e) in enumerate(single):
        nodes, edges = graphs.single(b)
        assert torch.equal(nodes, z)
        assert torch.equal(edges, e)
    assert graphs.nodes[~graphs.mask].abs().max() == 0
    pairs = graphs.pair_mask(diagonal=True)
    assert graphs.edges[~pairs].abs().max() == 0
    assert pairs.sum((1, 2)).tolist() == [4, 25, 1]
    assert graphs.pair_mask().sum((1, 2)).tolist() == [2, 20, 0]


def test_a_permutation_moves_nodes_and_pairs_as_it_is_defined():
    graphs = collate(random_graphs([4, 4, 3]))
    order = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3], [1, 3, 0, 2]])
    moved = graphs.permuted(order)
    for b in range(3):
        for i in range(4):
            assert torch.equal(moved.nodes[b, i], graphs.nodes[b, order[b, i]])
            assert moved.mask[b, i] == graphs.mask[b, order[b, i]]
            for j in range(4):
                assert torch.equal(moved.edges[b, i, j], graphs.edges[b, order[b, i], order[b, j]])
    back = moved.permuted(order.argsort(-1))
    assert torch.equal(back.nodes, graphs.nodes)
    assert torch.equal(back.edges, graphs.edges)
    assert torch.equal(back.mask, graphs.mask)
    together = graphs.permuted(order[0])
    assert torch.equal(together.edges[0], moved.edges[0])


def test_a_stack_of_batches_is_permuted_as_each_of_them():
    graphs = collate(random_graphs([3, 3]))
    stacked = Graphs(graphs.nodes.expand(4, 2, 3, 3), graphs.edges.expand(4, 2, 3, 3, 2), graphs.mask.expand(4, 2, 3))
    order = torch.tensor([2, 0, 1])
    moved, single = stacked.permuted(order), graphs.permuted(order)
    assert torch.equal(moved.edges[3], single.edges)
    assert torch.equal(moved.nodes[1], single.nodes)


def test_types_indices_and_new_features():
    graphs = collate(random_graphs([2, 3]))
    assert graphs.to(torch.float32).edges.dtype == torch.float32
    assert graphs.to("cpu").mask.dtype == torch.bool
    assert graphs.to(torch.float32).mask.dtype == torch.bool
    assert len(graphs[1:]) == 1
    assert torch.equal(graphs[[1]].nodes[0], graphs.nodes[1])
    assert graphs.replaced(nodes=graphs.nodes * 2).edges is graphs.edges
    assert Graphs.full(graphs.nodes, graphs.edges).mask.all()


def test_buckets_hold_every_graph_once_and_cost_little():
    random = torch.Generator().manual_seed(3)
    sizes = torch.randint(2, 22, (500,), generator=random)
    for stretch in (1.0, 1.5, 2.0):
        for shuffle in (None, random):
            found = buckets(sizes, 20, stretch=stretch, generator=shuffle)
            assert sorted(torch.cat(found).tolist()) == list(range(500))
            assert all(1 <= len(b) <= 20 for b in found)
            assert all(float(sizes[b].max()) ** 2 <= stretch * float(sizes[b].min()) ** 2 for b in found)
            assert padding_cost(sizes, found) <= stretch
    assert padding_cost(sizes, buckets(sizes, 20, stretch=1.0)) == 1.0
    assert padding_cost(sizes, [torch.arange(500)]) > 2.5


def test_buckets_are_shuffled_by_their_generator_alone():
    sizes = [4] * 40 + [9] * 40
    first, again = (buckets(sizes, 8, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    other = buckets(sizes, 8, generator=torch.Generator().manual_seed(2))
    assert [b.tolist() for b in first] == [b.tolist() for b in again] != [b.tolist() for b in other]


def test_what_does_not_fit_is_refused():
    z, e = random_graphs([3])[0]
    with pytest.raises(CannotRun, match="at least one graph"):
        collate([])
    with pytest.raises(CannotRun, match="same number of features"):
        collate([(z, e), (z[:, :2], e)])
    with pytest.raises(CannotRun, match="boolean mask"):
        Graphs(z[None], e[None], torch.ones(1, 3))
    with pytest.raises(CannotRun, match="boolean mask"):
        Graphs(z[None], e[None, :, :2], torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(CannotRun, match="stretch"):
        buckets([1, 2], 2, stretch=0.5)
