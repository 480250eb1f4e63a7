"""What the documents say holds: their code runs, their tables are those of the code, and the house is as it is drawn."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradoscope import cli
from gradoscope.obstacles import all_obstacles
from gradoscope.problems import all_problems

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradoscope"
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")), *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = re.compile(r"<!-- run -->\n```python\n(.*?)```", re.DOTALL)
BLOCKS = [(f"{page.name}-{i}", code) for page in PAGES for i, code in enumerate(RUNNABLE.findall(page.read_text(encoding="utf-8")))]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- Code and tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_code_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    told: dict[str, object] = {"__name__": name}
    exec(compile(code, name, "exec"), told)
    printed = capsys.readouterr().out
    for line, expected in re.findall(r"^print\((.*?)\)  # (obstructed|present)$", code, re.MULTILINE):
        assert eval(line, told) == expected
    assert ("print(" in code) == bool(printed)


def test_readme_has_the_two_commands() -> None:
    text = read("README.md")
    assert "\npip install -c constraints.txt . && gradoscope diagnose digits:deep-sigmoid --report report.html\n" in text
    assert "\npip install -c constraints.txt '.[test]' && pytest\n" in text


def test_readme_lists_the_obstacles() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(docs/obstacles/(\w+)\.md\) \| (.*?) \|$", read("README.md"), re.MULTILINE)
    assert [(name, says) for name, _, says in rows] == sorted((o.name, o.title) for o in all_obstacles())
    assert all(name == page for name, page, _ in rows)


def test_readme_lists_the_exit_codes() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", read("README.md"), re.MULTILINE)}
    assert told == {int(code) for code in re.findall(r"(?:^|\s{2,})(\d+)  ", cli.CODES)}


def test_readme_names_every_option() -> None:
    commands = next(a.choices for a in cli._parser()._actions if isinstance(a.choices, dict))
    for command, shown in (
        ("diagnose", r"gradoscope diagnose TARGET (.*?)\ngradoscope landscape"),
        ("landscape", r"gradoscope landscape TARGET (.*?)\ngradoscope study"),
        ("study", r"gradoscope study NAME(.*?)\ngradoscope trials"),
        ("trials", r"gradoscope trials (.*?)\ngradoscope list"),
    ):
        known = set(re.findall(r"--[a-z-]+", commands[command].format_help()))
        usage = re.search(shown, read("README.md"), re.DOTALL)
        assert usage is not None
        assert set(re.findall(r"--[a-z-]+", usage[1])) == known - {"--help"}


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_thresholds_page_is_written_from_the_source() -> None:
    spec = importlib.util.spec_from_file_location("make_thresholds", ROOT / "docs" / "make_thresholds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert read("docs/thresholds.md") == module.page(), "run `python docs/make_thresholds.py`"


def test_every_obstacle_has_a_page_that_names_its_measurements() -> None:
    names = {o.name for o in all_obstacles()}
    assert {p.stem for p in (ROOT / "docs" / "obstacles").glob("*.md")} == names | {"healthy"}
    for name in names:
        page = read(f"docs/obstacles/{name}.md")
        assert page.startswith(f"# {name}\n")
        for part in ("**What it is.**", "**How it shows.**", "**What it is confused with.**", "**What helps.**"):
            assert part in page, f"{name}: {part}"
        for measured in evidence_names(SOURCE / "obstacles" / f"{name}.py"):
            # told in general by "What helps", where it is a fork that a rival made
            assert measured.startswith("counterfactual") or f"`{measured}" in page, f"{name}: {measured}"


def evidence_names(path: Path) -> Iterator[str]:
    """The first argument of each `evidence(...)`; of an f-string, what comes before its first gap."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "evidence":
            first = node.args[0]
            head = first.values[0] if isinstance(first, ast.JoinedStr) else first
            if isinstance(head, ast.Constant):
                yield str(head.value).strip()


# --- The house ---------------------------------------------------------------------------------------------------------


def drawn() -> set[str]:
    """The modules named in the picture of ARCHITECTURE.md, as paths below src/gradoscope."""
    picture = re.search(r"```\nsrc/gradoscope/\n(.*?)```", read("ARCHITECTURE.md"), re.DOTALL)
    assert picture is not None
    found, folder = set(), ""
    for line in picture[1].splitlines():
        indent = len(line) - len(line.lstrip())
        first = line.split()[0]
        if indent == 2:
            folder = first if first.endswith("/") else ""
        if indent == 4 and re.fullmatch(r"(\s*\w+\.py)+", line):
            found |= {folder + name for name in line.split()}
        elif first.endswith(".py"):
            found.add((folder if indent == 4 else "") + first)
    return found


def test_the_house_is_as_it_is_drawn() -> None:
    there = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")}
    assert drawn() == there


def imports(path: Path) -> set[str]:
    """The modules of gradoscope that a file imports anywhere, without the leading "gradoscope."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("gradoscope.") for name in names if name.startswith("gradoscope.")}
    return found


def files(*names: str) -> list[Path]:
    return sorted(p for name in names for p in ([SOURCE / name] if name.endswith(".py") else (SOURCE / name).glob("*.py")))


JUDGES = ("obstacles", "remedies", "case.py", "readings.py", "layer_readings.py", "diagnose.py")
RULES = {
    "measure": (
        ["measure", "theory", "structured", "updates"],
        ["obstacles", "remedies", "problems", "studies", "report", "case", "readings", "layer_readings", "diagnose"],
    ),
    "problems": (["problems"], ["obstacles", "remedies", "measure", "studies", "report", "case", "diagnose"]),
    "judges": ([*JUDGES], ["problems", "studies", "study", "report", "catalogue"]),
    "landscape": (["landscape"], ["obstacles", "problems", "studies", "case", "readings", "layer_readings", "diagnose"]),
    "report": (["report"], ["measure", "case", "readings", "layer_readings", "obstacles", "remedies", "problems", "objective", "diagnose"]),
    "cli": (["cli.py"], ["measure", "case", "readings", "layer_readings", "obstacles", "remedies"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_who_may_import_whom(rule: str) -> None:
    who, whom = RULES[rule]
    for path in files(*who):
        for name in imports(path):
            assert name.split(".")[0] not in whom, f"{path.relative_to(SOURCE)} imports {name}"


def test_imports_are_seen() -> None:
    """The check above can fail: it sees imports inside functions and of submodules."""
    assert "report.terminal" in imports(SOURCE / "cli.py")
    assert "measure.curvature" in imports(SOURCE / "readings.py")


def test_command_line_imports_nothing_heavy_at_its_top() -> None:
    code = "import sys, gradoscope.cli; print(sorted({'torch', 'numpy', 'scipy', 'rich', 'plotly'} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT / "src")}, check=True
    )
    assert out.stdout.strip() == "[]"


# --- Nothing is recognised by its name ---------------------------------------------------------------------------------


def test_no_judge_holds_a_catalogue_name() -> None:
    names = set(all_problems())
    assert len(names) >= 10
    for path in files(*JUDGES):
        text = path.read_text(encoding="utf-8")
        for name in names:
            assert not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), f"{path.name} mentions {name}"


def test_only_the_result_is_told_the_name_of_a_training() -> None:
    """`training.name` is read in one place: where diagnose.py copies it into the diagnosis."""
    reads = [
        path.name
        for path in files(*JUDGES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "name" and ast.unparse(node.value).split(".")[-1] == "training"
    ]
    assert reads == ["diagnose.py"]
