"""ReLUs in the place of saturating activations: where, and that nothing stays behind."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope import Training
from gradoscope.errors import GradoscopeError
from gradoscope.guard import private_random
from gradoscope.loop import prepare
from gradoscope.remedies.activation import ReluActivation
from gradoscope.state import State
from gradoscope.training import Live


class Net(nn.Module):
    """Modules and functions that saturate, and one that belongs to the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.norm(self.first(x)))
        return torch.sigmoid(self.last(torch.tanh(self.second(hidden))))


def relus(net: Net, x: Tensor) -> Tensor:
    """The same by hand."""
    return torch.sigmoid(net.last(F.relu(net.second(F.relu(net.norm(net.first(x)))))))


def training(model: nn.Module) -> Training:
    with private_random(0):
        x = torch.randn(64, 4)
    return Training(
        model=model,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        data=(x, (x[:, :1] > 0).float()),
        loss_fn=F.binary_cross_entropy,
        steps=3,
    )


def test_hidden_activations_become_relus_and_the_last_one_stays() -> None:
    with private_random(1):
        t = training(Net())
    with Live.of(ReluActivation()(t)) as live:
        prepare(live, State.capture(live))
        x = live.batches.batch(0)[0]
        live.model.eval()
        torch.testing.assert_close(live.model(x), relus(live.model, x))
        assert float(live.model.first(x).detach().std()) == pytest.approx(1.0, rel=0.05), "layers start at unit variance"


def test_a_model_that_was_handed_in_is_left_as_it_was() -> None:
    with private_random(1):
        net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with Live.of(ReluActivation()(training(net))) as live:
        prepare(live, State.capture(live))
        hooked = live.model
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (net, hooked) for m in model.modules())


def test_gates_and_models_without_saturation_are_refused() -> None:
    with private_random(1):
        t = training(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()))
    with Live.of(ReluActivation()(t)) as live, pytest.raises(GradoscopeError, match="no activation that saturates"):
        prepare(live, State.capture(live))
