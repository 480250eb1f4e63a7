"""What a measurement presumes is tried out: each thing that does not hold is named, and nothing else is."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope.graph import has_node, nodes
from gradoscope.guard import private_random
from gradoscope.measure.preconditions import preconditions
from gradoscope.objective import Objective
from tests.measure import nets


class Detached(torch.autograd.Function):
    """A square whose gradient is right, and whose curvature is left out: a wrong Hessian that is symmetric all the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * slope


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Detached.apply(x)  # type: ignore[no-any-return, no-untyped-call]  # autograd's


class Counter(nn.Module):
    """State that is kept between passes, and is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)


def loss(model: Any, batch: Any) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def make(*middle: nn.Module, mode: Any = "train") -> Objective:
    with private_random(3):
        model = nn.Sequential(nn.Linear(4, 6), *middle, nn.Linear(6, 2)).double()
        batch = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    return Objective(model, loss, [batch], mode=mode)


@pytest.mark.parametrize("name", nets.NAMES)
def test_sound_where_nothing_is_wrong(name: str) -> None:
    found = preconditions(Objective(*nets.make(name), mode="eval"))
    assert found.sound, found.notes
    assert found.repeatable
    assert found.second_derivatives == "autograd"
    assert found.difference < 1e-5


def test_a_symmetric_lie_is_found_by_finite_differences() -> None:
    objective = make(Square())
    found = preconditions(objective)
    assert objective.method == found.second_derivatives == "finite differences"
    assert found.difference > 0.05
    assert "differs from finite differences" in found.notes[0]


def test_state_between_passes_is_named() -> None:
    found = preconditions(make(nn.Tanh(), Counter()))
    assert not found.repeatable
    assert found.unrepeatable == ("2",)
    assert found.second_derivatives == "not tested"


def test_masks_are_named_wherever_they_are_drawn() -> None:
    found = preconditions(make(nn.Dropout(0.5), nn.Tanh(), nn.RReLU(), nn.Dropout(0.0)))
    assert found.random == ("1", "3")
    assert "mode='eval'" in found.notes[0]
    assert preconditions(make(nn.Dropout(0.5), nn.Tanh(), nn.RReLU(), mode="eval")).sound


class Jitter(nn.Module):
    """Noise from the global stream, in a module of no known kind."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_noise_of_a_users_own_is_named_and_batch_statistics_too() -> None:
    found = preconditions(make(nn.Sequential(nn.Tanh(), Jitter()), nn.BatchNorm1d(6)))
    assert found.repeatable
    assert found.random == ("1.1",)
    assert found.batch_statistics == ("2",)
    assert len(found.notes) == 2


def test_the_graph_lists_each_operation_once() -> None:
    x = torch.ones(2, requires_grad=True)
    y = (x * x).sum() + x.sum()
    names = [node.name() for node in nodes(y)]
    assert sorted(names) == ["AddBackward0", "MulBackward0", "SumBackward0", "SumBackward0", "torch::autograd::AccumulateGrad"]
    assert has_node(y, "MulBackward0")
    assert not has_node(y, "ReluBackward0")
    assert not list(nodes(torch.ones(1)))
