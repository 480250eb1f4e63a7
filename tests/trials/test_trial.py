"""The set: how large it is, what is in it, and that its halves are those that were fixed beforehand."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import gradoscope
from gradoscope.errors import Usage
from gradoscope.obstacles import all_obstacles
from gradoscope.training import Live
from gradoscope.trials import trial as module
from gradoscope.trials.split import half_of
from gradoscope.trials.trial import HEALTHY, Architecture, Difficulty, Success, Trial, all_families, all_trials, made, select

TRIALS = list(all_trials().values())
FAULTY, WELL = [t for t in TRIALS if not t.healthy], [t for t in TRIALS if t.healthy]

# Written down when the set was finished and before it was diagnosed. A family that is added later goes where its hash says.
PINNED = {
    "tune": {
        "bar-products-cnn",
        "bars-cnn",
        "deep-linear",
        "digits-mlp",
        "least-squares",
        "markov-transformer",
        "motif-gcn",
        "parity-mlp",
        "recall-lstm",
        "series-gru",
        "tones",
    },
    "report": {
        "adding-rnn",
        "cancer-mlp",
        "community-gcn",
        "digits-cnn",
        "factorisation",
        "filters-cnn",
        "logistic-blobs",
        "peaks",
        "signs-of-parts",
        "sorting-transformer",
        "teacher-mlp",
        "wave-mlp",
    },
}


def test_there_are_enough_of_them() -> None:
    assert len(FAULTY) >= 100
    assert len(WELL) >= 60
    assert len({t.name for t in TRIALS}) == sum(len(f.trials) for f in all_families())


@pytest.mark.parametrize("half", ["tune", "report"])
def test_each_half_has_every_obstacle_and_architecture(half: str) -> None:
    part = [t for t in TRIALS if half_of(t.family) == half]
    for obstacle in (o.name for o in all_obstacles()):
        if obstacle in {name for t in TRIALS for name in t.truth}:  # those that are newer than the set have no trial yet
            assert sum(obstacle in t.truth for t in part) >= 2, obstacle
    for architecture in get_args(Architecture):
        assert {t.healthy for t in part if t.architecture == architecture} == {True, False}
    assert sum(len(t.truth) == 2 for t in part) >= 2
    for kind in (FAULTY, WELL):
        assert 0.45 <= sum(t in part for t in kind) / len(kind) <= 0.55


def test_fifteen_obstacles_and_every_difficulty_are_there() -> None:
    names = {name for t in FAULTY for name in t.truth}
    assert len(names) >= 15
    assert names <= {o.name for o in all_obstacles()}
    for name in names:
        assert len({t.difficulty for t in FAULTY if name in t.truth}) >= 2, name
    for kind in (FAULTY, WELL):
        assert {t.difficulty for t in kind} == set(get_args(Difficulty))


def test_the_split_is_the_one_that_was_fixed() -> None:
    for half, families in PINNED.items():
        assert {half_of(name) for name in families} == {half}
    assert {f.name for f in all_families()} >= PINNED["tune"] | PINNED["report"]


def test_nothing_that_judges_knows_of_the_trials() -> None:
    source = Path(gradoscope.__file__).parent
    for path in (
        *source.glob("*.py"),
        *(p for room in ("obstacles", "remedies", "measure", "report") for p in (source / room).glob("*.py")),
    ):
        if path.name != "cli.py":
            assert not re.search(r"gradoscope\.trials|from gradoscope import trials", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("t", TRIALS, ids=[t.name for t in TRIALS])
def test_a_trial_is_complete(t: Trial) -> None:
    assert t.name.startswith(f"{t.family}/")
    assert re.fullmatch(r"[A-Z0-9].*[.?]", t.says)
    assert len(t.truth) == len(set(t.truth)) <= 2
    assert (t.repair is None) == t.healthy
    assert HEALTHY not in t.truth or t.truth == (HEALTHY,)
    if len(t.truth) == 2:
        assert len(t.rivals) >= 2, "each of two repairs alone must be shown to fail"


def test_seeds_vary_data_and_start_and_nothing_else_does() -> None:
    before = torch.get_rng_state()
    for name in ("digits-mlp/plain", "community-gcn/plain", "peaks/near-the-line"):
        build = all_trials()[name].build
        one, again, other = (_first(build(seed), seed) for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def _first(training: object, seed: int) -> torch.Tensor:
    with Live.of(training, seed=seed) as live:  # type: ignore[arg-type]  # a Training, from a build function
        x, y = live.batches.batch(0)
        loss = live.training.loss(live.model, (x, y))
        return torch.cat([loss.detach().reshape(1), y.flatten().float()])


def test_every_training_is_small() -> None:
    for t in (t for family in all_families() for t in family.trials[::5]):
        training = t.build(0)
        assert training.steps <= 600, t.name
        with Live.of(training, seed=0) as live:
            assert isinstance(live.model, nn.Module)
            assert sum(p.numel() for p in live.model.parameters()) <= 80_000, t.name
            assert all(p.dtype == torch.float32 for p in live.model.parameters())


def test_select_takes_patterns_halves_and_says_when_there_is_none() -> None:
    assert {t.name for t in select("digits-mlp/*")} == {t.name for t in TRIALS if t.family == "digits-mlp"}
    assert {t.family for t in select("digits")} >= {"digits-mlp", "digits-cnn"}
    assert len(select(half="tune")) + len(select(half="report")) == len(TRIALS)
    with pytest.raises(Usage, match="no trial"):
        select("digits-mlp/*", half="report")


def test_results_of_a_changed_family_are_not_taken_for_new(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from gradoscope.trials import families

    folder = Path(families.__path__[0])
    for name in ("_make", "digits_mlp"):
        (tmp_path / f"{name}.py").write_text((folder / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    before = made("digits-mlp")
    module.made.cache_clear()
    monkeypatch.setattr(families, "__path__", [str(tmp_path)])
    assert made("digits-mlp") == before
    module.made.cache_clear()
    (tmp_path / "digits_mlp.py").write_text("changed", encoding="utf-8")
    assert made("digits-mlp") != before
    module.made.cache_clear()


def test_success_has_two_directions_and_nothing_broken_reaches_it() -> None:
    assert Success("training", 0.1).reached(0.1)
    assert not Success("training", 0.1).reached(0.11)
    assert Success("metric", 0.9, above=True).reached(0.95)
    assert not Success("training", 0.1).reached(float("-inf"))
    assert str(Success("metric", 0.9, above=True)) == "metric >= 0.9"
