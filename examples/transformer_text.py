"""A small causal transformer that learns to predict real text, one character at a time; and the same one broken in five ways.

    gradoscope diagnose examples/transformer_text.py:healthy
    gradoscope diagnose examples/transformer_text.py:frozen --report report.html

Nothing of this is in gradoscope's catalogue: this is what a file of your own looks like. The text is the reference
manual of the Python language as it is shipped with Python itself (`pydoc_data.topics`, what `help("topics")` shows),
about 450,000 characters; the last tenth is held back to validate.
"""

from collections.abc import Callable
from functools import lru_cache
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradoscope import Training

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT, WIDTH, HEADS, LAYERS = 32, 32, 4, 2
Chosen = Callable[[nn.Parameter], bool]
Sampler = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention, then a two-layer network, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Characters (n, t) in, scores of the next one (n, t, 96) out; `neck_bias` adds a ReLU layer before the scores."""

    def __init__(self, neck_bias: float | None = None) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.neck = nn.Identity() if neck_bias is None else nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU())
        if neck_bias is not None:
            nn.init.constant_(self.neck[0].bias, neck_bias)
        self.head = nn.Linear(WIDTH if neck_bias is None else 2 * WIDTH, len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        h = self.character(x) + self.place.weight[: x.shape[1]]
        return self.head(self.neck(self.norm(self.blocks(h))))


@lru_cache(maxsize=1)
def text() -> Tensor:
    """The manual as numbers of characters, shape (length,)."""
    number = {c: i for i, c in enumerate(ALPHABET)}
    return torch.tensor([number.get(c, number["?"]) for name in sorted(topics) for c in topics[name]])


def windows(part: Tensor) -> Sampler:
    """A function that draws pieces of text at random, and the same pieces one character on."""

    def sample(random: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        start = torch.randint(0, len(part) - CONTEXT, (n, 1), generator=random)
        index = start + torch.arange(CONTEXT)
        return part[index], part[index + 1]

    return sample


def cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(scores.transpose(1, 2), target)


def training(name: str, *, lr: float = 1e-2, neck_bias: float | None = None, only: Chosen | None = None) -> Training:
    """The common recipe; `only` says which parameters the optimizer is given, by default all."""
    whole = text()
    cut = len(whole) * 9 // 10

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if only is None or only(p)], lr=lr)

    return Training(
        name=f"transformer on text, {name}",
        model=lambda: Transformer(neck_bias),
        optimizer=optimizer,
        loss_fn=cross_entropy,
        data=windows(whole[:cut]),
        validation=windows(whole[cut:]),
        batch_size=32,
        steps=400,
    )


def healthy() -> Training:
    """AdamW at a good step size."""
    return training("healthy")


def step_too_large() -> Training:
    """A hundred times the good step size."""
    return training("step too large", lr=1.0)


def step_too_small() -> Training:
    """A ten-thousandth of the good step size."""
    return training("step too small", lr=1e-6)


def frozen() -> Training:
    """The parameters are split for weight decay, and the group of the matrices is forgotten: only biases and norms learn."""
    return training("frozen", only=lambda p: p.dim() < 2)


def dead() -> Training:
    """A ReLU layer before the scores whose units are off on every input: no gradient reaches anything below it."""
    return training("dead", neck_bias=-20.0)


def few_pages() -> Training:
    """The same network trained on 2,000 characters only: it knows them by heart."""
    whole = text()
    cut = len(whole) * 9 // 10
    return Training(
        name="transformer on text, few pages",
        model=Transformer,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
        loss_fn=cross_entropy,
        data=windows(whole[:2000]),
        validation=windows(whole[cut:]),
        batch_size=32,
        steps=400,
    )
