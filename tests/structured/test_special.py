import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from gradoscope.guard import private_random
from gradoscope.structured.gpi import Composed, OnConcatenation
from gradoscope.structured.graphs import collate
from gradoscope.structured.special import BeliefPropagation, DeepSets, MeanField, MessagePassing
from tests.structured.test_graphs import random_graphs

CLOSE = 1e-12


def linear(inputs, outputs, seed=0):
    with private_random(seed):
        return nn.Sequential(nn.Linear(inputs, outputs), nn.Tanh()).double()


def test_deep_sets_is_its_definition():
    element, decide = linear(3, 5), linear(8, 2, seed=1)
    single = random_graphs([4, 1, 6])
    found = DeepSets(element, OnConcatenation(decide))(collate(single))
    for b, (z, _) in enumerate(single):
        total = torch.stack([element(one) for one in z]).sum(0)
        assert (found.graph[b] - total).abs().max() < CLOSE
        for i, one in enumerate(z):
            assert (found.nodes[b, i] - decide(torch.cat([one, total]))).abs().max() < CLOSE
    invariant = DeepSets(element, lambda z, g: g * 2)(collate(single))
    assert (invariant.nodes[2] - 2 * found.graph[2]).abs().max() < CLOSE
    assert DeepSets(element, None)(collate(single)).nodes is None


def test_message_passing_is_its_definition():
    message, update = linear(8, 5), linear(8, 3, seed=1)
    single = [(z, torch.cat([(e[..., :1] > 0).double(), e[..., 1:]], -1)) for z, e in random_graphs([4, 1, 6])]
    for adjacency in (0, None):
        step = MessagePassing(OnConcatenation(message), OnConcatenation(update), adjacency=adjacency)
        found = Composed([step], times=2)(collate(single))[-1]
        for b, (z, e) in enumerate(single):
            h = z
            for _ in range(2):
                new = []
                for i in range(len(z)):
                    total = torch.zeros(5, dtype=z.dtype)
                    for j in range(len(z)):
                        if j != i and (adjacency is None or e[i, j, 0] == 1):
                            total = total + message(torch.cat([h[i], e[i, j], h[j]]))
                    new.append(update(torch.cat([h[i], total])))
                h = torch.stack(new)
            assert (found.nodes[b, : len(z)] - h).abs().max() < CLOSE


def field(sizes, states, seed=0, edges=None):
    """Unary and pairwise potentials, padded: pairs without a factor hold zeros."""
    random = torch.Generator().manual_seed(seed)
    n, count = max(sizes), len(sizes)
    unary = torch.randn(count, n, states, generator=random, dtype=torch.float64)
    pairwise = torch.randn(count, n, n, states, states, generator=random, dtype=torch.float64)
    upper = torch.ones(n, n, dtype=torch.float64).triu(1)
    if edges is not None:
        upper = torch.zeros(n, n, dtype=torch.float64)
        for i, j in edges:
            upper[min(i, j), max(i, j)] = 1
    pairwise = pairwise * upper[:, :, None, None]
    pairwise = pairwise + pairwise.transpose(1, 2).transpose(3, 4)
    return unary, pairwise, torch.arange(n)[None] < torch.tensor(sizes)[:, None]


def test_mean_field_is_its_definition():
    sizes, k = [3, 5, 1], 3
    unary, pairwise, mask = field(sizes, k)
    found = Composed([MeanField(k)], times=3)(MeanField.graphs(unary, pairwise, mask))[-1].nodes
    for b, n in enumerate(sizes):
        q = torch.full((n, k), 1 / k, dtype=torch.float64)
        for _ in range(3):
            new = torch.zeros_like(q)
            for i in range(n):
                for x in range(k):
                    inner = unary[b, i, x].clone()
                    for j in range(n):
                        if j != i:
                            inner += sum(pairwise[b, i, j, x, y] * q[j, y] for y in range(k))
                    new[i, x] = inner.exp()
                new[i] /= new[i].sum()
            q = new
        assert (found[b, :n, k:] - q).abs().max() < CLOSE
        assert torch.equal(found[b, :n, :k], unary[b, :n])
        assert found[b, n:].abs().sum() == 0


def reference_messages(unary, pairwise, times):
    """Sum-product with products and sums of plain numbers, one message at a time."""
    n, k = unary.shape
    m = {(i, j): torch.ones(k, dtype=torch.float64) for i in range(n) for j in range(n) if i != j}
    for _ in range(times):
        new = {}
        for i, j in m:
            out = torch.zeros(k, dtype=torch.float64)
            for x, y in itertools.product(range(k), range(k)):
                product = torch.exp(unary[i, x] + pairwise[i, j, x, y])
                for other in range(n):
                    if other not in (i, j):
                        product = product * m[other, i][x]
                out[y] += product
            new[i, j] = out / out.sum()
        m = new
    beliefs = torch.stack([torch.exp(unary[i]) * torch.stack([m[j, i] for j in range(n) if j != i]).prod(0) for i in range(n)])
    return m, beliefs / beliefs.sum(1, keepdim=True)


@pytest.mark.parametrize("times", [1, 3])
def test_belief_propagation_is_its_definition(times):
    sizes, k = [4, 2, 3], 3
    unary, pairwise, mask = field(sizes, k)
    model, graphs = BeliefPropagation(k, times=times), BeliefPropagation.graphs(unary, pairwise, mask)
    pairs, marginals = model(graphs)[-1].pairs, model.marginals(graphs)
    for b, n in enumerate(sizes):
        messages, beliefs = reference_messages(unary[b, :n], pairwise[b, :n, :n], times)
        assert (marginals[b, :n] - beliefs).abs().max() < CLOSE
        for (i, j), value in messages.items():
            assert (pairs[b, i, j, k * k + k :].exp() - value).abs().max() < CLOSE
            assert (pairs[b, j, i, k * k : k * k + k].exp() - value).abs().max() < CLOSE
        assert marginals[b, n:].abs().sum() == 0


def test_belief_propagation_is_exact_on_a_tree_and_mean_field_is_not():
    n, k = 5, 2
    unary, pairwise, _ = field([n], k, edges=[(0, 1), (1, 2), (1, 3), (3, 4)])
    exact = torch.zeros(n, k, dtype=torch.float64)
    for x in itertools.product(range(k), repeat=n):
        energy = sum(unary[0, i, x[i]] for i in range(n)) + sum(pairwise[0, i, j, x[i], x[j]] for i in range(n) for j in range(i))
        for i in range(n):
            exact[i, x[i]] += energy.exp()
    exact /= exact.sum(1, keepdim=True)
    found = BeliefPropagation(k, times=n).marginals(BeliefPropagation.graphs(unary, pairwise))[0]
    assert (found - exact).abs().max() < CLOSE
    rough = Composed([MeanField(k)], times=50)(MeanField.graphs(unary, pairwise))[-1].nodes[0, :, k:]
    assert (rough - exact).abs().max() > 1e-3


def test_layers_can_be_copied_and_the_copies_are_their_own():
    graphs = collate(random_graphs([4, 3]))
    for layer in (
        DeepSets(linear(3, 5), OnConcatenation(linear(8, 2))),
        MessagePassing(OnConcatenation(linear(8, 5)), OnConcatenation(linear(8, 3))),
    ):
        before = layer(graphs).nodes
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(graphs).nodes, before)
            with torch.no_grad():
                for p in other.parameters():
                    p.zero_()
            assert other(graphs).nodes.abs().max() == 0
        assert torch.equal(layer(graphs).nodes, before)
