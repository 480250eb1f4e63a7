"""Finds obstacles, remedies and problems: one file each in its folder, or an entry point of another package."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from types import ModuleType

__all__ = ["modules"]


def modules(folder: str) -> Iterator[ModuleType]:
    """Import every module of `gradoscope.<folder>`, then every entry point of the group `gradoscope.<folder>`.

    Names that start with an underscore are helpers and are left out.
    """
    package = importlib.import_module(f"gradoscope.{folder}")
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"gradoscope.{folder}.{info.name}")
    for point in entry_points(group=f"gradoscope.{folder}"):
        loaded = point.load()
        if isinstance(loaded, ModuleType):
            yield loaded
