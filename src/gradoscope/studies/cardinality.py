"""Predict and constrain: labels under a predicted number of them (Brukhim and Globerson 2018)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.studies import _cardinality as exact
from gradoscope.studies import _cardinality_train as train
from gradoscope.studies._cardinality_claims import claims
from gradoscope.studies._cardinality_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "Cardinality"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "rounds": exact.rounds,
    "facts": exact.facts,
    "smoothing": exact.smoothing,
    "obstruction": exact.obstruction,
    "two": train.two_stage,
    "relevance": train.relevance,
    "end": train.end_to_end,
}
END = {"part": "end", "inner": 15, "rounds": 2, "pretrained": 0, "scale": 1.0, "sharp": 1.0, "batch": 50, "lr": 0.1, "accumulator": 0.1}
TWO = {"part": "two", "batch": 50}
SPREADS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Cardinality(Study):
    """Multilabel prediction where the number of labels is predicted, and inference keeps to it by projections."""

    name = "cardinality"
    title = "Predict and constrain: labels under a predicted number of them"
    source = "Globerson's slides; Brukhim & Globerson 2018"
    about = (
        "Where an example has a few of many labels, single labels are rarely more likely than not, and a threshold of one half names too "
        "few. Predict and Constrain predicts their number z and maximises a learnt score under sum u = z, by gradient steps with a "
        "projection after each; everything is trained through the projections.",
        "The projection has a closed form, clip(y - t, 0, 1), and so has its derivative: labels strictly between 0 and 1 share what moves, "
        "others get nothing, and z gets nothing where no label is free. That is a real obstruction: from a start with large scores the "
        "exact projection hardly learns. Dykstra's algorithm with the published two rounds is far from the projection (entries up to .9 "
        "off), and at fifty rounds it is there; its derivative then is the closed form. Without its corrections it ends elsewhere.",
        "The published smooth step is no projection at sharpness 1. The sum of the labels differs from z by several labels, while the "
        "head that predicts z runs to its lower end: what learns is a soft sparsifier. It learns well for all that, as it hands on a "
        "gradient to every label. Sharpness raised during training, inside the softmax's argument as well, gives the constraint back.",
        "On the same scores, a predicted number is better than the threshold on every set that was tried, most where labels are many and "
        "rare. End to end, over the same network and loss without a number, the constraint gains on such sets and brings little on small "
        "dense ones. The paper's own numbers could not be established, so none is compared with.",
        "How AdaGrad starts matters as much as the constraint. With accumulators that start at 0, as PyTorch's do, the first step is "
        "as long in every weight, of rare words too; on Bibtex that costs the unconstrained network much and the smooth step nearly all. "
        "Started at 0.1, as TensorFlow's do, all are closer together. What does best is simpler: networks pretrained by cross-entropy "
        "with dropout, then trained for three epochs through the exact projection (chosen on a part held out of the training part).",
        "Quick scale draws a set in which the number of labels shows in the inputs. The larger scale needs Mulan's files in the folder "
        "that GRADOSCOPE_DATA names.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The projections; the synthetic set; at paper scale bibtex and others."""
        counts = (1, 2, 5, 10, 20, 50, 200, 1000)
        found = [
            Setting({"part": "rounds", "rows": 50, "labels": 40, "spread": 1.5, "most": 20.0, "rounds": counts}, 5, 5, 0.5),
            Setting({"part": "facts", "rows": 200, "labels": 40, "rounds": 100}, 5, 5, 1.0),
            Setting({"part": "smoothing", "rows": 200, "labels": 40, "spread": 1.0, "sharpness": (1.0, 10.0, 100.0)}, 5, 5, 0.1),
            Setting({"part": "obstruction", "rows": 200, "labels": 40, "spreads": SPREADS, "sums": (2.5, 3.0)}, 5, 5, 0.1),
            *self._synthetic(),
        ]
        return [*found, *self._bibtex(), *self._others()] if scale == "paper" else found

    def _synthetic(self) -> list[Setting]:
        sizes = {"set": "synthetic", "hidden": 50, "most": 0}
        found = [
            Setting({**TWO, **sizes, "epochs": 40}, 5, 5, 0.7),
            Setting({"part": "relevance", "set": "synthetic", "c": 1.0}, 5, 5, 0.3),
        ]
        kinds: list[dict[str, Any]] = [{"constraint": k} for k in ("box", "exact", "dykstra", "smooth")]
        kinds += [{"constraint": k, "accumulator": 0.0} for k in ("box", "exact")]
        kinds += [{"constraint": "smooth", "sharp": 100.0}, *({"constraint": k, "scale": 30.0} for k in ("exact", "smooth"))]
        return [
            *found,
            *(Setting({**END, **sizes, "epochs": 20, **kind}, 5, 5, 0.4 if kind["constraint"] == "box" else 1.8) for kind in kinds),
        ]

    def _bibtex(self) -> list[Setting]:
        sizes = {"set": "bibtex", "hidden": 150, "most": 3}
        found = [Setting({**TWO, **sizes, "epochs": 20}, 5, 1, 18), Setting({"part": "relevance", "set": "bibtex", "c": 0.01}, 0, 1, 42)]
        costs = {"box": 15.0, "exact": 38.0, "dykstra": 38.0, "smooth": 45.0}
        scratch = {**END, **sizes, "epochs": 10}
        found += [Setting({**scratch, "constraint": kind}, 3, 1, cost) for kind, cost in costs.items()]
        found += [Setting({**scratch, "constraint": kind, "accumulator": 0.0}, 3, 1, costs[kind]) for kind in ("box", "dykstra", "smooth")]
        warm = {**END, **sizes, "pretrained": 15, "epochs": 3, "lr": 0.01, "accumulator": 0.0}
        return [*found, *(Setting({**warm, "constraint": kind}, 5, 1, 25) for kind in ("exact", "box"))]

    def _others(self) -> list[Setting]:
        found = []
        for name, cost in {"scene": 0.8, "yeast": 1.2, "emotions": 0.1, "enron": 3.0}.items():
            sizes = {"set": name, "hidden": 150, "most": 0, "epochs": 20}
            found.append(Setting({**TWO, **sizes}, 5, 5, cost))
            found.append(Setting({"part": "relevance", "set": name, "c": 0.01}, 0, 1, cost))
            kinds = {"box": cost, "exact": 2 * cost, "smooth": 3 * cost}
            found += [Setting({**END, **sizes, "constraint": kind}, 5, 5, each) for kind, each in kinds.items()]
        return [*found, Setting({**TWO, "set": "delicious", "hidden": 150, "most": 0, "epochs": 8}, 3, 1, 42)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """On projections, derivatives, the synthetic set; at paper scale on the real ones."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Rounds, gradients, F1, numbers of labels, sums."""
        return figures(scale)


STUDY = Cardinality()
