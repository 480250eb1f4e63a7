"""Noise at every step: the numbers of `per_sample`, from a training's own backward pass, which stays bit for bit what it was."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradoscope
from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.measure.per_sample import per_sample
from gradoscope.measure.step_noise import StepNoise
from gradoscope.objective import Objective
from tests.measure.states import state
from tests.measure.test_per_sample import B, make, mean_loss

WHOLE = [
    "mlp",
    "sequence",
    "long sequence",
    "time first",
    "rows merged",
    "conv",
    "conv groups",
    "conv1d",
    "frames merged",
    "group norm",
    "layer and root norm",
]


def backward(model: nn.Module, batch: Any, loss: Callable[..., Tensor] = mean_loss) -> None:
    model.zero_grad()
    loss(model, batch).backward()


@pytest.mark.parametrize("name", [*WHOLE, "transformer", "own module", "used elsewhere", "layer twice"])
def test_equals_the_gradients_of_single_rows(name: str) -> None:
    model, batch = make(name)
    noise = StepNoise(model, batch[0])
    with noise.on():
        backward(model, batch)
    found = noise.statistics()
    if name in ("used elsewhere", "layer twice"):
        assert set(map(type, noise._layers)) == {nn.Linear}
        if name == "used elsewhere":  # noticed, as its gradient is not what the hook saw
            assert found.norms is None
            assert "outside of their layers" in found.why
            return
    names = {id(p): n for n, p in model.named_parameters()}
    covered = {names[id(p)] for layer in noise._seen for p in layer.parameters(recurse=False)}
    exact = per_sample(Objective(model, mean_loss, [batch]))
    columns = [i for i, n in enumerate(exact.names) if n in covered]
    assert found.squares == pytest.approx(exact.squares[:, columns].sum(1), rel=1e-8)
    own = sum(float(p.grad.square().sum()) for n, p in model.named_parameters() if n in covered and p.grad is not None)
    whole = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert found.share == pytest.approx(own / whole)
    assert (found.share == pytest.approx(1)) == (name in WHOLE)
    assert found.norms is not None
    count = len(found.squares)
    assert found.norms.trace == pytest.approx((found.squares.mean() - own) * count / (count - 1))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_scale_free_whatever_the_reduction_and_a_gradient_scaler(reduction: str, scale: float) -> None:
    model, batch = make("mlp")
    noise = StepNoise(model, batch[0])
    backward(model, batch)
    with noise.on():
        model.zero_grad()
        (scale * F.cross_entropy(model(batch[0]), batch[1], reduction=reduction)).backward()
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= scale  # as a scaler does before the step
    found = noise.statistics()
    exact = per_sample(
        Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction), [batch]), mean=True
    ).norm_statistics()
    assert found.norms is not None
    assert vars(found.norms) == pytest.approx(vars(exact), rel=1e-8)


def test_what_is_no_gradient_of_one_pass_is_not_told() -> None:
    model, batch = make("mlp")
    other = (batch[0].flip(1), batch[1].flip(0))
    noise = StepNoise(model, batch[0])
    backward(model, other)
    with noise.on():
        mean_loss(model, batch).backward()  # on top of what is there
    assert "accumulated" in noise.statistics().why
    with noise.on():
        backward(model, batch)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert noise.statistics().norms is not None  # all by one factor: the ratios are what they were
    with noise.on():
        model(batch[0])
        backward(model, batch)
    assert noise.statistics().norms is None  # two forward passes, of which one was no training
    with noise.on():
        pass
    assert noise.statistics().norms is None


def test_batch_normalisation_in_training_mode_and_other_layers_are_left_out() -> None:
    model, batch = make("batch norm 1d")
    model.train()
    noise = StepNoise(model, batch[0])
    with noise.on():
        backward(model, batch)
    found = noise.statistics()
    assert found.norms is not None
    assert 0 < found.share < 1
    with pytest.raises(CannotRun, match="no layer"):
        StepNoise(nn.LSTM(3, 2), torch.ones(4, 2, 3))
    with pytest.raises(CannotRun, match="first dimension"):
        StepNoise(nn.Linear(2, 2), torch.ones(4, 2), torch.tensor(1.0))


def test_sequences_of_any_length_and_batches_of_any_size() -> None:
    model, (x, y) = make("sequence")
    noise = StepNoise(model, x)
    batch = (torch.cat([x, x], 1)[:, :7].repeat(2, 1, 1), y.repeat(2))
    with noise.on():
        backward(model, batch)
    assert noise.statistics().squares == pytest.approx(per_sample(Objective(model, mean_loss, [batch])).squares.sum(1), rel=1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer", "lstm", "batch norm"])
def test_a_training_is_bit_identical(name: str) -> None:
    ends = []
    for watched in (False, True):
        model, batch = make(name, torch.float32)
        model.train()
        noise = StepNoise(model, batch[0])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        before = state(model)
        with private_random(4):
            for _ in range(4):
                if watched:
                    with noise.on():
                        backward(model, batch)
                    noise.statistics()
                else:
                    backward(model, batch)
                optimizer.step()
            ends.append(state(model))
        assert {k: v for k, v in ends[-1].items() if k.startswith("module")} == {k: v for k, v in before.items() if k.startswith("module")}

    def bits(end: dict[str, Any]) -> list[Any]:
        return [v[2:] if k.startswith("parameter") else v[1:] if k.startswith("buffer") else v for k, v in end.items()]

    assert bits(ends[0]) == bits(ends[1])


def test_half_precision_in_the_pass() -> None:
    model, batch = make("mlp", torch.float32)
    noise = StepNoise(model, batch[0])
    with noise.on(), torch.autocast("cpu", dtype=torch.bfloat16):
        backward(model, batch)
    found, exact = noise.statistics(), per_sample(Objective(model, mean_loss, [batch]))
    assert found.squares == pytest.approx(exact.squares.sum(1), rel=0.05)
    assert np.isfinite(found.squares).all()


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer", "batch norm"])
@pytest.mark.parametrize("marked", [False, True])
def test_the_watch_tells_it_and_changes_nothing(name: str, marked: bool) -> None:
    ends, records = [], []
    for watched in (False, True):
        model, batch = make(name, torch.float32)
        model.train()
        optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), nn.CrossEntropyLoss()
        with private_random(4):
            watch = gradoscope.watch(model, optimizer, criterion, budget=np.inf, noise=True) if watched else None
            for _ in range(4):
                optimizer.zero_grad()
                if watch is not None and marked:
                    with watch.step() as step:
                        criterion(model(batch[0]), batch[1]).backward()
                        step.gradients()
                        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
                        optimizer.step()
                else:
                    criterion(model(batch[0]), batch[1]).backward()
                    if marked:
                        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
                    optimizer.step()
            ends.append([t.clone() for t in (*model.parameters(), *model.buffers())] + [torch.get_rng_state()])
        if watch is not None:
            watch.close()
            assert watch.failure == ""
            records = watch.records
        assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    told = [r["noise"] for r in records if "noise" in r]
    assert len(told) == 3  # from the second look on: the first one learns the shapes
    assert all(t["norm_test"] > 0 and t["rows"] == B for t in told)
    if name == "mlp":
        model, batch = make(name, torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        backward(model, batch)
        if marked:
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
        optimizer.step()
        exact = per_sample(Objective(model, mean_loss, [batch]), mean=True).norm_statistics()
        assert told[0]["norm_test"] == pytest.approx(exact.norm_test, rel=1e-4)
        assert told[0]["share"] == pytest.approx(1)
