"""Sinks: what a watch records arrives where people look, read back from the real packages, and a broken sink harms nothing."""

import ast
import json
import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradoscope.diagnosis import Diagnosis
from gradoscope.errors import Usage
from gradoscope.guard import private_random
from gradoscope.integrations import sinks
from gradoscope.watch import Watch, watch
from tests.integrations.common import ALL, left
from tests.test_neutral import assert_same


class Memory:
    """A sink of a user's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.found: Any = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def diagnosis(self, found: Diagnosis) -> None:
        self.found = found


def train(chosen: Any, steps: int = 4, groups: bool = False, name: str = "mine") -> tuple[Watch | None, dict[str, Any]]:
    with private_random(6):
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 2))
        made: Any = [{"params": m.parameters(), "lr": 0.1 + i} for i, m in enumerate(model) if i != 1] if groups else model.parameters()
        optimizer, criterion = torch.optim.SGD(made, lr=0.1), nn.CrossEntropyLoss()
        watched = None if chosen is None else watch(model, optimizer, criterion, budget=ALL, sinks=chosen, name=name)
        for _ in range(steps):
            optimizer.zero_grad()
            criterion(model(torch.randn(5, 3)), torch.randint(0, 2, (5,))).backward()
            optimizer.step()
        return watched, left(model, optimizer)


def test_scalars_arrive_by_step_and_nothing_changes() -> None:
    memory = Memory()
    watched, seen = train([memory], groups=True)
    assert watched is not None
    watched.close()
    assert_same(train(None, groups=True)[1] | {"hooks": 0}, seen | {"hooks": 0})
    assert [step for step, _ in memory.rows] == [0, 1, 2, 3]
    first, record = memory.rows[0][1], watched.records[0]
    assert first["loss"] == record["loss"]
    assert first["grad_norm/total"] == record["grad_norm"]
    assert (first["lr/0"], first["lr/1"]) == (0.1, 2.1)
    assert first["grad_norm/2.bias"] == record["grad_norms"]["2.bias"]
    assert first["update_ratio/0.weight"] == record["update_ratio"]["0.weight"]
    assert math.isnan(sinks.scalars({"step": 0, "loss": math.nan, "update_ratio": {"a": None}})["loss"])
    found = watched.diagnose(counterfactuals=False)
    assert memory.found is found


def test_a_sink_that_fails_is_left_out_and_the_rest_goes_on() -> None:
    class Full(Memory):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError("no room")

    full, memory = Full(), Memory()
    with pytest.warns(RuntimeWarning, match="Full failed") as told:
        watched, _ = train([full, memory])
    assert watched is not None
    assert len(told) == 1
    assert (watched.failure, len(memory.rows)) == ("", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also where warnings are errors, the loop goes on
        watched, _ = train([Full(), memory])
    assert watched is not None
    assert (watched.failure, len(memory.rows)) == ("", 8)


def test_what_is_no_sink_is_told_before_the_loop() -> None:
    for wrong, name in ((Memory, "Memory"), (print, "builtin_function_or_method"), ("runs", "str")):
        with pytest.raises(Usage, match=f"{name} is no sink"):
            train([wrong])


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="an extra: gradoscope[sinks]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched, seen = train([sinks.TensorBoard(tmp_path)])
    assert_same(train(None)[1] | {"hooks": 0}, seen | {"hooks": 0})
    assert watched is not None
    found = watched.diagnose(counterfactuals=False)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    losses = read.Scalars("gradoscope/loss")
    assert [e.step for e in losses] == [0, 1, 2, 3]
    assert [e.value for e in losses] == pytest.approx([r["loss"] for r in watched.records])
    text = read.Tensors("gradoscope/verdict/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == found.headline()
    assert "gradoscope/diagnosis/text_summary" in read.Tags()["tensors"]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="an extra: gradoscope[sinks]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    mlflow.set_tracking_uri(tmp_path.as_uri())
    mlflow.set_experiment("tests")
    sink = sinks.MLflow()
    with pytest.raises(Usage, match="no MLflow run is active"):
        sink.scalars(0, {"loss": 1.0})
    plain = train(None)[1]
    with mlflow.start_run() as run:
        watched, seen = train([sink])
        assert_same(plain | {"hooks": 0}, seen | {"hooks": 0})
        assert watched is not None
        found = watched.diagnose(counterfactuals=False)
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "gradoscope/loss")
    assert [(m.step, m.value) for m in history] == [(r["step"], pytest.approx(r["loss"])) for r in watched.records]
    assert client.get_run(run.info.run_id).data.tags["gradoscope.verdict"] == found.verdict
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "gradoscope"
    assert (folder / "diagnosis.txt").read_text(encoding="utf-8") == str(found)
    assert json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))["verdict"] == found.verdict


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="an extra: gradoscope[sinks]")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for hook in ("exit", "excepthook"):  # wandb replaces them for good; the patch puts them back
        monkeypatch.setattr(sys, hook, getattr(sys, hook))
    with pytest.raises(Usage, match=r"wandb\.init"):
        sinks.WeightsAndBiases()
    plain = train(None)[1]
    with wandb.init(mode="offline", project="test", settings=wandb.Settings(x_disable_stats=True, disable_git=True)) as run:
        watched, seen = train([sinks.WeightsAndBiases(run)])
        assert_same(plain | {"hooks": 0}, seen | {"hooks": 0})
        assert watched is not None
        found = watched.diagnose(counterfactuals=False)
        assert watched.outlets.sinks, "it failed"
        assert run.summary["gradoscope/headline"] == found.headline()
        assert run.summary["gradoscope/verdict"] == found.verdict
        assert run.summary["gradoscope/loss"] == pytest.approx(watched.records[-1]["loss"])
        assert run.summary["gradoscope/step"] == 3
    (written,) = tmp_path.rglob("*.wandb")
    # Another process writes it; `finish` returns before that on a busy machine.
    deadline = time.monotonic() + 60
    while b"gradoscope-diagnosis" not in (content := written.read_bytes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert b"gradoscope/grad_norm/total" in content
    assert b"gradoscope-diagnosis" in content


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("lightning", "lightning", "lightning.callback()"),
        ("transformers", "transformers", "transformers.attach(None)"),
        ("ignite", "ignite", "ignite.attach(None, None, None)"),
        ("tensorboard", "sinks", "sinks.TensorBoard('runs')"),
        ("mlflow", "sinks", "sinks.MLflow()"),
        ("wandb", "sinks", "sinks.WeightsAndBiases()"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package: str, extra: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from gradoscope.integrations import lightning

    for name in [n for n in sys.modules if n.split(".")[0] in (package, f"pytorch_{package}")]:
        monkeypatch.delitem(sys.modules, name)
    real = importlib.import_module

    def gone(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in (package, f"pytorch_{package}"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return real(name, *rest)

    monkeypatch.setattr("gradoscope.integrations._need.importlib.import_module", gone)
    lightning._class.cache_clear()
    adapter = real(f"gradoscope.integrations.{call.split('.')[0]}")
    with pytest.raises(Usage, match=rf"{package} is not installed: pip install 'gradoscope\[{extra}\]'"):
        eval(call.split(".", 1)[1], vars(adapter))


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    heavy = {"lightning", "pytorch_lightning", "transformers", "ignite", "tensorboard", "mlflow", "wandb", "accelerate"}
    files = list((Path(sinks.__file__).parent).glob("*.py"))
    assert len(files) >= 6
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, f"{file.name} imports {names}: it should need() them"
