"""Parities of bits: the gradient hardly depends on which bits count, once there are many of them."""

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("parity-mlp", "mlp", 7e-4)


def make(
    seed: int,
    *,
    bits: int = 30,
    relevant: int = 15,
    width: int = 64,
    lr: float = 3e-3,
    use_sgd: bool = False,
    batch: int = 64,
    steps: int = 400,
    told: bool = False,
    rows: int = 0,
) -> Training:
    """The product of `relevant` of `bits` signs under a ReLU network; `told` adds their product as an input."""
    random = generator(seed, 26, bits)
    chosen = torch.randperm(bits, generator=random)[:relevant]

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, bits), generator=random).float() * 2 - 1
        y = x[:, chosen].prod(1, keepdim=True)
        return (torch.cat([x, y], 1) if told else x), (y + 1) / 2

    return Training(
        name="parity-mlp",
        model=lambda: mlp((bits + told, width, 1)),
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=nn.functional.binary_cross_entropy_with_logits,
        data=sample(random, rows) if rows else sample,
        validation=sample(random, 500),
        metric=lambda output, target: float(((output > 0) == (target > 0.5)).double().mean()),
        batch_size=batch,
        steps=steps,
    )


plan = planner(make)


KNOWN = Success("validation", 0.3)
DO = "the product as one more input"

FAMILY.faulty(
    "fifteen-of-thirty",
    "uninformative_gradient",
    "easy",
    "The gradients of two parities of 15 bits differ by less than one part in thousands: no batch shows which one it is.",
    plan(),
    (DO, plan(told=True)),
    KNOWN,
    rivals=(("steps of 3e-2", plan(lr=3e-2)), ("steps of 3e-4", plan(lr=3e-4)), ("batches of 512", plan(batch=512, steps=200))),
)
FAMILY.faulty(
    "ten-of-twenty",
    "uninformative_gradient",
    "medium",
    "Ten of twenty bits.",
    plan(bits=20, relevant=10, width=128),
    (DO, plan(bits=20, relevant=10, width=128, told=True)),
    KNOWN,
    rivals=(
        ("steps of 3e-2", plan(bits=20, relevant=10, width=128, lr=3e-2)),
        ("batches of 512", plan(bits=20, relevant=10, width=128, batch=512, steps=200)),
    ),
)
FAMILY.faulty(
    "descent-on-all-bits",
    "uninformative_gradient",
    "hard",
    "All of 25 bits count, under plain gradient descent.",
    plan(bits=25, relevant=25, use_sgd=True, lr=0.1),
    (DO, plan(bits=25, relevant=25, use_sgd=True, lr=0.1, told=True)),
    KNOWN,
    rivals=(
        ("steps of 1", plan(bits=25, relevant=25, use_sgd=True, lr=1.0)),
        ("steps of 1e-2", plan(bits=25, relevant=25, use_sgd=True, lr=1e-2)),
    ),
)
FAMILY.faulty(
    "rows-by-heart",
    "overfitting",
    "hard",
    "Sixty rows of the product of two bits among thirty are learnt by heart before the bits are found; with 6,000 they are found.",
    plan(bits=30, relevant=2, width=256, rows=60, steps=500),
    ("6,000 rows", plan(bits=30, relevant=2, width=256, rows=6000, steps=500)),
    KNOWN,
)
FAMILY.healthy(
    "two-of-ten",
    "medium",
    "The product of two of ten signs: the loss stays at chance for a while, and then falls.",
    plan(bits=10, relevant=2, width=128, lr=1e-2, batch=128, steps=400),
    KNOWN,
)
FAMILY.healthy(
    "three-of-eight",
    "hard",
    "The product of three of eight signs: a longer plateau, then a fall.",
    plan(bits=8, relevant=3, width=256, lr=1e-2, batch=256, steps=400),
    KNOWN,
)
FAMILY.healthy(
    "one-bit",
    "easy",
    "One of thirty signs is what counts.",
    plan(relevant=1),
    KNOWN,
)
