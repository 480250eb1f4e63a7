"""Reference levels of a loss against their closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradoscope.guard import random_fingerprint
from gradoscope.levels import attainable_loss, constant_loss, levels
from gradoscope.training import Live, Training
from tests.reference.training import data, everything, mlp, same

N = 200


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(shares=(0.6, 0.3, 0.1), n=N):
    """Classes of these very frequencies, in both halves of the rows (even and odd ones)."""
    each = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor([round(s * n / 2) for s in shares]))
    return each.repeat_interleave(2)


def entropy(shares):
    return -sum(p * math.log(p) for p in shares if p > 0)


def smoothed(shares, smoothing):
    return [(1 - smoothing) * p + smoothing / len(shares) for p in shares]


def test_squared_error_has_the_variance():
    y = draw(N, 2, seed=1) * torch.tensor([1.0, 3.0]) + 5
    even, odd = y[0::2], y[1::2]
    crossed = ((odd - even.mean(0)).square().mean() + (even - odd.mean(0)).square().mean()) / 2
    value = constant_loss(F.mse_loss, draw(N, 2), y)
    assert value == pytest.approx(float(crossed), rel=1e-5)
    assert value == pytest.approx(float(y.var(0).mean()), rel=0.03)
    assert attainable_loss(F.mse_loss, draw(N, 2), y) == pytest.approx(0, abs=1e-8)


def test_absolute_error_has_the_deviation_from_the_median():
    y = draw(N, 1, seed=2).exp().repeat_interleave(2, 0)  # both halves the same
    value = constant_loss(F.l1_loss, draw(2 * N, 1), y)
    assert value == pytest.approx(float((y - y.median()).abs().mean()), rel=0.02)
    assert attainable_loss(F.l1_loss, draw(2 * N, 1), y) < 0.05 * value


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (0.5, 0.5), (0.97, 0.01, 0.02)])
def test_cross_entropy_has_the_entropy_of_the_class_frequencies(shares):
    y = classes(shares)
    for scale in (0.1, 5.0):
        output = scale * draw(len(y), len(shares))
        assert constant_loss(F.cross_entropy, output, y) == pytest.approx(entropy(shares), abs=1e-4)
        assert attainable_loss(F.cross_entropy, output, y) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_has_the_entropy_of_its_targets(smoothing):
    shares, y = (0.6, 0.3, 0.1), classes()
    loss_fn = nn.CrossEntropyLoss(label_smoothing=smoothing)
    floor = entropy(smoothed((1, 0, 0), smoothing))
    assert attainable_loss(loss_fn, draw(len(y), 3), y) == pytest.approx(floor, abs=1e-4)
    assert constant_loss(loss_fn, draw(len(y), 3), y) == pytest.approx(entropy(smoothed(shares, smoothing)), abs=1e-4)


def test_soft_targets_and_weights():
    target = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]).repeat_interleave(20, 0)
    floor = (entropy(target[0].tolist()) + entropy(target[-1].tolist())) / 2
    assert attainable_loss(F.cross_entropy, draw(40, 3), target) == pytest.approx(floor, abs=1e-4)
    assert constant_loss(F.cross_entropy, draw(40, 3), target) == pytest.approx(entropy(target.mean(0).tolist()), abs=1e-4)
    y, weight = classes((0.5, 0.5)), torch.tensor([1.0, 3.0])
    value = constant_loss(nn.CrossEntropyLoss(weight=weight), draw(len(y), 2), y)
    assert value == pytest.approx(entropy((0.25, 0.75)), abs=1e-4)


def test_two_classes_by_one_output():
    y = classes((0.8, 0.2)).float().unsqueeze(1)
    loss_fn = F.binary_cross_entropy_with_logits
    assert constant_loss(loss_fn, draw(len(y), 1), y) == pytest.approx(entropy((0.8, 0.2)), abs=1e-4)
    assert attainable_loss(loss_fn, draw(len(y), 1), y) == pytest.approx(0, abs=1e-3)


def hinge(output, sign):
    return (1 - sign * output).clamp(min=0).mean()


def test_hinge_has_twice_the_rarer_share():
    # A constant c in [-1, 1] costs 0.75 (1 - c) + 0.25 (1 + c): best at c = 1.
    sign = (1 - 2 * classes((0.75, 0.25)).float()).unsqueeze(1)
    assert constant_loss(hinge, 0.1 * draw(len(sign), 1), sign) == pytest.approx(0.5, abs=0.01)
    assert attainable_loss(hinge, 0.1 * draw(len(sign), 1), sign) == pytest.approx(0, abs=1e-3)


SEQUENCES = {
    "transposed": lambda o, y: F.cross_entropy(o.transpose(1, 2), y),
    "viewed": lambda o, y: F.cross_entropy(o.view(-1, 3), y.view(-1)),
    "flattened": lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()),
}


@pytest.mark.parametrize("loss_fn", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_sequences_of_classes(loss_fn):
    # Two positions of the same frequencies, three of others.
    shares = [(0.6, 0.3, 0.1)] * 2 + [(0.2, 0.2, 0.6)] * 3
    y = torch.stack([classes(s) for s in shares], 1)
    output = draw(len(y), 5, 3)
    assert constant_loss(loss_fn, output, y) == pytest.approx(np.mean([entropy(s) for s in shares]), abs=1e-3)
    assert attainable_loss(loss_fn, output, y) == pytest.approx(0, abs=1e-3)


UNBOUNDED = {
    "negative log-likelihood of anything": (F.nll_loss, lambda: (draw(N, 3), classes())),
    "linear": (lambda o, y: (o * y).mean(), lambda: (draw(N, 2), draw(N, 2, seed=3) + 1)),
    "reward": (lambda o, y: -o.exp().mean(), lambda: (draw(N, 2), draw(N, 2))),
}


@pytest.mark.parametrize("case", UNBOUNDED.values(), ids=UNBOUNDED.keys())
def test_a_loss_without_bound_has_no_levels(case):
    loss_fn, make = case
    output, target = make()
    assert attainable_loss(loss_fn, output, target) is None
    assert constant_loss(loss_fn, output, target) is None


def own_nll(output, y):
    return -output.gather(1, y.unsqueeze(1)).log().mean()


NORMALISED = {
    "log-probabilities": (F.nll_loss, lambda: draw(N, 3).log_softmax(-1)),
    "log-probabilities by position": (lambda o, y: F.nll_loss(o, y[:, None].expand(-1, 4)), lambda: draw(N, 3, 4).log_softmax(1)),
    "probabilities": (own_nll, lambda: draw(N, 3).softmax(-1)),
    "probabilities, each for itself": (lambda o, y: F.binary_cross_entropy(o, F.one_hot(y, 3).float()), lambda: draw(N, 3).sigmoid()),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_outputs_that_are_normalised_by_the_model(name):
    loss_fn, make = NORMALISED[name]
    shares = (0.6, 0.3, 0.1)
    constant = np.mean([entropy((s, 1 - s)) for s in shares]) if "itself" in name else entropy(shares)
    assert constant_loss(loss_fn, make(), classes()) == pytest.approx(constant, abs=1e-3)
    assert attainable_loss(loss_fn, make(), classes()) == pytest.approx(0, abs=1e-3)


def test_a_loss_below_zero_with_a_bound_has_levels():
    def cosine(output, y):
        return -F.cosine_similarity(output, y).mean()

    y = F.normalize(draw(N, 3, seed=4) + torch.tensor([3.0, 0, 0]), dim=1)
    assert attainable_loss(cosine, draw(N, 3), y) == pytest.approx(-1, abs=1e-3)
    assert constant_loss(cosine, draw(N, 3), y) == pytest.approx(-float(y.mean(0).norm()), abs=0.01)


def test_what_has_no_levels():
    y = classes()
    assert constant_loss(F.cross_entropy, draw(6, 3), y[:6]) is None  # too few rows
    assert attainable_loss(F.cross_entropy, draw(len(y), 3) * math.nan, y) is None
    assert attainable_loss(lambda o, t: (o - t).float().square().mean(), y, y) is None  # outputs that are no real numbers
    assert constant_loss(lambda o, t: (o - t).float().square().mean(), y, y) is None


class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return (self.layer(x),)


def recipe(**options) -> Training:
    base = {"model": mlp, "optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "data": data(64), "loss_fn": F.cross_entropy}
    return Training(**(base | options))


def test_levels_of_a_training_leave_nothing_behind():
    live = Live.of(recipe(model=lambda: mlp(nn.BatchNorm1d(6), nn.Dropout(0.5))))
    before, streams = everything(live.model), random_fingerprint()
    constant, attainable = levels(live)
    same(before, everything(live.model))
    assert random_fingerprint() == streams
    shares = np.bincount(data(64)[1]) / 64
    assert constant == pytest.approx(entropy(shares), rel=0.1)
    assert attainable == pytest.approx(0, abs=1e-3)


def test_one_level_is_told_where_the_other_cannot():
    class Whole(nn.Module):
        """A loss that wants all rows at once."""

        def forward(self, output, y):
            assert len(output) == 64
            return F.cross_entropy(output, y)

    constant, attainable = levels(Live.of(recipe(loss_fn=Whole())))
    assert constant is None
    assert attainable == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_fn": None, "batch_loss": lambda m, b: F.cross_entropy(m(b[0]), b[1])},
        {"model": lambda: Tupled(), "loss_fn": lambda o, y: F.cross_entropy(o[0], y)},
        {"data": [(data(2)[0], data(2)[1])], "loss_fn": lambda o, y: F.nll_loss(o, y)},
    ],
)
def test_trainings_without_levels(options):
    assert levels(Live.of(recipe(**options))) == (None, None)
