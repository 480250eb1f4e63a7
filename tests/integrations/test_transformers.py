"""Hugging Face: a `Trainer` computes the same to the last bit while it is watched, records are right, and it becomes a Training."""

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import private_random
from gradoscope.integrations import transformers as adapter
from tests.integrations.common import ALL, assert_run_is_told, assert_same_end, break_looks, left
from tests.test_neutral import assert_same

T = pytest.importorskip("transformers", reason="an extra: gradoscope[transformers]")
pytest.importorskip("accelerate", reason="an extra: gradoscope[transformers]")
F = nn.functional


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    T.logging.set_verbosity_error()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    with warnings.catch_warnings(), private_random(5):
        warnings.filterwarnings("ignore", module="transformers|accelerate|torch")
        yield


def language(dropout: float = 0.0) -> Any:
    """A causal language model that was never trained, of about 600 parameters."""
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return T.GPT2LMHeadModel(T.GPT2Config(**sizes, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout))


def texts(n: int = 24, even: bool = True) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(1, 11, (6,), generator=generator) for _ in range(n)]
    return [{"input_ids": r, "labels": r if even or i % 3 else torch.cat([torch.full((4,), -100), r[4:]])} for i, r in enumerate(rows)]


class InOrder(T.Trainer):  # type: ignore[misc]  # of an extra
    """Reads its data in order, and notes what it computes."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(model, inputs, *args, **kwargs)
        vars(self).setdefault("seen", []).append(found.item())
        return found


def make(folder: Path, model: Any, kind: Any = InOrder, data: Any = None, **options: Any) -> Any:
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 1}
    steps = {"max_steps": 4, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    # Adam divides small gradients by their own size: rounding would show.
    steps |= {"learning_rate": 0.3, "optim": "sgd"}
    arguments = T.TrainingArguments(output_dir=str(folder), **(quiet | steps | options))
    return kind(model=model, args=arguments, train_dataset=data or texts())


def train(folder: Path, seed: int, watched: bool, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    with private_random(seed):
        trainer = make(folder / "out", language(0.1), kind=T.Trainer, data=texts(even=False), seed=seed, optim="adamw_torch")
        listener = adapter.attach(trainer, budget=ALL, **options) if watched else None
        trainer.train()
        found = left(trainer.model, trainer.optimizer, trainer.lr_scheduler)
        logs = [{k: v for k, v in log.items() if "runtime" not in k and "second" not in k} for log in trainer.state.log_history]
        return trainer, listener, found | {"logs": logs}


def test_training_is_bit_identical_and_its_records_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, _, plain = train(tmp_path, 3, watched=False)
    trainer, watched, seen = train(tmp_path, 3, watched=True, record=tmp_path / "run")
    assert_same(plain, seen)
    assert set(vars(trainer)) == set(vars(before))  # no ear is left on it
    assert "clip_grad_norm_" not in vars(trainer.accelerator)
    records = watched.watch.records
    assert not watched.watch.failure
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    # `on_pre_optimizer_step` sees clipped gradients; these are told as they were before.
    assert [r["grad_norm"] for r in records] == pytest.approx([log["grad_norm"] for log in logs], rel=1e-4)
    assert {r["grad_norm_at"] for r in records} == {"unclipped"}
    assert all(r["grad_norm_clipped"] == pytest.approx(0.5, rel=1e-4) for r in records)
    # Two batches a step, of different numbers of tokens: the mean over all of their tokens.
    assert [r["loss"] for r in records] == pytest.approx([log["loss"] for log in logs], abs=1e-3)
    assert [r["lr"][0] for r in records] == pytest.approx([log["learning_rate"] for log in logs])
    capsys.readouterr()
    assert_run_is_told(tmp_path / "run", 4, capsys)


def test_the_training_that_was_seen_is_repeated(tmp_path: Path) -> None:
    trainer = make(tmp_path, language())
    watched = adapter.attach(trainer, budget=ALL, name="mine")
    trainer.train()
    training = watched.follower.training()
    assert (training.accumulate, training.steps) == (2, 4)
    assert training.clip_norm == pytest.approx(0.5, rel=1e-4)
    assert_same_end(training, trainer.model)
    assert training.name == "mine"


def test_a_trainer_as_a_training_ends_where_it_ends_and_is_left_as_it_was(tmp_path: Path) -> None:
    trainer = make(tmp_path, language(), warmup_steps=1)
    start, kept = copy.deepcopy(trainer.model.state_dict()), (trainer.optimizer, trainer.lr_scheduler)
    training = adapter.training(trainer)
    assert (training.steps, training.accumulate, training.clip_norm) == (4, 2, 0.5)
    assert_same(start, trainer.model.state_dict())
    assert (trainer.optimizer, trainer.lr_scheduler) == kept == (None, None)
    trainer.train()
    assert_same_end(adapter.training(make(tmp_path, restored(start), warmup_steps=1)), trainer.model)
    again = adapter.training(trainer, steps=9, schedule=None)  # after the training: on from where it stands
    assert (again.steps, again.schedule) == (9, None)
    assert adapter.training(make(tmp_path, language(), max_steps=-1, num_train_epochs=3)).steps == 12


def restored(state: Any) -> Any:
    model = language()
    model.load_state_dict(state)
    return model


def test_users_own_optimizer_is_not_touched(tmp_path: Path) -> None:
    model = language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = T.TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=3, warmup_steps=2)
    trainer = T.Trainer(model=model, args=arguments, train_dataset=texts(), optimizers=(optimizer, None))
    batch = dict(T.default_data_collator(texts(3)))
    items = int(trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))[1])  # by which the trainer divides
    assert_same_end(adapter.training(trainer, data=[batch]), moved(model, batch, items))
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "initial_lr" not in optimizer.param_groups[0]


def moved(model: Any, batch: Any, items: int, steps: int = 3) -> Any:
    """The plain loop."""
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    schedule = T.get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        twin(**batch, num_items_in_batch=items).loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return twin


def test_losses_that_the_model_does_not_return_are_seen(tmp_path: Path) -> None:
    smooth = make(tmp_path, language(), label_smoothing_factor=0.2, max_grad_norm=0.0)
    watched = adapter.attach(smooth, budget=ALL)
    smooth.train()
    records = watched.watch.records
    assert [r["loss"] for r in records] == pytest.approx([sum(smooth.seen[i : i + 2]) for i in range(0, 8, 2)], rel=1e-5)
    assert {r["grad_norm_at"] for r in records} == {"unclipped"}
    assert not any("grad_norm_clipped" in r for r in records)
    assert_same_end(watched.follower.training(), smooth.model)


def test_the_users_mistake_passes_and_ours_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails(InOrder):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            if len(vars(self).get("seen", [])) == 5:
                raise ValueError("the user's own mistake")
            return super().compute_loss(*args, **kwargs)

    trainer = make(tmp_path, language(), kind=Fails)
    watched = adapter.attach(trainer, budget=ALL)
    with pytest.raises(CannotRun, match="not started"):
        watched.diagnose()
    with pytest.raises(ValueError, match="own mistake"):
        trainer.train()
    watched.close()
    assert watched.watch.steps == 2
    assert "compute_loss" not in vars(trainer)
    break_looks(monkeypatch)
    _, _, plain = train(tmp_path, 4, watched=False)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        _, watched, seen = train(tmp_path, 4, watched=True)
    assert_same(plain, seen)
    assert watched.watch.failure
    monkeypatch.undo()
    monkeypatch.setattr(adapter, "_shared", lambda *_: 1 / 0)  # a mistake of the adapter itself
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        _, _, seen = train(tmp_path, 4, watched=True)
    assert_same(plain, seen)
    with pytest.raises(Usage, match="no option 'every'"):
        adapter.attach(trainer, every=2)
