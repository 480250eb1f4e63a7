"""Multilabel problems of the catalogue: what the constructions promise."""

import pytest
import torch

from gradoscope.errors import Usage
from gradoscope.problems import find
from gradoscope.problems.multilabel import labels_from_scores, last_iterate, most_labels, parts
from gradoscope.structured.cardinality import PredictAndConstrain
from gradoscope.structured.multilabel import FOLDER
from gradoscope.structured.projections import free_coordinates
from gradoscope.training import Live


def predicted(found, x):
    with torch.no_grad():
        return found.live.model(x)


def test_a_threshold_names_too_few_labels_and_their_number_mends_it(train):
    training = find("multilabel:threshold")
    found = train(training)
    x, y = training.validation
    scores = predicted(found, x)
    assert float((scores > 0).float().sum(1).mean()) < 0.8 * float(y.sum(1).mean())
    rank = scores.argsort(dim=1, descending=True).argsort(1)
    told = (rank < y.sum(1, keepdim=True)).float() * 2 - 1  # as many as there are
    assert labels_from_scores(told, y) > labels_from_scores(scores, y) + 0.04


@pytest.mark.parametrize("target", ["constrained,steps=100,inner=3", "constrained,steps=100,inner=3,constraint=dykstra"])
def test_constrained_networks_learn_and_keep_the_number(train, target):
    training = find(f"multilabel:{target}")
    found = train(training)
    x, y = training.validation
    u = predicted(found, x)
    with torch.no_grad():
        assert (u[:, -1].sum(1) - found.live.model.count(x)).abs().max() < 1e-4
    assert last_iterate(u, y) > 0.4


def test_the_published_step_does_not_keep_the_number(train):
    training = find("multilabel:smooth,steps=60,inner=3")
    found = train(training)
    x, _ = training.validation
    with torch.no_grad():
        assert (found.live.model(x)[:, -1].sum(1) - found.live.model.count(x)).abs().max() > 1


def test_a_saturated_start_has_few_free_labels_and_does_not_learn(train):
    training = find("multilabel:saturated,steps=100,inner=3")
    healthy = find("multilabel:constrained,steps=100,inner=3")
    x, y = training.validation

    def free_at_the_start(recipe):
        with torch.no_grad():
            return float(free_coordinates(Live.of(recipe).model(x)[:, -1], 1e-6).sum(1).float().mean())

    assert free_at_the_start(training) < 0.3 * free_at_the_start(healthy)
    found, mended = train(training), train(healthy)
    assert last_iterate(predicted(mended, x), y) > last_iterate(predicted(found, x), y) + 0.15


def test_options():
    training = find("multilabel:box,hidden=7,inner=3,batch=20")
    model = training.model()
    assert isinstance(model, PredictAndConstrain)
    assert (model.constraint, model.steps, training.batch_size) == ("box", 3, 20)
    assert model.score[1].out_features == 7
    assert find("multilabel:constrained,rounds=9,constraint=smooth,sharpness=5").model().sharpness == 5
    with pytest.raises(Usage, match="`batch`"):
        find("multilabel:threshold,batch=4001")
    with pytest.raises(Usage, match="exact, dykstra"):
        find("multilabel:constrained,constraint=none").model()


def test_a_set_that_is_not_there(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(Usage, match=f"{FOLDER}.*bibtex-train"):
        find("multilabel:constrained,set=bibtex")


def test_what_a_head_can_count_to_covers_most_examples():
    train, _ = parts("synthetic", 0)
    most = most_labels(train.y)
    assert float((train.y.sum(1) <= most).float().mean()) >= 0.95
    assert most_labels(torch.zeros(4, 3)) == 1
