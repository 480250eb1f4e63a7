"""A cosine of a projection: slow ones are learnt, fast ones look alike to every gradient."""

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, overwrite, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("wave-mlp", "mlp", 6e-4)


def make(
    seed: int,
    *,
    d: int = 10,
    speed: float = 20.0,
    width: int = 128,
    depth: int = 1,
    lr: float = 3e-3,
    use_sgd: bool = False,
    batch: int = 128,
    steps: int = 400,
    told: bool = False,
    dead: float = 0.0,
    activation: type[nn.Module] = nn.ReLU,
) -> Training:
    r"""$\sqrt2\cos(w^\top x)$ with $|w|$ = `speed` and standard normal inputs, fresh at each step; `told` adds the answer as an input."""
    random = generator(seed, 27, d)
    w = torch.randn(d, generator=random)
    w = speed * w / w.norm()

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, d, generator=random)
        y = 2**0.5 * torch.cos(x @ w)[:, None]
        return (torch.cat([x, y], 1) if told else x), y

    def model() -> nn.Module:
        network = mlp((d + told, *[width] * depth, 1), activation)
        if dead:
            overwrite(network[0], bias=dead)
        return network

    return Training(
        name="wave-mlp",
        model=model,
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=nn.functional.mse_loss,
        data=sample,
        validation=sample(random, 500),
        noise_free=True,
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


KNOWN = Success("training", 0.3)
SLOW = {"d": 3, "speed": 1.0, "lr": 1e-2}
DO = "the cosine as one more input"

FAMILY.faulty(
    "fast",
    "uninformative_gradient",
    "easy",
    "Three periods within one spread of the projection, in ten dimensions: whatever the direction, the gradient is the same.",
    plan(),
    (DO, plan(told=True)),
    KNOWN,
    rivals=(("steps of 3e-2", plan(lr=3e-2)), ("steps of 3e-4", plan(lr=3e-4)), ("batches of 1,024", plan(batch=1024, steps=200))),
)
FAMILY.faulty(
    "rather-fast",
    "uninformative_gradient",
    "hard",
    "One and a half periods within a spread, in 20 dimensions, under two hidden layers.",
    plan(d=20, speed=9.0, depth=2, width=64),
    (DO, plan(d=20, speed=9.0, depth=2, width=64, told=True)),
    KNOWN,
    rivals=(
        ("steps of 3e-2", plan(d=20, speed=9.0, depth=2, width=64, lr=3e-2)),
        ("batches of 1,024", plan(d=20, speed=9.0, depth=2, width=64, batch=1024, steps=200)),
    ),
)
FAMILY.faulty(
    "dead-units",
    "vanishing_gradient",
    "medium",
    "A slow wave, but biases of -15 keep all units of the first layer off.",
    plan(**SLOW, dead=-15.0),
    ("the usual biases", plan(**SLOW)),
    KNOWN,
    rivals=(("steps of 1e-3", plan(**{**SLOW, "lr": 1e-3}, dead=-15.0)), ("batches of 1,024", plan(**SLOW, dead=-15.0, batch=1024))),
)
FAMILY.faulty(
    "slow-tiny-step",
    "step_too_small",
    "easy",
    "A slow wave at a step of 3e-6 under Adam.",
    plan(**{**SLOW, "lr": 3e-6}),
    ("step 1e-2", plan(**SLOW)),
    KNOWN,
)
FAMILY.faulty(
    "slow-huge-step",
    "step_too_large",
    "medium",
    "A slow wave at a step of 3 under plain gradient descent.",
    plan(**{**SLOW, "lr": 3.0}, use_sgd=True),
    ("step 0.1", plan(**{**SLOW, "lr": 0.1}, use_sgd=True)),
    KNOWN,
    rivals=(("batches of 1,024", plan(**{**SLOW, "lr": 3.0}, use_sgd=True, batch=1024)),),
)
FAMILY.healthy("slow", "easy", "A sixth of a period within a spread, in three dimensions: it learns.", plan(**SLOW), KNOWN)
FAMILY.healthy(
    "bumps",
    "medium",
    "Half a period within a spread: first the mean, then slowly the bumps.",
    plan(d=2, speed=2.5, lr=1e-2, steps=600, depth=2, width=64),
    KNOWN,
)
