"""The staircase: its values, its gradient of exactly zero, and the forward-only update."""

import math
from itertools import pairwise

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.steps import ForwardOnly, Ramp, Smooth, Staircase, round_down, thresholds
from gradoscope.training import Live


@pytest.mark.parametrize("module", [Staircase, ForwardOnly])
def test_rounds_down_to_a_known_level(module):
    levels = thresholds().tolist()
    r = torch.cat([torch.linspace(-99, 120, 400), thresholds()])
    expected = [max(z for z in levels if z <= v) for v in r.tolist()]
    torch.testing.assert_close(module()(r), torch.tensor(expected), rtol=0, atol=1e-4)


def test_direct_has_a_gradient_that_is_exactly_zero(train):
    training = find("steps:direct", seed=1)
    live = Live.of(training, seed=1)
    loss = live.loss(training.data(torch.Generator().manual_seed(0), 256))
    assert loss.requires_grad
    loss.backward()
    assert loss.item() > 0.1
    assert all(p.grad is not None and not p.grad.any() for p in live.model.parameters())
    start = [p.clone() for p in live.model.parameters()]
    after = train(training, seed=1, steps=50).live.model.parameters()
    assert all(torch.equal(p, q) for p, q in zip(start, after, strict=True))


def test_several_levels_occur():
    _, y = find("steps:direct").data(torch.Generator().manual_seed(0), 1000)
    assert len(y.unique()) >= 6


def test_forward_only_update_against_its_formula():
    training = find("steps:forward-only", seed=2)
    live = Live.of(training, seed=2)
    x, y = training.data(torch.Generator().manual_seed(0), 64)
    live.loss((x, y)).backward()
    weight, bias = live.model[0].weight.detach(), live.model[0].bias.detach()
    slow = sum(2 * (Staircase()(weight @ a + bias) - b) * a for a, b in zip(x, y, strict=True)) / 64
    torch.testing.assert_close(live.model[0].weight.grad[0], slow)


@pytest.mark.parametrize("seed", [0, 3])
def test_forward_only_learns(train, seed):
    training = find("steps:forward-only", seed=seed)
    assert train(training, seed=seed).on(training.validation)[0] < 0.02


def test_the_codes_levels():
    levels = thresholds("code").tolist()
    expected = sorted({*range(-100, 100, 5), -4, -3, -2, -1, -0.2, 0, 0.1, 0.15, 0.175, 1, 2, 3, 4})
    assert len(levels) == 52
    assert levels == pytest.approx(expected)
    with pytest.raises(Usage, match="law"):
        thresholds("paper")


@pytest.mark.parametrize("law", ["text", "code"])
def test_rounding_down_by_search_agrees_with_the_sum_of_signs(law):
    r, offset = torch.linspace(-99, 99, 999), 0.37
    levels = [z + offset for z in thresholds(law).tolist()]
    expected = torch.tensor([max([z for z in levels if z <= v], default=levels[0]) for v in r.tolist()])
    torch.testing.assert_close(round_down(r, law, offset), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(Staircase(law, offset)(r), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sharpness", [0.0, 30.0])
def test_smooth_against_its_formula(sharpness):
    levels, offset, r = thresholds("code").double().tolist(), 0.4, torch.linspace(-6, 6, 97, dtype=torch.float64)
    slow = []
    for v in r.tolist():
        total = levels[0] + offset
        for low, high in pairwise(levels):
            slope, centre = (sharpness, high) if sharpness else (50 / (high - low), high - (high - low) / 20)
            total += (high - low) / (1 + math.exp(-max(min(slope * (v - offset - centre), 700), -700)))
        slow.append(total)
    found = Smooth("code", offset, sharpness).double()(r)
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-4)  # the levels are single precision


@pytest.mark.parametrize("lipschitz", [1.0, 3.0, 1000.0])
def test_ramps_are_lipschitz_and_reach_every_level(lipschitz):
    ramp, r = Ramp(lipschitz).double(), torch.linspace(-110, 110, 40001, dtype=torch.float64)
    rise = ramp(r).diff() / r.diff()
    assert float(rise.min()) >= 0
    assert float(rise.max()) <= lipschitz * (1 + 1e-6)
    levels = thresholds().double()
    torch.testing.assert_close(ramp(levels), levels)
    if lipschitz == 1:
        inside = r[(r > -100) & (r < 95)]
        torch.testing.assert_close(ramp(inside), inside)
    if lipschitz == 1000:
        away = (r.unsqueeze(-1) - levels).abs().min(-1).values > 0.02
        torch.testing.assert_close(ramp(r)[away], round_down(r)[away])
    with pytest.raises(Usage, match="at least 1"):
        Ramp(0.5)


def test_staircases_of_a_stack_have_offsets_of_their_own():
    r, offsets = torch.linspace(-2, 2, 21).reshape(1, 21, 1).repeat(3, 1, 1), torch.tensor([-0.3, 0.0, 0.8]).reshape(3, 1, 1)
    for kind in (Staircase, ForwardOnly, Smooth):
        stacked = kind("code", offsets)(r)
        for s in range(3):
            torch.testing.assert_close(stacked[s], kind("code", float(offsets[s]))(r[s]))


def test_smooth_stays_on_its_flat_piece_and_learns_near_the_target(train):
    stuck = train(find("steps:smooth", seed=1), seed=1, steps=300)
    before, after = stuck.losses[0], sum(stuck.losses[-20:]) / 20
    assert after > 0.7 * before
    assert abs(float(stuck.live.model[0].bias.detach())) < 0.05
    near = train(find("steps:smooth,gap=0.02", seed=1), seed=1, steps=800)
    assert sum(near.losses[-20:]) / 20 < 0.01


def test_the_networks_learn_what_the_source_says(train):
    classes = find("steps:multi-class", seed=0)
    assert train(classes, steps=1000).on(classes.validation)[1] > 0.9
    x, y = classes.data(torch.Generator().manual_seed(3), 500)
    numbers = find("steps:end-to-end", seed=0)
    again, z = numbers.data(torch.Generator().manual_seed(3), 500)
    assert torch.equal(x, again)
    assert len(y.unique()) == len(z.unique()) == 6
    assert train(numbers, steps=600).on(numbers.validation)[0] < 0.5 * float(z.var())


def test_options_reach_the_problem():
    direct = find("steps:smooth,scale=1,law=text,gap=-50")
    x, y = direct.data(torch.Generator().manual_seed(0), 4000)
    assert float(x.std()) == pytest.approx(1, abs=0.01)
    assert set(y.unique().tolist()) <= set(thresholds().tolist())
    assert float(y.mean()) == pytest.approx(50, abs=5.0)  # rounded down by up to 5
