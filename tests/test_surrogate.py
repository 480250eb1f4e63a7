"""The obstacle surrogate_mismatch on trainings whose truth is known by construction."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope import Training
from gradoscope.case import Case
from gradoscope.diagnosis import Finding
from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.obstacles.surrogate_mismatch import OBSTACLE
from gradoscope.scoring import score


def linear(
    x: Tensor, y: Tensor, loss: Callable[..., Tensor], metric: Callable[..., float] | None, rate: float, mode: str = "max"
) -> Training:
    cut = 2 * len(x) // 3

    def model() -> nn.Module:
        return nn.Linear(x.shape[1], 1)

    return Training(
        model=model,
        optimizer=lambda p: torch.optim.SGD(p, lr=rate),
        data=(x[:cut], y[:cut]),
        validation=(x[cut:], y[cut:]),
        loss_fn=loss,
        metric=metric,
        metric_mode=mode,  # type: ignore[arg-type]  # "max" or "min"
        steps=300,
        batch_size=100,
    )


def finding(training: Training) -> Finding:
    return OBSTACLE.examine(Case(training, step_seconds=1e-3), {})


def heavy_tails() -> tuple[Tensor, Tensor]:
    with private_random(0):
        x = torch.randn(1200, 4)
        y = (x @ torch.tensor([1.0, -1.0, 0.5, 0.0]))[:, None]
        wild = torch.rand(1200) < 0.15
        y[wild] += 30 + 20 * torch.randn(int(wild.sum()), 1)
    return x, y


def median_error(z: Tensor, y: Tensor) -> float:
    return float((z - y).abs().median())


def right(z: Tensor, y: Tensor) -> float:
    return float(((z > 0) == (y > 0.5)).float().mean())


def mean_recall(z: Tensor, y: Tensor) -> float:
    hit = ((z > 0) == (y > 0.5)).float()
    return float(hit[y > 0.5].mean() + hit[y < 0.5].mean()) / 2


def test_squared_error_of_heavy_tails_misses_the_median() -> None:
    found = finding(linear(*heavy_tails(), F.mse_loss, median_error, 0.05, "min"))
    assert (found.status, found.counterfactual) in {("present", "surrogate(absolute)"), ("present", "surrogate(relative)")}
    assert found.confidence > 0.8


def test_absolute_error_of_the_same_data_does_not() -> None:
    assert finding(linear(*heavy_tails(), F.l1_loss, median_error, 0.05, "min")).status == "absent"


def test_a_rare_class_that_is_never_named() -> None:
    with private_random(1):
        y = (torch.rand(3000, 1) < 0.08).float()
        x = torch.randn(3000, 5)
        x[:, :1] += 1.8 * y
    found = finding(linear(x, y, F.binary_cross_entropy_with_logits, mean_recall, 0.3))
    assert (found.status, found.counterfactual) in {("present", "surrogate(balanced)"), ("present", "threshold")}
    assert finding(linear(x, y, F.binary_cross_entropy_with_logits, right, 0.3)).status == "absent", "by accuracy nothing is wrong"


def test_noisy_labels_are_no_mismatch() -> None:
    with private_random(2):
        x = torch.randn(1500, 5)
        y = ((x[:, :1] > 0) ^ (torch.rand(1500, 1) < 0.25)).float()
    assert finding(linear(x, y, F.binary_cross_entropy_with_logits, right, 0.3)).status == "absent"


def test_a_loss_that_is_not_minimised_yet_is_no_mismatch() -> None:
    found = finding(linear(*heavy_tails(), F.mse_loss, median_error, 1e-7, "min"))
    assert found.status == "absent"


def test_without_a_metric_it_is_undetermined_and_says_so() -> None:
    found = finding(linear(*heavy_tails(), F.mse_loss, None, 0.05))
    assert (found.status, found.missing) == ("undetermined", ("a metric that other losses could serve",))


def test_a_metric_that_is_no_number_is_the_users_mistake() -> None:
    with pytest.raises(CannotRun, match="returns one number"):
        finding(linear(*heavy_tails(), F.mse_loss, lambda z, y: "good", 0.05))  # type: ignore[arg-type,return-value]  # the mistake


def test_the_score_is_that_of_a_plain_loop() -> None:
    x, y = heavy_tails()
    training = linear(x, y, F.mse_loss, median_error, 0.05, "min")
    case = Case(training, step_seconds=1e-3)
    found = score(case)
    assert found is not None
    with case.live(300) as live:
        plain = median_error(live.model(x[:800]).detach(), y[:800])
    assert found.end == pytest.approx(-plain)
    assert found.perfect == 0.0
