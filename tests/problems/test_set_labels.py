"""Set labels in the catalogue: the data by their definition, the models, and that only the form learns."""

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.loop import advance
from gradoscope.measure.symmetry import equivariance_defect, node_permutations
from gradoscope.problems import all_problems, find
from gradoscope.problems.set_labels import SetGPI, draw, majority, standardised
from gradoscope.training import Live

VARIANTS = ("set-labels:gpi", "set-labels:lstm", "set-labels:fully-connected")


def accuracy(training, live, data):
    nodes, edges, labels = data
    live.model.eval()
    with torch.no_grad():
        return training.metric(live.model(nodes, edges), labels)


def trained(name, seed):
    training = find(name, seed=seed)
    live = Live.of(training, seed=seed)
    advance(live, 0, training.steps, [])
    return training, live


def test_the_data_are_as_defined():
    nodes, edges, labels = draw(torch.Generator().manual_seed(0), 300, n=7, sets=4)
    c = nodes.argmax(-1)
    assert torch.equal(nodes.sum(-1), torch.ones(300, 7))
    assert torch.equal(edges, edges.transpose(1, 2))
    assert edges.diagonal(dim1=1, dim2=2).abs().max() == 0
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    for g in range(5):
        for i in range(7):
            assert labels[g, i] == sum(int(edges[g, i, j, 0]) for j in range(7) if c[g, i] == c[g, j])
    share = float(edges.sum() / (300 * 7 * 6))
    assert share == pytest.approx(0.5, abs=4 * 0.5 / (300 * 21) ** 0.5)
    assert torch.bincount(c.flatten()).double().div(2100).sub(0.25).abs().max() < 4 * (0.1875 / 2100) ** 0.5
    assert majority(torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0, 2]])) == 0.5


def test_standardised_features_have_mean_zero_and_variance_one_and_the_same_content():
    nodes, edges, _ = draw(torch.Generator().manual_seed(0), 2000, n=6, sets=3)
    z, e = standardised(nodes, edges)
    off = ~torch.eye(6, dtype=torch.bool)
    assert abs(float(z.mean())) < 1e-6
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-5)
    assert abs(float(e[:, off].mean())) < 4 / 30_000**0.5
    assert float(e[:, off].square().mean()) == 1
    assert e.diagonal(dim1=1, dim2=2).abs().max() == 0
    assert torch.equal(z.argmax(-1), nodes.argmax(-1))
    assert torch.equal(e > 0, edges > 0)


def test_the_commonest_label_is_the_one_of_the_binomial_law():
    """A neighbour counts with probability 1/6, nine of them: (5/6)^9 for none, 9 (5/6)^8 / 6 for one, the most."""
    labels = draw(torch.Generator().manual_seed(1), 4000)[2]
    expected = 9 * (5 / 6) ** 8 / 6
    assert majority(labels, labels) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", VARIANTS)
def test_sizes_and_obstacles(name):
    problem = all_problems()[name]
    assert problem.obstacle == ("healthy" if name.endswith("gpi") else "missing_symmetry")
    count = sum(p.numel() for p in Live.of(find(name)).model.parameters())
    assert count == {"gpi": 8942, "lstm": 12682, "fully-connected": 14200}[name.split(":")[1]]


def test_only_the_form_commutes_with_renaming():
    for name in VARIANTS:
        live = Live.of(find(f"{name},graphs=20"))
        nodes, edges, _ = live.training.data
        model = live.model.double()
        found = equivariance_defect(
            lambda z, model=model: model(*z).transpose(1, 2), (nodes.double(), edges.double()), node_permutations(), model=model, samples=4
        )
        assert (found.value < 1e-12) == name.endswith("gpi")
        assert found.value < 1e-12 or found.value > 0.1


def test_without_its_own_row_nodes_of_one_set_get_the_same_scores():
    nodes, edges, _ = draw(torch.Generator().manual_seed(0), 20)
    model = SetGPI(10, 3, 8, row=False)
    scores = model(nodes, edges).transpose(1, 2)
    for graph, kinds in zip(scores, nodes.argmax(-1), strict=True):
        for kind in range(3):
            same = graph[kinds == kind]
            assert len(same) == 0 or (same - same[0]).abs().max() < 1e-6


def test_the_form_learns():
    training, live = trained("set-labels:gpi", 0)
    assert accuracy(training, live, training.validation) > 0.95


@pytest.mark.parametrize("name", VARIANTS[1:])
def test_the_others_learn_by_heart_alone(name):
    training, live = trained(f"{name},graphs=30", 0)
    assert accuracy(training, live, training.data) > 0.95
    assert accuracy(training, live, training.validation) < 0.45


def test_options_are_checked_and_used():
    training = find("set-labels:gpi,n=6,sets=2,graphs=12,validation=5,attention=feature,width=8")
    nodes, edges, labels = training.data
    assert nodes.shape == (12, 6, 2)
    assert edges.shape == (12, 6, 6, 1)
    assert int(labels.max()) < 6
    assert len(training.validation[0]) == 5
    assert Live.of(training).model.step.phi_score is not None
    assert torch.equal(find("set-labels:lstm", seed=3).data[0], find("set-labels:gpi", seed=3).data[0])
    with pytest.raises(Usage, match="attention"):
        find("set-labels:gpi,attention=all")
    with pytest.raises(Usage, match="at least one graph"):
        find("set-labels:lstm,graphs=0")
