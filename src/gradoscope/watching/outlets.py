"""Where the records of a watch go: the folder of its run, and what people look at curves in."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from gradoscope.errors import Usage
from gradoscope.store import Run
from gradoscope.watching.attach import tell

if TYPE_CHECKING:
    from gradoscope.diagnosis import Diagnosis

__all__ = ["Outlets", "Sink", "scalars"]

# Entries of a record that hold one number per layer, and the name of their curves.
PER_LAYER = {"grad_norms": "grad_norm", "update_ratio": "update_ratio", "noise": "noise"}
SINGLE = {"loss": "loss", "grad_norm": "grad_norm/total", "grad_norm_clipped": "grad_norm/clipped"}


@runtime_checkable
class Sink(Protocol):
    """What a watch writes to besides its run: two functions, nothing to inherit from."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by their names at an optimizer step, counted from 0; later calls have later steps."""

    def diagnosis(self, found: "Diagnosis") -> None:
        """Write what was found in the end."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under the names of their curves: "loss", "grad_norm/total", "grad_norm/<layer>", "lr", ...

    Numbers that are not finite stay: they are evidence. What a light look did not take is missing.

    Example:
        >>> scalars({"step": 3, "loss": 0.5, "grad_norm": 2.0, "lr": [0.1], "grad_norms": {"head.bias": 2.0}})
        {'loss': 0.5, 'grad_norm/total': 2.0, 'lr': 0.1, 'grad_norm/head.bias': 2.0}
    """
    out = {name: float(record[key]) for key, name in SINGLE.items() if record.get(key) is not None}
    rates = record.get("lr") or []
    out |= {"lr" if len(rates) == 1 else f"lr/{i}": float(rate) for i, rate in enumerate(rates)}
    for key, name in PER_LAYER.items():
        out |= {f"{name}/{layer}": float(value) for layer, value in record.get(key, {}).items() if value is not None}
    return out


class Outlets:
    """Hands each record to the run and to every sink; a sink that fails is left out from then on, with one warning.

    Args:
        run: the recorded run, or None.
        sinks: what is written to besides it.

    Raises:
        Usage: where one of them is no sink.
    """

    def __init__(self, run: Run | None, sinks: Sequence[Sink]) -> None:
        for sink in sinks:
            if isinstance(sink, type) or not isinstance(sink, Sink):
                name = sink.__name__ if isinstance(sink, type) else type(sink).__name__
                raise Usage(f"{name} is no sink: expected an object with scalars(step, values) and diagnosis(found).")
        self.run, self.sinks = run, list(sinks)

    def record(self, record: dict[str, Any]) -> None:
        """Hand on what one look found."""
        if self.run is not None:
            self.run.append(record)
        if self.sinks:
            values = scalars(record)
            self._each(lambda sink: sink.scalars(record["step"], values))

    def diagnosis(self, found: "Diagnosis") -> None:
        """Hand on what was found in the end."""
        self._each(lambda sink: sink.diagnosis(found))

    def _each(self, write: Any) -> None:
        for sink in list(self.sinks):
            try:
                write(sink)
            except Exception as error:  # whatever a service objects to: the training and the other outlets go on
                self.sinks.remove(sink)
                tell(f"{type(sink).__name__} failed ({type(error).__name__}: {error}) and is left out from now on.")
