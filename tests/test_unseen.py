"""A gain that shows on no new example is no gain of an obstacle's remedy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradoscope import Training
from gradoscope.case import Case
from gradoscope.comparison import paired
from gradoscope.diagnose import examine
from gradoscope.guard import derive_seed
from gradoscope.remedies.larger_batch import LargerBatch
from gradoscope.trace import Trace
from gradoscope.unseen import by_heart, learnt_by_heart, run_held_out

PARTS = np.linspace(-0.1, 0.1, 32)


def trace(*levels: float, noise: int = 0) -> Trace:
    """A run whose validation loss goes through these levels, with part losses around each."""
    rng = np.random.default_rng(noise)
    points = [(i, level + PARTS + 0.01 * rng.standard_normal(32)) for i, level in enumerate(levels)]
    return Trace(0, done=len(levels) - 1, probe=points, validation=points)


FLAT = trace(1.0, 1.0, 1.0, 1.0, noise=1)


@pytest.mark.parametrize(
    ("changed", "gain", "heart"),
    [
        (trace(1.0, 1.0, 1.0, 1.0, noise=2), 0.5, True),
        (trace(1.0, 1.2, 1.5, 1.9, noise=2), 0.5, True),
        (trace(1.0, 0.8, 0.6, 0.5, noise=2), 0.5, False),
        (trace(1.0, 0.7, 1.2, 1.9, noise=2), 0.5, False),  # learnt, and only then overfitted
        (trace(1.0, 1.0, 1.0, 1.0, noise=2), 0.002, False),  # too small a gain to be told from half of it
        (trace(1.0, float("nan"), float("nan"), float("nan"), noise=2), 0.5, False),
    ],
)
def test_by_heart_is_a_gain_that_new_examples_do_not_show(changed: Trace, gain: float, heart: bool) -> None:
    assert learnt_by_heart(FLAT, changed, gain) is heart


def test_nothing_is_said_without_validation() -> None:
    assert not learnt_by_heart(Trace(0, probe=FLAT.probe), Trace(0, probe=FLAT.probe), 0.5)


def test_the_unchanged_run_counts_from_where_the_other_left_it() -> None:
    """It had been lower before: that is no merit of either."""
    unchanged, changed = trace(1.0, 0.2, 1.0, 1.0, 1.0, noise=1), trace(1.0, 0.8, 0.7, 0.7, noise=2)
    assert learnt_by_heart(unchanged, changed, 0.5)
    assert not learnt_by_heart(unchanged, changed, 0.5, since=2)


def test_lowest_is_chosen_on_one_half_and_judged_on_the_other() -> None:
    rng = np.random.default_rng(0)
    points = [(i, rng.standard_normal(8)) for i in range(30)]
    losses, step = Trace(0, validation=points).lowest()
    best = {half: min(points, key=lambda p: p[1][half::2].mean()) for half in (0, 1)}
    assert np.array_equal(losses[1::2], best[0][1][1::2])
    assert np.array_equal(losses[0::2], best[1][1][0::2])
    assert step == min(best[0][0], best[1][0])


def test_lowest_has_no_luck_of_the_winner() -> None:
    """Of thirty points of nothing the lowest mean is far below zero; what is judged on the other half is zero."""
    draws = np.random.default_rng(1).standard_normal((400, 30, 8))
    judged = np.array([Trace(0, validation=list(enumerate(points))).lowest()[0].mean() for points in draws])
    assert abs(judged.mean()) < 4 * judged.std() / 20
    assert draws.mean(2).min(1).mean() < -0.6


def noise(rows: int = 600, validation: bool = True) -> Training:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(rows, 10, generator=g), torch.randint(0, 2, (rows,), generator=g)
    cut = rows * 3 // 4

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))

    return Training(
        model=model,
        optimizer=lambda p: torch.optim.Adam(p, 5e-3),
        loss_fn=F.cross_entropy,
        data=(x[:cut], y[:cut]) if validation else (x, y),
        validation=(x[cut:], y[cut:]) if validation else None,
        batch_size=16,
        steps=200,
    )


@pytest.mark.parametrize("validation", [True, False])
def test_random_labels_are_no_obstacle_that_a_larger_batch_removes(validation: bool) -> None:
    """A larger batch learns more of them by heart, and nothing else: no finding may take that for its confirmation."""
    case = Case(noise(validation=validation), step_seconds=1e-3)
    larger = case.trial(LargerBatch(16))
    assert larger.difference > 3 * larger.difference_se  # the training loss does end lower
    assert by_heart(case, larger)
    assert case.material(larger) is False
    d = examine(case)
    assert [f.obstacle for f in d.present if f.obstacle != "overfitting"] == []


def test_held_out_examples_are_never_trained_on() -> None:
    """Against the same run by hand: the rows of the seed's quarter left out."""
    training = noise(200, validation=False)
    case = Case(training, step_seconds=1e-3)
    start = case.baseline.states[0]
    trace = run_held_out(training, LargerBatch(1), start, steps=20, seed=0, device=None)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(derive_seed(0, 107)))
    x, y = training.data
    parts = Training(
        **{**training.__dict__, "data": (x[order[50:]], y[order[50:]]), "validation": (x[order[:50]], y[order[:50]]), "steps": 20}
    )
    again = Case(parts, step_seconds=1e-3)
    assert trace.done == 20
    assert len(trace.validation) == 21
    assert trace.validation[0][1].mean() == pytest.approx(again.baseline.validation[0][1].mean(), rel=1e-6)
    assert paired(trace.result("validation"), again.baseline.result("validation"))[0] == pytest.approx(0, abs=1e-6)
