"""The one training loop equals a plain PyTorch loop bit for bit, and forks see the same data and masks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler as lrs

from gradoscope.errors import CannotRun
from gradoscope.guard import random_fingerprint
from gradoscope.loop import advance, prepare
from gradoscope.remedies import Remedy
from gradoscope.remedies.clip import Clip
from gradoscope.remedies.larger_batch import LargerBatch
from gradoscope.remedies.step_size import StepSize
from gradoscope.state import State
from gradoscope.training import Live, Training
from tests.reference.training import clone, data, mlp, plain_loop, same


@pytest.fixture(autouse=True)
def _streams_stay():
    before = random_fingerprint()
    yield
    assert random_fingerprint() == before


def net():
    return mlp(nn.BatchNorm1d(6), nn.Dropout(0.4))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=1e-2),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.02),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.3, max_iter=3),
}
SCHEDULES = {
    "step": lambda o: lrs.StepLR(o, 2, 0.5),
    "one cycle": lambda o: lrs.OneCycleLR(o, 0.5, total_steps=20),
    "plateau": lambda o: lrs.ReduceLROnPlateau(o, patience=0, threshold=0.1),
}


def training(optimizer="sgd", schedule=None, **options) -> Training:
    base = {"model": net, "data": data(), "loss_fn": F.cross_entropy, "batch_size": 5}
    return Training(optimizer=OPTIMIZERS[optimizer], schedule=SCHEDULES.get(schedule), **(base | options))


def run(recipe, steps=8, seed=3, state=None):
    losses = []
    live = Live.of(recipe, seed=seed)
    if state is not None:
        prepare(live, state)
    start = state.step if state is not None else 0
    advance(live, start, steps, [lambda _, i, loss: losses.append(loss)])
    return live, losses


@pytest.mark.parametrize(
    ("optimizer", "schedule", "options"),
    [(o, None, {}) for o in OPTIMIZERS]
    + [("sgd", s, {}) for s in SCHEDULES]
    + [("sgd", None, {"clip_norm": 0.05}), ("adam", "step", {"clip_norm": 0.05, "accumulate": 3}), ("lbfgs", None, {"accumulate": 2})],
)
def test_equals_the_plain_loop_bit_for_bit(optimizer, schedule, options):
    live, losses = run(training(optimizer, schedule, **options))
    start = Live.of(training(optimizer, schedule, **options), seed=3)
    model = start.model
    own = OPTIMIZERS[optimizer](model.parameters())
    plan = SCHEDULES[schedule](own) if schedule else None
    expected = plain_loop(model, own, start.batches.batch, F.cross_entropy, 8, seed=3, schedule=plan, **options)
    assert losses == expected
    same(dict(model.named_parameters()), dict(live.model.named_parameters()))
    same(dict(model.named_buffers()), dict(live.model.named_buffers()))
    same(own.state_dict(), live.optimizer.state_dict())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fork_under_the_neutral_remedy_is_the_unchanged_run(optimizer):
    recipe = training(optimizer, "step")
    live, losses = run(recipe, steps=9)
    first, _ = run(recipe, steps=4)
    state = State.capture(first, 4)
    for changed in (recipe, Remedy()(recipe), StepSize(1)(LargerBatch(1)(recipe)), Clip(1e9)(recipe)):
        fork, late = run(changed, steps=5, state=state)
        assert late == losses[4:]
        same(live.optimizer.state_dict(), fork.optimizer.state_dict())
        same(dict(live.model.named_parameters()), dict(fork.model.named_parameters()))


def test_forks_see_the_same_masks_and_data_however_they_step():
    seen = []

    class Recording(nn.Module):
        def __init__(self, chatty=False):
            super().__init__()
            self.layer, self.chatty = nn.Linear(4, 3), chatty

        def forward(self, x):
            mask = F.dropout(torch.ones(6), 0.5, self.training)
            seen.append((x.clone(), mask))
            if self.chatty:
                torch.rand(100)
            return self.layer(x)

    runs = []
    for model, remedy in ((Recording, Remedy()), (Recording, StepSize(7)), (lambda: Recording(chatty=True), Clip(0.01))):
        seen.clear()
        run(remedy(training(model=model)), steps=5)
        runs.append(clone(list(seen)))
    same(runs[0], runs[1])
    same(runs[0], runs[2])
    assert len({tuple(mask.tolist()) for _, mask in runs[0]}) > 1


def test_accumulation_is_the_mean_gradient_and_at_most_an_epoch():
    big = Training(
        model=lambda: mlp().double(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        data=(data()[0].double(), data()[1]),
        loss_fn=F.cross_entropy,
        batch_size=6,
    )
    for times, batches in ((2, 2), (4, 4), (100, 4)):
        live, (loss,) = run(LargerBatch(times)(big), steps=1)
        start = Live.of(big, seed=3)
        x, y = (torch.cat(part) for part in zip(*(start.batches.batch(j) for j in range(batches)), strict=True))
        whole = F.cross_entropy(start.model(x), y)
        whole.backward()
        assert loss == pytest.approx(whole.item(), rel=1e-12)
        for p, q in zip(start.model.parameters(), live.model.parameters(), strict=True):
            assert torch.allclose(p - 0.5 * p.grad, q, rtol=0, atol=1e-14)
    # Two steps of two batches use batches 0, 1 and 2, 3; accumulation and the remedy multiply.
    seen = []
    live = Live.of(LargerBatch(2)(training(accumulate=2)), seed=0)
    batch = live.batches.batch
    live.batches.batch = lambda i: (seen.append(i), batch(i))[1]
    advance(live, 0, 2)
    assert seen == list(range(8))


def test_watchers_see_each_step_and_may_stop():
    steps = []

    def watcher(live, i, loss):
        assert all(p.grad is not None for _, p in live.trainable())
        steps.append(i)
        return i == 6

    live = Live.of(training())
    assert advance(live, 4, 10, [watcher, lambda *_: None]) == 7
    assert steps == [4, 5, 6]
    assert advance(live, 7, 0) == 7


def test_a_loss_that_is_not_finite_ends_the_training():
    losses = []
    exploding = StepSize(1e38)(training(model=mlp, loss_fn=lambda o, y: o.square().mean()))
    live = Live.of(exploding)
    end = advance(live, 0, 50, [lambda _, i, loss: losses.append(loss)])
    assert end == len(losses) < 50
    assert not math.isfinite(losses[-1])
    assert all(math.isfinite(v) for v in losses[:-1])


def test_streams_are_put_back_where_a_step_fails():
    calls = []

    def loss_fn(output, y):
        torch.rand(1)
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("mine")
        return F.cross_entropy(output, y)

    live = Live.of(training(loss_fn=loss_fn))
    before = random_fingerprint()
    with pytest.raises(CannotRun, match="KeyError: 'mine'"):
        advance(live, 0, 9)
    assert random_fingerprint() == before


def test_a_whole_step_can_be_replaced():
    class Halve(Remedy):
        def replace_step(self, live, step):
            with torch.no_grad():
                for p in live.model.parameters():
                    p.mul_(0.5)
            return float(step)

    recipe = training(model=mlp)
    live, losses = run(Halve()(recipe), steps=3)
    assert losses == [0.0, 1.0, 2.0]
    for p, q in zip(Live.of(recipe, seed=3).model.parameters(), live.model.parameters(), strict=True):
        assert torch.equal(p / 8, q)


def test_what_cannot_be_trained_is_told():
    cases = {
        "must be a scalar": {"loss_fn": lambda o, y: F.cross_entropy(o, y, reduction="none")},
        "does not depend on any trainable": {"loss_fn": lambda o, y: F.cross_entropy(o.detach(), y)},
        "it is a float": {"loss_fn": lambda o, y: F.cross_entropy(o, y).item()},
        "Class indices": {"data": (data()[0], data()[1].float())},
        "given inputs of shape": {"data": (data()[0][:, :2], data()[1])},
    }
    for message, options in cases.items():
        with pytest.raises(CannotRun, match=message):
            run(training(**options), steps=1)
