"""The next token of a chain: a small causal transformer reaches the chain's entropy, which may be close to nothing or to chance."""

from typing import Any

import torch
from torch import Tensor, nn

from gradoscope.training import Training
from gradoscope.trials.families._make import accuracy, adam, generator, planner, sgd
from gradoscope.trials.trial import Family, Success

__all__ = ["FAMILY"]

FAMILY = Family("markov-transformer", "transformer", 3e-3)
TOKENS = 8


class Writer(nn.Module):
    """Embedding, positions, causal encoder layers, a score per token at every position."""

    def __init__(self, length: int, width: int, layers: int, *, gain: float, zero: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Parameter(0.3 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, TOKENS)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))
        with torch.no_grad():
            if zero:
                for p in self.parameters():
                    p.zero_()
            if gain != 1:
                self.head.weight.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.tokens(x) + self.places, mask=self.mask, is_causal=True))
        return scores


def make(
    seed: int,
    *,
    sure: float = 0.95,
    length: int = 8,
    width: int = 24,
    layers: int = 1,
    gain: float = 1.0,
    zero: bool = False,
    lr: float = 3e-3,
    use_sgd: bool = False,
    smoothing: float = 0.0,
    rows: int = 1500,
    batch: int = 50,
    steps: int = 200,
    warmup: int = 0,
    clip: float | None = None,
) -> Training:
    """Each token has one successor that follows with probability `sure`; all others share the rest."""
    random = generator(seed, 39)
    order = torch.randperm(TOKENS, generator=random)
    successor = torch.empty(TOKENS, dtype=torch.long)
    successor[order] = order.roll(-1)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        text = [torch.randint(0, TOKENS, (n,), generator=random)]
        for _ in range(length):
            lot = torch.rand(n, generator=random) < sure
            text.append(torch.where(lot, successor[text[-1]], torch.randint(0, TOKENS, (n,), generator=random)))
        whole = torch.stack(text, 1)
        return whole[:, :-1], whole[:, 1:]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), label_smoothing=smoothing)

    def schedule(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))

    return Training(
        name="markov-transformer",
        model=lambda: Writer(length, width, layers, gain=gain, zero=zero),
        optimizer=(sgd if use_sgd else adam)(lr),
        loss_fn=loss,
        data=sample(rows),
        validation=sample(300),
        metric=accuracy,
        batch_size=batch,
        steps=steps,
        schedule=schedule if warmup else None,
        clip_norm=clip,
    )


plan = planner(make)


WRITES = Success("training", 0.6)

FAMILY.faulty(
    "tiny-step",
    "step_too_small",
    "medium",
    "Plain descent at 1e-3.",
    plan(use_sgd=True, lr=1e-3),
    ("step 0.5", plan(use_sgd=True, lr=0.5)),
    WRITES,
)
FAMILY.faulty(
    "huge-step",
    "step_too_large",
    "medium",
    "Adam at 3 moves every weight by several times its size at each step.",
    plan(lr=3.0),
    ("step 3e-3", plan()),
    WRITES,
)
FAMILY.faulty(
    "all-zero",
    "saddle_point",
    "hard",
    "Every weight starts at zero, those of the norms too: only the last bias gets a gradient.",
    plan(zero=True),
    ("the usual start", plan()),
    WRITES,
    rivals=(("steps of 3e-2", plan(zero=True, lr=3e-2)),),
)
FAMILY.faulty(
    "hardly-a-chain",
    "bayes_floor",
    "medium",
    "The successor follows in one case of four, and else any token: three quarters and more of the loss are the chain's own entropy.",
    plan(sure=0.25, rows=6000, batch=128),
    ("a chain that is nearly sure", plan(rows=6000, batch=128)),
    Success("training", 1.0),
    rivals=(("steps of 1e-3", plan(sure=0.25, rows=6000, batch=128, lr=1e-3)),),
)
FAMILY.faulty(
    "thirty-texts",
    "overfitting",
    "hard",
    "Thirty texts of a chain of moderate certainty: the network learns them by heart.",
    plan(sure=0.5, rows=30, batch=30, width=32, lr=5e-3, steps=250),
    ("3,000 texts", plan(sure=0.5, rows=3000, batch=30, width=32, lr=5e-3, steps=250)),
    Success("validation", 1.75),
)
FAMILY.healthy("plain", "easy", "A chain that is nearly sure: the loss falls to its entropy.", plan(), WRITES)
FAMILY.healthy(
    "smoothed",
    "hard",
    "Label smoothing of 0.1 keeps the loss above 0.5 for ever.",
    plan(smoothing=0.1, sure=0.98),
    Success("training", 0.9),
)
FAMILY.healthy(
    "warm-up-and-clipping",
    "medium",
    "Fifty steps of warm-up and gradients clipped to one.",
    plan(warmup=50, clip=1.0, steps=250),
    WRITES,
)
