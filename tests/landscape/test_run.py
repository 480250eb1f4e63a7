"""A landscape from a training: complete, repeatable, and nothing of the user's is changed; bad trainings get one clear message."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from gradoscope import Training, cli
from gradoscope.errors import CannotRun, Usage
from gradoscope.landscape.record import record
from gradoscope.landscape.result import Landscape
from gradoscope.landscape.run import PARTS, explore, training_of
from gradoscope.training import Live


def blobs(n=96, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 4, generator=g) + 1.5 * nn.functional.one_hot(y, 4), y


def small(**changes):
    given = {
        "model": lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)),
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.2, momentum=0.5),
        "loss_fn": nn.functional.cross_entropy,
        "data": blobs(),
        "validation": blobs(48, 1),
        "batch_size": 24,
        "steps": 30,
        "name": "blobs",
    }
    return Training(**{**given, **changes})


def diverging():
    """A loss of fourth order and a step that is too long for it."""
    return Training(
        model=lambda: nn.Linear(2, 1),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.9),
        loss_fn=lambda out, y: (out - y).square().mean() + 0.05 * (out - y).pow(4).mean(),
        data=(torch.randn(32, 2, generator=torch.Generator().manual_seed(0)) * 3, torch.zeros(32, 1)),
        steps=60,
    )


# ------------------------------------------------------------------ recording


def test_recorded_points_are_those_of_the_training():
    training = small()
    with Live.of(training, seed=3) as live:
        kept = record(live, 30, most=10, stretches=(0.0, 1.0))
        end = torch.cat([p.detach().reshape(-1) for p in live.model.parameters()])
    assert kept.steps.tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert torch.equal(kept.points[-1], end)
    assert kept.points.dtype == torch.float32
    with Live.of(training, seed=3) as again:
        short = record(again, 8, most=100)
    assert torch.equal(short.points[4], kept.points[1])
    assert torch.equal(short.points[8], kept.points[2])
    assert [s.first for s in kept.stretches] == [0, 18]
    assert torch.equal(kept.stretches[1].points[-1], end)
    assert torch.equal(kept.stretches[0].points[4], kept.points[1])
    assert torch.allclose(kept.stretches[0].rates, torch.tensor(0.2))
    assert len(kept.batch_loss) == len(kept.gradient_norm) == 30


def test_memory_bounds_the_points():
    with Live.of(small()) as live:
        dim = sum(p.numel() for p in live.model.parameters())
        kept = record(live, 30, memory=4 * dim * 12)
    assert len(kept.steps) <= 12


def test_a_run_that_breaks_keeps_what_was_before():
    with Live.of(diverging()) as live:
        kept = record(live, 60)
    assert kept.broke is not None
    assert 2 < kept.broke < 30
    assert torch.isfinite(kept.points).all()
    assert kept.steps[-1] <= kept.broke


# ------------------------------------------------------------------ the whole


@pytest.fixture(scope="module")
def whole():
    return explore(small(), points=7, rows=96)


def test_everything_is_there_and_serialises(whole):
    data = json.loads(whole.to_json())
    assert set(data["sections"]) == {"run", "line", "solutions", "questions", "evidence", "view", "planes"}, data["notes"]
    assert [p["kind"] for p in data["sections"]["planes"]] == ["pca", "random", "hessian", "three"]
    assert all(np.array(p["loss"], dtype=float).shape == (7, 7) for p in data["sections"]["planes"])
    assert len(data["sections"]["questions"]["answers"]) == 5
    assert not data["interrupted"]
    back = Landscape.from_dict(data)
    assert back.to_json() == whole.to_json()
    line = data["sections"]["line"]
    assert line["metric_name"] == "accuracy"
    assert line["metric"] is not None
    assert line["validation_loss"] is not None


def test_surfaces_and_paths_agree(whole):
    """The path's coordinates on each plane are where its points are; the line's ends are the run's ends."""
    data = whole.to_dict()["sections"]
    run = data["run"]
    at = np.array(data["line"]["alpha"])
    loss = np.array(data["line"]["loss"])
    assert abs(loss[at == 0][0] - run["loss"][0]) < 1e-5
    assert abs(loss[at == 1][0] - run["loss"][-1]) < 1e-5
    three = data["planes"][3]
    assert np.allclose(three["path"][0], [0, 0], atol=1e-4)
    assert np.allclose(three["path"][-1], [run["distance"], 0], atol=1e-3)
    assert np.allclose(three["other"][-1], three["marks"][2][1:], atol=1e-3)
    for plane in data["planes"]:
        assert plane["x"][0] <= min(p[0] for p in plane["path"])
        assert plane["y"][-1] >= max(p[1] for p in plane["path"])
        assert all(len(w) == len(plane["path"]) for w in plane["controls"])
    assert data["planes"][0]["explained"][0] > 0.5
    assert data["planes"][1]["explained"][0] < 1


def test_surface_values_are_the_loss_at_those_parameters(whole):
    """One point of the principal plane, computed again by hand."""
    training = small()
    with Live.of(training, seed=0) as live:
        kept = record(live, 30)
        points = kept.points.double()
        centred = points - points.mean(0)
        _, _, vt = torch.linalg.svd(centred, full_matrices=False)
        rows = vt[:2] * torch.where((centred[-1] @ vt[:2].T) < 0, -1.0, 1.0)[:, None]
        plane = whole.to_dict()["sections"]["planes"][0]
        theta = points.mean(0) + plane["x"][2] * rows[0] + plane["y"][5] * rows[1]
        nn.utils.vector_to_parameters(theta.float(), live.model.parameters())
        x, y = training.data
        with torch.no_grad():
            expected = float(nn.functional.cross_entropy(live.model(x), y))
    assert abs(plane["loss"][5][2] - expected) < 1e-4 * max(1, expected)


def test_it_is_repeatable_and_leaves_everything_as_it_was(whole):
    again = explore(small(), points=7, rows=96)
    assert json.dumps(again.to_dict()["sections"]) == json.dumps(whole.to_dict()["sections"])
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(blobs()[0]).sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    stream = torch.get_rng_state()
    found = explore(small(model=model, optimizer=optimizer, steps=12), points=5, parts=["line", "pca", "view", "questions", "evidence"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert optimizer.state == {}
    assert torch.equal(torch.get_rng_state(), stream)
    assert model.training
    assert any("Batch normalisation" in n for n in found.notes)
    assert any("Dropout" in n for n in found.notes)
    assert set(found.sections) == {"run", "line", "solutions", "questions", "evidence", "view", "planes"}, found.notes


def test_parts_are_what_was_asked_for():
    found = explore(small(steps=8), parts=["line"])
    assert set(found.sections) == {"run", "line", "solutions"}
    with pytest.raises(Usage, match=r"parts must be some of line, pca.*got lines"):
        explore(small(), parts=["lines"])
    assert "questions" in PARTS


def test_data_that_are_drawn_afresh_and_losses_of_batches():
    def draw(generator, n):
        x = torch.randn(n, 2, generator=generator)
        return {"x": x, "y": x.sum(1, keepdim=True)}

    training = Training(
        model=lambda: nn.Linear(2, 1),
        optimizer=lambda params: torch.optim.Adam(params, lr=0.05),
        batch_loss=lambda model, batch: (model(batch["x"]) - batch["y"]).square().mean(),
        data=draw,
        batch_size=16,
        steps=20,
    )
    found = explore(training, points=5)
    assert set(found.sections) == {"run", "line", "solutions", "questions", "evidence", "view", "planes"}, found.notes
    assert found.sections["line"]["metric"] is None


# ------------------------------------------------------------------ what goes wrong


def test_a_diverging_run_is_drawn_up_to_where_it_broke():
    found = explore(diverging(), points=5)
    assert any("was not finite at step" in n for n in found.notes)
    assert "run" in found.sections
    json.loads(found.to_json())
    assert "<html" in __import__("gradoscope.report.landscape", fromlist=["render_html"]).render_html(found)


def test_what_cannot_be_drawn_is_said_in_one_message():
    nan = small(loss_fn=lambda out, y: nn.functional.cross_entropy(out, y) * float("nan"))
    with pytest.raises(CannotRun, match="its loss is not finite"):
        explore(nan)
    with pytest.raises(CannotRun, match="at least 3 steps"):
        explore(small(steps=1))
    with pytest.raises(CannotRun, match="hold NaN"):
        explore(small(data=(torch.full((24, 4), float("nan")), torch.zeros(24, dtype=torch.long))))


def test_a_part_that_fails_is_noted_and_the_others_are_there(monkeypatch):
    from gradoscope.landscape import sections

    def fail(*_):
        raise RuntimeError("no such plane")

    monkeypatch.setattr(sections, "view_part", fail)
    found = explore(small(steps=8), points=5, parts=["line", "view"])
    assert set(found.sections) == {"run", "line", "solutions"}
    assert any("no such plane" in n for n in found.notes)


def test_interrupted_while_measuring(monkeypatch):
    from gradoscope.landscape import sections

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sections, "question_part", stop)
    with pytest.raises(KeyboardInterrupt):
        explore(small(steps=8), points=5)
    found = explore(small(steps=8), points=5, keep_interrupted=True)
    assert found.interrupted
    assert set(found.sections) == {"run", "line", "solutions"}
    monkeypatch.undo()
    made = sections.plane_part
    monkeypatch.setattr(sections, "plane_part", lambda scene, kind, tell: made(scene, kind, tell) if kind == "pca" else stop())
    found = explore(small(steps=8), points=5, parts=["pca", "random"], keep_interrupted=True)
    assert [p["kind"] for p in found.sections["planes"]] == ["pca"]
    assert json.loads(found.to_json())["interrupted"]


def test_targets_are_resolved_as_elsewhere(tmp_path):
    from gradoscope.store import Run

    training, seed = training_of("linear-network:healthy,steps=5", steps=7)
    assert (training.steps, seed) == (7, 0)
    Run.create(tmp_path / "run", target="linear-network:healthy,steps=5", seed=4, steps=9)
    training, seed = training_of(str(tmp_path / "run"))
    assert (training.steps, seed) == (9, 4)
    Run.create(tmp_path / "bare", seed=4)
    with pytest.raises(CannotRun, match="does not say how"):
        training_of(str(tmp_path / "bare"))


# ------------------------------------------------------------------ the command


MINE = """
    import torch
    from gradoscope import Training

    def make(seed=0):
        print("chatter")
        x = torch.randn(32, 2)
        return Training(model=torch.nn.Linear(2, 1), optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
                        loss_fn=torch.nn.functional.mse_loss, data=(x, x[:, :1]), steps=10)

    def broken():
        training = make()
        return Training(model=training.model, optimizer=training.optimizer, loss_fn=lambda a, b: (a - b).mean() * float("nan"),
                        data=training.data, steps=10)

    def endless():
        import dataclasses
        calls = []

        def loss(out, y):
            calls.append(1)
            if len(calls) == 60:
                print("well under way", flush=True)
            return torch.nn.functional.mse_loss(out, y)

        return dataclasses.replace(make(), steps=10_000_000, loss_fn=loss)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(MINE))
    monkeypatch.chdir(tmp_path)
    return path


def test_the_command_prints_json_and_writes_page_and_figures(mine, tmp_path, capsys):
    words = ["landscape", f"{mine}:make", "--line", "--plane", "pca", "--plane", "random", "--points", "5", "--json"]
    assert cli.main([*words, "--figures", "pictures", "--report", "page.html"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert "chatter" in err
    assert [p["kind"] for p in data["sections"]["planes"]] == ["pca", "random"]
    assert {p.name for p in (tmp_path / "pictures").iterdir()} >= {"line.svg", "line.png", "plane-pca.svg", "solutions.png"}
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_command_prints_a_summary_and_a_page_by_default(mine, tmp_path, capsys):
    assert cli.main(["landscape", f"{mine}:make", "--questions"]) == 0
    out, err = capsys.readouterr()
    assert "Does it get stuck at a local minimum?" in out
    assert (tmp_path / "landscape.html").is_file()
    assert "landscape.html" in err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["{mine}:broken"], 3, "its loss is not finite"),
        (["{mine}:gone"], 2, "has no function 'gone'"),
        (["digits:helthy"], 2, "there is no problem"),
        (["{mine}:make", "--device", "abacus"], 2, "cannot be used here"),
        (["{mine}:make", "--report", "no/such/page.html"], 4, "cannot write"),
    ],
)
def test_the_command_tells_what_is_wrong(mine, capsys, words, code, says):
    assert cli.main(["landscape", *(w.format(mine=mine) for w in words)]) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--steps", "0"], ["--points", "2"], ["--plane", "square"], ["--seed", "-1"], []])
def test_wrong_usage(words):
    with pytest.raises(SystemExit) as stop:
        cli.main(["landscape", *(["digits:healthy", *words] if words else [])])
    assert stop.value.code == 2


def test_ctrl_c_keeps_what_was_made(mine, tmp_path):
    command = [sys.executable, "-m", "gradoscope.cli", "landscape", f"{mine}:endless", "--json", "--report", "page.html"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    told = ""
    while "well under way" not in told:
        line = started.stderr.readline()
        assert line, told
        told += line
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    data = json.loads(out)
    assert data["interrupted"]
    assert len(data["sections"]["run"]["steps"]) >= 40
    assert (tmp_path / "page.html").is_file()
    assert "Traceback" not in err
