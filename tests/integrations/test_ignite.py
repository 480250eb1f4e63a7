"""Ignite: an engine computes the same to the last bit while it is watched, and its parts become a Training."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random
from gradoscope.integrations import ignite as adapter
from gradoscope.store import Run
from tests.integrations.common import ALL, assert_run_is_told, assert_same_end, break_looks, left, norm
from tests.test_neutral import assert_same

engines = pytest.importorskip("ignite.engine", reason="an extra: gradoscope[ignite]")
F = nn.functional


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), private_random(5):
        warnings.filterwarnings("ignore", module="ignite|torch")
        yield


def parts(noisy: bool = False) -> tuple[Any, Any]:
    inside = [nn.BatchNorm1d(6), nn.Dropout(0.3)] if noisy else []
    model = nn.Sequential(nn.Linear(4, 6), *inside, nn.Tanh(), nn.Linear(6, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def batches(n: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 4, generator=generator), torch.randint(0, 3, (3,), generator=generator)) for _ in range(n)]


def run(seed: int, criterion: Any, watched: bool, **options: Any) -> tuple[Any, Any, list[float]]:
    """Two epochs of an engine of Ignite's own making, with accumulation."""
    with private_random(seed):
        model, optimizer = parts(noisy=True)
        engine = engines.create_supervised_trainer(model, optimizer, criterion, gradient_accumulation_steps=2)
        norms: list[float] = []
        optimizer.register_step_pre_hook(lambda *_: norms.append(norm(model.parameters())))
        handler = adapter.attach(engine, model, optimizer, criterion, accumulate=2, budget=ALL, **options) if watched else None
        losses: list[float] = []
        engine.add_event_handler(engines.Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output))
        engine.run(batches(), max_epochs=2)
        return handler, left(model, optimizer) | {"losses": losses, "norms": norms}, losses


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy], ids=["module", "function"])
def test_a_run_is_bit_identical_and_its_records_are_right(criterion: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = run(3, criterion, watched=False)
    handler, seen, losses = run(3, criterion, watched=True, record=tmp_path)
    assert_same(plain, seen)
    records = handler.watch.records
    assert not handler.watch.failure
    assert [r["loss"] for r in records] == pytest.approx([sum(losses[i : i + 2]) / 2 for i in range(0, 12, 2)], rel=1e-5)
    assert [r["grad_norm"] for r in records] == pytest.approx(seen["norms"], rel=1e-5)
    assert handler.watch.overhead >= 0
    assert not isinstance(criterion, nn.Module) or not criterion._forward_hooks
    assert_run_is_told(tmp_path, 6, capsys)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), F.cross_entropy], ids=["module", "function"])
def test_the_run_that_was_seen_is_repeated(criterion: Any) -> None:
    model, optimizer = parts()
    engine = engines.create_supervised_trainer(model, optimizer, criterion, gradient_accumulation_steps=2)
    handler = adapter.attach(engine, model, optimizer, criterion, accumulate=2, budget=ALL)
    engine.run(batches(), max_epochs=1)
    assert_same_end(handler.follower.training(), model)


def flat(batch: Any, device: Any = None, non_blocking: bool = False) -> tuple[Tensor, Tensor]:
    return batch["x"], batch["y"]


def test_the_parts_of_an_engine_as_a_training_end_where_it_ends() -> None:
    data = [{"x": x, "y": y, "unused": "text"} for x, y in batches()]
    criterion = nn.CrossEntropyLoss()
    options: dict[str, Any] = {"prepare_batch": flat, "model_transform": lambda output: output * 2}
    model, optimizer = parts()
    training = adapter.training(model, optimizer, criterion, data, steps=6, accumulate=1, **options)
    twin = copy.deepcopy(model)
    fresh = torch.optim.SGD(twin.parameters(), lr=0.2, momentum=0.9)
    engine = engines.create_supervised_trainer(twin, fresh, criterion, **options)
    handler = adapter.attach(engine, twin, fresh, batch_loss=lambda m, b: criterion(m(b["x"]) * 2, b["y"]), budget=ALL)
    engine.run(data, max_epochs=1)
    assert_same_end(training, twin)
    assert_same_end(handler.follower.training(), twin)
    plain = adapter.training(model, optimizer, criterion, batches(), steps=2, name="mine")
    assert (plain.loss_fn, plain.name) == (criterion, "mine")


def scaled(model: Any, optimizer: Any, scaler: Any) -> Any:
    """An engine of a user's own with a gradient scaler."""

    def update(engine: Any, batch: Any) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return engines.Engine(update)


def test_refused_steps_are_counted() -> None:
    model, optimizer = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine = scaled(model, optimizer, scaler)
    handler = adapter.attach(engine, model, optimizer, F.cross_entropy, scaler=scaler, budget=ALL)
    data = batches()
    data[2] = (data[2][0] * torch.inf, data[2][1])
    engine.run(data, max_epochs=1)
    assert (handler.watch.steps, handler.watch.skipped_updates) == (6, 1)
    assert [i for i, r in enumerate(handler.watch.records) if r.get("skipped")] == [2]


def test_mistakes_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = parts()

    def fails(output: Tensor, target: Tensor) -> Tensor:
        if engine.state.iteration == 4:
            raise ValueError("the user's own mistake")
        return F.cross_entropy(output, target)

    engine = engines.create_supervised_trainer(model, optimizer, fails)
    with pytest.raises(ValueError, match="own mistake"), adapter.attach(engine, model, optimizer, fails, record=tmp_path, budget=ALL):
        engine.run(batches(), max_epochs=1)
    assert len(Run.open(tmp_path).records()) == 3
    assert not optimizer._optimizer_step_post_hooks
    engine = engines.create_supervised_trainer(model, optimizer, F.cross_entropy)
    handler = adapter.attach(engine, model, optimizer, F.cross_entropy, budget=ALL)
    with pytest.raises(CannotRun, match="not started"):
        handler.diagnose()
    engine.add_event_handler(engines.Events.ITERATION_COMPLETED(once=2), lambda e: e.terminate())
    engine.run(batches(), max_epochs=1)
    assert handler.watch.steps == 2
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(Usage, match="engine"):
        adapter.attach(model, model, optimizer)
    break_looks(monkeypatch)
    _, plain, _ = run(4, F.cross_entropy, watched=False)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        handler, seen, _ = run(4, F.cross_entropy, watched=True)
    assert_same(plain, seen)
    assert handler.watch.failure
