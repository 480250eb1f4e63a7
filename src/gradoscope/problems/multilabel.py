"""Several labels per example: independent thresholds, and inference that is told how many labels there are."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradoscope.errors import Usage
from gradoscope.problems import problem
from gradoscope.structured.cardinality import Constraint, PredictAndConstrain, f1_scores, mlp, soft_f1_loss
from gradoscope.structured.multilabel import Multilabel, generated, load, standardised
from gradoscope.training import Training

__all__ = ["box", "constrained", "labels_from_scores", "last_iterate", "most_labels", "parts", "saturated", "smooth", "threshold"]

SOURCE = "Brukhim and Globerson 2018, Predict and Constrain: modeling cardinality in deep structured prediction"
EXAMPLES = 4000  # so many that learning them by heart is no matter in these short trainings


def parts(name: str, seed: int, examples: int = 600) -> tuple[Multilabel, Multilabel]:
    """The training and the other part of a set, with standardised features.

    Args:
        name: "synthetic", or a set in the folder that GRADOSCOPE_DATA names, e.g. "bibtex".
        seed: what the synthetic one is drawn from; files have a split of their own.
        examples: in the training part of the synthetic one.

    Example:
        >>> [len(part) for part in parts("synthetic", 0)]
        [600, 400]
    """
    train, test = standardised(*(generated(seed, train=examples) if name == "synthetic" else load(name)))
    return train, test


def most_labels(y: Tensor) -> int:
    """How many labels a head should be able to predict: as many as 95% of the examples have at most."""
    return max(1, int(y.sum(1).quantile(0.95, interpolation="higher")))


def labels_from_scores(output: Tensor, target: Tensor) -> float:
    """The example-averaged F1 of scores above 0, which is a probability of one half; shapes (n, L)."""
    return f1_scores((output > 0).float(), target)["f1"]


def last_iterate(output: Tensor, target: Tensor) -> float:
    """The example-averaged F1 of the last iterate at 1/2; shapes (n, T, L) and (n, L)."""
    return f1_scores((output[:, -1] >= 0.5).float(), target)["f1"]


def _training(
    name: str,
    data: str,
    seed: int,
    model: Callable[[int, int, int], nn.Module],
    loss: Callable[[Tensor, Tensor], Tensor],
    metric: Callable[[Tensor, Tensor], float],
    *,
    lr: float,
    batch: int,
    steps: int,
    decay: float = 0.0,
) -> Training:
    train, test = parts(data, seed, EXAMPLES)
    if not 1 <= batch <= len(train):
        raise Usage(f"`batch` must be from 1 to {len(train)}, the examples of {data}, got {batch}.")
    sizes = train.x.shape[1], train.y.shape[1], most_labels(train.y)
    return Training(
        name=name,
        model=lambda: model(*sizes),
        optimizer=lambda params: torch.optim.Adagrad(params, lr=lr, weight_decay=decay),
        loss_fn=loss,
        data=(train.x, train.y),
        validation=(test.x, test.y),
        metric=metric,
        batch_size=batch,
        steps=steps,
    )


@problem(
    "multilabel:threshold",
    obstacle="healthy",
    says="Each label by itself with cross-entropy: it learns the probabilities as well as any, but few are above one half, so that it "
    "names too few labels. A lower threshold or a predicted number of labels gains some F1, less than what counts as an obstacle.",
    source=f"{SOURCE} (baseline)",
)
def threshold(*, seed: int = 0, set: str = "synthetic", hidden: int = 50, lr: float = 0.02, batch: int = 50, steps: int = 300) -> Training:
    """A network of one hidden layer, the mean of the labels' binary cross-entropies, labels at probability 1/2.

    Args:
        seed: what the synthetic set is drawn from.
        set: "synthetic", or a set of your data folder.
        hidden: units.
        lr: step size of AdaGrad.
        batch: examples per step.
        steps: optimizer steps.
    """

    def model(features: int, labels: int, most: int) -> nn.Module:
        del most
        return mlp(features, hidden, labels)

    loss = nn.functional.binary_cross_entropy_with_logits
    return _training("multilabel:threshold", set, seed, model, loss, labels_from_scores, lr=lr, batch=batch, steps=steps)


def _unrolled(
    name: str,
    set: str,
    seed: int,
    constraint: Constraint,
    *,
    hidden: int,
    inner: int,
    rounds: int,
    sharpness: float,
    lr: float,
    batch: int,
    steps: int,
    scale: float = 1.0,
) -> Training:
    def model(features: int, labels: int, most: int) -> nn.Module:
        net = PredictAndConstrain(
            features,
            labels,
            most=most,
            hidden=hidden,
            constraint=constraint,
            steps=inner,
            rounds=rounds,
            sharpness=sharpness,
        )
        if scale != 1:
            with torch.no_grad():
                for p in net.score.parameters():
                    p.mul_(scale)
        return net

    return _training(name, set, seed, model, soft_f1_loss, last_iterate, lr=lr, batch=batch, steps=steps, decay=2e-5)


@problem(
    "multilabel:constrained",
    obstacle="healthy",
    says="Labels that maximise a learnt score under a learnt number of labels; the projection is exact and its gradient implicit.",
    source=SOURCE,
)
def constrained(
    *,
    seed: int = 0,
    set: str = "synthetic",
    constraint: str = "exact",
    hidden: int = 50,
    inner: int = 5,
    rounds: int = 2,
    sharpness: float = 1.0,
    lr: float = 0.05,
    batch: int = 50,
    steps: int = 300,
) -> Training:
    """Unrolled ascent with projections; the soft F1 of all iterates; the paper has inner=15, hidden=150, lr=0.1.

    Args:
        seed: what the synthetic set is drawn from.
        set: "synthetic", or a set of your data folder.
        constraint: exact, dykstra, smooth or box.
        hidden: units of the score and of the head.
        inner: unrolled steps of inference.
        rounds: of Dykstra's algorithm, where that is the constraint.
        sharpness: of the smooth step.
        lr: step size of AdaGrad.
        batch: examples per step.
        steps: optimizer steps.
    """
    kind: Constraint = constraint  # type: ignore[assignment]  # the model refuses other words
    options = {"hidden": hidden, "inner": inner, "rounds": rounds, "batch": batch, "steps": steps}
    return _unrolled("multilabel:constrained", set, seed, kind, sharpness=sharpness, lr=lr, **options)


@problem(
    "multilabel:smooth",
    obstacle="healthy",
    says="The published form: two rounds of Dykstra's algorithm with a smooth step. It learns; the number of labels is not kept.",
    source=SOURCE,
)
def smooth(
    *,
    seed: int = 0,
    set: str = "synthetic",
    hidden: int = 50,
    inner: int = 5,
    rounds: int = 2,
    sharpness: float = 1.0,
    lr: float = 0.05,
    batch: int = 50,
    steps: int = 300,
) -> Training:
    """`multilabel:constrained` with the published step in place of the projection; options as there."""
    options = {"hidden": hidden, "inner": inner, "rounds": rounds, "batch": batch, "steps": steps}
    return _unrolled("multilabel:smooth", set, seed, "smooth", sharpness=sharpness, lr=lr, **options)


@problem(
    "multilabel:box",
    obstacle="bayes_floor",
    says="The same network, inference and loss without a word about the number of labels. Labels are drawn at random given the "
    "inputs, so that nothing gets far.",
    source=f"{SOURCE} (control)",
)
def box(
    *, seed: int = 0, set: str = "synthetic", hidden: int = 50, inner: int = 5, lr: float = 0.05, batch: int = 50, steps: int = 300
) -> Training:
    """`multilabel:constrained` with entries cut at 0 and 1 only; options as there."""
    return _unrolled(
        "multilabel:box", set, seed, "box", hidden=hidden, inner=inner, rounds=1, sharpness=1.0, lr=lr, batch=batch, steps=steps
    )


@problem(
    "multilabel:saturated",
    obstacle="exploding_gradient",
    says="The exact projection with weights thirty times too large at the start: nearly every label is at 0 or 1, and the projection "
    "passes on no gradient to labels that are not free.",
    source=f"{SOURCE}; the projection's derivative",
)
def saturated(
    *,
    seed: int = 0,
    set: str = "synthetic",
    scale: float = 30.0,
    hidden: int = 50,
    inner: int = 5,
    lr: float = 0.05,
    batch: int = 50,
    steps: int = 300,
) -> Training:
    r"""`multilabel:constrained` with weights of the score `scale` times as large at the start: few labels are free, and $J$ is near 0."""
    options = {"hidden": hidden, "inner": inner, "rounds": 2, "batch": batch, "steps": steps}
    return _unrolled("multilabel:saturated", set, seed, "exact", sharpness=1.0, lr=lr, scale=scale, **options)
