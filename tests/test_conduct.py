"""Studies end to end: folders, going on after an interruption, and the same result however it came about."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradoscope import sweep
from gradoscope.cli import main
from gradoscope.conduct import Conducted, conduct
from gradoscope.errors import CannotWrite
from gradoscope.study import find
from tests.a_study import Averages

SAME = ("claims.json", "results.csv", "curves.csv", "figures/means.svg", "figures/means.png")


def run(out: Path, study: Averages | None = None, **options: object) -> Conducted:
    return conduct(study or Averages(), out=out, **{"where": sweep.local(1), **options})  # type: ignore[arg-type]


def same(a: Path, b: Path) -> bool:
    return all((a / "averages" / name).read_bytes() == (b / "averages" / name).read_bytes() for name in SAME)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run in this process."""
    out = tmp_path_factory.mktemp("whole")
    done = run(out)
    assert (done.ran, done.found) == (5, 0)
    return out


def test_what_is_in_the_folder(whole: Path) -> None:
    folder = whole / "averages"
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert [(c["id"], c["holds"], c["expected_to_fail"], c["seeds"]) for c in claims] == [("near", True, False, 6), ("one", False, True, 6)]
    lines = (folder / "results.csv").read_text().splitlines()
    assert lines[0] == "n,seed,mean,missing,exact"
    assert len(lines) == 1 + 12 + 1
    assert len((folder / "curves.csv").read_text().splitlines()) == 1 + 36
    page = (folder / "index.html").read_text()
    assert "&lt;b&gt;no markup&lt;/b&gt;" in page
    assert "fails, as expected" in page
    assert "<svg" in page
    told = json.loads((folder / "provenance.json").read_text())
    assert told["units"] == 5
    assert told["median_timings"] == {"draw": 0.25}
    assert told["machines"]


def test_nothing_runs_twice_and_more_seeds_or_a_larger_scale_add_to_what_is_there(whole: Path, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    first = run(tmp_path, Averages(diary))
    assert len(diary.read_text().splitlines()) == first.ran == 5
    again = run(tmp_path, Averages(diary))
    assert (again.ran, again.found) == (0, 5)
    assert same(tmp_path, whole)
    assert run(tmp_path, Averages(diary), seeds=9).ran == 2
    assert run(tmp_path, Averages(diary), scale="paper").ran == 2
    assert run(tmp_path, Averages(diary)).ran == 0
    assert same(tmp_path, whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_study_goes_on_bit_for_bit(whole: Path, tmp_path: Path, workers: int) -> None:
    kept = 0

    def stop(text: str, done: float, total: float) -> None:
        nonlocal kept
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, where=sweep.local(workers), progress=stop)
    kept = len(list((tmp_path / "averages" / "units").glob("*.json")))
    assert 0 < kept < 5
    assert not (tmp_path / "averages" / "claims.json").exists()
    done = run(tmp_path, where=sweep.local(workers))
    assert done.found == kept
    assert same(tmp_path, whole)


@pytest.mark.parametrize("where", ["local(2)", "dask('local', 2)", "ray('local', 2)"])
def test_a_killed_worker_loses_nothing(whole: Path, tmp_path: Path, where: str) -> None:
    # In an interpreter of its own: a process keeps the first access token that Ray gives it, and others belong to other tests.
    code = f"""
from pathlib import Path
from gradoscope import sweep
from gradoscope.conduct import conduct
from tests.a_study import Averages
out = Path({str(tmp_path)!r})
if __name__ == "__main__":
    print(conduct(Averages(once=out / "killed"), out=out, where=sweep.{where}).ran)
"""
    script = tmp_path / "run.py"
    script.write_text(code)
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), str(root / "src")])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "5"
    assert (tmp_path / "killed").exists()
    assert same(tmp_path, whole)


def test_kill_9_of_the_whole_command_loses_no_finished_unit(whole: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from gradoscope import sweep
from gradoscope.conduct import conduct
from tests.a_study import Averages
conduct(Averages(pause=0.4), out=Path({str(tmp_path)!r}), where=sweep.local(1))
"""
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    units = tmp_path / "averages" / "units"
    deadline = time.monotonic() + 60
    while len(list(units.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = len(list(units.glob("*.json")))
    assert 2 <= kept < 5
    assert run(tmp_path).found == kept
    assert same(tmp_path, whole)


def test_a_damaged_unit_is_run_again(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    documents = sorted((tmp_path / "averages" / "units").glob("n=10_*.json"))
    documents[0].write_text(documents[0].read_text()[:40])
    sorted((tmp_path / "averages" / "units").glob("n=100_*.safetensors"))[0].unlink()
    assert run(tmp_path).ran == 2
    assert same(tmp_path, whole)


def test_a_folder_that_cannot_be_written_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="--out"):
        run(tmp_path / "file")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    study = Averages()
    monkeypatch.setattr("gradoscope.study.all_studies", lambda: {"averages": study})
    assert find("averages") is study
    assert main(["study", "averages", "--workers", "1", "--out", str(tmp_path), "--json", "--check"]) == 0
    claims = json.loads(capsys.readouterr().out)["claims"]
    assert [c["id"] for c in claims] == ["near", "one"]
    assert set(claims[0]) == {
        "study", "id", "says", "stated", "measured", "ci", "criterion", "seeds", "holds", "expected_to_fail", "why",
    }  # fmt: skip
    assert main(["study", "all", "--workers", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "averages (quick)" in printed
    assert "1 of 1 claims that should hold do; 1 statement of the source known to be wrong" in printed
    assert main(["study", "nothing"]) == 2
    assert "there are: averages, and all" in capsys.readouterr().err
