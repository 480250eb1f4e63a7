"""Targets for the parts: the training's steps are those of the sum of both losses, and what is compared stays the primary loss."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradoscope.case import Case
from gradoscope.errors import CannotRun
from gradoscope.loop import advance
from gradoscope.remedies.decompose import Decompose
from gradoscope.remedies.step_size import StepSize
from gradoscope.training import Live, Training
from tests.remedies.nets import equal, trained

Batch = tuple[Tensor, Tensor]


class Two(nn.Module):
    """Two parts, one after the other, with dropout between."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(4, 2), nn.Dropout(dropout), nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(torch.tanh(self.first(x))))


def parts(model: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(model, Two)
    return (model.first(batch[0]) - batch[0][:, :2]).square().mean()


def training(**options: Any) -> Training:
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {
        "model": Two,
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.125, momentum=0.5),
        "data": (x, x[:, :1] * x[:, 1:2]),
        "loss_fn": nn.functional.mse_loss,
        "batch_size": 6,
        "intermediate": parts,
    }
    return Training(**(settings | options))


def test_it_explains_itself_and_gives_code_that_parses() -> None:
    for remedy in (Decompose(), Decompose(alone=True)):
        assert remedy.explanation.endswith(".")
        compile(remedy.code, "code", "exec")
        assert remedy.from_checkpoint
        assert remedy(training()).changes == (remedy,)
    assert Decompose().name != Decompose(alone=True).name


def test_steps_are_those_of_the_sum_by_hand() -> None:
    recipe = training()
    with Live.of(recipe, seed=3) as live:
        model = copy.deepcopy(live.model)
        batches = [live.batches.batch(i) for i in range(6)]
    assert isinstance(model, Two)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    for x, y in batches:
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x), y) + parts(model, (x, y))).backward()
        optimizer.step()
    got, _ = trained(recipe, Decompose())
    assert all(torch.equal(p, q) for p, q in zip(got, model.parameters(), strict=True))


def test_alone_leaves_what_the_parts_do_not_reach_where_it_was() -> None:
    recipe = training()
    with Live.of(recipe, seed=3) as live:
        start = [p.detach().clone() for p in live.model.parameters()]
    got, losses = trained(recipe, Decompose(alone=True))
    assert not torch.equal(got[0], start[0])
    assert torch.equal(got[2], start[2])  # the second part: no gradient reaches it
    assert losses[-1] < losses[0]


def test_a_loss_of_parts_that_is_zero_changes_nothing_to_the_last_bit() -> None:
    """Masks included: the primary loss draws them first."""

    def nothing(model: nn.Module, batch: Batch) -> Tensor:
        return 0.0 * model(batch[0]).mean()

    recipe = training(model=lambda: Two(0.5), intermediate=nothing)
    assert equal(trained(recipe, Decompose()), trained(recipe))
    by_batch = replace(recipe, loss_fn=None, batch_loss=lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]))
    assert equal(trained(by_batch, Decompose()), trained(recipe))


def test_it_goes_with_other_remedies_in_any_order() -> None:
    recipe = training()
    assert equal(trained(recipe, Decompose(), StepSize(4.0)), trained(recipe, StepSize(4.0), Decompose()))
    assert not equal(trained(recipe, Decompose(), StepSize(4.0)), trained(recipe, Decompose()))


def test_the_batch_stays_as_it_is() -> None:
    def writes(model: nn.Module, batch: Batch) -> Tensor:
        batch[0].mul_(0.0)
        return parts(model, batch)

    recipe = training(intermediate=writes)
    before = recipe.data[0].clone()
    with Live.of(Decompose()(recipe), seed=3) as live:
        advance(live, 0, 4)
    assert torch.equal(recipe.data[0], before)


def test_what_is_compared_is_the_primary_loss() -> None:
    """With a large constant on the loss of the parts, and none of it in what the fork is judged by."""
    recipe = training(steps=40)
    shifted = replace(recipe, intermediate=lambda m, b: parts(m, b) + 1e3)
    plain, moved = (Case(r).trial(Decompose()) for r in (recipe, shifted))
    assert plain.loss_remedy == pytest.approx(moved.loss_remedy, abs=1e-9)
    assert plain.loss_remedy < 100
    assert plain.examples_ratio == 1


def test_a_training_without_targets_is_told_what_to_give() -> None:
    with pytest.raises(CannotRun, match="intermediate"):
        Decompose()(training(intermediate=None))
