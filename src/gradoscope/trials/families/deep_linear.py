"""Products of weight matrices: a linear map with the dynamics of a deep network."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import generator, planner, scaled, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("deep-linear", "linear", 5e-4)


def make(
    seed: int,
    *,
    depth: int = 3,
    d: int = 10,
    lr: float = 0.05,
    gain: float = 1.0,
    modes: tuple[float, ...] = (3.0, 2.0, 1.5),
    noise: float = 0.01,
    batch: int = 500,
    steps: int = 400,
    bound: str = "orthogonal",
    clip: float | None = None,
    frozen: bool = False,
    rows: int = 500,
    stretch: float = 1.0,
) -> Training:
    """Learn a map with the singular values `modes` by `depth` square layers without biases; each starts orthogonal times `gain`."""
    random = generator(seed, 30, d)
    left, right = (torch.linalg.qr(torch.randn(d, d, generator=random))[0][:, : len(modes)] for _ in range(2))
    target = left @ torch.diag(torch.tensor(modes)) @ right.T

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=random)
        return x, x @ target.T + noise**0.5 * torch.randn(n, d, generator=random)

    def model() -> nn.Module:
        layers = [nn.Linear(d, d, bias=False) for _ in range(depth)]
        for layer in layers:
            if bound == "orthogonal":
                nn.init.orthogonal_(layer.weight)
            elif bound == "constant":
                nn.init.constant_(layer.weight, 0.3)
        if frozen:
            layers[0].requires_grad_(False)
            with torch.no_grad():
                layers[0].weight[:, : d - 2] = 0.0
        return scaled(nn.Sequential(*layers), gain)

    return Training(
        name="deep-linear",
        model=model,
        optimizer=sgd(lr),
        loss_fn=nn.functional.mse_loss,
        data=sample(rows),
        validation=sample(500),
        batch_size=batch,
        steps=steps,
        clip_norm=clip,
    )


plan = planner(make)


LEARNT = Success("training", 0.3)
GOOD: dict[str, Any] = {"gain": 0.8}

FAMILY.faulty(
    "small-start",
    "saddle_point",
    "medium",
    "Three layers at a hundredth of an orthogonal start: the origin is a saddle whose escape takes longer than the run.",
    plan(gain=0.01),
    ("a start at 0.8", plan(**GOOD)),
    LEARNT,
    rivals=(("steps of 0.15", plan(gain=0.01, lr=0.15)), ("steps of 0.015", plan(gain=0.01, lr=0.015))),
)
FAMILY.faulty(
    "smaller-start-four-layers",
    "saddle_point",
    "hard",
    "Four layers at a twentieth: near the origin the loss is flat to fourth order.",
    plan(depth=4, gain=0.05),
    ("a start at 0.8", plan(depth=4, **GOOD)),
    LEARNT,
    rivals=(("steps of 0.15", plan(depth=4, gain=0.05, lr=0.15)),),
)
FAMILY.faulty(
    "all-weights-equal",
    "saddle_point",
    "easy",
    "All weights of a layer start equal: hidden units see the same gradient for ever, and one of three modes is all that they can learn.",
    plan(bound="constant", depth=2),
    ("an orthogonal start", plan(depth=2, **GOOD)),
    LEARNT,
    rivals=(("steps of 0.15", plan(bound="constant", depth=2, lr=0.15)), ("steps of 0.01", plan(bound="constant", depth=2, lr=0.01))),
)
FAMILY.faulty(
    "growing-signal",
    "exploding_gradient",
    "medium",
    "Ten layers that each double the signal: a thousandfold at the output, and a gradient of as much.",
    plan(depth=10, gain=2.0, lr=0.01),
    ("a start at 0.95", plan(depth=10, gain=0.95, lr=0.01)),
    LEARNT,
    rivals=(("steps of 1e-3", plan(depth=10, gain=2.0, lr=1e-3)), ("steps of 1e-5", plan(depth=10, gain=2.0, lr=1e-5))),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "A step of a thousandth of a good one.",
    plan(lr=5e-5, **GOOD),
    ("step 0.05", plan(**GOOD)),
    LEARNT,
)
FAMILY.faulty(
    "beyond-stability",
    "step_too_large",
    "medium",
    "A step twenty times the good one is far beyond the limit of stability.",
    plan(lr=2.0, **GOOD),
    ("step 0.05", plan(**GOOD)),
    LEARNT,
)
FAMILY.faulty(
    "frozen-bottleneck",
    "frozen_parameters",
    "medium",
    "The first layer is not trained and lets only two directions of the inputs through.",
    plan(frozen=True, **GOOD),
    ("all layers trained", plan(**GOOD)),
    LEARNT,
    rivals=(("steps of 0.15", plan(frozen=True, lr=0.15, **GOOD)),),
)
FAMILY.faulty(
    "small-and-slow",
    ("saddle_point", "step_too_small"),
    "hard",
    "A start near the origin, and a step of a five-hundredth: where the start is mended, the steps are still too short.",
    plan(gain=0.01, lr=1e-4),
    ("a start at 0.8 and a step of 0.05", plan(**GOOD)),
    LEARNT,
    rivals=(("a start at 0.8 alone", plan(lr=1e-4, **GOOD)), ("a step of 0.05 alone", plan(gain=0.01))),
)
FAMILY.healthy("plain", "easy", "Three layers from a start near the identity's size.", plan(**GOOD), LEARNT)
FAMILY.healthy(
    "steps-down",
    "hard",
    "A small start: the loss stays for a quarter of the run, then falls in three steps, one for each mode.",
    plan(gain=0.3, depth=2, lr=0.15),
    LEARNT,
)
FAMILY.healthy(
    "rebuilt-in-batches",
    "medium",
    "The same in batches of 25: each loss is noisy, the end is not.",
    plan(batch=25, lr=0.02, **GOOD, noise=0.05),
    LEARNT,
)
