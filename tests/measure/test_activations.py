import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradoscope.guard import private_random
from gradoscope.measure.activations import signal_statistics
from tests.reference import statistics as reference


def made(make):
    with private_random(0):
        return make().double()


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def look(model, *x, seed=0):
    return signal_statistics(model, lambda: model(*x).square().mean().backward(), seed=seed)


def rms(t):
    return math.sqrt(float(t.detach().double().square().mean()))


class Functional(nn.Module):
    """Two linear layers and whatever is called between them."""

    def __init__(self, function, width=6):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(5, width), nn.Linear(width, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def test_signal_and_gradient_of_every_layer_by_hand():
    model, x = made(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))), inputs(9, 5)
    z = model[0](x).detach().requires_grad_()
    a = torch.tanh(z)
    a.retain_grad()
    out = model[2](a)
    out.retain_grad()
    out.square().mean().backward()
    found = look(model, x)
    assert [(s.name, s.kind, s.activation) for s in found] == [("0", "Linear", False), ("1", "Tanh", True), ("2", "Linear", False)]
    for s, value in zip(found, (z, a, out), strict=True):
        assert s.output_rms == pytest.approx(rms(value))
        assert s.gradient_rms == pytest.approx(rms(value.grad))
        assert s.output_std_over_samples == pytest.approx(math.sqrt(float(value.detach().var(dim=0).mean())))
    derivative = 1 - a.detach() ** 2
    assert found[1].saturated_share == pytest.approx(float((derivative.abs() < 1e-3).double().mean()))


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(),
    nn.Softplus(), nn.Sigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Softsign(), nn.Hardtanh(), nn.Hardsigmoid(), nn.Hardswish(),
    nn.Threshold(0.1, 0.0), nn.Softshrink(), nn.Hardshrink(), nn.Sigmoid(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_every_activation_module_is_seen_once_under_its_own_name(activation):
    model, x = made(lambda: nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 2))), inputs(9, 5)
    found = look(model, x)
    assert [(s.name, s.kind, s.activation) for s in found] == [
        ("0", "Linear", False),
        ("1", type(activation).__name__, True),
        ("2", "Linear", False),
    ]
    assert all(math.isfinite(s.gradient_rms) for s in found)


FUNCTIONS = {
    "relu": [F.relu, torch.relu, lambda x: x.relu(), lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), lambda x: F.relu(input=x)],
    "sigmoid": [torch.sigmoid, F.sigmoid, lambda x: x.sigmoid(), lambda x: x.sigmoid_()],
    "tanh": [torch.tanh, F.tanh, lambda x: x.tanh()],
    "gelu": [F.gelu],
    "clamp": [lambda x: x.clamp(-1, 1), lambda x: torch.clamp(x, min=0)],
    "sign": [torch.sign, lambda x: x.sign()],
    "round": [torch.round],
    "floor": [torch.floor, lambda x: x.floor_()],
    "heaviside": [lambda x: torch.heaviside(x.detach(), x.new_zeros(()))],
}


@pytest.mark.parametrize(("name", "function"), [(n, f) for n, fs in FUNCTIONS.items() for f in fs])
def test_functions_are_seen_however_they_are_called(name, function):
    model, x = made(lambda: Functional(function)), inputs(9, 5)
    found = look(model, x)
    assert [s.name for s in found] == ["first", f"Functional.{name}", "last"]
    assert found[1].kind == name
    assert found[1].activation


def test_dead_units_are_those_off_on_all_samples():
    model, x = made(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))), inputs(50, 5)
    with torch.no_grad():
        model[0].bias[:3] = -1e3
        model[0].bias[3:] = 0.0
    relu = look(model, x)[1]
    assert relu.dead_share == 3 / 8
    assert relu.saturated_share == 0.0
    assert relu.output_rms == pytest.approx(rms(F.relu(model[0](x))))


def test_channels_and_positions():
    conv, x = made(lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 1))), inputs(6, 1, 5, 5)
    with torch.no_grad():
        conv[0].bias[1] = -1e3
    assert look(conv, x)[1].dead_share == 1 / 4
    sequence, x = made(lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))), inputs(6, 7, 3)
    with torch.no_grad():
        sequence[0].bias[:2] = -1e3
        sequence[0].bias[2:] = 0.0
    assert look(sequence, x)[1].dead_share == 2 / 8
    x[0] = -1.0  # one sample that is off everywhere makes no unit dead
    assert look(sequence, x)[1].dead_share == 2 / 8


def test_constant_units_with_a_derivative_are_not_dead():
    """Zero weights give constant outputs, but the gradient passes: that is no dead unit."""
    model, x = made(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))), inputs(9, 5)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(0.1)
    tanh = look(model, x)[1]
    assert (tanh.dead_share, tanh.saturated_share) == (0.0, 0.0)
    assert tanh.output_std_over_samples == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh, F.softsign, F.hardtanh, F.hardsigmoid])
def test_saturated_entries(function):
    model, x = made(lambda: Functional(function, width=4)), inputs(20, 5)
    with torch.no_grad():
        model.first.weight *= 1e-3
        model.first.bias.copy_(torch.tensor([0.0, 0.0, 100.0, -100.0]))
    found = look(model, x)[1]
    z = model.first(x).detach().requires_grad_()
    slope = torch.autograd.grad(function(z).sum(), z)[0]
    assert found.saturated_share == float((slope.abs() < 1e-3).double().mean()) == 0.5


def test_a_hard_step_is_flat_and_a_straight_through_one_is_bypassed():
    x = inputs(20, 5)
    hard = look(made(lambda: Functional(torch.sign)), x)
    through = look(made(lambda: Functional(lambda z: z + (torch.sign(z) - z).detach())), x)
    assert (hard[1].saturated_share, hard[1].bypassed) == (1.0, False)
    assert hard[0].gradient_rms == 0.0
    assert (through[1].saturated_share, through[1].bypassed) == (1.0, True)
    assert through[0].gradient_rms > 0


def test_gates_from_parameters_losses_outside_and_inactive_functions_are_no_layers():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.gate = nn.Linear(5, 2), nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return self.body(x) * torch.sigmoid(self.gate)

    model, x = made(Gated), inputs(9, 5)
    found = signal_statistics(model, lambda: torch.sigmoid(model(x)).mean().backward())
    assert [s.name for s in found] == ["body", "Gated"]


def test_a_module_that_uses_a_function_on_the_way_is_both():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    found = look(made(lambda: nn.Sequential(nn.Linear(5, 3), Swish())), inputs(9, 5))
    assert [(s.name, s.kind) for s in found] == [("0", "Linear"), ("1.sigmoid", "sigmoid"), ("1", "Swish")]
    assert [s.activation for s in found] == [False, True, False]


def test_calls_are_counted_over_time_and_gradients_told_apart():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(5, 5)

        def forward(self, x):
            for _ in range(4):
                x = torch.tanh(self.cell(x))
            return x

    model, x = made(Recurrent), inputs(9, 5)
    with torch.no_grad():
        model.cell.weight *= 0.3
    cells = [s for s in look(model, x) if s.name == "cell"]
    assert [s.call for s in cells] == [0, 1, 2, 3]
    gradients = [s.gradient_rms for s in cells]
    assert gradients == sorted(gradients)


def test_outputs_of_any_structure_single_samples_and_no_backward():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.attention = nn.LSTM(3, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            h = self.lstm(x)[0]
            return {"out": self.attention(h, h, h)[0]}

    model, x = made(Pair), inputs(1, 6, 3)
    found = {s.name: s for s in signal_statistics(model, lambda: model(x)["out"].sum().backward())}
    assert found["lstm"].gradient_rms > 0
    assert "attention" in found
    assert math.isnan(found["lstm"].output_std_over_samples)
    silent = signal_statistics(model, lambda: model(x))
    assert all(math.isnan(s.gradient_rms) for s in silent)
    assert signal_statistics(model, lambda: None) == []


def test_checkpointed_forward_passes_count_once():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 1)

        def forward(self, x):
            return self.last(checkpoint(self.body, x, use_reentrant=False))

    found = look(made(Checked), inputs(9, 5))
    assert [s.name for s in found] == ["body.0", "body.1", "last"]
    assert found[0].gradient_rms > 0


@pytest.mark.parametrize("fails", ["no", "forward", "backward"])
def test_nothing_is_left_behind_and_training_goes_on_bit_for_bit(fails):
    def train(watched):
        with private_random(1):
            model = nn.Sequential(
                nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(6, 1), nn.Flatten(0)
            )
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            x = torch.randn(16, 5)

            def run():
                if fails == "forward":
                    model(x[:, :3])
                loss = model(x).square().mean()
                if fails == "backward":
                    loss.register_hook(lambda g: 1 / 0)
                loss.backward()

            for step in range(6):
                loss = model(x).square().mean()
                loss.backward()
                if watched and step == 3:
                    before = reference.snapshot(model)
                    if fails == "no":
                        assert signal_statistics(model, run)
                    else:
                        with pytest.raises((RuntimeError, ZeroDivisionError)):
                            signal_statistics(model, run)
                    assert reference.same(before, reference.snapshot(model))
                optimizer.step()
                optimizer.zero_grad()
            return reference.snapshot(model)["parameters"], torch.rand(3)

    assert reference.same(train(False), train(True))
