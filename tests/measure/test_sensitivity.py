import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.guard import private_random
from gradoscope.measure.activations import layer_sensitivity
from gradoscope.objective import Objective
from tests.reference import statistics as reference


def data(n=12, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), torch.randint(0, 3, (n,), generator=generator)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def made(make):
    with private_random(0):
        return make().double()


def rowwise(model, x, y):
    return [lambda i=i: loss(model, (x[i : i + 1], y[i : i + 1])) for i in range(len(x))]


def test_equals_a_loop_over_samples():
    model, (x, y) = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))), data()
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    layers = {name: list(model[int(name)].parameters()) for name in "02"}
    assert measured.value == pytest.approx(reference.sensitivity(model, layers, rowwise(model, x, y)), rel=1e-10)
    assert measured.method == "per-example gradients, vectorised"
    assert measured.details["ratio"] == pytest.approx(min(measured.value.values()) / max(measured.value.values()))
    assert measured.n == 12
    norms = measured.details["per_example"] * np.array(list(measured.details["weight"].values()))
    assert np.sqrt((norms**2).mean(axis=0)) == pytest.approx(list(measured.value.values()))


def test_standard_error_is_the_spread_over_samples():
    model = made(lambda: nn.Linear(5, 3))
    found = [layer_sensitivity(Objective(model, loss, [data(n=32, seed=s)])) for s in range(150)]
    spread = np.std([m.value["Linear"] for m in found])
    assert np.mean([m.se["Linear"] for m in found]) == pytest.approx(spread, rel=0.25)


def test_models_that_vmap_cannot_run_are_looped_over():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 3)

        def forward(self, x):
            return self.body(x) * (2.0 if float(x.sum()) > 0 else 1.0)

    model, (x, y) = made(Branching), data()
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    assert measured.method == "per-example gradients, one by one"
    expected = reference.sensitivity(model, {"body": list(model.body.parameters())}, rowwise(model, x, y))
    assert measured.value == pytest.approx(expected, rel=1e-10)


def test_batch_normalisation_uses_the_batch_statistics_held_fixed():
    model, (x, y) = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))), data()
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    assert "batch normalisation" in measured.method
    twin = copy.deepcopy(model)
    hidden = twin[0](x)
    with torch.no_grad():
        twin[1].running_mean.copy_(hidden.mean(dim=0))
        twin[1].running_var.copy_(hidden.var(dim=0))
    twin.eval()
    layers = {name: list(twin[int(name)].parameters()) for name in "013"}
    assert measured.value == pytest.approx(reference.sensitivity(twin, layers, rowwise(twin, x, y)), rel=1e-9)


def test_losses_over_pairs_of_rows_fall_back_to_batches():
    def contrastive(model, batch):
        out = model(batch[0])
        assert len(out) > 1, "needs pairs"
        return (out[0] - out[1:]).square().mean()

    model = made(lambda: nn.Linear(5, 3))
    batches = [data(seed=s) for s in range(3)]
    measured = layer_sensitivity(Objective(model, contrastive, batches))
    assert "whole batches" in measured.method
    assert measured.n == 3
    expected = reference.sensitivity(model, {"Linear": list(model.parameters())}, [lambda b=b: contrastive(model, b) for b in batches])
    assert measured.value == pytest.approx(expected, rel=1e-10)


def test_matrices_of_a_users_own_module_are_layers_of_their_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.b1 = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.zeros(4))
            self.w2, self.b2 = nn.Parameter(1e-6 * torch.randn(4, 3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return torch.tanh(x @ self.w1 + self.b1) @ self.w2 + self.b2

    model, (x, y) = made(Own), data()
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    layers = {"w1": [model.w1, model.b1], "w2": [model.w2, model.b2]}
    assert measured.value == pytest.approx(reference.sensitivity(model, layers, rowwise(model, x, y)), rel=1e-9)


def test_tied_frozen_and_parametrised_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.frozen = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.b.weight = self.a.weight
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.b(torch.tanh(self.a(x))))

    model, (x, y) = made(Tied), data()
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    layers = {"a": [model.a.weight, model.a.bias], "b": [model.b.bias]}
    assert measured.value == pytest.approx(reference.sensitivity(model, layers, rowwise(model, x, y)), rel=1e-9)
    normed = made(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))))
    assert list(layer_sensitivity(Objective(normed, loss, [(x, y)])).value) == ["0"]


def test_a_layer_behind_dead_units_has_none():
    model, (x, y) = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))), data()
    with torch.no_grad():
        model[0].bias.fill_(-1e3)
    measured = layer_sensitivity(Objective(model, loss, [(x, y)]))
    assert measured.value["0"] == 0.0
    assert measured.details["ratio"] == 0.0


def test_at_most_n_rows_and_batches_of_any_structure():
    model, (x, y) = made(lambda: nn.Linear(5, 3)), data(n=30)
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b["x"]), b["y"][0]), [{"x": x, "y": [y], "why": "text"}])
    assert layer_sensitivity(objective, n=7).n == 7
    full = layer_sensitivity(objective, n=100)
    assert full.n == 30
    expected = reference.sensitivity(model, {"Linear": list(model.parameters())}, rowwise(model, x, y))
    assert full.value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    def odd(model, batch):
        if fails:
            raise RuntimeError("user code")
        return loss(model, batch) + 0 * torch.rand(()).double()

    model, (x, y) = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))), data()
    loss(model, (x, y)).backward()
    model[2].eval()
    before, momentum = reference.snapshot(model), model[1].momentum
    objective = Objective(model, odd, [(x, y)])
    if fails:
        with pytest.raises(RuntimeError, match="user code"):
            layer_sensitivity(objective)
    else:
        assert all(math.isfinite(v) for v in layer_sensitivity(objective).value.values())
    assert reference.same(before, reference.snapshot(model))
    assert model[1].momentum == momentum
