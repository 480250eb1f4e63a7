"""A measured number with its standard error or residual, sample size, step and cost."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Cost", "Measurement"]


@dataclass(frozen=True)
class Cost:
    """What something cost: forward passes, backward passes, and examples that went through them."""

    forward: int = 0
    backward: int = 0
    examples: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forward + other.forward, self.backward + other.backward, self.examples + other.examples)


@dataclass(frozen=True)
class Measurement:
    """One measured quantity.

    Args:
        name: the quantity, as the evidence of a finding names it.
        value: a number, an array or a dict of them by layer.
        se: its standard error (same shape), or the residual bound of an eigenvalue; None where the value is exact.
        n: how many independent samples it rests on.
        step: the step of the training at which it was taken.
        unit: "1" for a pure number, "loss" for the loss's own unit.
        p: the p-value, where the measurement is a test.
        method: how it was measured, where there is more than one way (e.g. "finite differences").
        cost: passes spent.
        details: what figures and tests need beside the value.
    """

    name: str
    value: Any
    se: Any = None
    n: int | None = None
    step: int | None = None
    unit: str = "1"
    p: float | None = None
    method: str = ""
    cost: Cost = field(default_factory=Cost)
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """The normal confidence interval of a scalar value (95% by default)."""
        width = z * float(self.se) if self.se is not None else 0.0
        return float(self.value) - width, float(self.value) + width

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None."""
        return {
            "measurement": self.name,
            "value": plain(self.value),
            "se": plain(self.se),
            "n": self.n,
            "step": self.step,
            "unit": self.unit,
            "p": plain(self.p),
            "method": self.method,
        }


def plain(value: Any) -> Any:
    """Turn numpy and torch values into what strict JSON can hold."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (np.bool_,)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
