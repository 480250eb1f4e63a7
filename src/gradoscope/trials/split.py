"""Which families thresholds may be tuned on, and which only report: a hash of the family's name decides, fixed before anything was tried.

The salt is the smallest number for which each half has at least two trials of every obstacle and two with two obstacles, faulty and healthy
trials of every architecture, and between 45% and 55% of the faulty and of the healthy ones. It was chosen by these counts alone, before the
set had been diagnosed.
"""

import hashlib
from typing import Literal

__all__ = ["SALT", "Half", "half_of"]

Half = Literal["tune", "report"]
SALT = 85


def half_of(family: str, salt: int = SALT) -> Half:
    """The half that a family belongs to, by the lowest bit of SHA-256 of the salt and its name.

    Example:
        >>> half_of("digits-mlp") in ("tune", "report")
        True
    """
    digest = hashlib.sha256(f"{salt}:{family}".encode()).digest()
    return "tune" if digest[-1] % 2 else "report"
