"""Gradoscope finds out, and shows, what obstructs gradient-based training.

Hand over a training, get a verdict with the evidence, and the change that removes the obstacle, tried out:

    import gradoscope
    print(gradoscope.diagnose(gradoscope.Training(model=..., optimizer=..., loss_fn=..., data=...)))

Names are imported when they are first used, so that `import gradoscope` does not import torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradoscope import landscape as landscape
    from gradoscope.diagnose import diagnose as diagnose
    from gradoscope.diagnosis import Counterfactual as Counterfactual
    from gradoscope.diagnosis import Diagnosis as Diagnosis
    from gradoscope.diagnosis import Evidence as Evidence
    from gradoscope.diagnosis import Finding as Finding
    from gradoscope.errors import CannotRun as CannotRun
    from gradoscope.errors import CannotWrite as CannotWrite
    from gradoscope.errors import GradoscopeError as GradoscopeError
    from gradoscope.errors import Usage as Usage
    from gradoscope.loop import advance as advance
    from gradoscope.measurement import Measurement as Measurement
    from gradoscope.objective import Objective as Objective
    from gradoscope.remedies import Remedy as Remedy
    from gradoscope.state import State as State
    from gradoscope.store import Run as Run
    from gradoscope.training import Live as Live
    from gradoscope.training import Training as Training
    from gradoscope.watch import watch as watch

    __version__: str

_WHERE = {
    "diagnose": "diagnose",
    "Counterfactual": "diagnosis",
    "Diagnosis": "diagnosis",
    "Evidence": "diagnosis",
    "Finding": "diagnosis",
    "CannotRun": "errors",
    "CannotWrite": "errors",
    "GradoscopeError": "errors",
    "Usage": "errors",
    "advance": "loop",
    "Measurement": "measurement",
    "Objective": "objective",
    "Remedy": "remedies",
    "State": "state",
    "Run": "store",
    "Live": "training",
    "Training": "training",
    "watch": "watch",
}

__all__ = [
    "CannotRun",
    "CannotWrite",
    "Counterfactual",
    "Diagnosis",
    "Evidence",
    "Finding",
    "GradoscopeError",
    "Live",
    "Measurement",
    "Objective",
    "Remedy",
    "Run",
    "State",
    "Training",
    "Usage",
    "__version__",
    "advance",
    "diagnose",
    "landscape",
    "watch",
]


class _Package(ModuleType):
    """Keeps `gradoscope.diagnose` the function: importing the module of that name would bind the module over it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if _WHERE.get(name) == name and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            value: Any = version("gradoscope")
        except PackageNotFoundError:  # run from a source tree that was never installed
            value = "0+unknown"
    elif name == "landscape":
        value = importlib.import_module("gradoscope.landscape")
    elif name in _WHERE:
        value = getattr(importlib.import_module(f"gradoscope.{_WHERE[name]}"), name)
    else:
        raise AttributeError(f"module 'gradoscope' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
