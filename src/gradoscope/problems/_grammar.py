"""A text for a character model, from a grammar that is written down here, and the model."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ALPHABET", "GRAMMAR", "Characters", "entropy", "sequences", "text"]

# Each symbol is replaced by one of its alternatives, all of them equally likely; words that are no symbol stand for themselves.
GRAMMAR: Mapping[str, tuple[str, ...]] = {
    "SENTENCE": (
        "THING ACTS . ",
        "THING ACTS THING . ",
        "THING ACTS THING WHERE . ",
        "if THING ACTS , then THING ACTS . ",
        "QUESTION does THING act ? ",
    ),
    "THING": ("the NOUN", "the NOUN", "a NOUN", "a SORT NOUN", "every NOUN"),
    "ACTS": ("follows", "leaves", "meets", "moves", "turns", "waits for"),
    "WHERE": ("in THING", "near THING", "over THING", "under THING"),
    "NOUN": ("saddle", "valley", "plateau", "canyon", "ridge", "bump", "minimum", "gradient", "path", "step"),
    "SORT": ("flat", "deep", "narrow", "steep", "quiet", "wide", "zigzag", "just visible"),
    "QUESTION": ("how", "why", "when"),
}
ALPHABET = " .,?abcdefghijklmnopqrstuvwxyz"


def text(random: np.random.Generator, length: int) -> str:
    """That many characters of sentences, each drawn from the grammar.

    Example:
        >>> set(text(np.random.default_rng(0), 1000)) <= set(ALPHABET)
        True
    """
    parts: list[str] = []
    count = 0
    while count < length:
        parts.append(_expand("SENTENCE", random))
        count += len(parts[-1])
    return "".join(parts)[:length]


def _expand(symbol: str, random: np.random.Generator) -> str:
    alternatives = GRAMMAR.get(symbol)
    if alternatives is None:
        return symbol
    chosen = alternatives[int(random.integers(len(alternatives)))]
    return " ".join(_expand(word, random) for word in chosen.split(" "))


def entropy() -> float:
    """The entropy of the choices in a sentence over its mean length, nats per character: no model has a lower loss on long texts.

    The repeated alternative of a thing counts as one, since a reader cannot tell which of the two it was.

    Example:
        >>> 0.2 < entropy() < 1.0
        True
    """
    choices, length = _measures("SENTENCE")
    return choices / length


def _measures(symbol: str) -> tuple[float, float]:
    """The entropy of what a symbol becomes, in nats, and its mean length in characters."""
    alternatives = GRAMMAR.get(symbol)
    if alternatives is None:
        return 0.0, float(len(symbol))
    shares = [alternatives.count(a) / len(alternatives) for a in dict.fromkeys(alternatives)]
    choices, length = -sum(p * math.log(p) for p in shares), 0.0
    for p, alternative in zip(shares, dict.fromkeys(alternatives), strict=True):
        words = alternative.split(" ")
        below = [_measures(word) for word in words]
        choices += p * sum(h for h, _ in below)
        length += p * (sum(n for _, n in below) + len(words) - 1)
    return choices, length


def sequences(random: np.random.Generator, count: int, length: int) -> tuple[Tensor, Tensor]:
    """Consecutive pieces of one text: the numbers of their characters, and those of the next characters, shape (count, length) each."""
    place = {character: i for i, character in enumerate(ALPHABET)}
    numbers = torch.tensor([place[character] for character in text(random, count * length + 1)])
    return numbers[:-1].view(count, length), numbers[1:].view(count, length)


class Characters(nn.Module):
    """An LSTM that predicts the next character at every place of a piece of text.

    Args:
        hidden: units; each character has a vector of half that size.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), hidden // 2)
        self.lstm = nn.LSTM(hidden // 2, hidden, batch_first=True)
        self.answer = nn.Linear(hidden, len(ALPHABET))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers of characters (n, length); returns scores (n, characters, length)."""
        states, _ = self.lstm(self.embed(x))
        scores: Tensor = self.answer(states)
        return scores.transpose(1, 2)
