"""The five questions, on landscapes whose answers are known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope.landscape.answers import answers
from gradoscope.landscape.questions import bumps, canyon, place
from gradoscope.landscape.trajectory import Path, path_of
from gradoscope.landscape.walks import straightness, walks
from gradoscope.objective import Objective


class Point(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dim, dtype=torch.float64))


def quadratic(eigenvalues, batches=(0.0, 0.0, 0.0, 0.0), dim=None):
    """J_k(w) = 1/2 sum lambda w^2 + z_k w_0: batch k tilts it by z_k."""
    eigenvalues = torch.tensor(eigenvalues, dtype=torch.float64)
    return Objective(Point(len(eigenvalues)), lambda m, z: 0.5 * (eigenvalues * m.w**2).sum() + z * m.w[0], list(batches))


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def by_key(told):
    return {a.key: a for a in told}


def asked(end, places=None, **given):
    parts = {"straight": None, "found": None, "turns": None, "left": math.nan, "fallen": 1.0, **given}
    return by_key(
        answers(end, places or [end], parts["straight"], parts["found"], parts["turns"], left=parts["left"], fallen=parts["fallen"])
    )


# ------------------------------------------------------------------ critical points


def test_numbers_of_a_place_are_those_of_the_quadratic():
    half = quadratic([4.0, 2.0, 1.0, -0.5, 0.3, 0.2, 0.1])
    here = vector(1.0, 0, 0, 2.0, 0, 0, 0)
    seen = place(half, None, here, step=3, reference=-2.0, scale=1.0)
    assert abs(seen.loss - (2.0 - 1.0)) < 1e-12
    assert np.allclose(seen.gradient, math.sqrt(16 + 1))  # (4, -1): exact on the whole data set
    assert abs(seen.spectrum.largest - 4) < 1e-6
    assert abs(seen.negative[0] + 0.5) < 1e-6
    assert abs(seen.gamma[0] - math.sqrt(17) / math.sqrt(2 * 3 * 4)) < 1e-9
    assert abs(seen.steep[0] - 16 / 17) < 1e-6  # -0.5 is not among the five steepest
    assert seen.chance == 5 / 7


def test_halves_give_intervals_that_hold_the_truth():
    rng = np.random.default_rng(0)
    tilts = rng.standard_normal(16)
    first, second = quadratic([3.0, 1.0], tilts[:8]), quadratic([3.0, 1.0], tilts[8:])
    second.model = first.model
    second.parameters, second.named = first.parameters, first.named
    seen = place(first, second, vector(2.0, 1.0), step=0, reference=0.0, scale=1.0)
    truth = math.sqrt(6.0**2 + 1.0)
    assert seen.gradient[1] < truth < seen.gradient[2]
    assert abs(seen.negative[0] - 1.0) < 1e-6


def test_minimum_saddle_and_slope_are_told_apart():
    up, down = quadratic([2.0, 1.0]), quadratic([2.0, -1.0])
    origin, slope = vector(1e-6, 1e-6), vector(1.0, 1.0)
    minimum = place(up, None, origin, step=9, reference=-1.0, scale=1.0)
    saddle = place(down, None, origin, step=9, reference=-1.0, scale=1.0)
    sloping = place(up, None, slope, step=9, reference=0.0, scale=1.0)
    assert asked(minimum, left=0.9)["minimum"].answer == "yes"
    assert asked(minimum, left=0.01)["minimum"].answer == "no"
    assert asked(minimum)["minimum"].answer == "cannot be told"  # nothing says how low another run gets
    assert asked(minimum, left=0.2)["minimum"].answer == "cannot be told"
    assert asked(saddle, left=0.9)["minimum"].answer == "no"
    assert asked(saddle)["saddle"].answer == "yes"
    assert asked(sloping, left=0.9)["minimum"].answer == "no"
    assert asked(sloping)["saddle"].answer == "no"
    assert asked(minimum, [saddle, minimum])["saddle"].answer == "in part"  # it passed one


def test_noise_that_hides_the_gradient_is_not_taken_for_none():
    """Parts that disagree: the interval of the gradient holds the threshold, and nothing is told."""
    tilts = np.array([9.0, -9.0, 9.0, -9.0])
    first, second = quadratic([1.0, 1.0], tilts), quadratic([1.0, 1.0], tilts)
    seen = place(first, second, vector(0.0, 0.0), step=0, reference=-1.0, scale=1.0)
    assert seen.near is None
    assert asked(seen, left=0.9)["minimum"].answer == "cannot be told"


# ------------------------------------------------------------------ detours, bumps, canyons


def test_detour_follows_the_control():
    line = path_of(torch.linspace(0, 1, 30)[:, None] * torch.ones(1, 50))
    assert asked(None, straight=straightness(line, count=60))["detour"].answer == "no"
    angle = torch.linspace(0, 1.5 * math.pi, 40)
    around = torch.stack([angle.cos(), angle.sin(), *[0 * angle] * 48], dim=1)
    found = asked(None, straight=straightness(path_of(around), count=60))["detour"]
    assert found.answer == "yes"
    aside = found.numbers[2]
    assert aside.value > aside.high


def hills(heights):
    """A loss on a line with a bump of each height between whole numbers, seen by 16 examples with noise of their own."""
    noise = torch.linspace(-1, 1, 16, dtype=torch.float64)
    tops = torch.tensor(heights, dtype=torch.float64)

    def loss(model, z):
        x = model.w[0]
        k = int(x.detach().clamp(0, len(heights) - 1e-9))
        return tops[k] * torch.sin(math.pi * (x - k)) - 0.5 * x + 0.02 * z * (x - k) * (k + 1 - x)

    return Objective(Point(1), loss, list(noise[torch.randperm(16, generator=torch.Generator().manual_seed(0))]))


def test_bumps_are_found_where_they_are_and_nowhere_else():
    found = bumps(hills([0.0, 2.0, 0.0, 0.0]), torch.arange(5.0).double()[:, None], [0, 10, 20, 30, 40])
    assert found.significant.tolist() == [False, True, False, False]
    # The highest of the five inner points of 2 sin(pi t) - t / 2 above its start.
    inner = np.arange(1, 6) / 6
    assert abs(found.barrier[1] - (2 * np.sin(np.pi * inner) - 0.5 * inner).max()) < 0.01
    told = asked(None, found=found, fallen=2.0)["bumps"]
    assert told.answer == "yes"
    assert told.numbers[0].value == 0.25
    assert told.numbers[0].low < 0.25 < told.numbers[0].high
    none = bumps(hills([0.0, 0.0]), torch.arange(3.0).double()[:, None], [0, 1, 2])
    assert asked(None, found=none)["bumps"].answer == "no"


def test_noise_alone_makes_no_bumps():
    """Losses of examples that are random along a flat line: of 25 segments none, or at most one by chance."""
    values = torch.randn(200, 12, generator=torch.Generator().manual_seed(1)).double()

    def loss(model, k):
        return values[int(model.w[0] * 3.0001) % 200, int(k)] * 0.1

    flat = Objective(Point(1), lambda m, k: loss(m, k) + 0 * m.w.sum(), list(range(12)))
    found = bumps(flat, torch.arange(0.0, 26.0).double()[:, None], list(range(26)), inner=2)
    assert int(found.significant.sum()) <= 1


def test_canyon_cosines_against_walks():
    seen = canyon(path_of(torch.arange(17.0)[:, None] * torch.ones(1, 30)), count=50)
    assert seen.lags.tolist() == [1, 2, 4, 8]
    assert np.allclose(seen.cosine, 1)
    walk = next(walks(Path(np.eye(64), 400), 1)).path
    turning = canyon(walk, count=100)
    assert ((turning.low - 0.02 < turning.cosine) & (turning.cosine < turning.high + 0.02)).all()
    wide = max(turning.high - turning.low)
    assert wide < 4 / math.sqrt(400)


def zigzag(dim=60, count=40):
    """Across a canyon and back, and a little along it."""
    points = torch.zeros(count, dim)
    points[:, 0] = torch.tensor([(-1.0) ** k for k in range(count)])
    points[:, 1] = 0.05 * torch.arange(count)
    return points


def test_canyon_needs_walls_and_turns():
    walls = place(quadratic([100.0, *[1.0] * 9]), None, vector(1.0, *[0.1] * 9), step=5, reference=0.0, scale=1.0)
    turns = canyon(path_of(zigzag()), count=50)
    assert walls.steep[1] > 0.9
    assert asked(walls, turns=turns)["canyon"].answer == "yes"
    straight = canyon(path_of(torch.arange(40.0)[:, None] * torch.ones(1, 60)), count=50)
    assert asked(walls, turns=straight)["canyon"].answer == "in part"
    flat = place(quadratic([1.0, 0.9, 0.8, 0.7, 0.6, *[0.5] * 20]), None, vector(*[0.0] * 5, *[1.0] * 20), step=5, reference=0.0, scale=1.0)
    assert flat.steep[1] < 0.5
    assert asked(flat, turns=straight)["canyon"].answer == "no"


def test_what_was_not_measured_cannot_be_told():
    told = answers(None, [], None, None, None, left=math.nan, fallen=0.0)
    assert [a.key for a in told] == ["minimum", "saddle", "detour", "bumps", "canyon"]
    assert {a.answer for a in told} == {"cannot be told"}
    assert all(a.says.startswith("Not measured") for a in told)


@pytest.mark.parametrize("losses", [np.full((4, 6), np.nan), np.array([[0.0], [np.inf], [0.0]])])
def test_a_segment_that_is_not_finite_has_no_barrier(losses):
    from gradoscope.landscape.questions import _barrier

    assert all(math.isnan(v) for v in _barrier(losses, np.full(losses.shape[1], 1 / losses.shape[1])))
