"""A run on disk survives crashes, full disks and numbers that JSON does not know."""

import json
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradoscope.errors import CannotRun, CannotWrite
from gradoscope.state import State
from gradoscope.store import Run, decode, encode


def make_state(step: int = 0) -> State:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    live: Any = SimpleNamespace(model=model, optimizer=optimizer, schedule=None)
    return State.capture(live, step)


def test_run_reads_back_what_was_recorded(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "a" / "b", target="digits:healthy", name="mine", seed=3, steps=50, settings={"budget": 0.05})
    rows = [{"step": 0, "loss": math.inf}, {"step": 1, "loss": 0.1 + 0.2, "lr": [1e-3, -math.inf], "name": "inf", "flag": True, "no": None}]
    for row in rows:
        run.append(row)
    again = Run.open(run.path)
    assert again.records() == rows
    assert again.target == "digits:healthy"
    assert again.provenance["seed"] == 3
    assert again.provenance["steps"] == 50
    assert again.provenance["name"] == "mine"
    assert again.provenance["settings"] == {"budget": 0.05}
    assert again.provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert again.provenance["schema"]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.append({"loss": math.nan, "norm": torch.tensor(2.0), "t": (1, 2)})

    def refuse(word: str) -> float:
        raise AssertionError(word)

    line = json.loads((tmp_path / "steps.jsonl").read_text(), parse_constant=refuse)
    assert line == {"loss": "nan", "norm": 2.0, "t": [1, 2]}
    assert math.isnan(run.records()[0]["loss"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(["nan", "inf", "str:nan", "-inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_encoding_round_trips(value: Any) -> None:
    assert decode(json.loads(json.dumps(encode(value), allow_nan=False))) == value


def test_torn_last_line_is_ignored_and_cut_before_the_next(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.append({"step": 0})
    run.append({"step": 1})
    run.close()
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b'{"step":2,"lo')
    again = Run.open(tmp_path)
    assert [r["step"] for r in again.records()] == [0, 1]
    again.append({"step": 3})
    assert [r["step"] for r in Run.open(tmp_path).records()] == [0, 1, 3]


def test_cut_at_every_byte_loses_at_most_the_last_line(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for i in range(4):
        run.append({"step": i, "loss": 1.5})
    whole = (tmp_path / "steps.jsonl").read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / "steps.jsonl").write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        steps = [r["step"] for r in Run.open(tmp_path).records()]
        assert steps[:complete] == list(range(complete))
        assert len(steps) <= complete + 1  # a line that lacks only its end is whole


def test_killed_process_loses_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from gradoscope.store import Run\n"
        "run = Run.create(sys.argv[1], target='digits:healthy')\n"
        "i = 0\n"
        "while True:\n"
        "    run.append({'step': i}); i += 1\n"
        "    if i == 200: print('there', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"there"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run = Run.open(tmp_path / "run")
    steps = [r["step"] for r in run.records()]
    assert len(steps) >= 200
    assert steps == list(range(len(steps)))
    assert run.target == "digits:healthy"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_warns_once_and_the_training_goes_on(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    (tmp_path / "steps.jsonl").unlink()
    (tmp_path / "steps.jsonl").symlink_to("/dev/full")
    with pytest.warns(RuntimeWarning, match="could not be written"):
        run.append({"step": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.append({"step": 1})
        run.append({"step": 2})
    assert run.dropped == 3


def test_half_written_line_is_taken_back(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.append({"step": 0})
    inner = run._file
    assert inner is not None

    class Full:
        def write(self, data: bytes) -> int:
            inner.write(data[:5])
            raise OSError(28, "No space left on device")

        def truncate(self, size: int) -> int:
            return inner.truncate(size)

    run._file = Full()  # type: ignore[assignment]
    with pytest.warns(RuntimeWarning):
        run.append({"step": 1})
    run._file = inner
    run.append({"step": 2})
    assert [r["step"] for r in run.records()] == [0, 2]
    assert (tmp_path / "steps.jsonl").read_bytes().count(b"\n") == 2


def test_checkpoints_are_sorted_and_torn_ones_passed_over(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    assert run.last_state() is None
    first, second = make_state(2), make_state(10)
    run.checkpoint(second)
    run.checkpoint(first)
    assert [p.name for p in run.checkpoints()] == ["step-00000002.safetensors", "step-00000010.safetensors"]
    newest = run.last_state()
    assert newest is not None
    assert newest.step == 10
    torn = run.checkpoints()[-1]
    torn.write_bytes(torn.read_bytes()[:100])
    back = Run.open(tmp_path).last_state()
    assert back is not None
    assert back.step == 2
    for name, value in first.parameters.items():
        assert torch.equal(value, back.parameters[name])
    for index, kept in first.optimizer["state"].items():
        for key, value in kept.items():
            assert torch.equal(value, back.optimizer["state"][index][key])
    run.thin({10})
    assert [p.name for p in run.checkpoints()] == ["step-00000010.safetensors"]


def test_checkpoint_that_does_not_fit_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path)

    def fail(self: State, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(State, "save", fail)
    with pytest.warns(RuntimeWarning, match="checkpoint"):
        assert run.checkpoint(make_state(1)) is None


def test_another_run_in_the_same_folder_keeps_the_first(tmp_path: Path) -> None:
    first = Run.create(tmp_path, name="first")
    first.append({"step": 0})
    Run.create(tmp_path, name="second")
    assert Run.open(tmp_path).records() == []
    assert Run.open(tmp_path).provenance["name"] == "second"
    kept = Run.open(tmp_path / "earlier-1")
    assert kept.provenance["name"] == "first"
    assert kept.records() == [{"step": 0}]
    Run.create(tmp_path, name="third")
    assert Run.open(tmp_path / "earlier-2").provenance["name"] == "second"


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CannotWrite, match=r"thesis\.tex"):
        Run.create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="cannot be recorded"):
        Run.create(tmp_path / "file" / "run")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"schema": "9.0"}'])
def test_what_is_no_run_is_told(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CannotRun) as told:
        Run.open(tmp_path)
    assert str(tmp_path) in str(told.value)
    with pytest.raises(CannotRun, match="not there"):
        Run.open(tmp_path / "missing")


def test_target_in_a_file_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def make(): ...")
    monkeypatch.chdir(tmp_path)
    Run.create("run", target="mine.py:make")
    assert Run.open("run").target == "mine.py:make"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert Run.open("../run").target == f"{tmp_path / 'mine.py'}:make"
