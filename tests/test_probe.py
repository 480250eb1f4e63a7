"""The fixed examples: the losses of their parts, and nothing left behind."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.guard import random_fingerprint
from gradoscope.loop import advance
from gradoscope.probe import PARTS, Probe
from gradoscope.training import Live, Training
from tests.reference.training import data, everything, mlp, same


def live_of(model, **options) -> Live:
    base = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "data": data(64), "batch_size": 16, "loss_fn": F.cross_entropy}
    return Live.of(Training(model=model, **(base | options)))


def by_batch(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("losses", [{"loss_fn": F.cross_entropy}, {"loss_fn": None, "batch_loss": by_batch}])
@pytest.mark.parametrize("rows", [1, 2, 30, 64])
def test_parts_are_the_losses_of_consecutive_rows(losses, rows):
    live = live_of(lambda: mlp().double(), data=(data(64)[0].double(), data(64)[1]), **losses)
    x, y = live.batches.sample(rows, "probe")[0]
    probe = Probe(live, [(x, y)], "train")
    values = probe.losses(live)
    with torch.no_grad():
        each = F.cross_entropy(live.model(x), y, reduction="none").numpy()
    parts = min(PARTS, rows)
    assert values == pytest.approx([part.mean() for part in np.array_split(each, parts)], rel=1e-12)
    assert probe.rows == rows
    assert len(values) == parts


def test_several_batches_share_the_parts():
    live = live_of(mlp, data=[data(16, seed=k) for k in range(4)])
    for options in ({}, {"loss_fn": None, "batch_loss": by_batch}):
        live = live_of(mlp, data=[data(16, seed=k) for k in range(4)], **options)
        probe = Probe(live, live.batches.sample(64, "probe"), "eval")
        values = probe.losses(live)
        assert len(values) == PARTS
        with torch.no_grad():
            whole = torch.stack([F.cross_entropy(live.model(x), y) for x, y in live.batches.sample(64, "probe")])
        assert values.mean() == pytest.approx(float(whole.mean()), rel=1e-5)


@pytest.mark.parametrize("losses", [{"loss_fn": F.cross_entropy}, {"loss_fn": None, "batch_loss": by_batch}])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_statistics_and_masks_are_those_of_the_mode(losses, mode):
    live = live_of(lambda: mlp(nn.BatchNorm1d(6)), **losses)
    advance(live, 0, 3)
    batch = live.batches.sample(64, "probe")[0]
    live.model.train(mode == "train")
    with torch.no_grad():
        twin = Live.of(live.training).model  # running statistics are touched in a copy
        twin.load_state_dict(live.model.state_dict())
        whole = float(F.cross_entropy(twin.train(mode == "train")(batch[0]), batch[1]))
    live.model.train(mode != "train")
    values = Probe(live, [batch], mode).losses(live)
    assert values.mean() == pytest.approx(whole, rel=1e-5)  # whole batches, as batch normalisation mixes the rows


def test_masks_are_fixed_and_nothing_is_left_behind():
    live = live_of(lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5)))
    advance(live, 0, 2)
    train, plain = (Probe(live, live.batches.sample(64, "probe"), mode) for mode in ("train", "eval"))
    before, streams = everything(live.model, live.optimizer), random_fingerprint()
    values = train.losses(live)
    assert np.array_equal(values, train.losses(live))
    assert not np.array_equal(values, plain.losses(live))
    same(before, everything(live.model, live.optimizer))
    assert random_fingerprint() == streams


def test_numbers_that_are_not_finite_are_passed_on():
    live = live_of(mlp)
    probe = Probe(live, live.batches.sample(64, "probe"), "train")
    with torch.no_grad():
        live.model[2].bias[0] = math.nan
    assert np.isnan(probe.losses(live)).all()


def test_losses_that_no_part_can_be_cut_from():
    # A loss of one number per batch whose target is no tensor of rows.
    live = live_of(lambda: nn.Linear(4, 1), data=[(data(8)[0], torch.tensor(1.0))], loss_fn=lambda o, t: (o.mean() - t).square())
    probe = Probe(live, live.batches.sample(8, "probe"), "train")
    assert probe.losses(live).shape == (1,)
    # Batches that are no tensors at all.
    live = live_of(
        lambda: nn.Linear(4, 1), data=["a", "bb"], loss_fn=None, batch_loss=lambda m, b: m(torch.ones(1, 4)).square().mean() * len(b)
    )
    one, two = Probe(live, live.batches.sample(2, "probe"), "train").losses(live)
    assert two == pytest.approx(2 * one)


def test_the_metric_is_taken_over_all_examples_at_once():
    calls = []

    def metric(output, target):
        calls.append(len(target))
        return (output.argmax(-1) == target).float().mean()

    batches = [data(10, seed=1), data(30, seed=2)]
    live = live_of(mlp, data=batches, metric=metric)
    value = Probe(live, live.batches.sample(40, "probe"), "eval").metric(live)
    with torch.no_grad():
        right = [int((live.model(x).argmax(-1) == y).sum()) for x, y in batches]
    assert value == pytest.approx(sum(right) / 40)
    assert calls == [40]
    assert Probe(live_of(mlp), [data()], "eval").metric(live_of(mlp)) is None
