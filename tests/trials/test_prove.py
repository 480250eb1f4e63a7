"""Proofs: what a run's end is, that cheap trials hold, and that a proof fails where a trial is not what it says."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gradoscope.training import Training
from gradoscope.trials.changes import clipped, larger_batch, longer, restarted, step_times
from gradoscope.trials.prove import alternatives, ended, prove
from gradoscope.trials.trial import Change, Success, all_trials

SAMPLE = (
    "least-squares/far-beyond-stability",
    "least-squares/stretched",
    "deep-linear/small-start",
    "peaks/on-the-small-line",
    "teacher-mlp/row-against-column",
    "cancer-mlp/raw-units",
    "tones/frozen-frequency",
    "logistic-blobs/plain",
)


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore:Using a target size")  # the planted fault of one of them
def test_a_sample_holds(name: str) -> None:
    proof = prove(all_trials()[name], seed=0)
    assert proof.holds, proof.failures


def line(lr: float = 0.1, steps: int = 20) -> Training:
    x = torch.linspace(-1, 1, 40)[:, None]
    return Training(
        model=lambda: nn.Linear(1, 1),
        optimizer=lambda params: torch.optim.SGD(params, lr=lr),
        loss_fn=nn.functional.mse_loss,
        data=(x, 2 * x),
        validation=(x[::2], 2 * x[::2]),
        metric=lambda output, target: float((output - target).abs().mean()),
        metric_mode="min",
        batch_size=40,
        steps=steps,
    )


def test_an_end_is_what_a_plain_loop_gives() -> None:
    from gradoscope.training import Live

    training = line()
    with Live.of(training, seed=5) as live:
        x, y = training.data
        first = nn.functional.mse_loss(live.model(x), y).item()
        for _ in range(training.steps):
            live.optimizer.zero_grad()
            loss = nn.functional.mse_loss(live.model(x), y)
            loss.backward()
            live.optimizer.step()
        last = nn.functional.mse_loss(live.model(x), y).item()
        error = (live.model(x[::2]) - y[::2]).abs().mean().item()
    end = ended(training, 5)
    assert end.training == pytest.approx(last, rel=1e-5)
    assert end.metric == pytest.approx(error, rel=1e-5)
    assert end.start <= first * (1 + 1e-5)
    assert end.value(Success("metric", 1.0)) == end.metric


def test_a_run_that_breaks_ends_at_infinity() -> None:
    end = ended(line(lr=1e30), 0)
    assert math.isinf(end.training)
    assert math.isinf(end.validation)
    assert math.isnan(end.metric)


def test_a_proof_fails_where_the_fault_is_none() -> None:
    trial = all_trials()["least-squares/tiny-step"]
    assert trial.repair is not None
    found = prove(replace(trial, build=trial.repair.make), 0)
    assert not found.holds
    assert any("as it is" in why for why in found.failures)


def test_a_proof_fails_where_the_repair_is_none_or_a_rival_does_as_well() -> None:
    trial = all_trials()["least-squares/tiny-step"]
    assert trial.repair is not None
    idle = prove(replace(trial, repair=Change("nothing", trial.build)), 0)
    assert any("does not reach" in why for why in idle.failures)
    rivalled = prove(replace(trial, rivals=(Change("the same", trial.repair.make),)), 0)
    assert any("too" in why for why in rivalled.failures)


def test_a_proof_of_health_fails_for_a_training_that_an_alternative_betters() -> None:
    trial = all_trials()["least-squares/plain"]
    slow = prove(replace(trial, build=all_trials()["least-squares/short-step"].build), 0)
    assert not slow.holds
    assert any("three times as large" in why for why in slow.failures)


def test_a_proof_of_health_fails_for_a_training_that_overfits() -> None:
    faulty = all_trials()["least-squares/as-many-weights-as-rows"]
    trial = all_trials()["least-squares/plain"]
    found = prove(replace(trial, build=faulty.build, success=Success("training", 1.0), margin=1.0), 0)
    assert any("above training" in why for why in found.failures)


def test_changes_change_what_they_say() -> None:
    training = line()
    model = training.model()
    assert step_times(training, 3.0).optimizer(model).param_groups[0]["lr"] == pytest.approx(0.3)
    assert larger_batch(training, 4) is None
    assert larger_batch(replace(training, batch_size=15), 4).batch_size == 40  # type: ignore[union-attr]  # 15 of 40 rows
    assert longer(training, 2).steps == 40
    assert clipped(training).clip_norm == 1.0
    starts = [ended(restarted(training, k), 0).training for k in (0, 1)]
    assert starts[0] == ended(training, 0).training
    assert starts[0] != starts[1]


def test_a_healthy_trial_has_three_alternatives() -> None:
    for name in ("least-squares/plain", "least-squares/converged-long-ago"):
        trial = all_trials()[name]
        made = [change.make(0) for change in alternatives(trial)]
        assert len(made) == 3
