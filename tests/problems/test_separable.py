"""Wide networks on separable data in the catalogue: what the constructions promise."""

import math

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.separable import WideLeaky, hinge, separated, two_digits
from gradoscope.training import Live


def test_the_network_is_the_one_of_the_formula():
    net = WideLeaky(4, 3, slope=0.2)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    z = x @ net.weight.T
    slow = (torch.maximum(z, 0.2 * z) @ torch.tensor([1.0] * 3 + [-1.0] * 3)) / math.sqrt(6)
    assert torch.allclose(net(x), slow, atol=1e-6)
    assert float(net.weight.detach().norm()) == pytest.approx(1, rel=1e-6)
    assert float(hinge(torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0]))) == pytest.approx((0.5 + 3) / 2)


def test_data_keep_their_margin():
    w = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    x, y = separated(50, 3, 0.3, w, torch.Generator().manual_seed(1))
    assert x.shape == (50, 3)
    assert float((y * (x @ w)).min()) >= 0.3
    assert torch.allclose(x.norm(dim=1), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 200])
def test_leaky_networks_learn_at_any_width(train, k):
    training = find(f"separable:leaky,k={k}")
    found = train(training)
    assert max(found.losses[-400:]) == 0  # a whole pass without an update
    assert found.on(training.data)[1] == 1.0


def test_dead_relus_never_move(train):
    training = find("separable:relu-dead", seed=3)
    start = Live.of(training).model.weight.detach().clone()
    found = train(training, steps=50)
    assert torch.equal(found.live.model.weight, start)
    share = float((training.data[1] > 0).double().mean())
    assert found.on(training.data)[0] == pytest.approx(share, abs=1e-6)


def test_narrow_relus_lose_what_no_unit_sees_and_others_do_not(train):
    training = find("separable:relu-narrow")
    weight = Live.of(training).model.weight.detach()
    x, y = training.data
    seen = torch.where(y > 0, weight[0] > 0, weight[1] > 0)
    found = train(training)
    with torch.no_grad():
        right = found.live.model(x) * y >= 1 - 1e-5
    assert torch.equal(right, seen)
    assert train(find("separable:relu-wide")).on(training.data)[0] < 1e-6
    assert train(find("separable:relu-narrow,slope=0.1")).on(training.data)[0] < 1e-6


def test_two_digits():
    (x, y), (x_test, y_test) = two_digits("digits", 0)
    assert x.shape == (270, 64)
    assert len(x_test) == len(y_test) > 80
    assert set(y.tolist()) == {1.0, -1.0}
    assert float(x.norm(dim=1).max()) == pytest.approx(1)


def test_digits_are_learnt(train):
    training = find("separable:two-digits,data=digits,k=10")
    found = train(training)
    assert found.on(training.data)[1] == 1.0
    assert found.on(training.validation)[1] > 0.9


def test_bad_options():
    with pytest.raises(Usage, match="margin"):
        find("separable:leaky,margin=0.95")
