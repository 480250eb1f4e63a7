"""Watching changes nothing: bit-identical trainings with and without it, however they are made and attached to."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradoscope.guard import capture_random, private_random
from gradoscope.watch import Watch, watch

STEPS = 5
Batch = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 8, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.inside, self.body, self.head = nn.Embedding(7, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.inside(x)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (mlp, lambda: torch.randn(4, 6)),
    "cnn": (cnn, lambda: torch.randn(4, 1, 6, 6)),
    "lstm": (Recurrent, lambda: torch.randn(4, 4, 5)),
    "transformer": (Attention, lambda: torch.randint(0, 7, (4, 5))),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


class Loop:
    """A user's training: draws its batches and noise from the global streams, and says what it left behind."""

    def __init__(self, model: str, optimizer: str, *, accumulate: int = 1, clip: float | None = None) -> None:
        make, self.draw = MODELS[model]
        self.model = make()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.criterion = nn.CrossEntropyLoss()
        self.accumulate, self.clip, self.closure = accumulate, clip, optimizer == "lbfgs"
        self.losses: list[float] = []

    def batch(self) -> Batch:
        return self.draw() + 0 * int(np.random.rand() + random.random()), torch.randint(0, 3, (4,))

    def run(self, watched: Watch | None, steps: int = STEPS, fail_at: int = -1) -> None:
        for i in range(steps):
            batches = [self.batch() for _ in range(self.accumulate)]
            if watched is None:
                self.step(batches, None, fail=i == fail_at)
            else:
                with watched.step() as s:
                    self.step(batches, s, fail=i == fail_at)
            self.schedule.step()
            self.model.eval()
            with torch.no_grad():
                self.model(self.batch()[0])
            self.model.train()

    def backward(self, batches: list[Batch], mark: Any) -> Tensor:
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for x, y in batches:
            loss = self.criterion(self.model(x), y)
            if mark is not None:
                mark.loss(loss)
            (loss / len(batches)).backward()
            total = total + loss.detach()
        return total

    def step(self, batches: list[Batch], mark: Any, *, fail: bool) -> None:
        if self.closure:
            self.losses.append(float(self.optimizer.step(lambda: self.backward(batches, mark))))
            return
        self.losses.append(float(self.backward(batches, mark)))
        if mark is not None:
            mark.gradients()
        if fail:
            raise ValueError("the user's own mistake")
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()

    def left(self) -> dict[str, Any]:
        return {
            "losses": self.losses,
            "parameters": dict(self.model.named_parameters()),
            "buffers": dict(self.model.named_buffers()),
            "grads": [p.grad for p in self.model.parameters()],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "modes": {n: m.training for n, m in self.model.named_modules()},
            "random": capture_random(),
        }


def hooks(loop: Loop) -> list[Any]:
    modules = [*loop.model.modules(), loop.criterion]
    kept = [dict(v) for m in modules for k, v in vars(m).items() if "hook" in k and isinstance(v, dict)]
    kept += [dict(v) for k, v in vars(loop.optimizer).items() if "hook" in k and isinstance(v, dict)]
    return kept


def assert_same(a: Any, b: Any, at: str = "") -> None:
    """Equality to the last bit."""
    assert type(a) is type(b), at
    if isinstance(a, Tensor):
        assert a.shape == b.shape, at
        assert a.dtype == b.dtype, at
        assert torch.equal(a, b), at
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), at
    elif isinstance(a, dict):
        assert list(a) == list(b), at
        for k in a:
            assert_same(a[k], b[k], f"{at}.{k}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{at}.{i}")
    else:
        assert a == b, at


CASES = [(m, o, {}) for m in MODELS for o in OPTIMIZERS] + [
    ("mlp", "sgd", {"accumulate": 3}),
    ("cnn", "adam", {"accumulate": 2, "clip": 0.1}),
    ("transformer", "adam", {"clip": 0.1}),
]


@pytest.mark.parametrize("way", ["hooks", "marked"])
@pytest.mark.parametrize(("model", "optimizer", "options"), CASES, ids=lambda v: str(v).strip("{}") if v else "plain")
def test_training_is_bit_identical_with_and_without_watching(
    model: str, optimizer: str, options: dict[str, Any], way: str, tmp_path: Path
) -> None:
    with private_random(3):
        loop = Loop(model, optimizer, **options)
        loop.run(None)
        plain = copy.deepcopy(loop.left())
    with private_random(3):
        loop = Loop(model, optimizer, **options)
        before = hooks(loop)
        watched = watch(loop.model, loop.optimizer, loop.criterion, schedule=loop.schedule, budget=float("inf"), record=tmp_path / "run")
        loop.run(watched if way == "marked" else None)
        watched.close()
        assert_same(plain, loop.left())
        assert hooks(loop) == before
    assert not watched.failure
    assert watched.steps == STEPS
    assert [r["step"] for r in watched.records] == list(range(STEPS))
    assert {"loss", "grad_norm", "lr"} <= set(watched.records[-1])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_rebuilding_the_training_and_running_it_changes_nothing(model: str) -> None:
    from gradoscope.loop import advance
    from gradoscope.training import Live

    with private_random(4):
        loop = Loop(model, "adam")
        watched = watch(loop.model, loop.optimizer, loop.criterion, budget=float("inf"))
        loop.run(None)
        kept = copy.deepcopy(loop.left())
        grads = [p.grad for p in loop.model.parameters()]
        training = watched.training()
        with Live.of(training) as live:
            advance(live, 0, 3)
        assert_same(kept, loop.left())
        assert all(p.grad is g for p, g in zip(loop.model.parameters(), grads, strict=True))
        loop.run(None, 2)  # and the live training goes on, watched as before
    assert watched.steps == STEPS + 2
    watched.close()


@pytest.mark.parametrize("way", ["hooks", "marked"])
def test_an_exception_in_the_loop_passes_and_leaves_nothing(way: str) -> None:
    with private_random(5):
        plain = Loop("cnn", "sgd")
        with pytest.raises(ValueError, match="own mistake"):
            plain.run(None, fail_at=2)
        left = copy.deepcopy(plain.left())
    with private_random(5):
        loop = Loop("cnn", "sgd")
        before = hooks(loop)

        def watched_run() -> None:
            with watch(loop.model, loop.optimizer, loop.criterion, budget=float("inf")) as watched:
                loop.run(watched if way == "marked" else None, fail_at=2)

        with pytest.raises(ValueError, match="own mistake"):
            watched_run()
        assert_same(left, loop.left())
        assert hooks(loop) == before


def test_user_hooks_stay_and_still_fire() -> None:
    with private_random(6):
        loop = Loop("mlp", "sgd")
        seen: list[str] = []
        loop.model.register_forward_hook(lambda *_: seen.append("forward"))
        loop.optimizer.register_step_post_hook(lambda *_: seen.append("step"))
        before = hooks(loop)
        with watch(loop.model, loop.optimizer, loop.criterion, budget=float("inf")):
            loop.run(None, 2)
    assert hooks(loop) == before
    assert seen == ["forward", "step", "forward"] * 2
