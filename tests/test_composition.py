"""Parts that the primary loss alone cannot train: found, told apart from what looks alike, and not found where it is not."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from gradoscope import thresholds as T
from gradoscope.case import Case
from gradoscope.diagnose import examine, judge
from gradoscope.diagnosis import Diagnosis, Health
from gradoscope.guard import derive_seed
from gradoscope.obstacles._parts import same_gradient
from gradoscope.obstacles.end_to_end_composition import OBSTACLE
from gradoscope.report.schema import load_schema
from gradoscope.training import Training

Batch = tuple[Tensor, Tensor]


class Tuples(nn.Module):
    """One network scores each of k inputs, another combines the scores."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, 1))
        self.second = nn.Sequential(nn.Linear(k, 32), nn.ReLU(), nn.Linear(32, 1))

    def scores(self, x: Tensor) -> Tensor:
        return self.first(x).squeeze(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.scores(x))).squeeze(-1)


def tuples(k: int, *, d: int = 16, lr: float = 1e-2, steps: int = 200, given: bool = True, **options: Any) -> Training:
    """Learn the product of the signs of k hidden projections, by hinge loss; the signs are the targets of the parts."""
    hidden = torch.randn(d, generator=torch.Generator().manual_seed(derive_seed(5, d)))

    def sample(random: torch.Generator, n: int) -> Batch:
        x = torch.randn(n, k, d, generator=random)
        return x, (x @ hidden).sign().prod(1)

    def parts(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, Tuples)
        return hinge(model.scores(batch[0]), (batch[0] @ hidden).sign())

    settings: dict[str, Any] = {
        "model": lambda: Tuples(d, k),
        "optimizer": lambda params: torch.optim.Adam(params, lr=lr),
        "loss_fn": hinge,
        "data": sample,
        "batch_size": 64,
        "steps": steps,
        "intermediate": parts if given else None,
    }
    return Training(**(settings | options))


def hinge(score: Tensor, target: Tensor) -> Tensor:
    return torch.relu(1 - score * target).mean()


def diagnosed(training: Training, **options: Any) -> Diagnosis:
    """A diagnosis with time enough for every fork, however busy the machine is."""
    return examine(Case(training, limit=200.0, **options))


def status(training: Training) -> tuple[str, list[str], str]:
    """The verdict, what is present, and what is said of composition."""
    diagnosis = diagnosed(training)
    return diagnosis.verdict, [f.obstacle for f in diagnosis.present], diagnosis["end_to_end_composition"].status


@pytest.mark.parametrize(
    "options",
    [{"k": 4}, {"k": 5, "loss_fn": nn.functional.mse_loss, "steps": 200}],
    ids=["4 parts", "5 parts, squared error"],
)
def test_parts_that_the_primary_loss_cannot_train_are_found(options: dict[str, Any]) -> None:
    diagnosis = diagnosed(tuples(**options))
    assert diagnosis.verdict == "obstructed"
    assert [f.obstacle for f in diagnosis.present] == ["end_to_end_composition"]
    finding = diagnosis["end_to_end_composition"]
    assert finding.counterfactual == "decompose"
    assert finding.gain is not None
    assert finding.gain > 0.9
    told = {e.measurement.name: e.measurement for e in finding.evidence}
    assert told["intermediate_snr"].p is not None
    assert told["intermediate_snr"].p < T.ALPHA
    assert float(told["snr_ratio"].value) < T.SNR_GAP
    for other in ("uninformative_gradient", "local_minimum", "saddle_point", "low_gradient_snr", "bayes_floor"):
        assert diagnosis[other].status == "absent", other
    # Ruled out with numbers, not only by name.
    for other in ("local_minimum", "saddle_point"):
        assert {"relative_gradient", "negative_curvature"} <= {e.measurement.name for e in diagnosis[other].evidence}
    # From the middle of the run it works as well: the state is none that the training is caught in.
    assert any(c.remedy == "decompose" and c.start > 0 and c.shortfall > T.MATERIAL for c in diagnosis.counterfactuals)
    jsonschema.validate(json.loads(diagnosis.to_json()), load_schema())


def test_without_targets_the_finding_says_what_to_give_and_bars_no_verdict() -> None:
    diagnosis = diagnosed(tuples(4, given=False, steps=60))
    finding = diagnosis["end_to_end_composition"]
    assert finding.status == "undetermined"
    assert finding.missing == ("intermediate targets",)
    assert "Training(intermediate=" in finding.summary
    assert not any(c.remedy.startswith("decompose") for c in diagnosis.counterfactuals)
    assert diagnosis.present == ()
    health = Health(True, 0.9, "It is.")
    assert judge((finding,), health) == "healthy"


def test_one_part_is_healthy_with_and_without_targets() -> None:
    for given in (True, False):
        assert status(tuples(1, given=given)) == ("healthy", [], "absent")


def test_targets_that_are_there_but_not_needed() -> None:
    """Two parts are learnt from the primary loss: slowly at first, but to the end."""
    verdict, present, said = status(tuples(2, d=8, steps=300))
    assert (verdict, present, said) == ("healthy", [], "absent")


def test_what_learns_without_targets_is_absent_at_no_cost() -> None:
    noisy = tuples(1, given=False, loss_fn=lambda s, y: hinge(s, y) + 1.0)  # a floor of one that cannot be removed
    case = Case(noisy)
    finding = OBSTACLE.examine(case, {})
    assert finding.status == "absent"
    assert case.trials() == ()


def test_the_step_size_explains_what_it_explains() -> None:
    _, present, said = status(tuples(1, d=20, optimizer=lambda params: torch.optim.SGD(params, lr=1e-4)))
    assert present == ["step_too_small"]
    assert said == "absent"


def test_a_larger_batch_that_does_as_well_explains_it() -> None:
    """Two parts, too few steps at this noise: the primary loss alone trains them once it is averaged."""
    diagnosis = diagnosed(tuples(2, steps=60))
    assert diagnosis["end_to_end_composition"].status == "absent"
    assert [f.obstacle for f in diagnosis.present] == ["low_gradient_snr"]


class Stocks(nn.Module):
    """Softmax of a linear map of one-hot inputs."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, k)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).softmax(1)


def stocks(d: int = 40, k: int = 200) -> Training:
    """Of k signs per example only one does not change at random, and only by it is the mean gradient made."""
    right = torch.randint(0, k, (d,), generator=torch.Generator().manual_seed(1))

    def sample(random: torch.Generator, n: int) -> Batch:
        i = torch.randint(0, d, (n,), generator=random)
        z = torch.randint(0, 2, (n, k), generator=random).float() * 2 - 1
        z[torch.arange(n), right[i]] = 1
        return nn.functional.one_hot(i, d).float(), z

    def parts(model: nn.Module, batch: Batch) -> Tensor:
        output = model(batch[0])
        return -output[torch.arange(len(output)), right[batch[0].argmax(1)]].mean()

    return Training(
        model=lambda: Stocks(d, k),
        optimizer=lambda params: torch.optim.SGD(params, lr=300.0),
        loss_fn=lambda output, z: -(output * z).sum(1).mean(),
        data=sample,
        batch_size=20,
        steps=300,
        intermediate=parts,
    )


def test_targets_that_only_lower_the_variance_are_a_matter_of_noise() -> None:
    """The mean of both gradients is the same in closed form: E z = e_y."""
    case = Case(stocks(), limit=90.0)
    assert same_gradient(case) is not None
    diagnosis = examine(case)
    assert [f.obstacle for f in diagnosis.present] == ["low_gradient_snr"]
    assert diagnosis["low_gradient_snr"].counterfactual == "decompose(alone)"
    finding = diagnosis["end_to_end_composition"]
    assert finding.status == "absent"
    assert [e.supports for e in finding.evidence if e.measurement.name == "projection"] == [False]


def test_other_gradients_are_not_the_same() -> None:
    case = Case(tuples(4, steps=60))
    assert same_gradient(case) is None
    assert same_gradient(Case(tuples(4, steps=60, given=False))) is None
    # The same loss twice is the same gradient, but where its part reaches not all parameters.
    twin = tuples(1, steps=60)
    assert same_gradient(Case(replace(twin, intermediate=lambda m, b: hinge(m(b[0]), b[1])))) is not None
    # Half as long is another gradient.
    assert same_gradient(Case(replace(twin, intermediate=lambda m, b: 3 * hinge(m(b[0]), b[1])))) is None


class Scalar(nn.Module):
    """One number."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.w + 0 * x


def test_a_minimum_is_no_composition() -> None:
    """The higher of two wells: the gradient led there, and targets that point to the lower one free it as a restart does."""

    def wells(model: nn.Module, batch: Batch) -> Tensor:
        w = model(batch[0])
        return ((w.square() - 1).square() + 0.3 * w + 0.2 * batch[0] * w).mean()

    made: list[int] = []

    def model() -> nn.Module:
        # The training's own start, from its own seed, lies on the higher well's side, those of others on the lower one's.
        made.append(torch.initial_seed())
        scalar = Scalar()
        with torch.no_grad():
            scalar.w.fill_(0.4 if made[-1] == made[0] else -0.4)
        return scalar

    training = Training(
        model=model,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.04),
        batch_loss=wells,
        data=lambda random, n: (torch.randn(n, generator=random), torch.zeros(n)),
        batch_size=16,
        steps=100,
        intermediate=lambda m, b: 4 * (m(b[0]) + 1 + 0.2 * b[0]).square().mean(),
    )
    diagnosis = diagnosed(training)
    assert [f.obstacle for f in diagnosis.present] == ["local_minimum"]
    assert diagnosis["end_to_end_composition"].status == "absent"
    assert any(c.remedy == "decompose" and c.shortfall > T.MATERIAL for c in diagnosis.counterfactuals)


def test_targets_that_fail_hurt_no_other_finding() -> None:
    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise KeyError("labels")

    diagnosis = diagnosed(tuples(4, steps=40, intermediate=broken))
    finding = diagnosis["end_to_end_composition"]
    assert finding.status == "undetermined"
    assert any("KeyError" in m for m in finding.missing)
    assert not any("a measurement that failed" in m for f in diagnosis.findings for m in f.missing)


def test_without_forks_it_is_undetermined() -> None:
    finding = diagnosed(tuples(4, steps=40), counterfactuals=False)["end_to_end_composition"]
    assert finding.status == "undetermined"
    assert "counterfactual" in finding.missing
    assert any(e.measurement.name == "snr_ratio" and e.supports for e in finding.evidence)
