"""One obstacle, measurement, remedy, problem and study are added by following ARCHITECTURE.md, and are found and used."""

import doctest
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

from gradoscope import diagnose
from gradoscope.catalogue import entries, render
from gradoscope.diagnosis import Diagnosis
from gradoscope.problems import _REGISTRY, all_problems, find
from gradoscope.report.schema import load_schema

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- file: (\S+) -->\n```python\n(.*?)```", re.DOTALL)
FILES = dict(BLOCK.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")))
KINDS = ("measure", "remedies", "obstacles", "problems", "studies")


def write(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the guide, each in a folder that counts as part of the package's own."""
    write(tmp_path)
    all_problems()  # fills the registry: a module that is imported already does not register again
    before, problems = set(sys.modules), dict(_REGISTRY)
    for kind in KINDS:
        package = importlib.import_module(f"gradoscope.{kind}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / kind)])
    yield tmp_path
    _REGISTRY.clear()
    _REGISTRY.update(problems)
    own = {f"gradoscope.{name.removesuffix('.py').replace('/', '.')}" for name in FILES}
    for name in (set(sys.modules) - before) & own:
        parent, _, child = name.rpartition(".")
        delattr(sys.modules[parent], child)
        del sys.modules[name]


def added(kind: str) -> str:
    return next(Path(name).stem for name in FILES if name.startswith(f"{kind}/"))


def test_guide_has_one_file_of_each_kind_and_their_test() -> None:
    assert [Path(name).parts[0] for name in FILES] == [*KINDS, "tests"]


def test_what_the_guide_adds_is_listed(followed: Path) -> None:
    assert added("obstacles") in dict(entries("obstacles"))
    assert added("remedies") in dict(entries("remedies"))
    assert "scales:regression" in dict(entries("problems"))
    assert "unequal_columns" in render()


def test_the_test_of_the_guide_passes(followed: Path) -> None:
    module = ModuleType("guide_test")
    exec(compile(next(t for n, t in FILES.items() if n.startswith("tests/")), "ARCHITECTURE.md", "exec"), vars(module))
    tests = [f for name, f in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_study_runs_and_its_claim_holds(followed: Path, tmp_path: Path) -> None:
    from gradoscope import sweep
    from gradoscope.conduct import conduct
    from gradoscope.study import find as find_study

    assert "columns" in dict(entries("studies"))
    done = conduct(find_study("columns"), out=tmp_path / "out", where=sweep.local(1))
    assert [claim.holds for claim in done.claims] == [True]
    assert (tmp_path / "out" / "columns" / "figures" / "steps.svg").exists()


def test_example_of_the_measurement_holds(followed: Path) -> None:
    outcome = doctest.testmod(importlib.import_module(f"gradoscope.measure.{added('measure')}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_it_is_in_the_documents_of_a_diagnosis(followed: Path) -> None:
    found: Diagnosis = diagnose(find("scales:regression"))
    assert "unequal_columns" in [f.obstacle for f in found.present]
    assert "unequal_columns" in str(found)
    jsonschema.validate(json.loads(found.to_json()), load_schema())


def test_entry_points_of_another_package_are_found(tmp_path: Path) -> None:
    """A fresh interpreter with a package of someone else on its path: installed, as far as entry points are concerned."""
    write(tmp_path / "files")
    package = tmp_path / "site" / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name, text in FILES.items():
        if not name.startswith("tests/"):
            for kind in ("measure", "remedies"):
                for module in (added(kind),):
                    text = text.replace(f"gradoscope.{kind}.{module}", f"my_package.{module}")
            (package / Path(name).name).write_text(text, encoding="utf-8")
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    guide = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    lines = re.search(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert lines is not None
    points = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", lines[1]).replace('"', "")
    (info / "entry_points.txt").write_text(points)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}, {str(ROOT / 'src')!r}]\n"
        "from gradoscope.obstacles import all_obstacles\n"
        "from gradoscope.problems import all_problems\n"
        "from gradoscope.study import all_studies\n"
        "print('unequal_columns' in [o.name for o in all_obstacles()])\n"
        "print('scales:regression' in all_problems(), 'columns' in all_studies())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.split() == ["True", "True", "True"], out.stderr
