"""What a watch records is right, what it rebuilds is the training that it saw, and it keeps to its budget."""

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random
from gradoscope.loop import advance
from gradoscope.store import Run
from gradoscope.training import Live, Training
from gradoscope.watch import Watch, watch
from gradoscope.watching import budget as budgets
from gradoscope.watching.budget import Budget, Kind, Timetable
from gradoscope.watching.calls import Reservoir
from gradoscope.watching.look import Look
from gradoscope.watching.norms import norms
from gradoscope.watching.replay import clip_norm

ALL = float("inf")
F = nn.functional


@pytest.fixture(autouse=True)
def _own_random() -> Iterator[None]:
    with private_random(11):
        yield


def make(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    return model, optimizer, [(torch.randn(5, 4), torch.randint(0, 3, (5,))) for _ in range(6)]


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batches: list[Any], then: Callable[[], None] = lambda: None
) -> None:
    for x, y in batches:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
        then()


def rerun(training: Training, steps: int | None = None) -> dict[str, Tensor]:
    with Live.of(training) as live:
        advance(live, 0, steps or training.steps)
        return {n: p.detach().clone() for n, p in live.model.named_parameters()}


def assert_same_end(training: Training, model: nn.Module) -> None:
    end = rerun(training)
    for name, p in model.named_parameters():
        torch.testing.assert_close(end[name], p.detach(), rtol=1e-6, atol=1e-7)


def test_records_agree_with_a_slow_reference() -> None:
    model, optimizer, batches = make()
    reference = copy.deepcopy(model).double()
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    loop(model, optimizer, watched.criterion, batches)
    for record, (x, y) in zip(watched.records, batches, strict=True):
        before = [p.detach().clone() for p in reference.parameters()]
        loss = F.cross_entropy(reference(x.double()), y)
        grads = torch.autograd.grad(loss, list(reference.parameters()))
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["grad_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads)), rel=1e-5)
        assert record["lr"] == [0.1]
        with torch.no_grad():
            for (name, p), g, w in zip(reference.named_parameters(), grads, before, strict=True):
                p -= 0.1 * g
                if "update_ratio" in record:
                    assert record["grad_norms"][name] == pytest.approx(float(g.norm()), rel=1e-4)
                    assert record["update_ratio"][name] == pytest.approx(0.1 * float(g.norm() / w.norm()), rel=1e-3)
    assert "update_ratio" in watched.records[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_rebuilt_training_repeats_what_was_seen(optimizer: str) -> None:
    model, _, batches = make()
    made: torch.optim.Optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=4),
    }[optimizer](model.parameters())
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    watched = watch(model, made, criterion, budget=ALL)
    if optimizer == "lbfgs":
        calls = 0
        for x, y in batches:

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                nonlocal calls
                calls += 1
                made.zero_grad()
                loss: Tensor = criterion(model(x), y)
                loss.backward()
                return loss

            made.step(closure)
        assert calls > len(batches)  # several passes per step, one step each
    else:
        loop(model, made, criterion, batches)
    training = watched.training()
    assert training.steps == watched.steps == len(watched.batches) == len(batches)
    assert_same_end(training, model)


def test_schedule_stepped_each_step_and_each_epoch() -> None:
    for every in (1, 3):
        model, optimizer, batches = make()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        watched = watch(model, optimizer, nn.CrossEntropyLoss(), schedule=schedule, budget=ALL)
        for i, batch in enumerate(batches):
            loop(model, optimizer, watched.loss_fn, [batch])
            if (i + 1) % every == 0:
                schedule.step()
        assert_same_end(watched.training(), model)
    model, optimizer, batches = make()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)  # not told of the schedule
    loop(model, optimizer, watched.loss_fn, batches, schedule.step)
    assert_same_end(watched.training(), model)


def test_loss_function_is_seen_by_the_name_that_the_watch_gives() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, F.cross_entropy, budget=ALL)
    loop(model, optimizer, watched.loss_fn, batches)
    assert_same_end(watched.training(), model)
    watched.close()
    assert watched.loss_fn is not None
    assert watched.loss_fn(model(batches[0][0]), batches[0][1]).item() > 0


def test_data_stands_in_for_unseen_targets_and_is_not_read_beside_the_loop() -> None:
    model, optimizer, batches = make()
    reads = 0

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            nonlocal reads
            reads += 1
            return iter(batches)

    watched = watch(model, optimizer, F.cross_entropy, data=Loader(), budget=ALL)
    loop(model, optimizer, F.cross_entropy, batches)
    assert reads == 0
    assert_same_end(watched.training(), model)
    assert "loss" not in watched.records[0]


def test_no_targets_is_said_early_and_again_when_asked() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, F.cross_entropy, budget=ALL)
    with pytest.warns(RuntimeWarning, match="no targets"):
        loop(model, optimizer, F.cross_entropy, batches[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(model, optimizer, F.cross_entropy, batches)
    with pytest.raises(CannotRun, match=r"watch\.loss_fn"):
        watched.training()
    assert watched.records[-1]["grad_norm"] > 0
    with pytest.raises(CannotRun, match="no optimizer step"):
        watch(*make()[:2], nn.MSELoss()).training()


class Words(nn.Module):
    """A language model: a dict with logits of shape (rows, positions, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        out = {"logits": self.head(self.inside(ids))}
        if labels is not None:
            out["loss"] = F.cross_entropy(out["logits"].flatten(0, 1), labels.flatten())
        return out


@pytest.mark.parametrize(
    "between",
    [
        lambda t, y: (t.view(-1, 7), y.view(-1)),
        lambda t, y: (t.transpose(1, 2), y),
        lambda t, y: (t[:, :-1].reshape(-1, 7), y[:, 1:].reshape(-1)),
        lambda t, y: (t[:, -1], y[:, -1]),
    ],
    ids=["flattened", "channels second", "shifted", "last"],
)
def test_what_the_loop_does_between_model_and_loss_is_repeated(between: Callable[..., Any]) -> None:
    model, criterion = Words(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watched = watch(model, optimizer, criterion, budget=ALL)
    for _ in range(3):
        ids = torch.randint(0, 7, (2, 5))
        optimizer.zero_grad()
        criterion(*between(model(ids)["logits"], ids)).backward()
        optimizer.step()
    assert_same_end(watched.training(), model)


def test_unknown_steps_between_model_and_loss_are_told() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    loop(model, optimizer, lambda out, y: watched.criterion(out * 3.7 + 1, y), batches)  # type: ignore[misc]
    with pytest.raises(CannotRun, match="batch_loss"):
        watched.training()


def test_model_with_its_own_loss_and_named_arguments() -> None:
    model = Words()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    watched = watch(model, optimizer, budget=ALL)
    for _ in range(3):
        ids = torch.randint(0, 7, (2, 5))
        optimizer.zero_grad()
        model(ids, labels=ids)["loss"].backward()
        optimizer.step()
    assert watched.records[0]["loss"] > 0
    assert_same_end(watched.training(), model)


def test_accumulation_is_seen_and_repeated() -> None:
    model, optimizer, batches = make()
    criterion = nn.CrossEntropyLoss()
    watched = watch(model, optimizer, criterion, budget=ALL)
    for k in (0, 2, 4):
        optimizer.zero_grad()
        for x, y in batches[k : k + 2]:
            (criterion(model(x), y) / 2).backward()
        optimizer.step()
    assert watched.training().accumulate == 2
    assert_same_end(watched.training(), model)


def marked(watched: Watch, batches: list[Any], *, clip: float, scaler: Any = None, unscale: bool = True) -> list[float]:
    """An explicit loop with clipping; returns the norms before it."""
    told = []
    for x, y in batches:
        with watched.step((x, y), scaler=scaler) as s:
            loss = F.cross_entropy(watched.model(x), y)
            s.loss(loss)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None and unscale:
                scaler.unscale_(watched.optimizer)
            s.gradients()
            if scaler is not None and not unscale:
                scaler.unscale_(watched.optimizer)
            told.append(float(nn.utils.clip_grad_norm_(watched.model.parameters(), clip)))
            if scaler is None:
                watched.optimizer.step()
            else:
                scaler.step(watched.optimizer)
                scaler.update()
        watched.optimizer.zero_grad()
    return told


def test_marked_steps_tell_norms_before_clipping() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, F.cross_entropy, budget=ALL)
    told = marked(watched, batches, clip=0.2)
    assert [r["grad_norm"] for r in watched.records] == pytest.approx(told, rel=1e-5)
    assert all(r["grad_norm_clipped"] == pytest.approx(0.2, rel=1e-4) for r in watched.records)
    training = watched.training()
    assert training.clip_norm == pytest.approx(0.2, rel=1e-4)
    assert_same_end(training, model)


@pytest.mark.parametrize("unscale", [True, False])
def test_scaled_gradients_are_told_unscaled_and_refused_steps_counted(unscale: bool) -> None:
    model, optimizer, batches = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watched = watch(model, optimizer, F.cross_entropy, budget=ALL)
    told = marked(watched, batches[:3], clip=1e9, scaler=scaler, unscale=unscale)
    assert [r["grad_norm"] for r in watched.records] == pytest.approx(told, rel=1e-5)
    assert watched.skipped_updates == 0
    marked(watched, [(batches[0][0] * math.inf, batches[0][1])], clip=1e9, scaler=scaler)
    assert watched.skipped_updates == 1
    assert watched.steps == 4
    assert watched.records[-1]["skipped"] is True


def test_scale_left_in_by_a_fused_optimizer_is_taken_out() -> None:
    model, _, batches = make()
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler, criterion = torch.amp.GradScaler("cpu", init_scale=1024.0), nn.CrossEntropyLoss()
    watched = watch(model, optimizer, criterion, budget=ALL)
    for x, y in batches[:2]:
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    criterion(reference(batches[0][0]), batches[0][1]).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None))
    assert watched.records[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert_same_end(watched.training(), model)


def test_batch_loss_with_marked_steps_and_several_batches_a_step() -> None:
    model, optimizer, batches = make()

    def batch_loss(m: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1])

    watched = watch(model, optimizer, batch_loss=batch_loss, budget=ALL)
    for k in (0, 3):
        optimizer.zero_grad()
        with watched.step() as s:
            for batch in batches[k : k + 3]:
                s.batch(batch)
                loss = batch_loss(model, batch)
                s.loss(loss)
                (loss / 3).backward()
            optimizer.step()
    training = watched.training()
    assert training.accumulate == 3
    assert_same_end(training, model)


def test_compiled_and_wrapped_models() -> None:
    model, optimizer, batches = make()
    compiled = torch.compile(model, backend="eager")
    compiled(batches[0][0])
    watched = watch(compiled, optimizer, nn.CrossEntropyLoss(), budget=ALL)  # type: ignore[arg-type]
    loop(compiled, optimizer, watched.loss_fn, batches)  # type: ignore[arg-type]
    assert set(watched.records[0]["grad_norms"]) == {n for n, _ in model.named_parameters()}
    assert_same_end(watched.training(), model)
    model, optimizer, batches = make()
    parallel = nn.DataParallel(model)
    watched = watch(parallel, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    loop(parallel, optimizer, watched.loss_fn, batches)
    assert_same_end(watched.training(), model)


def test_autocast_is_watched() -> None:
    model, optimizer, batches = make()
    criterion = nn.CrossEntropyLoss()
    watched = watch(model, optimizer, criterion, budget=ALL)
    for x, y in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
    assert watched.records[0]["loss"] > 0
    end = rerun(watched.training())
    for name, p in model.named_parameters():
        torch.testing.assert_close(end[name], p.detach(), rtol=0.1, atol=0.02)


def test_frozen_unused_and_sparse_parameters() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.head, self.unused = nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2), nn.Linear(1, 1)
            self.head.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rows(x).mean(1))

    model = Odd()
    rest = [*model.head.parameters(), *model.unused.parameters()]
    optimizer = torch.optim.SGD([{"params": model.rows.parameters()}, {"params": rest, "lr": 0.5}], lr=0.1)
    criterion = nn.CrossEntropyLoss()
    watched = watch(model, optimizer, criterion, budget=ALL)
    x, y = torch.tensor([[1, 1, 2], [2, 1, 4]]), torch.tensor([0, 1])
    criterion(model(x), y).backward()
    grads = {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    record = watched.records[0]
    assert record["lr"] == [0.1, 0.5]
    assert record["no_gradient"] == ["head.bias", "unused.weight", "unused.bias"]
    assert record["grad_norms"] == pytest.approx({n: float(g.norm()) for n, g in grads.items()}, rel=1e-5)


def test_norms_over_types_and_sizes() -> None:
    tensors = [torch.randn(3), torch.randn(2, 2).double(), torch.full((4,), 300.0).half(), torch.randn(2, dtype=torch.complex64)]
    expected = [float(torch.linalg.vector_norm(t.to(torch.complex128))) for t in tensors]
    assert norms(tensors).tolist() == pytest.approx(expected, rel=1e-5)
    assert float(norms([torch.full((4,), 6e4).half()])[0]) == pytest.approx(1.2e5, rel=1e-2)
    assert norms([]).numel() == 0


@pytest.mark.parametrize(("where", "layer"), [("forward", "0"), ("backward", "2.bias"), ("loss", None)])
def test_first_layer_that_is_not_finite(where: str, layer: str | None) -> None:
    model, optimizer, batches = make()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([math.inf] * 3) if where == "loss" else None)
    watched = watch(model, optimizer, criterion, budget=ALL)
    x, y = batches[0]
    loss = criterion(model(x * math.nan if where == "forward" else x), y)
    loss.backward()
    if where == "backward":
        model[2].bias.grad.fill_(math.inf)  # type: ignore[index]
    optimizer.step()
    found = watched.records[0]["nonfinite"]
    assert (found["where"], found["layer"]) == (where, layer)


def test_huge_finite_gradients_are_no_overflow() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watched = watch(model, optimizer, nn.MSELoss(), budget=ALL)
    watched.criterion(model(torch.ones(1, 2)), torch.ones(1, 1)).backward()  # type: ignore[misc]
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e30)
    optimizer.step()
    assert watched.records[0]["grad_norm"] == pytest.approx(math.sqrt(3) * 1e30, rel=1e-6)
    assert "nonfinite" not in watched.records[0]


def test_our_own_mistake_ends_the_watch_and_not_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, batches = make()
    plain = copy.deepcopy(model)
    loop(plain, torch.optim.SGD(plain.parameters(), lr=0.1), F.cross_entropy, batches)
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    monkeypatch.setattr(Look, "after_step", lambda self: 1 / 0)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError") as told:
        loop(model, optimizer, watched.loss_fn, batches)
    assert len(told) == 1
    assert watched.failure
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert not model._forward_hooks


def test_warnings_as_errors_do_not_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    monkeypatch.setattr(Look, "after_step", lambda self: 1 / 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(model, optimizer, watched.loss_fn, batches)
    assert "ZeroDivisionError" in watched.failure
    assert watched.steps == len(batches)


def test_marked_steps_after_closing_do_nothing() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, F.cross_entropy, budget=ALL)
    marked(watched, batches[:2], clip=1.0)
    watched.close()
    marked(watched, batches, clip=1.0)
    assert watched.steps == len(watched.records) == 2
    assert watched.skipped_updates == 0


def test_interruption_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)

    def interrupt(self: Look) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Look, "after_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop(model, optimizer, watched.loss_fn, batches)
    watched.close()
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_copies_of_a_watched_model_are_not_watched() -> None:
    model, optimizer, batches = make()
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    twin, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (twin, read):
        other(batches[0][0])
    loop(model, optimizer, watched.loss_fn, batches)
    assert len(watched.batches) == watched.steps == len(batches)


def test_subclass_that_calls_its_parents_step_counts_once() -> None:
    model, _, batches = make()
    torch.optim.SGD(model.parameters(), lr=0.1)  # from now on the parent's step fires hooks of its own

    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Mine(model.parameters(), lr=0.1)
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    loop(model, optimizer, watched.loss_fn, batches)
    assert watched.steps == len(watched.records) == len(batches)


def test_model_that_cannot_be_copied_is_lent_and_put_back() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.inside(x)  # a cached activation cannot be deep-copied
            return self.kept

    model = Keeps()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watched = watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL)
    loop(model, optimizer, watched.loss_fn, make()[2])
    end = copy.deepcopy(model.state_dict())
    with pytest.raises(CannotRun, match="cannot be copied"):
        watched.training()
    with watched._lent() as (training, _):
        again = rerun(training)
    for name, value in model.state_dict().items():
        assert torch.equal(value, end[name])
        torch.testing.assert_close(again[name], value)


def test_reservoir_is_a_uniform_bounded_sample_without_repeats() -> None:
    first = [0] * 100
    for trial in range(300):
        reservoir = Reservoir(count=10)
        reservoir._random.seed(trial)
        for i in range(100):
            reservoir.add(i, torch.tensor([float(i)]))
        kept = [int(b) for b in reservoir.batches()]
        assert len(kept) == 10
        assert kept == sorted(kept)
        for i in kept:
            first[i] += 1
    # 300 draws of 10 in 100: each index is binomial with mean 30 and standard deviation 5.2.
    assert max(first) < 30 + 5 * 5.2
    assert min(first) > 30 - 5 * 5.2
    reservoir = Reservoir(size=100)
    for _ in range(3):
        reservoir.add(0, torch.ones(10))
    assert len(reservoir) == reservoir.seen == 1
    for i in range(10):
        reservoir.add(i, torch.full((10,), float(i)))
    assert len(reservoir) == 2  # 40 bytes each


@pytest.mark.parametrize(
    ("norms_", "expected"),
    [([1.0] * 3 + [0.5, 0.2, 0.7], 1.0), ([1.0] * 6, 1.0), ([1.0, 0.9, 0.8, 0.7, 0.6], None), ([0.31234] * 6, None)],
)
def test_clipping_is_told_from_the_norms(norms_: list[float], expected: float | None) -> None:
    assert clip_norm(norms_) == expected


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step_ms", "look_ms"), [(1.0, 0.3), (0.2, 0.4), (100.0, 0.3), (1.0, 30.0)])
def test_budget_is_kept_whatever_a_look_costs(step_ms: float, look_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(budgets.time, "perf_counter", clock)
    budget = Budget(0.05)
    times = Timetable(budget)
    kind: Kind | None = "full"
    looks, kinds, training, watching = 0, set(), 0.0, 0.0
    factor = {"light": 1.0, "full": 2.0, "checkpoint": 5.0}
    for step in range(1, 4001):
        clock.now += step_ms / 1e3 * (200 if step % 1000 == 0 else 1)  # now and then a long pause
        training += step_ms / 1e3
        times.enter()
        if kind is not None:
            looks, cost = looks + 1, look_ms / 1e3 * factor[kind]
            kinds.add(kind)
            clock.now += cost
            watching += cost
            times.looked(step, kind)
            kind = None
        if step >= times.next:
            kind = times.choose(step)
        times.leave()
    times.settle(4000)
    first = look_ms / 1e3 * 2
    assert watching <= 0.05 * training + first
    assert budget.overhead == pytest.approx(watching / training, abs=0.02 + 1e-6 * 4000 / training)
    expected = min(4000, training * 0.05 / (look_ms / 1e3))
    assert looks > 0.1 * expected
    if looks < 1000:
        assert times.skipped > 0
    if step_ms / look_ms > 1:
        assert kinds == {"light", "full", "checkpoint"}


def test_a_real_training_keeps_to_the_budget_by_its_own_account() -> None:
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = watch(model, optimizer, nn.CrossEntropyLoss())
    batch = (torch.randn(16, 8), torch.randint(0, 2, (16,)))
    loop(model, optimizer, watched.loss_fn, [batch] * 4000)
    # A busy machine may hold up one look for longer than the budget of so short a training; it then looks no more.
    assert watched.overhead < 0.05 or len(watched.records) < 10
    assert watched.steps == 4000
    assert 0 < len(watched.records) < 4000
    assert watched.skipped > 0
    assert watched.snapshots.states[0].step == 0
    assert any("skipped" in note for note in watched_notes(watched))


def watched_notes(watched: Watch) -> list[str]:
    from gradoscope.watching.rebuild import notes

    return notes(watched)


def test_run_is_recorded_and_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    model, optimizer, batches = make()
    with watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL, record=tmp_path, target="digits:healthy", steps=24) as watched:
        loop(model, optimizer, watched.loss_fn, batches * 4)
    run = Run.open(tmp_path)
    assert run.records() == watched.records
    assert run.target == "digits:healthy"
    assert run.checkpoints()[0].name == "step-00000000.safetensors"
    state = run.last_state()
    assert state is not None
    assert state.step == 24
    assert all(torch.equal(state.parameters[n], p) for n, p in model.named_parameters())
    assert len(run.checkpoints()) <= 7


def test_killed_training_leaves_a_run_that_can_be_read(tmp_path: Path) -> None:
    code = """
import os, signal, sys, torch
from gradoscope.watch import watch
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
criterion = torch.nn.CrossEntropyLoss()
watched = watch(model, optimizer, criterion, budget=float("inf"), record=sys.argv[1])
for step in range(50):
    criterion(model(torch.ones(4, 3)), torch.zeros(4, dtype=torch.long)).backward()
    optimizer.step()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    run = Run.open(tmp_path / "run")
    assert [r["step"] for r in run.records()] == list(range(50))
    state = run.last_state()
    assert state is not None
    assert state.step > 10


def test_mistakes_in_the_call_are_told_before_the_loop(tmp_path: Path) -> None:
    model, optimizer, _ = make()
    with pytest.raises(Usage, match="not both"):
        watch(model, optimizer, nn.MSELoss(), batch_loss=lambda m, b: m(b).sum())
    with pytest.raises(Usage, match="share"):
        watch(model, optimizer, budget=-1.0)
    with pytest.raises(CannotRun, match="not the model's"):
        watch(nn.Linear(1, 1), optimizer)
    assert not optimizer._optimizer_step_post_hooks


def test_diagnosis_of_a_watched_training() -> None:
    model, optimizer, batches = make()
    with watch(model, optimizer, nn.CrossEntropyLoss(), budget=ALL, name="mine") as watched:
        loop(model, optimizer, watched.loss_fn, batches * 4)
        end = copy.deepcopy(model.state_dict())
        found = watched.diagnose(counterfactuals=False)
        assert all(torch.equal(v, end[n]) for n, v in model.state_dict().items())
    assert found.name == "mine"
    assert found.provenance["watch"]["steps"] == 24
    assert any("Watched 24 steps" in note for note in found.notes)
