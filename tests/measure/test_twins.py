"""Copies among units, against a comparison of every pair on every example."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradoscope import Training, diagnose
from gradoscope.case import Case
from gradoscope.guard import private_random
from gradoscope.measure.twins import twin_share
from gradoscope.remedies.break_symmetry import BreakSymmetry


def reference(output: torch.Tensor, gradient: torch.Tensor) -> float:
    """Every pair of units by loops, shapes (samples, units)."""
    units = range(output.shape[1])

    def same(i: int, j: int) -> bool:
        return torch.allclose(output[:, i], output[:, j], atol=1e-9) and torch.allclose(gradient[:, i], gradient[:, j], atol=1e-12)

    alive = [bool(output[:, i].any() or gradient[:, i].any()) for i in units]
    return sum(alive[i] and any(same(i, j) for j in units if j != i) for i in units) / len(units)


def net(seed: int = 0) -> nn.Sequential:
    with private_random(seed):
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randint(0, 3, (40,), generator=g)


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_against_every_pair(copies: int) -> None:
    model, (x, y) = net(), data()
    with torch.no_grad():
        for k in range(copies):  # units 0 and 1, 2 and 3, ...: equal incoming and outgoing weights
            model[0].weight[2 * k + 1] = model[0].weight[2 * k]
            model[0].bias[2 * k + 1] = model[0].bias[2 * k]
            model[2].weight[:, 2 * k + 1] = model[2].weight[:, 2 * k]
    found = twin_share(model, lambda: F.cross_entropy(model(x), y).backward())
    h1 = model[0](x)
    h2 = model[2](h1.tanh())
    out = model[4](h2.relu())
    g1, g2, g3 = torch.autograd.grad(F.cross_entropy(out, y), (h1, h2, out))
    expected = {"0": reference(h1, g1), "2": reference(h2, g2), "4": reference(out, g3)}
    assert found == pytest.approx(expected)
    assert found["0"] == 2 * copies / 8


def test_equal_inputs_with_other_outgoing_weights_are_no_twins() -> None:
    """Their gradients differ, and so will they after one step."""
    model, (x, y) = net(), data()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
    assert twin_share(model, lambda: F.cross_entropy(model(x), y).backward())["0"] == 0.0


@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.LSTM, torch.nn.GRU])
def test_a_start_at_zero_is_one_of_copies_though_nothing_comes_through(kind: type) -> None:
    _, (x, _) = net(), data()
    layer, head = kind(x.shape[1], 6), torch.nn.Linear(6, 2)
    for p in (*layer.parameters(), *head.parameters()):
        torch.nn.init.zeros_(p)
    model = torch.nn.ModuleDict({"layer": layer, "head": head}).double()

    def run() -> None:
        hidden = layer(x[None])[0][0] if kind is not torch.nn.Linear else layer(x)
        head(hidden).square().sum().backward()

    assert twin_share(model, run)["layer"] == 1.0


def test_dead_units_are_no_twins_and_nothing_is_left_behind() -> None:
    model, (x, y) = net(), data()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    kept = [p.grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = twin_share(model, lambda: F.cross_entropy(model(x), y).backward())
    assert "2" not in found  # no gradient comes there at all
    assert [p.grad for p in model.parameters()] == kept == [None] * 6
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(not m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_channels_and_hidden_states(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    if kind == "conv":
        model: nn.Module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 1)).double()
        x = torch.randn(7, 1, 6, 6, generator=g, dtype=torch.float64)
    else:

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.cell(x)[0].mean(1))

        model, x = Last().double(), torch.randn(7, 5, 3, generator=g, dtype=torch.float64)
    name = "0" if kind == "conv" else "cell"
    assert twin_share(model, lambda: model(x).square().sum().backward())[name] == 0.0
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.03)
    if kind == "conv":
        with torch.no_grad():
            model[3].weight.copy_(torch.linspace(0.1, 0.2, 16, dtype=torch.float64).repeat(4))
    assert twin_share(model, lambda: model(x).square().sum().backward())[name] == 1.0


def constant(value: float) -> Training:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(600, 10, generator=g)
    y = (x @ torch.randn(10, 5, generator=g)).argmax(1)

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 5))
        with torch.no_grad():
            for p in made.parameters():
                p.fill_(value)
        return made

    return Training(
        model=model, optimizer=lambda p: torch.optim.SGD(p, 0.3), loss_fn=F.cross_entropy, data=(x, y), batch_size=60, steps=300
    )


def test_a_constant_start_is_a_symmetric_subspace_which_noise_leaves() -> None:
    d = diagnose(constant(0.3), step_seconds=1e-3)
    assert [f.obstacle for f in d.present if f.obstacle != "overfitting"] == ["saddle_point"]
    assert d["saddle_point"].counterfactual == "break_symmetry"
    share = next(e for e in d["saddle_point"].evidence if e.measurement.name == "twin_share")
    assert share.measurement.value == 1.0


def test_noise_has_the_size_of_a_usual_start() -> None:
    case = Case(constant(0.3), step_seconds=1e-3)
    with case.live(0) as live:
        before = [p.detach().clone() for p in live.model.parameters()]
        BreakSymmetry().prepare(live)
        noise = [(p.detach() - b) for p, b in zip(live.model.parameters(), before, strict=True)]
    assert float(noise[0].std()) == pytest.approx(10**-0.5, rel=0.15)
    assert float(noise[2].std()) == pytest.approx(32**-0.5, rel=0.15)
    assert not noise[1].any()
    assert not noise[3].any()
