"""Wide networks on linearly separable data: updates, new data, dead ReLUs (Brutzkus et al. 2018), and Baum's algorithm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.problems._mnist import has_mnist
from gradoscope.studies import _separable as parts
from gradoscope.studies._separable_claims import claims
from gradoscope.studies._separable_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["RATES", "STUDY", "WIDTHS", "Separable"]

PARTS: dict[str, Callable[[Mapping[str, Any], Sequence[int], Context], Result]] = {
    "width": parts.width,
    "steps": parts.steps,
    "orthonormal": parts.orthonormal,
    "compression": parts.compression,
    "dead": parts.dead,
    "relu": parts.relu,
    "images": parts.images,
    "labels": parts.labels,
    "baum": parts.baum,
}
WIDTHS = (1, 10, 100, 1000, 10_000)
RATES = ((0.1, 0.1), (0.1, 1.0), (0.5, 0.1), (0.5, 1.0))  # slope, step size
PLANE = {"d": 20, "n": 100, "margin": 0.15}


class Separable(Study):
    """Leaky and plain ReLU layers on data that a plane separates, and what their success rests on."""

    name = "separable"
    title = "SGD on wide networks and separable data: few updates at any width, and ReLUs that die"
    source = "Globerson's slides; Brutzkus, Globerson, Malach & Shalev-Shwartz 2018; Baum 1990"
    about = (
        "A layer of 2k leaky ReLUs with fixed output weights learns data that a plane separates, by SGD with the hinge loss on one "
        "example at a time. The source bounds the steps that change anything, as for the perceptron and free of the width. The bound "
        "holds with all its constants at widths from 2 to 20,000, and is 7 to 90 times above what happens; the perceptron needs fewer "
        "updates. That the bound grows as one over the step size is no weakness of the proof: an orthonormal instance does so.",
        "The network is a function of its start and of the examples that made updates: replayed from the list, it is the same bit for "
        "bit. So a compression bound limits the error on new data. With the number of updates that were made it says something from "
        "some thousand examples on; with the most that there could be it is vacuous, and the tables say so.",
        "With plain ReLUs there is a flat bad minimum for any such data, from which SGD never moves, and a start can lie so "
        "that no unit sees an example. On orthogonal examples the probability of success is (1 - 2^-k)^d exactly. A slope below zero, "
        "or a width of log2(d/delta), mends it.",
        "On images of threes and fives the network reaches no error on its examples at every width, and its error on others does not "
        "grow with the number of weights. The images of MNIST are separable, though barely: |w*| is near 300, the bound on updates in the "
        "millions and the compression bound vacuous. Real data succeed for reasons beyond the theorem. How close the outputs are to "
        "a linear function of the pixels, as the source guesses, is in the table (R^2); it is measured and not claimed.",
        "Random labels are learnt as well once the layer is wide enough, with an error of one half on new examples: no training error "
        "is no guarantee. And two halfspaces in place of one are learnt by two linear programs (Baum), if the law of the inputs is "
        "symmetric.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Widths and step sizes, the proof's steps, bounds, ReLUs, images, labels, halfspaces."""
        paper = scale == "paper"
        found = []
        for slope, eta in RATES:
            for k in WIDTHS:
                if paper or k < 10_000 or eta == 1.0:
                    cost = (0.1 + k * 1e-4) / eta / (slope + 0.4)
                    found.append(Setting({"part": "width", "k": k, "slope": slope, "eta": eta, **PLANE}, 5, 5, cost))
        found.append(Setting({"part": "steps", "k": 50, "slope": 0.2, "eta": 0.3, **PLANE}, 5, 5, 0.1))
        found.append(Setting({"part": "orthonormal", "d": 5, "k": 10, "slopes": (0.1, 0.3, 0.8), "etas": (0.01, 0.1, 1.0)}, 0, 1, 0.5))
        wide = {"part": "compression", "d": 10, "margin": 0.35, "k": 100, "slope": 0.5, "eta": 1.0}
        found += [Setting({**wide, "n": n}, 5, 5, 0.2) for n in (400, 1600, 6400)]
        found.append(Setting({"part": "dead", "k": 10, "kicks": 200, **PLANE}, 5, 5, 0.1))
        runs = {"part": "relu", "d": 64, "runs": 400 if paper else 80, "eta": 0.5}
        found += [Setting({**runs, "k": k, "slope": 0.0}, 5, 5, 0.05) for k in (4, 6, 8, 10, 12)]
        found.append(Setting({**runs, "k": 1, "slope": 0.1}, 5, 5, 0.05))
        return [*found, *self._images(paper), *self._others(paper)]

    def _images(self, paper: bool) -> list[Setting]:
        data = "mnist" if paper and has_mnist() else "digits"
        base = {"part": "images", "data": data, "slope": 0.2, "eta": 10.0, "train": 3000, "test": 1000, "epochs": 3000}
        widths = (2, 10, 100, 1000) if paper else (10, 100, 1000)
        costs = {2: 60.0, 10: 15.0, 100: 12.0, 1000: 20.0} if data == "mnist" else {}
        return [Setting({**base, "hidden": h}, 5, 1, costs.get(h, 0.5)) for h in widths]

    def _others(self, paper: bool) -> list[Setting]:
        base = {"part": "labels", "d": 20, "n": 100, "slope": 0.1, "eta": 1.0}
        epochs = 3000 if paper else 300
        found = [Setting({**base, "k": k, "epochs": epochs}, 5, 5, 6.0 if paper and k == 2 else 1.0) for k in (2, 10, 100)]
        found += [Setting({"part": "baum", "d": 5, "n": n, "shift": 0.0}, 5, 5, 0.1) for n in (200, 800, 3200)]
        return [*found, Setting({"part": "baum", "d": 5, "n": 800, "shift": 1.5}, 5, 5, 0.1)]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One setting."""
        return PARTS[values["part"]](values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of the slides and papers, with the constants that are derived here."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Widths, the proof, ReLUs, images, halfspaces."""
        return figures(scale)


STUDY = Separable()
