"""The hand-made diagnoses, by name."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from gradoscope.diagnosis import Diagnosis

_spec = importlib.util.spec_from_file_location("report_examples", Path(__file__).parent / "examples.py")
assert _spec is not None
assert _spec.loader is not None
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

NAMES = ["obstructed", "healthy", "undetermined", "nasty"]


@pytest.fixture
def make() -> Callable[[str], Diagnosis]:
    """A diagnosis by its name."""
    return lambda name: getattr(examples, name)()


@pytest.fixture(params=NAMES)
def diagnosis(request: pytest.FixtureRequest) -> Diagnosis:
    """Every diagnosis in turn."""
    return getattr(examples, request.param)()


@pytest.fixture
def nasty_text() -> str:
    """The string that tries to break out of everything."""
    return examples.NASTY
