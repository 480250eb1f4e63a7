"""Losses that could stand in for the given one, and outputs that are right."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradoscope.measure.surrogates import perfect_output, shifts_of_scores, surrogates


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSES = torch.arange(30) % 3
UNEVEN = torch.tensor([0] * 24 + [1] * 4 + [2] * 2)
BITS = (torch.arange(30) % 3 == 0).double()[:, None]
NUMBERS = random(30, 2, seed=1) + 5


@pytest.mark.parametrize(
    ("loss", "output", "target", "names"),
    [
        (F.cross_entropy, random(30, 3), CLASSES, ["hinge", "squared"]),
        (F.cross_entropy, random(30, 3), UNEVEN, ["balanced", "hinge", "squared"]),
        (F.binary_cross_entropy_with_logits, random(30, 1), BITS, ["balanced", "hinge", "squared"]),
        (F.mse_loss, random(30, 1), BITS, ["logistic", "balanced", "hinge"]),
        (F.mse_loss, random(30, 1), 2 * BITS - 1, ["logistic", "balanced", "hinge"]),
        (F.mse_loss, random(30, 2), NUMBERS, ["absolute", "relative"]),
        (F.l1_loss, random(30, 2), random(30, 2, seed=3), ["squared"]),
        (lambda z, y: 3 * F.mse_loss(z, y) + 1, random(30, 2), NUMBERS, ["absolute", "relative"]),
        (F.cross_entropy, random(10, 4, 3), torch.arange(30).reshape(10, 3) % 4, ["balanced", "hinge", "squared"]),
        (lambda z, y: z.mean(), random(30), [1, 2], []),
    ],
)
def test_the_other_usual_losses_and_not_the_given_one(loss, output, target, names) -> None:  # type: ignore[no-untyped-def]  # a table
    assert [s.name for s in surrogates(loss, output, target)] == names


def gradient(loss, z: Tensor, y: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # any loss
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, y), z)[0]


def test_their_gradients_are_as_long_as_the_given_ones() -> None:
    z = random(30, 3)
    given = gradient(F.cross_entropy, z, CLASSES).norm()
    for s in surrogates(F.cross_entropy, z, CLASSES):
        torch.testing.assert_close(gradient(s.loss, z, CLASSES).norm(), given)


def test_the_hinge_is_that_of_crammer_and_singer() -> None:
    z = random(30, 3)
    hinge = next(s for s in surrogates(F.cross_entropy, z, CLASSES) if s.name == "hinge")
    slow = [max(0.0, 1 + max(float(row[j] - row[k]) for j in range(3) if j != k)) for row, k in zip(z, CLASSES.tolist(), strict=True)]
    ratio = float(hinge.loss(z, CLASSES)) / (sum(slow) / len(slow))
    other = random(30, 3, seed=5)
    slow = [max(0.0, 1 + max(float(row[j] - row[k]) for j in range(3) if j != k)) for row, k in zip(other, CLASSES.tolist(), strict=True)]
    assert float(hinge.loss(other, CLASSES)) == pytest.approx(ratio * sum(slow) / len(slow))


def test_balanced_weighs_each_class_the_same() -> None:
    z = random(30, 3)
    balanced = next(s for s in surrogates(F.cross_entropy, z, UNEVEN) if s.name == "balanced")
    per_class = [float(F.cross_entropy(z[UNEVEN.eq(k)], UNEVEN[UNEVEN.eq(k)])) for k in range(3)]
    ratio = float(balanced.loss(z, UNEVEN)) / (sum(per_class) / 3)
    other = random(30, 3, seed=5)
    per_class = [float(F.cross_entropy(other[UNEVEN.eq(k)], UNEVEN[UNEVEN.eq(k)])) for k in range(3)]
    assert float(balanced.loss(other, UNEVEN)) == pytest.approx(ratio * sum(per_class) / 3)


@pytest.mark.parametrize(
    ("loss", "output", "target", "right"),
    [
        (F.cross_entropy, random(30, 3), CLASSES, lambda z: z.argmax(1) == CLASSES),
        (F.binary_cross_entropy_with_logits, random(30, 1), BITS, lambda z: (z > 0) == (BITS > 0)),
        (F.mse_loss, random(30, 1), BITS, lambda z: z == BITS),
        (F.binary_cross_entropy, random(30, 1).sigmoid(), BITS, lambda z: z == BITS),
        (F.mse_loss, random(30, 2), NUMBERS, lambda z: z == NUMBERS),
    ],
)
def test_right_answers_are_right(loss, output, target, right) -> None:  # type: ignore[no-untyped-def]  # a table
    assert bool(right(perfect_output(loss, output, target)).all())


def test_no_right_answer_where_the_targets_are_of_another_shape() -> None:
    assert perfect_output(F.mse_loss, random(30, 2), random(30, 3)) is None


def test_shifts_move_the_decision_alone() -> None:
    scores = random(40, 1)
    bits = (torch.arange(40) % 2).double()[:, None]
    named = [float((scores + c > 0).double().mean()) for c in shifts_of_scores(scores, bits)]
    assert named == sorted(named, reverse=True)
    assert named[0] > 0.9
    assert named[-1] < 0.1
    assert shifts_of_scores(scores, random(40, 1, seed=2)) == []
    favour = shifts_of_scores(random(30, 3), UNEVEN)[-1]
    assert favour.shape == (1, 3)
    assert favour[0].argsort().tolist() == [0, 1, 2], "the rarest class is favoured most"
