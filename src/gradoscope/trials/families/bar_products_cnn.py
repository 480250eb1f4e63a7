"""How many of several images show a standing bar, odd or even: each image is easy, their parity hides it."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import adam, generator, mlp, planner
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("bar-products-cnn", "cnn", 2e-3)
SIZE = 6


class Products(nn.Module):
    """One convolutional network says of each image how sure it is of a standing bar; a small network combines what it says."""

    def __init__(self, count: int, *, learnt: bool) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 1),
        )
        self.combine = mlp((count, 64, 1), nn.Tanh) if learnt else None

    def parts(self, x: Tensor) -> Tensor:
        """A number from -1 to 1 per image: shape (n, images)."""
        said: Tensor = self.image(x.flatten(0, 1)).reshape(x.shape[:2])
        return said.tanh()

    def forward(self, x: Tensor) -> Tensor:
        said = self.parts(x)
        answer: Tensor = said.prod(1) if self.combine is None else self.combine(said)[:, 0]
        return answer


def make(
    seed: int,
    *,
    count: int = 4,
    noise: float = 0.8,
    learnt: bool = False,
    lr: float = 1e-2,
    batch: int = 40,
    steps: int = 250,
    supervised: bool = False,
    given: bool = True,
) -> Training:
    """Images of 6x6 pixels with a lying or a standing bar and noise, fresh each step; the target is -1 to the number of standing ones."""
    random = generator(seed, 40, count)

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        stands = torch.randint(0, 2, (n, count), generator=random)
        place = torch.randint(0, SIZE, (n, count), generator=random)
        line = nn.functional.one_hot(place, SIZE).float()
        x = torch.where(stands[..., None, None] > 0, line[..., None, :], line[..., None])  # one line of ones
        x = (2.5 * (x.expand(n, count, SIZE, SIZE) - 1 / SIZE) + noise * torch.randn(n, count, SIZE, SIZE, generator=random))[:, :, None]
        return x, (1.0 - 2.0 * (stands.sum(1) % 2))

    def sides(x: Tensor) -> Tensor:
        # The bar stands where the sums over columns vary more than those over rows.
        image = x[:, :, 0]
        return (image.sum(3).var(2) > image.sum(2).var(2)).float() * 2 - 1

    def own(model: nn.Module, rows: Any) -> Tensor:
        assert isinstance(model, Products)
        return nn.functional.mse_loss(model.parts(rows[0]), sides(rows[0]))

    def both(model: nn.Module, rows: Any) -> Tensor:
        return nn.functional.mse_loss(model(rows[0]), rows[1]) + own(model, rows)

    how: dict[str, Any] = {"batch_loss": both} if supervised else {"loss_fn": nn.functional.mse_loss}
    return Training(
        name="bar-products-cnn",
        model=lambda: Products(count, learnt=learnt),
        optimizer=adam(lr),
        data=sample,
        validation=sample(random, 300),
        intermediate=own if given and not supervised else None,
        noise_free=True,
        batch_size=batch,
        steps=steps,
        **how,
    )


plan = planner(make)


KNOWN = Success("validation", 0.7)
DO = "targets for the images"

HIDDEN: dict[str, Any] = {"learnt": True, "steps": 300}

FAMILY.faulty(
    "five-images",
    "end_to_end_composition",
    "easy",
    "The parity of five images, which a small network has to find as well: what one image shows says nothing without the others.",
    plan(count=5, **HIDDEN),
    (DO, plan(count=5, **HIDDEN, supervised=True)),
    KNOWN,
    rivals=(
        ("steps of 1e-1", plan(count=5, **HIDDEN, lr=1e-1)),
        ("steps of 1e-3", plan(count=5, **HIDDEN, lr=1e-3)),
        ("batches of 320", plan(count=5, **HIDDEN, batch=320)),
    ),
)
FAMILY.faulty(
    "four-images",
    "end_to_end_composition",
    "hard",
    "The parity of four images, found by the same small network.",
    plan(count=4, **HIDDEN),
    (DO, plan(count=4, **HIDDEN, supervised=True)),
    KNOWN,
    rivals=(("steps of 1e-1", plan(count=4, **HIDDEN, lr=1e-1)), ("batches of 320", plan(count=4, **HIDDEN, batch=320))),
)
FAMILY.healthy(
    "with-targets-for-images",
    "medium",
    "The parity of four images, with targets for the images.",
    plan(supervised=True),
    Success("training", 0.7),
    margin=0.1,
)
FAMILY.healthy(
    "one-image",
    "easy",
    "One image: does the bar stand?",
    plan(count=1, given=False, batch=100),
    Success("training", 0.4),
)
