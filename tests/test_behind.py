"""Two obstacles at once: the second is found once the first one's remedy is applied."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from jsonschema import validate
from torch import nn
from torch.nn import functional as F

from gradoscope import Training, diagnose
from gradoscope.behind import hidden_by, look_behind
from gradoscope.case import Case
from gradoscope.diagnosis import Finding
from gradoscope.report.schema import load_schema
from gradoscope.report.terminal import render_text


def dead(lr: float) -> Training:
    """A network whose first layer is dead from the start, with a step that fits a living one (0.1), or does not."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(600, 10, generator=g)
    y = (x @ torch.randn(10, 4, generator=g)).argmax(1)

    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        with torch.no_grad():
            net[0].bias.fill_(-20.0)
        return net

    return Training(
        name="dead", model=model, optimizer=lambda p: torch.optim.SGD(p, lr), loss_fn=F.cross_entropy, data=(x, y), batch_size=32, steps=300
    )


def test_a_second_obstacle_is_found_behind_the_first() -> None:
    d = diagnose(dead(lr=1e-2), step_seconds=1e-3)
    assert [f.obstacle for f in d.present] == ["vanishing_gradient", "step_too_small"]
    first, second = d.present
    assert (first.behind, second.behind) == (None, "vanishing_gradient")
    assert second.summary.startswith("Behind vanishing_gradient, once rescale is applied: ")
    assert all(e.says.startswith("With rescale: ") for e in second.evidence)
    joined = next(c for c in d.counterfactuals if c.remedy == second.counterfactual)
    assert joined.remedy.startswith("rescale + step_size(x")
    assert joined.loss_remedy < joined.loss_unchanged < next(c for c in d.counterfactuals if c.remedy == "rescale").loss_unchanged
    assert "obstructed by vanishing_gradient, and behind that by step_too_small" in d.headline()
    assert "OBSTRUCTED by vanishing_gradient, and behind that by step_too_small" in render_text(d)
    validate(d.to_dict(), load_schema())


def test_two_remedies_that_gain_only_together_are_found() -> None:
    """With a step that is a hundred times too short, reviving the dead layer gains nothing, nor does a longer step alone."""
    d = diagnose(dead(lr=1e-3), step_seconds=1e-3)
    assert [(f.obstacle, f.behind) for f in d.present] == [("vanishing_gradient", None), ("step_too_small", "vanishing_gradient")]
    alone = [c for c in d.counterfactuals if c.remedy == "rescale" or c.remedy.startswith("step_size")]
    both = next(c for c in d.counterfactuals if c.remedy == d.present[0].counterfactual)
    assert len(alone) >= 3
    assert both.loss_remedy < 0.5 * min(c.loss_remedy for c in alone)
    assert "together bring the loss from" in d.present[0].summary
    validate(d.to_dict(), load_schema())


def test_nothing_is_behind_where_the_mended_training_goes_well() -> None:
    d = diagnose(dead(lr=0.1), step_seconds=1e-3)
    assert [f.obstacle for f in d.present] == ["vanishing_gradient"]
    assert not any(" + " in c.remedy for c in d.counterfactuals)
    assert not any(hidden_by("vanishing_gradient") in f.missing for f in d.findings)


def finding(name: str, status: Any, **options: Any) -> Finding:
    return Finding(name, status, 0.9, "as measured", **options)


@pytest.mark.parametrize("behind", ["absent", "present"])
def test_what_the_first_may_explain_is_settled_by_the_mended_training(behind: str) -> None:
    case = Case(dead(lr=1e-3), step_seconds=1e-3)
    from gradoscope.remedies.rescale import Rescale

    rescaled = case.trial(Rescale())
    known = {
        "vanishing_gradient": finding("vanishing_gradient", "present", gain=0.9, counterfactual="rescale"),
        "ill_conditioning": finding("ill_conditioning", "undetermined", gain=0.3, missing=(hidden_by("vanishing_gradient"),)),
        "bayes_floor": finding("bayes_floor", "absent"),
        "saddle_point": finding("saddle_point", "undetermined", missing=("something else",)),
    }
    before = dict(known)
    seen: list[Case] = []

    def examine(mended: Case) -> dict[str, Finding]:
        seen.append(mended)
        return {
            "vanishing_gradient": finding("vanishing_gradient", "absent"),
            "ill_conditioning": finding("ill_conditioning", behind, gain=0.5),
            "bayes_floor": finding("bayes_floor", "present"),
            "saddle_point": finding("saddle_point", "absent"),
        }

    look_behind(case, known, examine)
    assert known["ill_conditioning"].status == behind
    assert known["ill_conditioning"].missing == ()
    assert known["ill_conditioning"].behind == ("vanishing_gradient" if behind == "present" else None)
    assert {n: known[n] for n in ("vanishing_gradient", "bayes_floor", "saddle_point")} == {
        n: before[n] for n in ("vanishing_gradient", "bayes_floor", "saddle_point")
    }
    # The mended training is the one of the experiment, from its first step to its last.
    assert seen[0].baseline.probe[-1][1].mean() == pytest.approx(rescaled.curve[-1][1], rel=1e-6)


def test_without_a_run_of_its_own_steps_nothing_is_looked_behind() -> None:
    case = Case(dead(lr=1e-3), step_seconds=1e-3)
    leading = finding("ill_conditioning", "present", gain=0.9, counterfactual="newton")
    known = {"ill_conditioning": leading, "overfitting": replace(leading, obstacle="overfitting", gain=1.0)}
    assert look_behind(case, known, lambda _: pytest.fail("no training was mended")) == ()


def test_a_change_that_is_built_in_is_made_once() -> None:
    """A fork from the middle goes on from there: the layers are not drawn anew, and hooks are there in every copy."""
    from gradoscope.remedies.rescale import Rescale
    from gradoscope.remedies.standardise import Standardise
    from gradoscope.remedies.step_size import StepSize

    for remedy in (Rescale(), Standardise()):
        training = remedy(dead(lr=0.05)).settled()
        assert training.changes == ()
        assert [c.name for c in training.built_in] == [remedy.name]
        case = Case(training, step_seconds=1e-3)
        same = case.trial(StepSize(1.0), start=case.checkpoint(0.5))
        assert same.curve[-1][1] == pytest.approx(case.baseline.curve()[-1][1], rel=1e-6)
        assert same.loss_before == pytest.approx(dict(case.baseline.curve())[case.checkpoint(0.5)], rel=1e-6)
