"""Whitened inputs: the same function at the start, another geometry, plain weights at the end, nothing left behind."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.errors import GradoscopeError
from gradoscope.guard import private_random
from gradoscope.measure.curvature import extreme_eigenvalues
from gradoscope.objective import Objective
from gradoscope.problems import find
from gradoscope.remedies.whiten import Whiten, first_layers, whiten_inputs
from gradoscope.training import Live, Training
from tests.reference.training import everything, same
from tests.remedies.nets import equal, prepared, trained, training


def inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.logspace(0, 2, shape[-1], dtype=torch.float64) + 5


def nets() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    with private_random(0):
        return {
            "linear": (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)).double(), inputs(300, 6)),
            "no bias": (nn.Linear(6, 1, bias=False).double(), inputs(300, 6)),
            "convolution": (
                nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(90, 1)).double(),
                inputs(50, 1, 5, 6),
            ),
        }


@pytest.mark.parametrize("name", nets())
def test_the_function_stays_at_the_start_and_when_folded(name: str):
    model, x = nets()[name]
    before, weights = model(x), everything(model)
    whitened = whiten_inputs(model, x)
    assert len(whitened.layers) == 1
    assert torch.allclose(model(x), before, rtol=1e-6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    after = model(x)
    whitened.fold()
    assert torch.allclose(model(x), after, rtol=1e-6)
    assert set(everything(model)) == set(weights)
    assert all("forward" not in m.__dict__ and "_whitening" not in m.__dict__ for m in model.modules())


def test_a_linear_problem_becomes_perfectly_conditioned_at_the_same_largest_curvature():
    x = inputs(400, 5)
    y = x.sum(1, keepdim=True)
    with private_random(1):
        model = nn.Linear(5, 1, bias=False).double()

    def ends() -> tuple[float, float]:
        spectrum = extreme_eigenvalues(Objective(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(x, y)]), tolerance=1e-9)
        return spectrum.smallest, spectrum.largest

    small, large = ends()
    assert large / small > 1e3
    whiten_inputs(model, x)
    low, high = ends()
    assert low == pytest.approx(large, rel=1e-6)
    assert high == pytest.approx(large, rel=1e-6)


def test_gradient_descent_on_the_curves_is_done_in_a_few_steps():
    for name in ("curves:convolution,curves=200,validation=50", "curves:linear,n=30,curves=500,validation=50"):
        recipe = find(name)
        plain, mended = (trained(recipe, *r, steps=20)[1] for r in ((), (Whiten(),)))
        assert plain[-1] > 0.5 * plain[0]
        assert mended[0] == pytest.approx(plain[0], rel=1e-6)
        assert mended[-1] < 1e-10 * mended[0]


def test_only_layers_that_see_the_data_are_found():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.both = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 3)
            self.twice = nn.Linear(3, 3)

        def forward(self, x):
            return self.twice(self.twice(x)) + self.both(self.left(x.sin()) + self.right(-x))

    with private_random(2):
        model, grouped = Net(), nn.Conv1d(2, 2, 3, groups=2)
        tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert list(first_layers(model, lambda: model(torch.ones(2, 3)))) == ["left", "right"]
    tied[1].weight = tied[0].weight
    assert first_layers(tied, lambda: tied(torch.ones(2, 3))) == {}
    assert first_layers(grouped, lambda: grouped(torch.ones(1, 2, 5))) == {}


def test_nothing_to_whiten_is_said():
    recipe = training(model=lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)))
    with pytest.raises(GradoscopeError, match="no linear or convolutional layer"):
        prepared(recipe, Whiten())


def test_a_model_that_was_handed_in_is_left_as_it_was():
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    with private_random(3):
        model = Stubborn(6, 1)
    x = inputs(64, 6).float()
    before = everything(model)
    recipe = Training(model=model, optimizer=lambda p: torch.optim.SGD(p, lr=1e-5), data=(x, x[:, :1]), loss_fn=F.mse_loss, steps=3)
    live = prepared(recipe, Whiten())
    assert "forward" in model.__dict__
    live.close()
    same(before, everything(model))
    assert "forward" not in model.__dict__
    assert "_whitening" not in model.__dict__


def test_runs_are_repeated_to_the_bit_and_copies_stand_alone():
    recipe = training()
    assert equal(trained(recipe, Whiten()), trained(recipe, Whiten()))
    live = prepared(recipe, Whiten())
    assert isinstance(live, Live)
    twin = copy.deepcopy(live.model)
    x = torch.ones(2, 4)
    expected = live.model(x)
    with torch.no_grad():
        for p in live.model.parameters():
            p.zero_()
    assert torch.equal(twin(x), expected)


def test_moments_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    model, x = nets()["convolution"]
    other = copy.deepcopy(model)
    whiten_inputs(model, x)
    monkeypatch.setattr("gradoscope.remedies.whiten.AT_ONCE", 1)
    whiten_inputs(other, x)
    assert torch.allclose(model[0].weight, other[0].weight, rtol=1e-8)
