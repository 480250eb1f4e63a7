"""The obstacle missing_symmetry on trainings whose truth is known by construction, and its remedies."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradoscope import Training
from gradoscope.batches import TensorBatches
from gradoscope.case import Case
from gradoscope.diagnosis import Finding
from gradoscope.guard import private_random
from gradoscope.measure.symmetry import permutations, reflections
from gradoscope.obstacles.missing_symmetry import OBSTACLE
from gradoscope.obstacles.overfitting import OBSTACLE as OVERFITTING
from gradoscope.remedies.equivariant import OnRing, Reordering
from gradoscope.remedies.symmetrise import Moved


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def training(x: Any, y: Tensor, model: Any, loss: Any, steps: int = 300) -> Training:
    parts = x if isinstance(x, tuple) else (x,)
    cut = 2 * len(y) // 3
    return Training(
        model=model,
        optimizer=lambda p: torch.optim.Adam(p, lr=3e-3),
        data=(*(p[:cut] for p in parts), y[:cut]),
        validation=(*(p[cut:] for p in parts), y[cut:]),
        loss_fn=loss,
        steps=steps,
        batch_size=50,
    )


def flat(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs))


def finding(t: Training) -> Finding:
    return OBSTACLE.examine(Case(t, step_seconds=1e-3), {})


def spread_of_a_set() -> tuple[Tensor, Tensor]:
    with private_random(0):
        x = torch.randn(400, 10)
    return x, (x.max(1).values > 1.5).float()[:, None]


def test_a_set_that_is_read_as_a_row() -> None:
    t = training(*spread_of_a_set(), lambda: flat(10, 1), F.binary_cross_entropy_with_logits)
    case = Case(t, step_seconds=1e-3)
    found = OBSTACLE.examine(case, {})
    assert found.status == "present"
    overfitting = OVERFITTING.examine(case, {"missing_symmetry": found})
    assert overfitting.status == "absent", "the symmetry is the cause, the gap how it shows"


class Sum(nn.Module):
    """A model that knows that its input is a set."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(1, 128), nn.Linear(128, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x[..., None]).relu().sum(1))


def test_a_model_that_has_the_symmetry_misses_none() -> None:
    x, _ = spread_of_a_set()
    with private_random(3):
        y = torch.randn(400, 1)
    found = finding(training(x, y, Sum, F.mse_loss))
    assert found.status == "absent"


def test_noise_has_no_symmetry_that_helps() -> None:
    x, _ = spread_of_a_set()
    with private_random(3):
        y = torch.randn(400, 1)
    found = finding(training(x, y, lambda: flat(10, 1), F.mse_loss))
    assert (found.status, found.summary) == ("absent", "With the symmetry the same examples generalise no better")


def test_few_examples_of_a_problem_without_symmetry() -> None:
    with private_random(4):
        x = torch.randn(240, 20)
        y = torch.tanh(x @ torch.randn(20, 1) / 3) + 0.3 * torch.randn(240, 1)
    assert finding(training(x, y, lambda: flat(20, 1), F.mse_loss)).status == "absent"


def test_without_validation_data_it_is_undetermined() -> None:
    t = training(*spread_of_a_set(), lambda: flat(10, 1), F.binary_cross_entropy_with_logits)
    found = finding(replace(t, validation=None))
    assert (found.status, found.missing) == ("undetermined", ("validation data",))


def test_moved_batches_are_a_function_of_the_step_and_move_inputs_and_targets_together() -> None:
    x = torch.arange(40.0).reshape(8, 5)
    moved = Moved(TensorBatches((x, x.clone()), 8, 0), permutations(1, output_dim=1), 3)
    first, again, other = moved.batch(4), moved.batch(4), moved.batch(5)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[0].sort(1).values, x)


def test_a_group_of_two_leaves_half_of_the_parts_as_they_are() -> None:
    x = torch.arange(80.0).reshape(8, 10)
    moved = Moved(TensorBatches((x, torch.zeros(8)), 8, 0), reflections(1), 3)
    as_it_was = sum(int((moved.batch(i)[0] == x).all(1).sum()) for i in range(50))
    assert 150 < as_it_was < 250, "of 400 examples, each eighth of a batch by itself: 200 expected, standard deviation 10"


@pytest.mark.parametrize(
    ("inputs", "answer", "target"),
    [
        ((drawn(4, 6),), drawn(4, 2), torch.ones(4).long()),
        ((drawn(4, 6, 3),), drawn(4, 6, 6), torch.ones(4, 6).long()),
        ((drawn(4, 6, 3), drawn(4, 6, 6)), drawn(4, 9, 6), torch.ones(4, 6).long()),
        ((drawn(4, 6, 6),), drawn(4, 1), drawn(4, 1)),
        ((torch.arange(24).reshape(4, 6) % 3,), drawn(4, 6), drawn(4, 6)),
    ],
)
def test_the_network_answers_in_the_models_form_whatever_the_order(inputs: Any, answer: Tensor, target: Tensor) -> None:
    with private_random(0):
        model = Reordering(inputs, answer, target)
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    moved = tuple(p[:, order][:, :, order] if p.dim() > 2 and p.shape[1] == p.shape[2] else p[:, order] for p in inputs)
    plain, after = model(*inputs), model(*moved)
    assert plain.shape == answer.shape
    dim = model.where
    torch.testing.assert_close(after, plain if dim is None else plain.index_select(dim, order), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 12), (4, 12, 3), (4, 2, 8, 6)])
def test_the_sliding_network_does_not_see_shifts(shape: tuple[int, ...]) -> None:
    x, answer = drawn(*shape), drawn(shape[0], 5)
    with private_random(0):
        model = OnRing(x, answer)
    assert model(x).shape == answer.shape
    torch.testing.assert_close(model(x.roll(3, 2 if len(shape) == 4 else 1)), model(x), rtol=1e-4, atol=1e-5)


def test_shifts_of_a_ring_are_found_behind_orders_that_look_as_likely() -> None:
    with private_random(5):
        values = torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0, -2.0])
        motifs = torch.stack([values[torch.randperm(6)] for _ in range(3)])
        y, place = torch.randint(3, (450,)), torch.randint(16, (450,))
        x = F.pad(motifs[y], (0, 10)).gather(1, (torch.arange(16) - place[:, None]) % 16) + 0.5 * drawn(450, 16)
    found = finding(training(x, y, lambda: flat(16, 3), F.cross_entropy))
    assert (found.status, found.counterfactual) == ("present", "equivariant(shifts)")
