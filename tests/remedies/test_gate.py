"""Gates: what they compute by hand, what they train, what they leave behind, and that they carry a gradient over time."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.case import Case
from gradoscope.errors import GradoscopeError
from gradoscope.guard import private_random
from gradoscope.loop import advance
from gradoscope.problems.recurrent import Recurrent, adding
from gradoscope.problems.recurrent import generator as stream
from gradoscope.remedies.gate import Gate, time_scales
from gradoscope.training import Live, Training
from tests.remedies.nets import prepared
from tests.remedies.nets import training as small

T = 12


class Net(nn.Module):
    """A recurrent layer or a cell in a loop, over (n, T, 2)."""

    def __init__(self, make) -> None:
        super().__init__()
        self.core = make()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        if isinstance(self.core, nn.RNNBase):
            return self.head(self.core(x)[0][:, -1])
        state = None
        for now in x.unbind(1):
            state = self.core(now, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def recipe(make, **options) -> Training:
    def model() -> nn.Module:
        with private_random(5):
            return Net(make)

    base = {
        "model": model,
        "optimizer": lambda p: torch.optim.Adam(p, lr=0.01),
        "data": lambda random, n: adding(random, n, T),
        "loss_fn": F.mse_loss,
        "batch_size": 8,
        "steps": 6,
    }
    return Training(**(base | options))


MAKERS = {
    "rnn": lambda: nn.RNN(2, 4, batch_first=True),
    "rnn of two layers": lambda: nn.RNN(2, 4, num_layers=2, batch_first=True, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(2, 4, batch_first=True),
    "gru": lambda: nn.GRU(2, 4, batch_first=True),
    "rnn cell": lambda: nn.RNNCell(2, 4),
    "lstm cell": lambda: nn.LSTMCell(2, 4),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_added_trains_and_goes_away_again(name: str) -> None:
    live = prepared(recipe(MAKERS[name]), Gate())
    added = [p for n, p in live.model.named_parameters() if "_gradoscope_gate" in n]
    assert bool(added) is name.startswith("rnn")
    held = [p for group in live.optimizer.param_groups for p in group["params"]]
    assert all(any(p is h for h in held) for p in added)
    before = [p.detach().clone() for p in added]
    losses: list[float] = []
    advance(live, 0, 6, [lambda _live, _i, loss: losses.append(loss)])
    assert all(math.isfinite(value) for value in losses)
    assert all(not torch.equal(p, q) for p, q in zip(added, before, strict=True))
    live.close()
    assert not any("_gradoscope_gate" in n for n, _ in live.model.named_parameters())
    assert not any(m._forward_hooks for m in live.model.modules())


def test_a_gated_cell_by_hand() -> None:
    live, plain = prepared(recipe(MAKERS["rnn cell"]), Gate()), prepared(recipe(MAKERS["rnn cell"]))
    x = torch.randn(3, T, 2, generator=torch.Generator().manual_seed(0))
    switch = live.model.core._gradoscope_gate[0]
    with torch.no_grad():
        switch.weight.copy_(torch.randn(switch.weight.shape, generator=torch.Generator().manual_seed(2)))
        state = None
        for now in x.unbind(1):
            new = plain.model.core(now, state)
            # the first call has no state to keep: None is no tensor
            kept = torch.sigmoid(now @ switch.weight + switch.bias)
            state = new if state is None else kept * state + (1 - kept) * new
        torch.testing.assert_close(live.model(x), plain.model.head(state))


def test_time_scales_cover_the_sequence() -> None:
    with private_random(0):
        layer, cell = nn.LSTM(2, 400), nn.GRUCell(2, 400)
        time_scales(layer, 100)
        time_scales(cell, 100)
    forget, start = layer.bias_ih_l0[400:800], layer.bias_ih_l0[:400]
    assert torch.equal(start, -forget)
    assert not layer.bias_hh_l0.any()
    for bias in (forget, cell.bias_ih[400:800]):
        steps = bias.detach().exp()  # f / (1 - f), about the steps over which a unit forgets
        assert 1 <= float(steps.min()) < 5
        assert 90 < float(steps.max()) <= 99
        assert float(steps.mean()) == pytest.approx(50, abs=5)


def test_the_same_seed_gives_the_same_gates() -> None:
    one, two = (prepared(recipe(MAKERS["rnn"]), Gate()) for _ in range(2))
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_model_without_recurrence_is_refused_and_a_layer_without_biases_too() -> None:
    with pytest.raises(GradoscopeError, match="no recurrent layer"):
        prepared(small(), Gate())
    with pytest.raises(GradoscopeError, match="no biases"):
        prepared(recipe(lambda: nn.LSTM(2, 4, batch_first=True, bias=False)), Gate())


def test_a_model_that_was_handed_in_is_left_as_it_was() -> None:
    with private_random(1):
        model = Net(MAKERS["rnn"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    case = Case(recipe(MAKERS["rnn"], model=model))
    found = case.trial(Gate())
    assert not found.failed
    assert dict(model.state_dict()).keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_it_carries_the_gradient_over_time() -> None:
    def gradient(*remedies) -> float:
        made = Training(
            model=lambda: Recurrent("sigmoid", 16, [stream(0, 1)]),
            optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
            data=lambda random, n: adding(random, n, 60),
            loss_fn=F.mse_loss,
            batch_size=16,
            steps=2,
        )
        live: Live = prepared(made, *remedies)
        x = adding(torch.Generator().manual_seed(0), 16, 60)[0].requires_grad_()
        live.model(x).sum().backward()
        assert x.grad is not None
        return float(x.grad[:, :6].norm() / x.grad.flatten(2).norm(dim=2).norm(dim=0).max())

    assert gradient() < 1e-20
    # a unit that forgets over u steps keeps exp(-60 / u) of the first input: 0.15 on average over u in 1..59
    assert 0.05 < gradient(Gate()) < 0.5


def test_it_explains_itself_and_gives_code_that_parses() -> None:
    assert Gate().explanation.endswith(".")
    compile(Gate().code, "code", "exec")
