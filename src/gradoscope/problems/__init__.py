"""The catalogue: classic problems with the obstacle that their construction demands. One file per family."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradoscope.errors import Usage
from gradoscope.training import Training

__all__ = ["Problem", "all_problems", "find", "problem"]

_REGISTRY: dict[str, "Problem"] = {}


@dataclass(frozen=True)
class Problem:
    """A training of the catalogue.

    Args:
        name: "family:variant", or "family" for a family with options only.
        make: a function of keyword options with defaults (and `seed`) that returns the Training.
        obstacle: the obstacle that its construction demands, or "healthy".
        says: one sentence: what is built and why it fails or succeeds.
        source: where it comes from.
    """

    name: str
    make: Callable[..., Training]
    obstacle: str
    says: str
    source: str = ""

    def options(self) -> dict[str, Any]:
        """The options with their defaults."""
        return {p.name: p.default for p in inspect.signature(self.make).parameters.values()}


def problem(name: str, *, obstacle: str, says: str, source: str = "") -> Callable[[Callable[..., Training]], Callable[..., Training]]:
    """Register a function of keyword options as a problem of the catalogue."""

    def register(make: Callable[..., Training]) -> Callable[..., Training]:
        _REGISTRY[name] = Problem(name, make, obstacle, says, source)
        return make

    return register


def all_problems() -> dict[str, Problem]:
    """Every problem by name."""
    from gradoscope.registry import modules

    for _ in modules("problems"):
        pass
    return dict(sorted(_REGISTRY.items()))


def find(target: str, *, seed: int = 0) -> Training:
    """The training that a target such as "digits:healthy" or "parity:d=30,batch=64" names.

    Raises:
        Usage: where there is no such problem or option; the message lists what there is.
    """
    catalogue = all_problems()
    family, _, rest = target.partition(":")
    words = [w for w in rest.split(",") if w]
    variant = [w for w in words if "=" not in w]
    name = ":".join([family, *variant])
    if name not in catalogue:
        near = [n for n in catalogue if n.split(":")[0] == family] or list(catalogue)
        raise Usage(f"there is no problem {name!r} in the catalogue; there are: {', '.join(near)}.")
    found = catalogue[name]
    defaults = found.options()
    options: dict[str, Any] = {}
    for word in words:
        if "=" not in word:
            continue
        key, _, text = word.partition("=")
        if key not in defaults:
            known = ", ".join(f"{k}={v}" for k, v in defaults.items() if k != "seed") or "none"
            raise Usage(f"{name} has no option {key!r}; its options are: {known}.")
        kind = type(defaults[key])
        try:
            options[key] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
        except ValueError as error:
            raise Usage(f"option {key}={text!r} of {name} must be of type {kind.__name__}.") from error
    if "seed" in defaults:
        options.setdefault("seed", seed)
    return found.make(**options)
