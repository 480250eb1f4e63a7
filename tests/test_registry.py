"""Obstacles, remedies and problems are found by themselves: in their folder, and as entry points of other packages."""

import pkgutil
from types import ModuleType

import pytest

import gradoscope.obstacles
import gradoscope.problems
import gradoscope.remedies
from gradoscope import registry


@pytest.mark.parametrize("package", [gradoscope.obstacles, gradoscope.remedies, gradoscope.problems])
def test_every_file_of_a_folder_is_imported_in_order_of_its_name(package):
    folder = package.__name__.split(".")[1]
    found = [m.__name__.split(".")[-1] for m in registry.modules(folder) if m.__name__.startswith(package.__name__)]
    expected = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    assert found == expected
    assert len(found) > 4


def test_entry_points_of_other_packages_come_after(monkeypatch):
    other = ModuleType("someone.elses")
    asked = []

    class Point:
        def __init__(self, loaded):
            self.loaded = loaded

        def load(self):
            return self.loaded

    def entry_points(group):
        asked.append(group)
        return [Point(other), Point("something that is no module")]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    found = list(registry.modules("problems"))
    assert asked == ["gradoscope.problems"]
    assert found[-1] is other
    assert found.count(other) == 1
    assert all(isinstance(m, ModuleType) for m in found)


def test_a_folder_that_does_not_exist():
    with pytest.raises(ModuleNotFoundError):
        list(registry.modules("nothing"))
