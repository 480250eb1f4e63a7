"""The code of docs/integrations.md runs, where the packages that it names are installed."""

import logging
import re
import warnings
from pathlib import Path

import pytest

from gradoscope.guard import private_random

PAGE = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run with: ([\w ]+) -->\n```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("packages", "code"), BLOCKS, ids=[packages.split()[0] for packages, _ in BLOCKS])
def test_code_runs(packages: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in packages.split():
        pytest.importorskip(package, reason=f"an extra: see docs/integrations.md on {package}")
        logging.getLogger(package).setLevel(logging.ERROR)
    monkeypatch.chdir(tmp_path)
    # Trying remedies takes most of the time, and is tested elsewhere.
    for call in (".diagnose())", "diagnose(training))"):
        code = code.replace(call, call[:-2] + (", " if "training" in call else "") + "counterfactuals=False))")
    with private_random(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, packages, "exec"), {"__name__": packages})
    assert "undetermined" in capsys.readouterr().out
    assert all((tmp_path / name).is_dir() for name in re.findall(r'record="(\S+?)"', code))


def test_every_adapter_has_a_block() -> None:
    assert {packages.split()[0] for packages, _ in BLOCKS} == {"lightning", "transformers", "ignite", "tensorboard"}
