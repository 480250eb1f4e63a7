"""What the study of permutation-invariant labelling claims."""

import math
from collections.abc import Callable

from gradoscope.claims import Claim, each, exactly
from gradoscope.studies._invariance import FORMS, OTHERS
from gradoscope.study import Results, Scale

__all__ = ["claims"]

PAPER = "Herzig et al. 2018"
THEOREM = f"{PAPER}, theorem 1; Globerson's slides"
TASK = f"{PAPER}, synthetic experiment: the invariant network needs far fewer graphs than an LSTM or a fully connected one"
LEAST = {  # quick: a quarter of the steps and at most 300 graphs; paper: independent prototypes' 0.974, 0.996 and 0.992, less a margin
    "quick": {"few": 0.90, "many": 0.97, "feature": 0.95, "neighbour": 0.90},
    "paper": {"few": 0.95, "many": 0.99, "feature": 0.98, "neighbour": 0.95},
}
Measure = Callable[[Results], list[float]]


def claims(scale: Scale) -> list[Claim]:
    """All of them, in the order of the parts."""
    return [*_symmetry(), *_learning(scale), *_theorem(), *_limits(), *_special()]


def _column(name: str, /, **where: object) -> Measure:
    return lambda results: [float(v) for v in results.rows.where(**where).column(name)]


def _by_seed(column: str, models: tuple[str, ...], pick: Callable[[list[float]], float], **where: object) -> Measure:
    """One number per seed out of those of several models and sizes."""

    def measure(results: Results) -> list[float]:
        rows = results.rows.where(model=models, **where)
        return [pick([float(v) for v in group.column(column)]) for _, group in rows.groups("seed")]

    return measure


def _at(most: bool, column: str, models: tuple[str, ...], pick: Callable[[list[float]], float]) -> Measure:
    """The same at the largest or the smallest number of training graphs that there is."""

    def measure(results: Results) -> list[float]:
        sizes = results.rows.where(part="train").values("graphs")
        return _by_seed(column, models, pick, part="train", graphs=max(sizes) if most else min(sizes))(results)

    return measure


def _symmetry() -> list[Claim]:
    return [
        Claim(
            "forms-commute",
            "Every variant of the form commutes with renaming the nodes: the largest difference of any output, in double precision.",
            THEOREM,
            _by_seed("absolute", (*FORMS, "gpi-printed"), max, part="defect"),
            each(high=1e-10),
        ),
        *(
            Claim(
                f"{name}-does-not",
                f"The {words} does not, from its start on.",
                f"{THEOREM}: not of the form",
                _by_seed("absolute", (name,), max, part="defect"),
                each(low=1e-3),
            )
            for name, words in (("lstm", "LSTM over nodes"), ("fully-connected", "fully connected network"))
        ),
        Claim(
            "forms-still-commute",
            "After training the variants of the form commute as before.",
            THEOREM,
            _by_seed("absolute", (*FORMS, "gpi-printed"), max, part="train"),
            each(high=1e-10),
        ),
        Claim(
            "training-teaches-no-symmetry",
            "After training, renaming the nodes changes the outputs of LSTM and fully connected network by at least a tenth of all their "
            "variation.",
            "derived: nothing in the loss asks for it",
            _by_seed("defect", OTHERS, min, part="train"),
            each(low=0.1),
        ),
    ]


def _learning(scale: Scale) -> list[Claim]:
    least = LEAST[scale]

    def lead(results: Results) -> list[float]:
        few, many = _at(False, "accuracy", ("gpi",), min)(results), _at(True, "accuracy", OTHERS, max)(results)
        return [a - b for a, b in zip(few, many, strict=True)]

    def weights(results: Results) -> float:
        rows = results.rows.where(part="train")
        return float(max(rows.where(model=FORMS).column("parameters")) / min(rows.where(model=OTHERS).column("parameters")))

    def above(results: Results) -> list[float]:
        rows = results.rows.where(part="train", model=OTHERS, graphs=min(results.rows.where(part="train").values("graphs")))
        return [max(r["accuracy"] - r["majority"] for r in group) for _, group in rows.groups("seed")]

    return [
        Claim("few-graphs", "The form learns from 30 graphs.", TASK, _at(False, "accuracy", ("gpi",), min), each(low=least["few"])),
        Claim("many-graphs", "With most graphs it is right.", TASK, _at(True, "accuracy", ("gpi",), min), each(low=least["many"])),
        *(
            Claim(
                f"attention-{kind}",
                f"So it is with attention, one weight for each {kind}.",
                TASK,
                _at(True, "accuracy", (f"gpi-{kind}",), min),
                each(low=least[kind]),
            )
            for kind in ("neighbour", "feature")
        ),
        Claim(
            "others-fail",
            "LSTM and fully connected network stay at 0.45 or below on new graphs, at every number of training graphs.",
            TASK,
            _by_seed("accuracy", OTHERS, max, part="train"),
            each(high=0.45),
        ),
        Claim(
            "others-fit",
            "They fit the 30 graphs themselves: it is no lack of capacity, nor of optimisation.",
            TASK,
            _at(False, "train_accuracy", OTHERS, min),
            each(low=0.95),
        ),
        Claim(
            "others-guess",
            "What they learn from 30 graphs is no better than the commonest label.",
            TASK,
            above,
            each(high=0.05),
        ),
        Claim("lead", "The form with fewest graphs is ahead of both with most, by 0.4 or more.", TASK, lead, each(low=0.4)),
        Claim("fewer-weights", "No variant of the form has more weights than a network that fails.", TASK, weights, exactly(high=1.0)),
    ]


def _theorem() -> list[Claim]:
    def lost(column: str, kind: str, largest: int) -> Callable[[Results], float]:
        def measure(results: Results) -> float:
            rows = [r for r in results.rows.where(part="seen", kind=kind) if r["n"] <= largest]
            return float(sum(r["classes"] - r[column] for r in rows))

        return measure

    return [
        Claim(
            "necessity",
            "Built from slots, phi, alpha and rho reproduce an arbitrary labelling on every graph of up to four nodes that differ.",
            f"{THEOREM}: only if",
            _column("difference", part="theorem"),
            each(high=0.0),
        ),
        Claim(
            "letters-differ",
            "Where the features of nodes differ, the form tells all nodes of all graphs apart.",
            f"{THEOREM}: only if",
            lost("printed", "letters differ", 3),
            exactly(0.0, 0.0),
        ),
        Claim(
            "any-features",
            "So it does where nodes have the same features: none of the undirected graphs of up to four nodes is mistaken.",
            f"{THEOREM}, read as it is quoted: if and only if, for every graph labelling function",
            lost("printed", "undirected", 4),
            exactly(0.0, 0.0),
            expected_to_fail=True,
            why="rho(z_k, G) gives one label to all nodes of the same features in a graph, so not even the degree has the form: the path "
            "of three nodes is the smallest example. The proof needs features that differ.",
        ),
        Claim(
            "own-row",
            "With its own sum over neighbours as a further argument of rho, as in the authors' code, the form sees every node of the "
            "undirected graphs of up to four nodes.",
            f"{PAPER}, code; counted here",
            lost("with_row", "undirected", 4),
            exactly(0.0, 0.0),
        ),
    ]


def _limits() -> list[Claim]:
    def mistaken(kind: str, n: int) -> Callable[[Results], float]:
        def measure(results: Results) -> float:
            (row,) = results.rows.where(part="seen", kind=kind, n=n)
            return float(row["graphs"] - row["graphs_seen"])

        return measure

    def beyond(results: Results) -> list[float]:
        return [r["accuracy"] - r["ceiling"] for r in results.rows.where(part="train", model="gpi-printed")]

    def behind(results: Results) -> list[float]:
        full, printed = _at(True, "accuracy", ("gpi",), min)(results), _at(True, "accuracy", ("gpi-printed",), max)(results)
        return [a - b for a, b in zip(full, printed, strict=True)]

    return [
        Claim(
            "five-nodes",
            "Three of the 34 graphs of five nodes without features look like others to any network of the form.",
            "counted here: 34 graphs, 31 degree sequences",
            mistaken("undirected", 5),
            exactly(3.0, 3.0),
        ),
        Claim(
            "three-arrows",
            "With directed edges that begins at three nodes: 16 graphs, of which 10 can be told apart.",
            "counted here",
            mistaken("directed", 3),
            exactly(6.0, 6.0),
        ),
        Claim(
            "printed-ceiling",
            "Without a node's own sum the trained network stays below what one label per set and graph allows, about two thirds.",
            f"{THEOREM}: rho reads z_k and the total alone",
            beyond,
            each(high=0.0),
        ),
        Claim(
            "printed-behind",
            "That is at least 0.25 behind the same network with it.",
            "derived: the ceiling is 0.663 on average",
            behind,
            each(low=0.25),
        ),
    ]


def _special() -> list[Claim]:
    def worst(results: Results) -> list[float]:
        groups = results.rows.where(part="special").groups("seed")
        return [max([float(v) for v in rows.column("difference")], default=math.nan) for _, rows in groups]

    return [
        Claim(
            "special-cases",
            "Deep Sets, message passing, mean field and belief propagation in the form agree with their definitions.",
            f"{PAPER}: attention, message passing and such are special cases",
            worst,
            each(high=1e-12),
        )
    ]
