"""Independent learners on examples of several shapes."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope import Training
from gradoscope.case import Case
from gradoscope.guard import private_random
from gradoscope.learners import THIS_MODEL
from gradoscope.references import better_learner, scores


class Sum(nn.Module):
    """A linear map of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 1), nn.Linear(3, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.a(a) + self.b(b)


def case(model: object, *parts: Tensor, lr: float = 0.1, loss: object = F.mse_loss, steps: int = 200) -> Case:
    return Case(
        Training(
            model=model,  # type: ignore[arg-type]  # any of the models below
            optimizer=lambda p: torch.optim.Adam(p, lr=lr),
            data=parts,
            loss_fn=loss,  # type: ignore[arg-type]  # any loss
            steps=steps,
            batch_size=64,
        ),
        step_seconds=1e-3,
    )


def by_name(c: Case) -> dict[str, float]:
    return {s.learner: s.skill for s in scores(c) or []}


def test_several_inputs() -> None:
    with private_random(0):
        a, b = torch.randn(600, 4), torch.randn(600, 3)
        y = a[:, :1] - b[:, 1:2]
    found = by_name(case(Sum, a, b, y))
    assert found["linear"] == pytest.approx(1.0, abs=1e-3)
    assert found[THIS_MODEL] > 0.95


def test_a_number_at_each_place_of_an_image() -> None:
    with private_random(1):
        x = torch.randn(400, 1, 6, 6)
        y = 2 * x + torch.randn(400, 1, 6, 6)
    c = case(lambda: nn.Conv2d(1, 1, 3, padding=1), x, y)
    found = by_name(c)
    assert found[THIS_MODEL] == pytest.approx(0.8, abs=0.05), "four fifths of the variance are there to be foretold"
    assert better_learner(c) is None


def test_sequences_with_a_class_at_each_position() -> None:
    with private_random(2):
        x = torch.randint(0, 5, (300, 12))
        y = (x + x.roll(1, 1)) % 2

    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.scores.expand(*x.shape, 2).movedim(2, 1)

    c = case(Blind, x, y, loss=F.cross_entropy, steps=50)
    better = better_learner(c)
    assert better is not None
    assert better.learner == "trees"
    assert better.skill > 0.8
