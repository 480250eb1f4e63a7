"""A small transformer on tokens: which is the largest, which comes first, how many are there of one kind."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("sorting-transformer", "transformer", 3e-3)
TOKENS = 8


class Sorter(nn.Module):
    """Embedding, positions, encoder layers without dropout; a score per token at every position."""

    def __init__(self, length: int, width: int, layers: int, *, first_norm: bool, start: float, softmax: bool, frozen: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Parameter(0.5 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=first_norm)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, TOKENS)
        self.softmax = nn.Softmax(dim=-1) if softmax else nn.Identity()
        if start != 1:
            with torch.no_grad():
                for p in self.parameters():
                    if p.dim() > 1:
                        p.mul_(start)
        if frozen:
            self.requires_grad_(False)
            self.head.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.softmax(self.head(self.encoder(self.tokens(x) + self.places)))
        return scores


def make(
    seed: int,
    *,
    lr: float = 3e-3,
    use_sgd: bool = False,
    length: int = 5,
    width: int = 32,
    layers: int = 1,
    first_norm: bool = True,
    start: float = 1.0,
    rows: int = 2000,
    batch: int = 64,
    steps: int = 250,
    softmax: bool = False,
    frozen: bool = False,
    garbled: float = 0.0,
    warmup: int = 0,
    clip: float | None = None,
) -> Training:
    """Sort `length` tokens of 8 kinds: at each position the token that stands there in order; `garbled` targets are drawn at random."""
    random = generator(seed, 23)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, TOKENS, (n, length), generator=random)
        y = x.sort(dim=1).values
        lot = torch.rand(y.shape, generator=random) < garbled
        return x, torch.where(lot, torch.randint(0, TOKENS, y.shape, generator=random), y)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))

    return Training(
        name="sorting-transformer",
        model=lambda: Sorter(length, width, layers, first_norm=first_norm, start=start, softmax=softmax, frozen=frozen),
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=loss,
        data=sample(rows),
        validation=sample(500),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
        schedule=schedule if warmup else None,
        clip_norm=clip,
    )


plan = planner(make)


SORTED = Success("training", 0.5)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "easy",
    "Adam at 1e-6 moves no weight by more than 3e-4 in 250 steps.",
    plan(lr=1e-6),
    ("step 3e-3", plan()),
    SORTED,
)
FAMILY.faulty(
    "short-step",
    "step_too_small",
    "hard",
    "Adam at 2e-5: it learns which tokens there are, and is stopped on its way.",
    plan(lr=2e-5),
    ("step 3e-3", plan()),
    SORTED,
    rivals=(("batches of 512", plan(lr=2e-5, batch=512, steps=100)),),
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "easy",
    "Adam at 0.5 throws every weight about by several times its size.",
    plan(lr=0.5),
    ("step 3e-3", plan()),
    SORTED,
)
FAMILY.faulty(
    "two-softmax",
    "wrong_loss_output",
    "easy",
    "Scores go through a softmax before cross-entropy takes its own: no answer is given more than 28% of the probability.",
    plan(softmax=True),
    ("without the softmax", plan()),
    Success("training", 1.0),
)
FAMILY.faulty(
    "head-only",
    "frozen_parameters",
    "medium",
    "Only the head is trained, on top of a random encoder: what a position sees of the others is not made for counting.",
    plan(frozen=True),
    ("all parameters trained", plan()),
    SORTED,
    rivals=(("steps of 3e-2", plan(frozen=True, lr=3e-2)),),
)
FAMILY.faulty(
    "garbled-targets",
    "bayes_floor",
    "hard",
    "Four in five targets are drawn at random: the sorted token keeps 30% of the probability, and most of the loss is noise.",
    plan(garbled=0.8, rows=6000, batch=128, lr=2e-3),
    ("the sorted tokens", plan(rows=6000, batch=128, lr=2e-3)),
    Success("training", 1.0),
    rivals=(("steps of 6e-4", plan(garbled=0.8, rows=6000, batch=128, lr=6e-4)),),
)
FAMILY.faulty(
    "forty-sequences",
    "overfitting",
    "medium",
    "Forty sequences are learnt by heart long before sorting is.",
    plan(rows=40, batch=20, steps=200),
    ("2,000 sequences", plan(steps=200)),
    Success("validation", 0.6),
)
FAMILY.healthy("plain", "easy", "It sorts.", plan(), SORTED)
FAMILY.healthy(
    "warm-up",
    "medium",
    "A hundred steps of warm-up: next to nothing happens at first, and then it sorts.",
    plan(warmup=100, steps=300, layers=2),
    SORTED,
)
