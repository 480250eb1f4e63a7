"""A state holds all that the next steps depend on: captured, restored, saved and loaded to the last bit."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as lrs

from gradoscope.errors import CannotRun
from gradoscope.guard import capture_random, private_random, random_fingerprint, restore_random
from gradoscope.loop import advance
from gradoscope.state import State
from gradoscope.training import Live, Training
from tests.reference.training import clone, data, mlp, same


class Counting(torch.optim.Optimizer):
    """Keeps what it has learnt in an attribute and in a state that belongs to no parameter."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.calls = 0
        self.average = torch.zeros(())
        self.state["all"]["steps"] = 0

    def step(self, closure=None):
        self.calls += 1
        self.state["all"]["steps"] += 1
        self.average = 0.9 * self.average + 0.1 * sum(p.grad.norm() for g in self.param_groups for p in g["params"])
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] / (self.calls + self.state["all"]["steps"]) / (1 + self.average) * p.grad


def groups(params):
    params = list(params)
    return torch.optim.SGD([{"params": params[:1], "lr": 0.5, "momentum": 0.9}, {"params": params[1:]}], lr=0.1, weight_decay=0.01)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "tensor rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.2, max_iter=3, history_size=4),
    "several groups": groups,
    "attributes": lambda p: Counting(p, lr=0.5),
}
SCHEDULES = {
    "step": lambda o: lrs.StepLR(o, 2, 0.5),
    "multi-step": lambda o: lrs.MultiStepLR(o, [1, 4, 4], 0.5),
    "cosine": lambda o: lrs.CosineAnnealingLR(o, 6),
    "warm restarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 3, 2),
    "one cycle": lambda o: lrs.OneCycleLR(o, 0.3, total_steps=20),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, threshold=0.05, cooldown=1),
    "sequential": lambda o: lrs.SequentialLR(o, [lrs.LinearLR(o, 0.1, 1, 3), lrs.ExponentialLR(o, 0.7)], [4]),
    "lambda": lambda o: lrs.LambdaLR(o, lambda k: 1 / (1 + k)),
    "cyclic": lambda o: lrs.CyclicLR(o, 0.01, 0.2, step_size_up=3),
}


@pytest.fixture(autouse=True)
def _streams_stay():
    before = random_fingerprint()
    yield
    assert random_fingerprint() == before


def make(optimizer="momentum", schedule=None, **options) -> Live:
    training = Training(
        model=lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.3)),
        optimizer=OPTIMIZERS[optimizer],
        schedule=SCHEDULES.get(schedule),
        data=data(),
        loss_fn=F.cross_entropy,
        batch_size=8,
        **options,
    )
    return Live.of(training, seed=3)


def left(live):
    """All that a training has made of itself, in torch's own words."""
    return clone(
        {
            "parameters": dict(live.model.named_parameters()),
            "buffers": dict(live.model.named_buffers()),
            "optimizer": live.optimizer.state_dict(),
            "attributes": {k: v for k, v in vars(live.optimizer).items() if k in ("calls", "average")},
            "schedule": {k: v for k, v in (live.schedule.state_dict() if live.schedule else {}).items() if not k.startswith("_get_lr")},
        }
    )


CASES = [(o, None) for o in OPTIMIZERS] + [("momentum", s) for s in SCHEDULES] + [("adam", "one cycle"), ("several groups", "cosine")]


@pytest.mark.parametrize("through_a_file", [False, True])
@pytest.mark.parametrize(("optimizer", "schedule"), CASES)
def test_continued_training_equals_the_uninterrupted_one(optimizer, schedule, through_a_file, tmp_path):
    whole, losses = make(optimizer, schedule), []
    advance(whole, 0, 9, [lambda _, i, loss: losses.append(loss)])

    first = make(optimizer, schedule)
    advance(first, 0, 4)
    state = State.capture(first, 4)
    here = left(first)
    if through_a_file:
        state.save(tmp_path / "state.safetensors")
        state = State.load(tmp_path / "state.safetensors")
    advance(first, 4, 7)  # the state is a copy: what comes later does not reach it

    again = make(optimizer, schedule)
    advance(again, 0, 2)  # anywhere
    state.restore(again)
    same(here, left(again))
    late = []
    advance(again, state.step, 5, [lambda _, i, loss: late.append(loss)])
    same(left(whole), left(again))
    assert losses[4:] == late
    state.restore(again)  # and a second time
    same(here, left(again))


def test_restoring_keeps_identities_and_puts_modes_back():
    live = make("adam")
    live.model[1].eval()
    live.model[0].weight.requires_grad_(False)
    state = State.capture(live)
    kept = [id(p) for p in live.model.parameters()], [id(b) for b in live.model.buffers()], [m.training for m in live.model.modules()]
    live.model.train().requires_grad_(True)
    advance(live, 0, 2)
    state.restore(live)
    assert kept == (
        [id(p) for p in live.model.parameters()],
        [id(b) for b in live.model.buffers()],
        [m.training for m in live.model.modules()],
    )
    assert [p.requires_grad for p in live.model.parameters()] == [False] + [True] * 5
    assert not live.optimizer.state
    assert {id(p) for p in live.optimizer.param_groups[0]["params"]} == {id(p) for p in live.model.parameters()}


def test_parameters_that_were_added_to_the_optimizer_go_away_again():
    live = make("several groups")
    advance(live, 0, 2)
    state, here = State.capture(live, 2), left(live)
    extra = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    live.optimizer.param_groups[0]["params"].append(extra[0])
    live.optimizer.add_param_group({"params": [extra[1]]})
    state.restore(live)
    same(here, left(live))
    assert [len(g["params"]) for g in live.optimizer.param_groups] == [1, 5]


def test_random_streams_on_request():
    live = make()
    with private_random(4):
        state = State.capture(live, random=True)
        drawn = torch.rand(3)
        state.restore(live)
        assert torch.equal(torch.rand(3), drawn)
        State.capture(live).restore(live)
        assert not torch.equal(torch.rand(3), drawn)
    restore_random(capture_random())


def test_numbers_that_are_not_finite_survive_a_file(tmp_path):
    live = make("momentum", "plateau")
    with torch.no_grad():
        live.model[0].weight[0, 0], live.model[0].weight[0, 1] = math.nan, -math.inf
    state = State.capture(live, 7)
    state.save(tmp_path / "s")
    again = State.load(tmp_path / "s")
    assert again.step == 7
    same(state.parameters, again.parameters)
    assert again.schedule["best"] == math.inf
    assert "76" in repr(again) or "parameters" in repr(again)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_torn_file_is_told(share, tmp_path):
    path = tmp_path / "state.safetensors"
    State.capture(make("adam"), 1).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CannotRun, match="not a checkpoint"):
        State.load(path)


def test_other_files_are_told(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other")
    (tmp_path / "text").write_text("hello")
    for path in (tmp_path / "other", tmp_path / "text", tmp_path / "missing", tmp_path):
        with pytest.raises(CannotRun, match="not a checkpoint"):
            State.load(path)


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path, live = tmp_path / "state", make()
    State.capture(live, 1).save(path)

    def crash(*_):
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        State.capture(live, 2).save(path)
    assert State.load(path).step == 1


@pytest.mark.parametrize("other", [lambda: mlp(), lambda: mlp(nn.BatchNorm1d(6), width=6, dim=5), lambda: nn.Linear(4, 3)])
def test_a_state_of_another_model_is_refused(other):
    training = Training(model=other, optimizer=OPTIMIZERS["sgd"], data=data(), loss_fn=F.cross_entropy)
    live = Live.of(training)
    before = [p.detach().clone() for p in live.model.parameters()]
    with pytest.raises(CannotRun, match="saved"):
        State.capture(make()).restore(live)
    same(before, list(live.model.parameters()))


def test_tied_parameters_are_kept_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    x, _ = data()
    training = Training(model=Tied, optimizer=OPTIMIZERS["adam"], data=(x, x), loss_fn=F.mse_loss)
    live = Live.of(training, seed=1)
    advance(live, 0, 3)
    State.capture(live, 3).save(tmp_path / "s")
    again = Live.of(training, seed=1)
    State.load(tmp_path / "s").restore(again)
    assert again.model.a.weight is again.model.b.weight
    advance(live, 3, 3)
    advance(again, 3, 3)
    same(left(live), left(again))
