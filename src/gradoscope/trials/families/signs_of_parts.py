"""The product of what several parts show: end to end, the parts hide behind one another."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("signs-of-parts", "mlp", 8e-4)


class Product(nn.Module):
    """One network says of each part which side it is on, a number from -1 to 1; a small one combines what it says."""

    def __init__(self, parts: int, d: int, width: int) -> None:
        super().__init__()
        self.part = mlp((d, width, 1))
        self.combine = mlp((parts, 64, 1), nn.Tanh) if parts > 1 else nn.Identity()

    def parts(self, x: Tensor) -> Tensor:
        """What the network says of each part: shape (n, parts)."""
        said: Tensor = self.part(x)[..., 0]
        return said.tanh()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.combine(self.parts(x))[:, 0]
        return answer


def make(
    seed: int,
    *,
    parts: int = 4,
    bits: int = 8,
    order: int = 2,
    width: int = 64,
    lr: float = 1e-2,
    batch: int = 100,
    steps: int = 400,
    supervised: bool = False,
    given: bool = True,
) -> Training:
    """Each part is `bits` random signs and has a side, the product of `order` of them; the target is the product of the sides."""
    random = generator(seed, 31, bits)
    chosen = torch.randperm(bits, generator=random)[:order]

    def sides(x: Tensor) -> Tensor:
        return x[..., chosen].prod(-1)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, parts, bits), generator=random).float() * 2 - 1
        return x, sides(x).prod(1)

    def own(model: nn.Module, rows: Any) -> Tensor:
        assert isinstance(model, Product)
        return nn.functional.mse_loss(model.parts(rows[0]), sides(rows[0]))

    def both(model: nn.Module, rows: Any) -> Tensor:
        return nn.functional.mse_loss(model(rows[0]), rows[1]) + own(model, rows)

    how: dict[str, Any] = {"batch_loss": both} if supervised else {"loss_fn": nn.functional.mse_loss}
    return Training(
        name="signs-of-parts",
        model=lambda: Product(parts, bits, width),
        optimizer=adam(lr),
        data=sample,
        validation=sample(random, 500),
        metric=None if supervised else (lambda output, target: float((output.sign() == target).double().mean())),
        intermediate=own if given and not supervised else None,
        noise_free=True,
        batch_size=batch,
        steps=steps,
        **how,
    )


plan = planner(make)


KNOWN = Success("validation", 0.8)
LEARNT = Success("training", 0.5)
DO = "targets for the parts"

FAMILY.faulty(
    "four-parts",
    "end_to_end_composition",
    "easy",
    "Four parts, each the product of two signs out of eight: the whole is a product of eight of 32, which no gradient sees.",
    plan(),
    (DO, plan(supervised=True)),
    KNOWN,
    rivals=(("steps of 1e-1", plan(lr=1e-1)), ("steps of 1e-3", plan(lr=1e-3)), ("batches of 800", plan(batch=800))),
)
FAMILY.faulty(
    "five-short-parts",
    "end_to_end_composition",
    "medium",
    "Five parts of six signs, of which two count in each.",
    plan(parts=5, bits=6),
    (DO, plan(parts=5, bits=6, supervised=True)),
    KNOWN,
    rivals=(("steps of 1e-1", plan(parts=5, bits=6, lr=1e-1)), ("batches of 800", plan(parts=5, bits=6, batch=800))),
)
FAMILY.faulty(
    "three-parts-of-three",
    "end_to_end_composition",
    "hard",
    "Three parts, each the product of three signs out of eight.",
    plan(parts=3, order=3, width=128, batch=150),
    (DO, plan(parts=3, order=3, width=128, batch=150, supervised=True)),
    KNOWN,
    rivals=(
        ("steps of 1e-1", plan(parts=3, order=3, width=128, batch=150, lr=1e-1)),
        ("batches of 1,200", plan(parts=3, order=3, width=128, batch=1200, steps=200)),
    ),
)
FAMILY.faulty(
    "supervised-tiny-step",
    "step_too_small",
    "medium",
    "The parts have targets of their own, and Adam's step is 3e-6.",
    plan(supervised=True, lr=3e-6, steps=300),
    ("step 1e-2", plan(supervised=True, steps=300)),
    LEARNT,
)
FAMILY.healthy(
    "with-targets-for-parts",
    "medium",
    "Four parts with targets of their own: it learns.",
    plan(supervised=True),
    LEARNT,
)
FAMILY.healthy(
    "one-part",
    "easy",
    "One part alone is the product of two signs, which is learnt.",
    plan(parts=1, given=False),
    LEARNT,
)
