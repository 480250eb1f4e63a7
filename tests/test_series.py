"""What a report draws agrees with the training that it is drawn from."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import trapezoid
from torch import nn

from gradoscope.case import Case
from gradoscope.guard import random_fingerprint
from gradoscope.series import LINE_POINTS, collect
from gradoscope.training import Training
from tests.reference.training import data, everything, mlp, same


@pytest.fixture(scope="module")
def drawn():
    net = mlp(nn.BatchNorm1d(6))
    before, streams = everything(net), random_fingerprint()
    training = Training(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data=data(96),
        validation=data(40, seed=1),
        batch_size=32,
        loss_fn=F.cross_entropy,
        steps=40,
    )
    case = Case(training)
    series = collect(case)
    same(before, everything(net))
    assert random_fingerprint() == streams
    return case, series


def test_the_loss_is_that_of_the_run(drawn):
    case, series = drawn
    loss = series["loss"]
    assert loss["steps"] == [step for step, _ in case.baseline.curve()]
    assert loss["train"] == [value for _, value in case.baseline.curve()]
    assert len(loss["validation"]) == len(loss["steps"])
    assert loss["batch_steps"] == list(range(40))
    assert loss["batch"] == case.baseline.batch_loss


def test_the_line_goes_from_the_start_to_the_end(drawn):
    case, series = drawn
    line = series["line"]
    assert len(line["alpha"]) == len(line["train"]) == len(line["validation"]) == LINE_POINTS
    end = int(np.argmin(np.abs(np.array(line["alpha"]) - 1)))
    assert line["alpha"][end] == pytest.approx(1)
    assert line["train"][end] == pytest.approx(case.baseline.curve()[-1][1], rel=1e-4)
    assert line["train"][0] == pytest.approx(case.baseline.curve()[0][1], rel=1e-4)  # batch statistics are those of the batch
    assert line["validation"][end] == pytest.approx(case.baseline.curve("validation")[-1][1], rel=1e-4)


def test_the_spectrum_the_layers_and_the_taylor_series_are_there(drawn):
    case, series = drawn
    spectrum = series["spectrum"]
    assert spectrum["step"] == 40
    assert spectrum["learning_rate_limit"] == pytest.approx(20)
    assert len(spectrum["eigenvalues"]) == len(spectrum["residuals"])
    assert trapezoid(spectrum["density"], spectrum["grid"]) == pytest.approx(1, abs=0.1)
    layers = series["layers"]
    assert layers["names"] == [n for n, _ in case.training.model.named_modules() if n in layers["names"]]
    assert {"0", "3"} <= set(layers["names"])
    assert len({len(v) for v in layers.values()}) == 1
    taylor = series["taylor"]
    assert len({len(v) for v in taylor.values()}) == 1
    first, second, actual = (np.array(taylor[k]) for k in ("first", "second", "actual"))
    assert np.abs(second - actual).mean() < np.abs(first - actual).mean()  # curvature explains more
    assert np.abs(second - actual).max() < 0.05 * np.abs(actual).max()


def test_what_cannot_be_measured_is_left_out_and_told(monkeypatch, drawn):
    import gradoscope.series as module

    def fails(case):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(module, "_spectrum", fails)
    case, _ = drawn
    series = collect(case)
    assert "spectrum" not in series
    assert "line" in series
    assert any("no such kernel" in note for note in case.notes)
    assert all(math.isfinite(v) for v in series["loss"]["train"])
