"""What `gradoscope landscape` finds: plain data, which a report draws and JSON can hold."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gradoscope.measurement import plain

__all__ = ["SCHEMA", "Landscape"]

SCHEMA = "1.0"


@dataclass(frozen=True)
class Landscape:
    """The landscape along and around one training.

    Args:
        name: of the training.
        sections: what was measured, by name, as plain values; a number that is not finite is None. "run": loss and path; "line",
            "solutions": the loss on straight lines; "planes": surfaces with the path and its controls; "view": projection against
            residual; "straightness"; "evidence"; "spectrum"; "questions". What was not asked for, or failed, is not there.
        notes: what the reader must know: what was thinned, cut, or could not be measured.
        cost: seconds and passes.
        provenance: seed, steps, examples.
        interrupted: whether Ctrl-C ended it before everything was measured.
    """

    name: str
    sections: dict[str, Any]
    notes: tuple[str, ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    def __str__(self) -> str:
        from gradoscope.report.landscape import summary

        return summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "interrupted": self.interrupted,
            **{key: plain(getattr(self, key)) for key in ("sections", "notes", "cost", "provenance")},
        }

    def to_json(self, indent: int | None = None) -> str:
        """One strict JSON document."""
        return json.dumps(self.to_dict(), allow_nan=False, indent=indent)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` was called on."""
        return cls(data["name"], data["sections"], tuple(data["notes"]), data["cost"], data["provenance"], data["interrupted"])

    def save_html(self, path: str | Path) -> None:
        """Write one self-contained page.

        Raises:
            CannotWrite: where the path cannot be written.
        """
        from gradoscope.report.landscape import save_html

        save_html(self, path)

    def save_figures(self, folder: str | Path) -> list[Path]:
        """Write every figure as SVG and as PNG into a folder, which is made where it is missing, and return the files.

        Raises:
            CannotWrite: where the folder cannot be written.
        """
        from gradoscope.report.landscape import save_figures

        return save_figures(self, folder)
