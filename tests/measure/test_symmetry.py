import itertools
import math

import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.symmetry import (
    Group,
    equivariance_defect,
    node_permutations,
    permutations,
    reflections,
    rotations90,
    scalings,
    shifts,
    sign_flips,
)
from gradoscope.structured.gpi import GPI
from gradoscope.structured.graphs import collate
from tests.structured.test_graphs import random_graphs

SMALL = 1e-12


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(make, seed=0):
    with private_random(seed):
        return make().double()


def exact(weights):
    """The defect of F(x)_i = w_i x_i on independent standard normal x, under all permutations but the identity, by enumeration."""
    n = len(weights)
    orders = [torch.tensor(o) for o in itertools.permutations(range(n)) if o != tuple(range(n))]
    # F(gx)_i = w_i x_{g i} and (gF(x))_i = w_{g i} x_{g i}.
    return math.sqrt(sum(float((weights - weights[o]).square().mean()) for o in orders) / len(orders) / float(weights.square().mean()))


def test_the_defect_of_weights_by_place_is_the_one_by_enumeration_and_its_error_is_honest():
    weights = torch.tensor([0.5, 1.0, 1.5, 3.0], dtype=torch.float64)
    truth = exact(weights)
    found = []
    for seed in range(60):
        x = normal(40, 4, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        found.append(equivariance_defect(lambda x: x * weights, x, permutations(1, output_dim=1), generator=generator))
    z = torch.tensor([(m.value - truth) / m.se for m in found])
    assert abs(float(z.mean())) < 0.6
    assert 0.6 < float(z.std()) < 1.6  # were it 1, the errors would be right; with 60 draws it is known to 9%


def test_worst_element_and_entry_are_those_of_a_plain_loop():
    weights, x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), normal(5, 3)
    orders = []

    def remembered(inputs, generator):
        orders.append(group.draw(inputs, generator))
        return orders[-1]

    group = permutations(1, output_dim=1)
    watched = Group(group.name, remembered, group.act, group.act_on_output)
    found = equivariance_defect(lambda x: x * weights, x, watched, samples=7)
    outputs = x * weights
    spread = math.sqrt(float((outputs - outputs.mean(0)).square().mean()))
    each = [(x[:, o] * weights - outputs[:, o]) for o in orders]
    relative = [math.sqrt(float(e.square().mean())) / spread for e in each]
    assert len(orders) == 7
    assert found.details["worst"] == pytest.approx(max(relative))
    assert found.details["per element"] == pytest.approx(relative)
    assert found.details["absolute"] == pytest.approx(max(float(e.abs().max()) for e in each))
    assert found.value == pytest.approx(math.sqrt(sum(r * r for r in relative) / 7))
    assert found.cost.forward == 8


class Shared(nn.Module):
    """The same layer for each element, and their mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        return h - h.mean(1, keepdim=True)


def flat(inputs, outputs, shape):
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs), nn.Unflatten(1, shape))


RESPECT = {
    "sets": (Shared, (6, 5, 3), permutations(1, output_dim=1)),
    "shifts": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (6, 2, 8), shifts([2], output_dims=[2])),
    "plane": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), (6, 1, 5, 7), shifts([2, 3], output_dims=[2, 3])),
    "turns": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)), (6, 2, 4, 4), rotations90()),
    "mirror": (lambda: nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten()), (6, 2, 5), reflections(2)),
    "odd": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False)), (6, 4), sign_flips(odd=True)),
    "signs": (lambda: nn.ReLU6(), (6, 4), sign_flips(1)),
    "scale": (lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU()), (6, 4), scalings(0.1, 10.0, degree=1)),
}


@pytest.mark.parametrize("name", [n for n in RESPECT if n != "signs"])
def test_models_built_for_a_symmetry_have_no_defect(name):
    make, shape, group = RESPECT[name]
    found = equivariance_defect(made(make), normal(*shape), group)
    assert found.value < SMALL
    assert found.details["worst"] < SMALL
    assert found.details["eps"] == torch.finfo(torch.float64).eps


@pytest.mark.parametrize("name", [n for n in RESPECT if n not in ("turns", "mirror")])
def test_models_that_are_not_have_one(name):
    _, shape, group = RESPECT[name]
    outputs = {"sets": (5, 4), "shifts": (3, 8), "plane": (2, 5, 7), "odd": (2,), "signs": (4,), "scale": (3,)}[name]
    model = made(flat(math.prod(shape[1:]), math.prod(outputs), outputs))
    found = equivariance_defect(model, normal(*shape), group)
    assert found.value > 0.1
    assert found.details["worst"] >= found.value > found.se > 0


def test_a_function_of_squares_is_even_in_every_entry():
    assert equivariance_defect(lambda x: x.square().sum(1), normal(6, 4), sign_flips(1)).value < SMALL
    assert equivariance_defect(lambda x: x.pow(3), normal(6, 4), sign_flips(1, odd=True)).value < SMALL
    assert equivariance_defect(lambda x: x.pow(3), normal(6, 4), sign_flips(1)).value > 1


@pytest.mark.parametrize("attention", ["none", "neighbour", "feature"])
@pytest.mark.parametrize("form", ["graphs", "tuple"])
def test_nodes_and_edges_move_together(attention, form):
    model = GPI.build(3, 2, outputs=2, pair_outputs=2, attention=attention, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graphs = collate(random_graphs([5, 5, 3, 5]))
    if form == "graphs":
        inputs, run = graphs, model
    else:
        inputs = (graphs.nodes, graphs.edges, graphs.mask)

        def run(inputs):
            return model(type(graphs)(*inputs))

    for output in ("nodes", "pairs"):
        found = equivariance_defect(lambda g, o=output: getattr(run(g), o), inputs, node_permutations(output), model=model)
        assert found.value < SMALL
    assert equivariance_defect(lambda g: run(g).graph, inputs, node_permutations("none"), model=model).value < SMALL
    wrong = equivariance_defect(lambda g: run(g).nodes, inputs, node_permutations("none"), model=model)
    assert wrong.value > 0.1
    by_hand = equivariance_defect(
        lambda g: run(g).nodes, inputs, node_permutations("none"), model=model, output_action=lambda order, y: y[:, order]
    )
    assert by_hand.value < SMALL


def test_the_lowest_defect_needs_the_action_on_both_sides():
    lstm = made(lambda: nn.LSTM(3, 4, batch_first=True))
    found = equivariance_defect(lambda x: lstm(x)[0], normal(6, 5, 3), permutations(1, output_dim=1), model=lstm)
    assert found.value > 0.1


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_disturbed(mode):
    model = made(lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4)))
    model.train()
    model[2].eval()
    model(normal(16, 4)).sum().backward()
    inputs = normal(16, 4, seed=1)
    before = (
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        inputs.clone(),
    )
    found = equivariance_defect(model, inputs, permutations(1, output_dim=1), mode=mode)
    again = equivariance_defect(model, inputs, permutations(1, output_dim=1), mode=mode)
    assert found.value == again.value > 0
    assert all(torch.equal(v, before[0][k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before[1], strict=True))
    assert [m.training for m in model.modules()] == before[2]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert torch.equal(inputs, before[4])


def test_masks_are_the_same_in_all_passes():
    """Dropout of whole examples: the same masks, so no defect; in another draw they would differ."""

    def dropped(x):
        return nn.functional.dropout(torch.ones(len(x), 1, dtype=x.dtype), 0.5) * x.sum(1, keepdim=True)

    assert equivariance_defect(dropped, normal(20, 4), permutations(1)).value < SMALL


def test_models_that_differentiate_inside_are_run_with_gradients():
    energy = made(lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)))

    def force(x):
        x = x.requires_grad_()
        return -torch.autograd.grad(energy(x).sum(), x)[0]

    x = normal(6, 5, 3)
    assert equivariance_defect(force, x, permutations(1, output_dim=1), model=energy).value < SMALL
    assert not x.requires_grad


def test_an_element_is_never_the_identity():
    generator = torch.Generator().manual_seed(0)
    x = normal(3, 2, 2)
    for _ in range(50):
        assert permutations(1).draw(x, generator).tolist() == [1, 0]
        assert any(shifts([1, 2]).draw(x, generator))
        assert rotations90().draw(x, generator) in (1, 2, 3)
        assert (sign_flips(1).draw(x, generator) < 0).any()
        assert node_permutations().draw((x, x), generator).tolist() == [1, 0]
        assert 0.25 <= scalings(0.25, 0.5).draw(x, generator) <= 0.5
    assert permutations(1).draw(normal(3, 1), generator).tolist() == [0]


def test_a_constant_function_is_invariant_and_nothing_else():
    x = normal(4, 3)
    assert equivariance_defect(lambda x: torch.ones(len(x), 2), x, permutations(1)).value == 0
    other = equivariance_defect(lambda x: torch.arange(3.0).expand(len(x), 3), x, permutations(1, output_dim=1))
    assert other.value == math.inf


def test_outputs_in_parts_and_inputs_in_dictionaries():
    x = {"a": normal(4, 3), "b": normal(4, 3, seed=1)}
    found = equivariance_defect(lambda x: (x["a"] * x["b"], {"c": x["a"] + x["b"]}), x, permutations(1, output_dim=1))
    assert found.value == 0


def test_what_cannot_be_measured_is_refused():
    x = normal(4, 3)
    with pytest.raises(CannotRun, match="two examples"):
        equivariance_defect(lambda x: x.sum(), x, permutations(1))
    with pytest.raises(CannotRun, match="two examples"):
        equivariance_defect(lambda x: x, x[:1], permutations(1))
    with pytest.raises(CannotRun, match="does not fit"):
        equivariance_defect(lambda x: x, x, permutations(1), output_action=lambda g, y: y[:, :1])
    with pytest.raises(CannotRun, match="one size"):
        equivariance_defect(lambda x: x, normal(2, 3, 4), rotations90())
    with pytest.raises(CannotRun, match="hold none"):
        equivariance_defect(lambda x: torch.ones(2, 2), "words", permutations(1))
    with pytest.raises(ValueError, match="mine"):
        equivariance_defect(lambda x: (_ for _ in ()).throw(ValueError("mine")), x, permutations(1))
