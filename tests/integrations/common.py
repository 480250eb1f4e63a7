"""What the tests of the adapters share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradoscope.cli import main
from gradoscope.guard import capture_random
from gradoscope.loop import advance
from gradoscope.store import Run
from gradoscope.training import Live, Training
from gradoscope.watching.look import Look

ALL = float("inf")


def left(model: torch.nn.Module, optimizer: Any = None, schedule: Any = None) -> dict[str, Any]:
    """What a training leaves behind, to be compared to the last bit."""
    return {
        "state": {n: v.clone() for n, v in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "schedule": None if schedule is None else schedule.state_dict(),
        "modes": {n: m.training for n, m in model.named_modules()},
        "hooks": [len(v) for m in model.modules() for k, v in vars(m).items() if "hook" in k and isinstance(v, dict)],
        "random": capture_random(),
    }


def rerun(training: Training) -> dict[str, Tensor]:
    with Live.of(training) as live:
        advance(live, 0, training.steps)
        return {n: p.detach().clone() for n, p in live.model.named_parameters()}


def assert_same_end(training: Training, model: torch.nn.Module) -> None:
    end = rerun(training)
    for name, p in model.named_parameters():
        torch.testing.assert_close(end[name], p.detach(), rtol=1e-5, atol=1e-6)


def norm(parameters: Any) -> float:
    """The norm of the gradients, the slow way."""
    return float(sum(p.grad.double().square().sum() for p in parameters if p.grad is not None).sqrt())


def break_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a mistake of ours."""
    monkeypatch.setattr(Look, "after_step", lambda self: 1 / 0)


def assert_run_is_told(folder: Path, steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder holds the run, and `gradoscope diagnose FOLDER` tells what it can: without a recipe nothing is found."""
    run = Run.open(folder)
    assert [r["step"] for r in run.records()] == list(range(steps))
    state = run.last_state()
    assert state is not None
    assert state.step == steps
    assert main(["diagnose", str(folder), "--json", "--check"]) == 5
    assert '"verdict": "undetermined"' in capsys.readouterr().out
