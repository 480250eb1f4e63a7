"""Diagnoses made by hand, as rich and as awkward as real ones."""

import math
from typing import Any

import numpy as np

from gradoscope.diagnosis import Counterfactual, Diagnosis, Evidence, Finding, Health
from gradoscope.measurement import Measurement

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" 'single' & {{ 7*7 }} 損失 ∇ℓ"


def counterfactual(remedy: str, gain: float, half: float, **changes: Any) -> Counterfactual:
    steps, start = changes.pop("steps", 400), changes.pop("start", 0)
    grid = np.linspace(0, 1, 33)
    baseline = 2.3 - 0.05 * grid
    target = baseline[-1] - gain * (baseline[-1] - 0.02)
    with np.errstate(invalid="ignore"):
        curve = target + (2.3 - target) * np.exp(-6 * grid)
    at = [int(s) for s in start + steps * grid]
    values: dict[str, Any] = {
        "explanation": f"The same training under {remedy}.",
        "start": start,
        "steps": steps,
        "gain": gain,
        "interval": (gain - half, gain + half),
        "difference": gain * 2.2,
        "difference_se": half,
        "shortfall": gain * 0.97,
        "shortfall_interval": (gain - half, gain + half),
        "loss_before": 2.3,
        "loss_unchanged": float(baseline[-1]),
        "loss_remedy": float(curve[-1]),
        "examples_ratio": 1.0,
        "curve": tuple(zip(at, curve.tolist(), strict=True)),
        "baseline_curve": tuple(zip(at, baseline.tolist(), strict=True)),
    }
    return Counterfactual(remedy=remedy, **(values | changes))


def evidence(name: str, value: Any, says: str, supports: bool | None = None, **details: Any) -> Evidence:
    rules_out = details.pop("rules_out", ())
    return Evidence(Measurement(name, value, **details), says, supports, rules_out)


ABSENT = {
    "saddle_point": "The lowest Hessian eigenvalue is −0.02 ± 0.03: no negative curvature to step along.",
    "local_minimum": "The loss still falls along the gradient, so this is no minimum.",
    "vanishing_gradient": "The weakest layer is 0.31 times as sensitive as the strongest.",
    "exploding_gradient": "The largest gradient is 1.4 times the median one.",
    "step_too_large": "The step is 0.0002 of the stability limit.",
    "low_gradient_snr": "Four times the batch removes 0.4% of the excess loss.",
    "uninformative_gradient": "The gradient depends on the targets (p = 0.001).",
    "overfitting": "The validation loss follows the training loss.",
    "frozen_parameters": "Every parameter is trained.",
}


def obstructed() -> Diagnosis:
    """A step size 1e4 times too small, with everything measured."""
    finding = Finding(
        "step_too_small",
        "present",
        0.99,
        "A step 1000 times as long removes 97% of the excess loss that 400 steps left.",
        gain=0.97,
        gain_interval=(0.955, 0.981),
        evidence=(
            evidence(
                "step_stability",
                0.00021,
                "The step is 0.00021 of the longest stable one (1 is the limit).",
                True,
                se=0.00003,
                n=64,
                step=400,
                rules_out=("step_too_large",),
            ),
            evidence(
                "optimal_step_ratio", 1310.0, "Along the gradient the best step is 1310 ± 90 times as long.", True, se=90.0, n=32, step=400
            ),
            evidence("uphill_share", 0.0, "None of 400 steps went uphill.", True, n=400, rules_out=("low_gradient_snr", "step_too_large")),
            evidence(
                "taylor_error",
                0.004,
                "The quadratic model predicts each step to 0.4%, so nothing is known of longer steps from it.",
                False,
                se=0.001,
                n=32,
            ),
        ),
        remedy="Multiply the learning rate by 1000.",
        code="for group in optimizer.param_groups:\n    group['lr'] *= 1000",
        counterfactual="step_size(x1000)",
    )
    maybe = Finding(
        "ill_conditioning",
        "undetermined",
        0.6,
        "Curvature spreads over four orders of magnitude, but at this step size it cannot show.",
        gain=0.21,
        gain_interval=(-0.03, 0.44),
        evidence=(evidence("condition_spread", 12400.0, "The largest eigenvalue is 12400 times the median one.", True, se=900.0, n=8),),
        missing=("counterfactual: a run with the longer step, then a new diagnosis",),
        counterfactual="newton_krylov",
    )
    absent = tuple(
        Finding(name, "absent", 0.95, says, evidence=(evidence("ratio", 0.31, says, False, se=0.02, n=64),))
        for name, says in ABSENT.items()
    )
    tried = (
        counterfactual("step_size(x1000)", 0.97, 0.013, code=finding.code),
        counterfactual("step_size(x10)", 0.18, 0.02),
        counterfactual("newton_krylov", 0.21, 0.235, examples_ratio=41.0, start=200, steps=200),
        counterfactual("batch_size(x4)", 0.004, 0.01, examples_ratio=4.0),
        counterfactual("reinitialise", -0.02, 0.015),
        counterfactual("clip_gradient", 0.0, 0.002),
        counterfactual("negative_curvature", math.nan, math.nan, failed="the loss became infinite at step 12"),
    )
    return Diagnosis(
        "digits:tiny-step",
        "obstructed",
        (finding, maybe, *absent),
        Health(
            False,
            0.99,
            "The loss fell by 2%; a remedy does far better.",
            (evidence("progress", 0.02, "The loss fell by 2.2% in 400 steps.", False, se=0.004, n=400),),
        ),
        tried,
        ("Curvature was measured on 512 of 1437 examples.", "3 of 40 measurements were skipped to keep to the budget of 5%."),
        {
            "training": {"seconds": 3.1, "forward": 400, "backward": 400},
            "diagnosis": {"seconds": 21.4, "forward": 9120, "backward": 5210},
            "watch_share": 0.041,
        },
        {
            "gradoscope": "0.1.0",
            "torch": "2.13.0",
            "device": "cpu",
            "seed": 0,
            "target": "digits:tiny-step",
            "settings": {"budget": 0.05, "counterfactuals": True},
        },
        _series(),
    )


def _series() -> dict[str, Any]:
    wave = np.sin(np.arange(400) * 1.7) * np.cos(np.arange(400) * 0.31)
    steps = np.arange(0, 401, 10)
    grid = np.linspace(-0.5, 13, 200)
    layers = [f"features.{i}.weight" for i in range(0, 12, 2)]
    return {
        "loss": {
            "steps": steps.tolist(),
            "train": (2.3 - 0.05 * steps / 400).tolist(),
            "validation": [*(2.32 - 0.04 * steps[:-2] / 400).tolist(), math.nan, None],
            "batch_steps": list(range(400)),
            "batch": (2.3 - 0.05 * np.arange(400) / 400 + 0.04 * wave).tolist(),
        },
        "spectrum": {
            "step": 400,
            "eigenvalues": [12.1, 8.3, 6.9, 4.2, 2.8, -0.21],
            "residuals": [0.01, 0.02, 0.05, 0.1, 0.2, 0.05],
            "grid": grid.tolist(),
            "density": (np.exp(-((grid / 0.2) ** 2)) + 2e-3 * np.exp(-((grid - 8.0) ** 2))).tolist(),
            "learning_rate_limit": 20000.0,
        },
        "layers": {
            "names": layers,
            "sensitivity": [0.8, 1.1, 0.9, 1.4, 1.2, 2.1],
            "gradient_norm": [0.02, 0.03, None, 0.05, 0.04, 0.2],
            "signal": [1.0, 0.93, 0.88, 0.91, 0.8, 1.2],
            "dead": [0.0, 0.02, 0.1, 0.0, 0.05, None],
            "saturated": [0.0, 0.0, 0.01, 0.02, 0.0, None],
            "update_ratio": [1e-7, 2e-7, 1e-7, 3e-7, 2e-7, 9e-7],
        },
        "taylor": {
            "steps": list(range(0, 400, 10)),
            "actual": (-0.0001 * (1 + 0.3 * wave[::10])).tolist(),
            "first": (-0.0001 * (1 + 0.3 * wave[::10]) * 1.08).tolist(),
            "second": (-0.0001 * (1 + 0.3 * wave[::10]) * 1.004).tolist(),
        },
        "line": {
            "alpha": np.linspace(-0.5, 1.5, 41).tolist(),
            "train": (2.3 - 0.05 * np.linspace(-0.5, 1.5, 41) + 0.01 * np.linspace(-0.5, 1.5, 41) ** 2).tolist(),
            "validation": None,
        },
        "permutation": {"null": (1.0 + 0.1 * wave[:199]).tolist(), "observed": 4.2},
    }


def healthy() -> Diagnosis:
    """A training that ends as well as its alternatives do; few series."""
    steps = np.arange(0, 401, 10)
    train = 0.05 + 2.25 * np.exp(-steps / 60)
    tried = tuple(
        counterfactual(
            name,
            gain,
            0.012,
            loss_unchanged=0.05,
            loss_remedy=0.05 * (1 - gain),
            loss_before=2.3,
            curve=tuple(zip(steps.tolist(), (train * (1 - gain)).tolist(), strict=True)),
            baseline_curve=tuple(zip(steps.tolist(), train.tolist(), strict=True)),
        )
        for name, gain in [("step_size(x10)", -3.1), ("step_size(x0.1)", -0.4), ("batch_size(x4)", 0.006), ("newton_krylov", 0.009)]
    )
    return Diagnosis(
        "digits:healthy",
        "healthy",
        tuple(Finding(name, "absent", 0.97, says) for name, says in {**ABSENT, "step_too_small": "Longer steps do not help."}.items()),
        Health(
            True,
            0.97,
            "The loss fell by 98%, and none of 4 alternatives does better.",
            (
                evidence(
                    "progress", 0.98, "The loss fell from 2.30 to 0.05, steadily (Kendall's tau −0.96).", True, se=0.004, n=20, p=1e-9
                ),
                evidence("best_alternative", 0.009, "The best alternative removes 0.9% of the loss that is left.", True, se=0.006, n=360),
            ),
        ),
        tried,
        (),
        {"training": {"seconds": 3.0}, "diagnosis": {"seconds": 18.0}},
        {"torch": "2.13.0", "seed": 0},
        {
            "loss": {
                "steps": steps.tolist(),
                "train": train.tolist(),
                "validation": (train * 1.2 + 0.03).tolist(),
                "batch_steps": [],
                "batch": [],
            }
        },
    )


def undetermined() -> Diagnosis:
    """Without counterfactuals: mechanisms without a second key, and nothing to draw."""
    return Diagnosis(
        "runs/2024-11-21",
        "undetermined",
        (
            Finding(
                "low_gradient_snr",
                "undetermined",
                0.5,
                "Noise is 40 times the mean gradient.",
                evidence=(evidence("noise_scale", 1600.0, "The noise asks for a batch of 1600.", True, se=210.0, n=64),),
                missing=("counterfactual",),
            ),
            Finding("overfitting", "undetermined", 0.5, "There is no validation data.", missing=("validation data", "counterfactual")),
            Finding("saddle_point", "absent", 0.9, ABSENT["saddle_point"]),
        ),
        Health(None, 0.5, "Progress was made, but no alternative was tried.", missing=("counterfactual",)),
    )


def nasty() -> Diagnosis:
    """Every user string is an attack, every number is missing or not finite."""
    bad = [math.nan, math.inf, -math.inf, None]
    finding = Finding(
        "exploding_gradient",
        "present",
        math.nan,
        NASTY,
        gain=math.inf,
        gain_interval=(-math.inf, math.nan),
        evidence=(
            evidence(NASTY, math.inf, NASTY, True, se=math.nan, n=0, p=math.nan, method=NASTY, unit=NASTY, rules_out=(NASTY,)),
            evidence("by_layer", {NASTY: math.nan, "b": np.float32(2.0)}, "[red]no markup[/red]", False),
            evidence("none", None, "\x1b[31mred\x1b[0m", None),
        ),
        missing=(NASTY,),
        remedy=NASTY,
        code=f"# {NASTY}\nmodel = '</pre><script>alert(3)</script>'",
        counterfactual=NASTY,
    )
    return Diagnosis(
        NASTY,
        "obstructed",
        (finding, Finding("bayes_floor", "undetermined", 0.5, NASTY * 4, missing=(NASTY,)), Finding("saddle_point", "absent", 0.5, NASTY)),
        Health(None, math.nan, NASTY, (evidence("x", np.array([1.0, math.nan]), NASTY),), (NASTY,)),
        (
            counterfactual(
                NASTY,
                math.inf,
                math.nan,
                loss_unchanged=math.inf,
                curve=((0, 1.0), (1, math.nan), (2, math.inf)),
                baseline_curve=((0, 1.0), (1, 1e30)),
                code=NASTY,
            ),
            counterfactual("x" * 120, math.nan, math.nan, failed=NASTY, on="validation", curve=()),
        ),
        (NASTY,),
        {NASTY: {"seconds": math.inf, "list": [1, NASTY]}},
        {NASTY: NASTY, "deep": {NASTY: [NASTY]}},
        {
            "loss": {
                "steps": [0, 1, 2, 3],
                "train": bad,
                "validation": [1.0, 2.0, math.nan, 1e300],
                "batch_steps": [0, 1],
                "batch": [math.inf, 1.0],
            },
            "spectrum": {
                "step": 3,
                "eigenvalues": [1.0, math.nan],
                "residuals": [None, None],
                "grid": [0.0, 1.0],
                "density": [math.nan, 0.0],
                "learning_rate_limit": math.inf,
            },
            "layers": {"names": [NASTY, "b" * 80, "c", NASTY], "sensitivity": bad, "dead": [0.5, None, 1.0, math.nan], "saturated": None},
            "taylor": {"steps": [0, 1, 2, 3], "actual": bad, "first": [1.0, 2.0, 3.0, 4.0], "second": bad},
            "line": {"alpha": [0.0, 1.0], "train": [math.inf, math.nan], "validation": [1.0, None]},
            "permutation": {"null": [1.0, math.nan, 1.2], "observed": math.nan},
        },
    )
