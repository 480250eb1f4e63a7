"""Averages of iterates and the schedule: their definition, their states, and other people's loops around them."""

import copy
import math

import pytest
import torch
from torch import nn

from gradoscope.loop import advance
from gradoscope.state import State
from gradoscope.training import Live, Training
from gradoscope.updates import PolyakAveraging, PowerDecay, lecture
from tests.updates.cases import loss_of


def closure_of(x, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("inner", [lambda p: lecture.Adam(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5)])
@pytest.mark.parametrize("start", [0, 7])
def test_the_average_is_that_of_the_iterates_and_the_steps_are_those_inside(inner, start):
    x = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    plain, wrapped = inner([x]), PolyakAveraging(inner([y]), start=start)
    iterates = []
    for _ in range(20):
        plain.step(closure_of(x, plain))
        wrapped.step(closure_of(y, wrapped))
        assert torch.equal(x, y)
        iterates.append(x.detach().clone())
    before = y.detach().clone()
    with wrapped.averaged():
        assert torch.allclose(y, torch.stack(iterates[start:]).mean(0), rtol=0, atol=1e-14)
    assert torch.equal(y, before)
    with pytest.raises(ZeroDivisionError), wrapped.averaged():
        _ = 1 / 0
    assert torch.equal(y, before)


def test_before_the_first_count_the_average_is_the_parameters():
    x = torch.ones(2, requires_grad=True)
    optimizer = PolyakAveraging(lecture.SGD([x], lr=0.1), start=3)
    x.grad = torch.ones(2)
    optimizer.step()
    with optimizer.averaged():
        assert torch.allclose(x, torch.full((2,), 0.9))


def test_its_state_goes_on_to_the_bit_and_holds_a_group_that_came_late():
    def made():
        x = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
        return x, PolyakAveraging(lecture.Momentum([x], lr=0.1), start=2)

    (x, one), (y, two) = made(), made()
    for _ in range(5):
        one.step(closure_of(x, one))
    with torch.no_grad():
        y.copy_(x)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(5):
        one.step(closure_of(x, one))
        two.step(closure_of(y, two))
    assert torch.equal(x, y)
    with one.averaged(), two.averaged():
        assert torch.equal(x, y)
    late = torch.ones(1, dtype=torch.float64, requires_grad=True)
    one.add_param_group({"params": [late]})
    late.grad = torch.ones(1, dtype=torch.float64)
    one.step()
    with one.averaged():
        assert late.item() == 0.9
    assert one.counts == [9, 1]
    with pytest.raises(ValueError, match="polyak"):
        two.load_state_dict(lecture.Momentum([y], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="other parameters"):
        PolyakAveraging(lecture.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)).load_state_dict(two.state_dict())


@pytest.mark.parametrize("rule", [lecture.SGD, lecture.NesterovA])
def test_in_a_training_with_a_schedule_that_is_restored(rule):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    training = Training(
        model=nn.Linear(3, 1),
        optimizer=lambda p: PolyakAveraging(rule(p, lr=0.1)),
        schedule=lambda o: PowerDecay(o, alpha=0.5),
        loss_fn=nn.functional.mse_loss,
        data=(x, x.sum(1, keepdim=True)),
        batch_size=8,
        steps=20,
    )
    with Live.of(training) as live:
        advance(live, 0, 10)
        assert math.isclose(live.optimizer.param_groups[0]["lr"], 0.1 * 11**-0.5)
        kept, found = State.capture(live, 10), []
        for _ in range(2):
            advance(live, 10, 10)
            with live.optimizer.averaged():
                found.append([p.detach().clone() for p in live.model.parameters()])
            assert live.optimizer.steps == 20
            kept.restore(live)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert copy.deepcopy(live.optimizer).counts == [10, 10]


@pytest.mark.parametrize("start", [-1, 1.5, None, True])
def test_bad_starts_are_refused(start):
    with pytest.raises(ValueError, match="start must be"):
        PolyakAveraging(lecture.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), start=start)
    with pytest.raises(ValueError, match="expected a torch"):
        PolyakAveraging([torch.zeros(1)])


@pytest.mark.parametrize(
    ("alpha", "eta_min", "sums"),
    [(1.0, 0.0, (True, True)), (0.5, 0.0, (True, False)), (1.5, 0.0, (False, True)), (1.0, 0.01, (True, False))],
)
def test_the_schedule_is_the_formula_for_every_group(alpha, eta_min, sums):
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in (1.0, 0.3)]
    optimizer = lecture.SGD(groups, lr=0.1)
    schedule = PowerDecay(optimizer, alpha, eta_min)
    for t in range(1, 40):
        for group, c in zip(optimizer.param_groups, (1.0, 0.3), strict=True):
            assert group["lr"] == max(c * t**-alpha, eta_min)
        optimizer.step()
        if t == 20:
            state = schedule.state_dict()
        schedule.step()
    again = PowerDecay(optimizer, 7.0)
    again.load_state_dict(state)
    optimizer.step()
    again.step()
    assert optimizer.param_groups[1]["lr"] == max(0.3 * 21**-alpha, eta_min)
    assert again.sums == sums


@pytest.mark.parametrize(("alpha", "eta_min"), [(-1.0, 0.0), (math.nan, 0.0), (1.0, -0.1)])
def test_a_bad_schedule_is_refused(alpha, eta_min):
    with pytest.raises(ValueError, match="must be a finite number"):
        PowerDecay(lecture.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), alpha, eta_min)
