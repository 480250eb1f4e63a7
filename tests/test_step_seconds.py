"""With a given time per step, a diagnosis does not depend on how fast the machine is."""

import time
from typing import Any

import pytest
import torch
from torch import nn

import gradoscope
from gradoscope.diagnosis import Diagnosis


class Slow(nn.Linear):
    """A layer that takes its time."""

    wait = 0.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        time.sleep(self.wait)
        return super().forward(input)


def outcome(diagnosis: Diagnosis) -> Any:
    told = diagnosis.to_dict()
    told.pop("provenance")
    told.pop("cost")
    return told


@pytest.mark.parametrize("wait", [0.002])
def test_same_on_a_slower_machine(wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    training = gradoscope.Training(
        model=lambda: nn.Sequential(Slow(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        optimizer=lambda params: torch.optim.SGD(params, lr=1e-4),
        loss_fn=nn.functional.mse_loss,
        data=(x, x[:, :1]),
        batch_size=16,
        steps=40,
    )
    fast = outcome(gradoscope.diagnose(training, step_seconds=1e-3))
    monkeypatch.setattr(Slow, "wait", wait)
    assert outcome(gradoscope.diagnose(training, step_seconds=1e-3)) == fast
