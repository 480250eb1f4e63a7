"""The study of scene graphs on small settings."""

import itertools
import math

import pytest
import torch

from gradoscope.problems.scene_graphs import detected
from gradoscope.report import plots
from gradoscope.structured.detections import Loader
from gradoscope.structured.projections import project_groups
from gradoscope.structured.scene_model import SceneModel, predictions, scene_loss
from gradoscope.studies import _scene_graphs as parts
from gradoscope.studies._scene_bounds import CountHead, at_most, bounds, with_counts
from gradoscope.studies.scene_graphs import REAL, STUDY, SYNTHETIC
from gradoscope.study import Context
from tests.studies.information_results import results, same

SEEDS = (0, 1)
TINY = {**SYNTHETIC, "train": 40, "test": 25, "steps": 5, "width": 8, "hidden": 16, "alone": 16, "recurrent": 2, "dropout": 0.0}
SMALL = [
    ({**TINY, "model": "detector"}, SEEDS),
    *(({**TINY, "model": m, "recurrent": 1 if parts.LINKS[m][0] == "none" else 2}, SEEDS) for m in parts.LINKS),
    *(({**TINY, "model": "feature attention", "recurrent": t}, SEEDS) for t in (1, 3)),
]


@pytest.fixture(scope="module")
def found():
    return results(STUDY, SMALL)


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_every_claim_can_be_measured(found, scale):
    judged = {c.id: c.judge(STUDY.name, found) for c in STUDY.claims(scale)}
    assert len(judged) == len(STUDY.claims(scale))
    assert all(math.isfinite(j.measured) and j.seeds >= 1 for j in judged.values())
    for name in ("invariant", "bound-kept", "bound-projected"):  # exact: they hold at any size
        assert judged[name].holds, name


def test_figures_draw(found):
    for figure in STUDY.figures("quick"):
        assert len(plots.render(figure.draw(found), "png", dpi=40)) > 1000
        assert len(figure.caption) > 80


@pytest.mark.parametrize("model", ["detector", "linguistic"])
def test_a_unit_is_the_same_when_it_runs_again(model):
    values = {**TINY, "model": model, "dropout": 0.1}
    before = torch.get_rng_state()
    assert same(STUDY, values, (1,))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_is_plain_adam_under_its_schedule():
    values = {**TINY, "model": "mean", "dropout": 0.0, "steps": 8}
    first, _, seen, _ = detected("synthetic", 3, 60, 10)
    sizes = len(first.names.objects), len(first.names.predicates) + 1
    net, plain = (parts.build(values, *sizes, 3) for _ in range(2))
    parts.train(net, seen, values, 3, Context())
    loader = Loader(seen, values["batch"], parts.generator(3, parts.KEY, 2))
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1.0)
    for step in range(8):
        optimizer.param_groups[0]["lr"] = values["lr"] * min(1, (step + 1) / 0.8) * (1 + math.cos(math.pi * step / 8)) / 2
        nodes, edges, mask, truth = next(batches)
        optimizer.zero_grad()
        scene_loss(plain(nodes, edges, mask), *truth).backward()
        optimizer.step()
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_rows_say_what_was_measured(found):
    row = found.rows.where(model="no context")[0]
    _, other, _, unseen = detected("synthetic", 0, TINY["train"], TINY["test"])
    detector = found.rows.where(model="detector")[0]
    labels = [e.argmax(1) for e, _ in predictions(None, unseen, 30)[0]]
    hits = sum(int((a == g.labels).sum()) for a, g in zip(labels, other.graphs, strict=True))
    assert detector["accuracy"] == pytest.approx(hits / sum(len(g) for g in other.graphs))
    assert detector["bounds_free"] == detector["accuracy"]
    assert row["accuracy"] == row["accuracy_1"]
    assert 0 < detector["ceiling"] <= 1
    assert 0 <= row["sgcls_10"] <= row["sgcls_20"] <= row["sgcls_100"] <= row["sgcls_free_100"] + 1e-12


def brute(scores: torch.Tensor, allowed) -> float:
    """The largest sum of scores over all labellings that are allowed."""
    n, classes = scores.shape
    values = (
        sum(float(scores[i, c]) for i, c in enumerate(labels)) for labels in itertools.product(range(classes), repeat=n) if allowed(labels)
    )
    return max(values)


def test_bounded_labels_are_the_best_of_all():
    random = torch.Generator().manual_seed(0)
    for trial in range(20):
        scores = torch.randn(4, 3, generator=random, dtype=torch.float64)
        bound = trial % 4
        labels = at_most(scores, bound, 1)
        assert int((labels == 1).sum()) <= bound
        best = brute(scores, lambda y, bound=bound: y.count(1) <= bound)
        assert float(scores.gather(1, labels[:, None]).sum()) == pytest.approx(best)
        counts = torch.tensor([2, trial % 2, 2])
        labels = with_counts(scores, counts)
        best = brute(scores, lambda y, counts=counts: all(y.count(c) <= int(counts[c]) for c in range(3)))
        assert float(scores.gather(1, labels[:, None]).sum()) == pytest.approx(best)


def test_the_decoded_labels_are_a_projection_of_large_scores():
    """On {rows sum to 1, column <= c}, whose corners are labellings, the nearest point of large scores is the best corner."""
    random = torch.Generator().manual_seed(1)
    groups = torch.zeros(5, 12, dtype=torch.bool)
    for i in range(4):
        groups[i, 3 * i : 3 * i + 3] = True  # the rows
    groups[4, 1::3] = True  # the column
    lower, upper = torch.tensor([1.0, 1, 1, 1, 0], dtype=torch.float64), torch.tensor([1.0, 1, 1, 1, 1], dtype=torch.float64)
    for _ in range(4):
        scores = torch.randn(4, 3, generator=random, dtype=torch.float64)
        scores[:, 1] += 1
        u = project_groups(20 * scores.flatten(), groups, lower=lower, upper=upper, tolerance=1e-8).reshape(4, 3)
        assert torch.equal(u.argmax(1), at_most(scores, 1, 1))
        assert float((u - u.round()).abs().max()) < 1e-6


def test_bounds_are_counted_by_hand():
    first, _, seen, unseen = detected("synthetic", 0, 60, 40)
    scores = [e for e, _ in predictions(None, unseen, 30)[0]]
    head = CountHead(seen, len(first.names.objects), 0)
    row = bounds(scores, unseen, 0, head(unseen))
    free = [s.argmax(1) for s in scores]
    many = [int((f == 0).sum()) > int((i.labels == 0).sum()) for f, i in zip(free, unseen, strict=True)]
    assert row["bounds_free_violations"] == sum(many)
    assert row["bounds_given_violations"] == 0
    assert row["bounds_given_changed"] == sum(
        max(0, int((f == 0).sum()) - int((i.labels == 0).sum())) for f, i in zip(free, unseen, strict=True)
    )
    assert row["bounds_given"] - row["bounds_free"] == pytest.approx(row["bounds_given_gain"])
    assert row["bounds_every"] > row["bounds_free"]


def test_a_count_that_never_changes_is_predicted():
    first, _, seen, unseen = detected("synthetic", 0, 30, 5)
    none = [i for i in seen if not bool((i.labels == 0).any())]
    assert CountHead(none, len(first.names.objects), 0)(unseen) == [0] * 5


@pytest.mark.parametrize("scale", ["quick", "paper"])
def test_the_grid(scale):
    grid = STUDY.grid(scale)
    keys = [unit.key for s in grid for unit in s.units(STUDY, None)]
    assert len(keys) == len(set(keys))
    assert len({c.id for c in STUDY.claims(scale)}) == len(STUDY.claims(scale))
    assert all(s.seeds >= 5 for s in grid)


def test_models_are_of_similar_size_at_paper_scale():
    values = {**REAL, "recurrent": 2}
    sizes = {
        m: sum(p.numel() for p in parts.build({**values, "model": m}, 100, 71, 0).parameters())
        for m in ("no context", "mean", "neighbour attention", "feature attention")
    }
    assert min(sizes.values()) / max(sizes.values()) > 0.7
    assert isinstance(parts.build({**values, "model": "linguistic"}, 100, 71, 0), SceneModel)
