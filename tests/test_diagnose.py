"""The product's promise: each classic failure gets the verdict that its construction demands, and nothing else."""

import copy
import json
import math
import random
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

from gradoscope import thresholds
from gradoscope.case import Case
from gradoscope.diagnose import diagnose, diagnose_run, examine
from gradoscope.guard import private_random
from gradoscope.obstacles import all_obstacles
from gradoscope.problems import find
from gradoscope.readings import overshoot
from gradoscope.report.schema import load_schema
from gradoscope.store import Run
from gradoscope.training import Training

DEMANDED = {
    "digits:healthy": "healthy",
    "digits:deep-sigmoid": "vanishing_gradient",
    "digits:dead-relu": "vanishing_gradient",
    "digits:tiny-step": "step_too_small",
    "digits:huge-step": "step_too_large",
    "digits:memorise": "overfitting",
    "parity:d=30": "uninformative_gradient",
    "curves:linear": "ill_conditioning",
    "linear-network:saddle": "saddle_point",
    "steps:direct": "vanishing_gradient",
}


def check(target: str, seed: int) -> None:
    diagnosis = diagnose(find(target, seed=seed), seed=seed)
    jsonschema.validate(json.loads(diagnosis.to_json()), load_schema())
    present = [f.obstacle for f in diagnosis.present]
    if DEMANDED[target] == "healthy":
        assert diagnosis.verdict == "healthy"
        assert present == []
    else:
        assert diagnosis.verdict == "obstructed"
        assert present == [DEMANDED[target]]
        assert diagnosis[DEMANDED[target]].evidence


@pytest.mark.parametrize("target", DEMANDED)
def test_the_catalogue_gets_the_demanded_verdict(target: str) -> None:
    check(target, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("target", DEMANDED)
def test_over_five_seeds(target: str, seed: int) -> None:
    check(target, seed)


def small(**changes: object) -> Training:
    with private_random(3):
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 1))
        x = torch.randn(256, 6)
    y = x[:, :1] * 2 - x[:, 1:2]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    settings: dict[str, object] = {
        "model": model,
        "loss_fn": nn.functional.mse_loss,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.StepLR(optimizer, 40),
        "data": (x, y),
        "validation": (x[:64], y[:64]),
        "batch_size": 32,
        "steps": 60,
    }
    return Training(**(settings | changes))  # type: ignore[arg-type]


def test_what_was_handed_in_is_afterwards_what_it_was() -> None:
    training = small()
    model, optimizer, schedule = training.model, training.optimizer, training.schedule
    assert isinstance(model, nn.Module)
    loss = model(training.data[0]).square().mean()
    loss.backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    grads = [p.grad.clone() for p in model.parameters()]
    streams = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    diagnose(training)
    after = (model.state_dict(), optimizer.state_dict(), schedule.state_dict())
    for a, b in zip(torch.utils._pytree.tree_leaves(before), torch.utils._pytree.tree_leaves(after), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, grad)
        assert not p._backward_hooks
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.random.get_state()[1].tobytes() == streams[1]
    assert random.getstate() == streams[2]
    assert all(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_the_same_seed_gives_the_same_diagnosis() -> None:
    first, second = diagnose(find("linear-network:saddle"), seed=1), diagnose(find("linear-network:saddle"), seed=1)
    for a, b in zip(first.counterfactuals, second.counterfactuals, strict=True):
        assert a == b
    assert [f.to_dict() for f in first.findings] == [f.to_dict() for f in second.findings]


def test_without_counterfactuals_no_obstacle_is_present() -> None:
    diagnosis = diagnose(find("digits:deep-sigmoid"), counterfactuals=False)
    assert diagnosis.verdict == "undetermined"
    assert diagnosis.counterfactuals == ()
    vanishing = diagnosis["vanishing_gradient"]
    assert vanishing.status == "undetermined"
    assert "counterfactual" in vanishing.missing
    assert any(e.supports for e in vanishing.evidence)


def test_every_obstacle_has_a_finding_and_every_finding_is_argued() -> None:
    diagnosis = diagnose(find("digits:tiny-step"))
    assert {f.obstacle for f in diagnosis.findings} == {o.name for o in all_obstacles()}
    for finding in diagnosis.findings:
        assert 0.5 <= finding.confidence <= 0.99
        assert finding.evidence or finding.missing
        if finding.status == "present":
            assert finding.gain is not None
            assert finding.remedy
    order = {"present": 0, "undetermined": 1, "absent": 2}
    places = [order[f.status] for f in diagnosis.findings]
    assert places == sorted(places)


def test_the_unit_of_the_loss_does_not_matter() -> None:
    def scaled(factor: float) -> Training:
        training = find("linear-network:saddle")
        loss_fn = training.loss_fn
        assert loss_fn is not None
        optimizer = training.optimizer
        assert not isinstance(optimizer, torch.optim.Optimizer)

        def smaller(parameters: object) -> torch.optim.Optimizer:
            made = optimizer(parameters)
            for group in made.param_groups:
                group["lr"] /= factor
            return made

        return replace(training, loss_fn=lambda o, t: factor * loss_fn(o, t), optimizer=smaller)

    for factor in (1e-3, 1e3):
        diagnosis = diagnose(scaled(factor))
        assert [f.obstacle for f in diagnosis.present] == ["saddle_point"]


def test_a_frozen_layer_that_matters_is_found_and_one_that_does_not_is_none() -> None:
    def frozen(which: int) -> Training:
        with private_random(0):
            model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
            x = torch.randn(512, 4)
        with torch.no_grad():
            model[4].weight.mul_(1e-2)
        y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
        for p in model[which].parameters():
            p.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        return Training(model=model, loss_fn=nn.functional.mse_loss, optimizer=optimizer, data=(x, y), batch_size=64, steps=400)

    assert [f.obstacle for f in diagnose(frozen(4)).present] == ["frozen_parameters"]
    healthy = diagnose(frozen(2))
    assert healthy.verdict == "healthy"


def test_a_run_that_was_killed_can_be_diagnosed_from_its_last_checkpoint(tmp_path: object) -> None:
    run = Run.create(str(tmp_path) + "/run", target="digits:tiny-step", name="tiny", seed=0, steps=200)
    case = Case(replace(find("digits:tiny-step"), steps=200), record=run)
    _ = case.baseline
    run.close()
    opened = Run.open(str(tmp_path) + "/run")
    # As if killed before the end: the last checkpoint is torn.
    last = opened.checkpoints()[-1]
    last.write_bytes(last.read_bytes()[:100])
    diagnosis = diagnose_run(opened)
    assert diagnosis.verdict == "obstructed"
    assert [f.obstacle for f in diagnosis.present] == ["step_too_small"]
    assert any("last checkpoint" in note for note in diagnosis.notes)


def test_a_run_without_a_recipe_tells_what_was_recorded(tmp_path: object) -> None:
    run = Run.create(str(tmp_path) + "/run", name="mine", seed=0, steps=50)
    for step in range(50):
        run.append({"step": step, "loss": 1 / (1 + step) if step < 40 else float("nan"), "grad_norm": 1.0})
    run.close()
    diagnosis = diagnose_run(Run.open(str(tmp_path) + "/run"))
    assert diagnosis.verdict == "undetermined"
    assert all(f.status == "undetermined" and f.missing == ("counterfactual",) for f in diagnosis.findings)
    assert diagnosis["step_too_large"].evidence[0].measurement.value == 40
    jsonschema.validate(json.loads(diagnosis.to_json()), load_schema())


def test_a_training_that_learns_nothing_is_examined_from_a_checkpoint_too() -> None:
    training = replace(find("parity:d=16"), steps=120)
    first = Case(training)
    state = first.baseline.states[60]
    case = Case(training, start=state, steps=60, initial=first.initial)
    diagnosis = examine(case)
    assert diagnosis["uninformative_gradient"].status in ("present", "undetermined")
    assert not any("a measurement that failed" in m for f in diagnosis.findings for m in f.missing)


def test_a_step_that_destroys_the_start_and_is_quiet_ever_after_is_too_large() -> None:
    """Steps of 1 under Adam throw the logits far off, and saturated units keep the curvature small from then on."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(800, 12, generator=generator)
    y = (x @ torch.randn(12, 4, generator=generator)).argmax(1)

    def training(lr: float) -> Training:
        def model() -> nn.Module:
            return nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 4))

        def adam(parameters: object) -> torch.optim.Optimizer:
            return torch.optim.Adam(parameters, lr)  # type: ignore[arg-type]  # an iterator of parameters, as everywhere here

        return Training(model=model, optimizer=adam, loss_fn=nn.functional.cross_entropy, data=(x, y), batch_size=32, steps=200)

    right, far = Case(training(3e-3), step_seconds=1e-3), Case(training(1.0), step_seconds=1e-3)
    assert overshoot(right) < 0.02
    assert overshoot(far) >= thresholds.OVERSHOOT
    found = diagnose(training(1.0), step_seconds=1e-3)
    assert found.present[0].obstacle == "step_too_large"


def test_overshoot_by_hand() -> None:
    """Gradient descent on x^2/2 with one example: a step of 0.5 never rises, one of 2.5 multiplies the loss by 2.25 each time."""

    def case(lr: float) -> Case:
        def model() -> nn.Module:
            net = nn.Linear(1, 1, bias=False)
            nn.init.constant_(net.weight, 1.0)
            return net

        data = (torch.ones(1, 1), torch.zeros(1, 1))
        return Case(
            Training(
                model=model,
                optimizer=lambda p: torch.optim.SGD(p, lr),
                loss_fn=lambda o, t: (o - t).square().mean() / 2,
                data=data,
                steps=20,
            ),
            step_seconds=1e-3,
        )

    assert overshoot(case(0.5)) == 0.0
    assert overshoot(case(2.5)) == math.inf
