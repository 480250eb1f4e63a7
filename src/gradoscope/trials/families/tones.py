"""Fitting the frequency of a tone: the loss has a minimum in each side lobe."""

import torch
from torch import Tensor, nn

from gradoscope.guard import private_random
from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("tones", "mlp", 4e-4)


class Tone(nn.Module):
    """a sin(w t) + b cos(w t): a network with one periodic unit pair."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.frequency, self.mix = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(2))
        self.reset_parameters()
        with torch.no_grad():
            self.frequency.fill_(frequency)

    def reset_parameters(self) -> None:
        """A frequency between 4 and 8, small amplitudes."""
        nn.init.uniform_(self.frequency, 4.0, 8.0)
        nn.init.normal_(self.mix, 0.0, 0.05)

    def forward(self, t: Tensor) -> Tensor:
        angle = self.frequency * t
        return torch.cat([angle.sin(), angle.cos()], 1) @ self.mix[:, None]


def make(
    seed: int,
    *,
    frequency: float = 6.5,
    lr: float = 0.02,
    noise: float = 0.1,
    batch: int = 100,
    steps: int = 300,
    frozen: bool = False,
) -> Training:
    """A tone of frequency 6 and variance one over t from -3 to 3, with noise; the model starts at `frequency`."""
    random = generator(seed, 29)
    phase = 6.28 * torch.rand((), generator=random)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        t = 6 * torch.rand(n, 1, generator=random) - 3
        return t, 2**0.5 * torch.sin(6 * t + phase) + noise * torch.randn(n, 1, generator=random)

    with private_random(seed):
        model = Tone(frequency)  # handed over as it stands: a start that was chosen by hand, and that can be drawn anew
    model.frequency.requires_grad_(not frozen)

    return Training(
        name="tones",
        model=model,
        optimizer=adam(lr),
        loss_fn=nn.functional.mse_loss,
        data=sample(600),
        validation=sample(300),
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


HEARD = Success("training", 0.1)

FAMILY.faulty(
    "one-lobe-off",
    "local_minimum",
    "medium",
    "It starts at frequency 7.6, in the first side lobe of the overlap sin(3(w-6))/3(w-6): downhill is away from the tone.",
    plan(frequency=7.6),
    ("a start at 6.5, in the main lobe", plan()),
    HEARD,
    rivals=(
        ("steps of 0.06", plan(frequency=7.6, lr=0.06)),
        ("steps of 0.005", plan(frequency=7.6, lr=0.005)),
        ("all rows at each step", plan(frequency=7.6, batch=600)),
    ),
)
FAMILY.faulty(
    "below-the-tone",
    "local_minimum",
    "hard",
    "The same from below: it starts at 4.4.",
    plan(frequency=4.4),
    ("a start at 5.5, in the main lobe", plan(frequency=5.5)),
    HEARD,
    rivals=(("steps of 0.06", plan(frequency=4.4, lr=0.06)), ("steps of 0.005", plan(frequency=4.4, lr=0.005))),
)
FAMILY.faulty(
    "frozen-frequency",
    "frozen_parameters",
    "easy",
    "The frequency is not trained: amplitudes of the wrong tone cannot make up for it.",
    plan(frozen=True),
    ("all three parameters trained", plan()),
    HEARD,
    rivals=(("steps of 0.2", plan(frozen=True, lr=0.2)),),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "Adam at 5e-5 moves the frequency by 0.015 of the half that it has to.",
    plan(lr=5e-5),
    ("step 0.02", plan()),
    HEARD,
)
FAMILY.healthy("main-lobe", "easy", "It starts half a unit beside the tone.", plan(), HEARD)
FAMILY.healthy(
    "loud-noise",
    "medium",
    "Noise of a fifth of the variance on top: what is left is the noise.",
    plan(noise=0.5),
    Success("training", 0.32),
)
