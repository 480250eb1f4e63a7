"""One-dimensional convolutions on signals: undoing a blur, which is as ill-conditioned as the blur is strong."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, balanced, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("filters-cnn", "cnn", 8e-4)


def make(
    seed: int,
    *,
    blur: float = 0.0,
    twice: bool = False,
    whitened: bool = False,
    taps: int = 7,
    length: int = 24,
    lr: float = 0.2,
    use_adam: bool = False,
    momentum: float = 0.0,
    noise: float = 0.01,
    rows: int = 400,
    batch: int = 400,
    steps: int = 300,
    falling: bool = False,
) -> Training:
    r"""From $x_t = b\,x_{t-1} + u_t$ (once, or twice over), scaled to variance one, tell $u$ at the window's end; u is white.

    The exact answer is a filter of two or three taps. The inputs' spectrum runs over a factor $((1+b)/(1-b))^2$, squared if twice.
    `whitened` gives the network u itself.
    """
    random = generator(seed, 41)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        u = torch.randn(n, length + 40, generator=random)
        x = u
        for _ in range(2 if twice else 1):
            state, out = torch.zeros(n), []
            for t in range(x.shape[1]):
                state = blur * state + x[:, t]
                out.append(state)
            x = torch.stack(out, 1)
        seen, told = x[:, 40:], u[:, 40:]
        if whitened:
            seen = told
        return (seen / seen.std())[:, None], told[:, None, taps - 1 :]

    def noisy(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x, y = sample(random, n)
        return x, y + noise**0.5 * torch.randn(y.shape, generator=random)

    def model() -> nn.Module:
        return nn.Conv1d(1, 1, taps)

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    return Training(
        name="filters-cnn",
        model=model,
        optimizer=adam(lr) if use_adam else sgd(lr, momentum=momentum),
        loss_fn=nn.functional.mse_loss,
        data=noisy(random, rows),
        validation=balanced(*sample(random, 150), noise, random),
        batch_size=batch,
        steps=steps,
        schedule=schedule if falling else None,
    )


plan = planner(make)


TOLD = Success("training", 0.2)
NONE: dict[str, Any] = {"blur": 0.3}

FAMILY.faulty(
    "strong-blur",
    "ill_conditioning",
    "easy",
    "A blur of 0.9, twice over: power falls by a factor of 1e5 from slow to fast waves, and it is the fast ones that tell the answer.",
    plan(blur=0.9, twice=True, lr=0.12),
    ("the signal whitened", plan(blur=0.9, twice=True, whitened=True, lr=0.12)),
    Success("training", 0.5),
    rivals=(("steps of 0.36", plan(blur=0.9, twice=True, lr=0.36)), ("steps of 0.04", plan(blur=0.9, twice=True, lr=0.04))),
)
FAMILY.faulty(
    "blurred-twice",
    "ill_conditioning",
    "medium",
    "The same blur, with momentum and fewer steps.",
    plan(blur=0.9, twice=True, lr=0.15, momentum=0.5, steps=200),
    ("the signal whitened", plan(blur=0.9, twice=True, whitened=True, lr=0.15, momentum=0.5, steps=200)),
    Success("training", 0.5),
    rivals=(
        ("steps of 0.45", plan(blur=0.9, twice=True, lr=0.45, momentum=0.5, steps=200)),
        ("steps of 0.05", plan(blur=0.9, twice=True, lr=0.05, momentum=0.5, steps=200)),
    ),
)
FAMILY.faulty(
    "blurred-in-batches",
    "ill_conditioning",
    "hard",
    "A blur of 0.85, twice over, in batches of 100 signals.",
    plan(blur=0.85, twice=True, lr=0.12, batch=100, rows=1000, steps=200),
    ("the signal whitened", plan(blur=0.85, twice=True, whitened=True, lr=0.12, batch=100, rows=1000, steps=200)),
    Success("training", 0.4),
    rivals=(
        ("steps of 0.36", plan(blur=0.85, twice=True, lr=0.36, batch=100, rows=1000, steps=200)),
        ("steps of 0.04", plan(blur=0.85, twice=True, lr=0.04, batch=100, rows=1000, steps=200)),
        ("all signals at each step", plan(blur=0.85, twice=True, lr=0.12, batch=1000, rows=1000, steps=200)),
    ),
)
FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "A weak blur, and a step of a five-hundredth.",
    plan(**NONE, lr=4e-4),
    ("step 0.2", plan(**NONE)),
    TOLD,
)
FAMILY.faulty(
    "beyond-stability",
    "step_too_large",
    "hard",
    "A weak blur, and a step of 1.5 times the limit.",
    plan(**NONE, lr=0.9),
    ("step 0.2", plan(**NONE)),
    TOLD,
)
FAMILY.faulty(
    "mostly-noise",
    "bayes_floor",
    "easy",
    "Noise of four times the variance of what is to be told.",
    plan(**NONE, noise=4.0),
    ("no noise", plan(**NONE, noise=0.0)),
    Success("training", 1.0),
    rivals=(("steps of 0.05", plan(**NONE, noise=4.0, lr=0.05)), ("steps of 0.4", plan(**NONE, noise=4.0, lr=0.4))),
)
FAMILY.healthy("weak-blur", "easy", "A blur of 0.3 is undone.", plan(**NONE), TOLD)
FAMILY.healthy(
    "some-noise",
    "medium",
    "A fifth of the variance is noise, which stays.",
    plan(**NONE, noise=0.25),
    Success("training", 0.35),
)
FAMILY.healthy(
    "edge-of-stability",
    "hard",
    "A step at 95% of the limit: it swings across the valley, less each time, and arrives.",
    plan(**NONE, lr=0.5, steps=400),
    TOLD,
)
FAMILY.healthy(
    "blur-under-adam",
    "medium",
    "A moderate blur, and Adam with a falling step, which is as good as any.",
    plan(blur=0.5, use_adam=True, lr=3e-2, falling=True),
    TOLD,
)
