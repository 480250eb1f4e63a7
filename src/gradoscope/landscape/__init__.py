"""The loss around a training: at points, along lines, over planes, and along the path that the training takes.

    import gradoscope
    found = gradoscope.landscape.explore(training)
    found.save_html("landscape.html")

Names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradoscope.landscape.lines import line as line
    from gradoscope.landscape.planes import surface as surface
    from gradoscope.landscape.points import evaluate as evaluate
    from gradoscope.landscape.points import subject as subject
    from gradoscope.landscape.result import Landscape as Landscape
    from gradoscope.landscape.run import explore as explore

_WHERE = {"Landscape": "result", "evaluate": "points", "explore": "run", "line": "lines", "subject": "points", "surface": "planes"}
_MODULES = ("directions", "evidence", "lines", "planes", "points", "questions", "trajectory")

__all__ = ["Landscape", "evaluate", "explore", "line", "subject", "surface"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"gradoscope.landscape.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'gradoscope.landscape' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gradoscope.landscape.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
