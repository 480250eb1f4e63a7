"""The threshold rules: each fires on its symptom and on nothing else; watching a run does not disturb it."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradoscope.loop import advance
from gradoscope.training import Live, Training
from gradoscope.trials.judges import JUDGES, OURS
from gradoscope.trials.rules import Seen, named, threshold_rules, watch
from gradoscope.trials.trial import all_trials

FALLING = [2.3, 1.5, 1.0, 0.7, 0.5]


def calm(**symptoms: object) -> Seen:
    """A run without symptoms, but for these."""
    options: dict[str, object] = {"losses": list(FALLING), "steps": [2.3, 0.5], "norms": [(1.0, 1.0)], "update": [1e-3]} | symptoms
    return Seen(**options)  # type: ignore[arg-type]  # the fields above


@pytest.mark.parametrize(
    ("symptoms", "expected"),
    [
        ({}, []),
        ({"double": True}, ["wrong_loss_output"]),
        ({"steps": [2.3, math.nan]}, ["exploding_gradient"]),
        ({"norms": [(2e3, 1.0)]}, ["exploding_gradient"]),
        ({"norms": [(1e-4, 1.0)]}, ["vanishing_gradient"]),
        ({"dead": 0.6}, ["vanishing_gradient"]),
        ({"saturated": 0.9}, ["vanishing_gradient"]),
        ({"inputs": 200.0}, ["unnormalised_inputs"]),
        ({"losses": [2.3, 2.4, 2.5]}, ["step_too_large"]),
        ({"losses": [2.3, 2.299, 2.298], "update": [1e-7]}, ["step_too_small"]),
        ({"losses": [2.3, 2.299, 2.298]}, ["low_gradient_snr"]),
        ({"validation": [2.3, 1.2, 1.4]}, ["overfitting"]),
    ],
)
def test_a_rule_fires_on_its_symptom(symptoms: dict[str, object], expected: list[str]) -> None:
    assert named(calm(**symptoms)) == expected


def small(model: Callable[[], nn.Module], lr: float = 0.1) -> Training:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=random)
    y = (x[:, 0] > 0).long()
    return Training(
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.cross_entropy,
        data=(x, y),
        validation=(x[:50], y[:50]),
        batch_size=20,
        steps=20,
    )


def test_watching_sees_what_a_plain_run_does() -> None:
    training = small(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    plain: list[float] = []
    with Live.of(training, seed=3) as live:
        advance(live, 0, training.steps, [lambda _live, _step, loss: plain.append(loss)])
    seen = watch(training, 3)
    assert seen.steps == plain
    assert len(seen.losses) == len(seen.validation) == 11
    assert len(seen.norms) == 10
    assert not seen.double
    assert 0 <= seen.dead < 1


def test_a_second_softmax_and_dead_units_are_seen() -> None:
    def dead() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(dim=-1))
        nn.init.constant_(model[0].bias, -100.0)  # type: ignore[arg-type]  # a linear layer's bias
        return model

    seen = watch(small(dead), 0)
    # A constant added to what a softmax gave still cancels in the one that the loss applies.
    assert seen.double
    assert seen.dead == 1.0
    assert named(seen)[0] == "wrong_loss_output"


def test_a_run_that_breaks_ends_the_watch() -> None:
    training = small(lambda: nn.Linear(4, 1), lr=1e10)
    x, y = training.data
    seen = watch(replace(training, loss_fn=nn.functional.mse_loss, data=(x, y[:, None].float()), validation=None), 0)
    assert "exploding_gradient" in named(seen)
    assert len(seen.losses) < 11


def test_judges_share_one_shape() -> None:
    assert next(iter(JUDGES)) == OURS
    trial = all_trials()["logistic-blobs/plain"]
    answer = threshold_rules(trial.build(0), 0)
    assert answer.verdict in ("healthy", "obstructed")
    assert all(math.isnan(sure) for _, sure in answer.present)
