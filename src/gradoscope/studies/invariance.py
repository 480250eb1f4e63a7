"""Labelling the nodes of graphs: what a network that does not depend on their order learns and computes (Herzig et al. 2018)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.studies import _invariance as parts
from gradoscope.studies._invariance_claims import claims
from gradoscope.studies._invariance_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "Invariance"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "defect": parts.defect,
    "train": parts.train,
    "theorem": parts.theorem,
    "seen": parts.seen,
    "special": parts.special,
}
TASK = {"n": 10, "sets": 3}
SECONDS = {  # of one seed at 1,200 steps
    "gpi": 8.0,
    "gpi-neighbour": 10.0,
    "gpi-feature": 12.0,
    "gpi-printed": 8.0,
    "lstm": 4.0,
    "fully-connected": 1.3,
}


class Invariance(Study):
    """The permutation-invariant form against networks that read a graph in an order."""

    name = "invariance"
    title = "Graphs without an order: thirty teach a network that knows the symmetry, a thousand do not teach the others"
    source = "Globerson's slides; Herzig, Raboh, Chechik, Berant & Globerson 2018"
    about = (
        "The nodes of a graph have no order, so a network that labels them should give the same labels under any names. The source "
        "writes such networks as sums of sums: over the neighbours of each node, and over the nodes. Here the label of a node is the "
        "number of its neighbours that belong to its own one of three sets.",
        "A network of the form, with or without attention, commutes with renaming the nodes to rounding, and learns the rule from thirty "
        "graphs. An LSTM over the nodes and a fully connected network have more weights, fit the same thirty graphs without an error, and "
        "stay at the level of the commonest label on new ones; a thousand graphs do not help them. What they lack is neither capacity nor "
        "optimisation: it is the symmetry, and its defect can be measured before any training.",
        "The theorem says that every function that commutes with renaming has the form, with an output that reads the node's own features "
        "and the total sum. Its proof writes a graph into slots, one for each node's features; built so, phi, alpha and rho reproduce an "
        "arbitrary labelling exactly on every graph of up to four nodes whose features differ. Where nodes share features the statement "
        "fails, if it is read without that condition: nodes of the same features get the same label, whatever their neighbours are. That "
        "includes the source's own experiment, where ten nodes belong to three sets: no network of the printed form can be right on more "
        "than two thirds of the nodes, and the trained one is not. The authors' network hands the sum over its neighbours to each node's "
        "output, as ours does, which mends this. What stays is that one round of sums sees no more than a node's neighbours: among graphs "
        "of five nodes without features there are three that it takes for others.",
        "Deep Sets, message passing, mean field and belief propagation are special cases and agree with their definitions to rounding.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Defects, the curve of accuracy against graphs for each model, the theorem, special cases."""
        paper = scale == "paper"
        steps = 1200 if paper else 300
        run = {"part": "train", **TASK, "test": 1000, "batch": 64, "steps": steps, "lr": 3e-3 if paper else 1e-2}
        sizes = (30, 100, 300, 1000) if paper else (30, 100, 300)
        found = [Setting({"part": "defect", **TASK, "graphs": 50, "samples": 20}, 5, 5, 0.5)]
        for model, seconds in SECONDS.items():
            several = model in ("gpi", "gpi-feature", "lstm", "fully-connected") if paper else model in ("gpi", "lstm", "fully-connected")
            cost = seconds * steps / 1200
            chosen = sizes if several else sizes[-1:]
            found += [Setting({**run, "model": model, "graphs": graphs}, 5, 1 if cost > 1 else 5, cost) for graphs in chosen]
        found.append(Setting({"part": "theorem", "letters": 4, "largest": 4}, 5, 5, 1.5))
        found.append(Setting({"part": "seen"}, 0, 1, 1.0))
        return [*found, Setting({"part": "special", "states": 3, "sizes": (1, 2, 4, 6)}, 5, 5, 0.1)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the slides and the paper, with the condition that the theorem needs."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Accuracy against graphs, defects, a graph with its labels, what the form sees."""
        return figures(scale)


STUDY = Invariance()
