"""Lines, planes and paths of eight networks and the factored linear model, beside random walks."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from gradoscope.claims import Claim
from gradoscope.problems._mnist import has_mnist
from gradoscope.studies._interpolation import run_unit
from gradoscope.studies._interpolation_claims import all_claims
from gradoscope.studies._interpolation_figures import all_figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["STUDY", "Interpolation"]


class _Case(NamedTuple):
    """A network at one scale: options of its problem, examples that are evaluated, points along a side of surfaces (0 for none)."""

    problem: str
    options: str
    rows: int
    view_rows: int
    side: int
    cost: float


SEEN = {"lstm", "factored 5", "factored 10"}  # surfaces of every seed, to compare them
QUICK: dict[str, _Case] = {
    "maxout": _Case("maxout", "", 600, 0, 0, 3.2),
    "relu": _Case("relu", "", 1347, 250, 13, 1.9),
    "tanh": _Case("tanh", "", 1347, 0, 0, 1.7),
    "sigmoid": _Case("sigmoid", "", 1347, 0, 0, 2.5),
    "adversarial": _Case("adversarial", "steps=320", 300, 150, 13, 4.0),
    "convnet": _Case("convnet", "steps=320", 300, 0, 0, 3.6),
    "lstm": _Case("lstm", "hidden=32,length=20", 128, 48, 13, 3.0),
    "mp-dbm": _Case("mp-dbm", "", 400, 150, 13, 4.0),
}
# The sizes of the sources where a core can train them five times in minutes.
PAPER: dict[str, _Case] = {
    "maxout": _Case(
        "maxout",
        "units=240,pieces=5,width=0.005,momentum_start=0.5,momentum=0.7,decay=1.000004,dropout=0.2,hidden_dropout=0.5,steps=1500",
        1000,
        250,
        15,
        50.0,
    ),
    "relu": _Case("relu", "width=400,steps=1200", 1000, 250, 21, 16.0),
    "tanh": _Case("tanh", "width=400,steps=1200", 1000, 250, 15, 16.0),
    "sigmoid": _Case("sigmoid", "width=400,lr=0.1,steps=3000", 1000, 250, 15, 16.0),
    "adversarial": _Case("adversarial", "units=240,pieces=5,epsilon=0.25,lr=0.05,steps=600", 400, 100, 21, 60.0),
    "convnet": _Case("convnet", "steps=480", 400, 100, 15, 30.0),
    "lstm": _Case("lstm", "hidden=64,length=50,rows=2000,steps=1200", 256, 64, 21, 25.0),
    "mp-dbm": _Case("mp-dbm", "first=200,second=100,lr=0.01,steps=800", 500, 150, 21, 35.0),
}
ROWS = {
    "factored 5": "layers=5,low=0.5,high=1.0,across=0.8,lr=0.03,steps=500",
    "factored 10": "layers=10,low=0.6,high=1.0,across=0.6,lr=0.04,steps=800",
    "factored 5, same side": "layers=5,steps=500",
    "factored 10, same side": "layers=10,low=0.5,high=0.9,steps=500",
}


class Interpolation(Study):
    """The loss from start to solution, the path beside that line and beside random walks, surfaces around it."""

    name: ClassVar[str] = "interpolation"
    title: ClassVar[str] = "From start to solution: lines, planes and paths"
    source: ClassVar[str] = (
        "Goodfellow 2015, Montreal deep learning summer school; Goodfellow, Vinyals and Saxe 2015, Qualitatively characterizing neural "
        "network optimization problems"
    )
    about: ClassVar[tuple[str, ...]] = (
        "What does a training meet on its way? Eight networks are trained from five starts each: maxout, ReLU, tanh and sigmoid units, "
        "maxout on adversarial examples as well, convolutions, an LSTM on characters, and a generative model, a deep Boltzmann machine "
        "trained by backpropagation through mean field (MP-DBM). The loss is drawn along the straight line from start to solution, at 51 "
        "points, more finely near the start, and beyond both ends. All points see the same examples and the same masks, without dropout. "
        "Whether the loss rises is tested: half of the examples choose the pair of points with the largest rise, the other half are asked.",
        "Seven of eight lines fall all the way, as the source says of most problems. The sigmoid network's rises at its start, by a few "
        "percent of the fall on small digits and by most of it on MNIST, and is kept as the exception. Between two solutions there always "
        "is a barrier. The lines look convex and are not: they turn near the start, and the MP-DBM's is an S.",
        "Falling along the line does not mean that training follows it: paths stray from it by about a third of its length. A random walk "
        "with the same steps strays by half, on a semicircle, in any network, so that a picture of that shape shows nothing. Walks whose "
        "steps resemble the ones before as much as the path's do stray about as far as the path: momentum explains most of what looks "
        "straight. Two principal components take 95% of a path, and 75 to 85% of a random walk; a parabola is no valley.",
        "The source's last lesson has obstacles between the line and the path for some problems. They are looked for on the straight ways "
        "from points of the path to the line. At these sizes none is found, not even in the MP-DBM and the adversarially trained network, "
        "which the source names: the line lies on a slope above the path, not behind a ridge. The sigmoid network on MNIST, whose line "
        "rises, has one.",
        "Factored linear models, products of five and ten weights, are set beside the LSTM as in the source. They show a plateau, a fall "
        "and a detour, and their lines agree with the LSTM's in rank order. But the rank correlation of two falling curves is always 1, "
        "and the shapes differ: the factored models wait and fall late, the LSTM falls at once. They make a detour only where they start "
        "on the other side of the saddle at the origin (one weight negative), and turn a quarter of the way along; the LSTM's path bows "
        "evenly, and a random walk resembles it more. On the solution's side the path of a factored model is nearly straight. For "
        "networks of the size of ImageNet's the first lesson no longer holds in general (Frankle 2020; Lucas et al. 2021).",
        "Quick scale uses scikit-learn's digits. The larger scale uses MNIST where the folder named by GRADOSCOPE_DATA has it (the rows "
        "say which), with the maxout recipe's sizes (two layers of 240 units with five pieces, columns bounded to 1.9365, momentum from "
        "0.5, dropout), but 1,500 steps instead of 250 epochs, and 400 units for the others; the source's ConvNet was trained on CIFAR-10 "
        "and its LSTM on a corpus, which are not at hand: MNIST and a text that a small grammar writes take their place. A core does all "
        "of it in about twenty minutes.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """Eight networks, and four factored models that are the same at both scales."""
        quick = scale == "quick"
        data = "digits" if quick or not has_mnist() else "mnist"
        found = []
        for model, case in (QUICK if quick else PAPER).items():
            own = "grammar" if model == "lstm" else data
            options = [o for o in ("" if model == "lstm" else f"data={data}", case.options) if o]
            values = {"model": model, "data": own, "target": f"interpolation:{case.problem},{','.join(options)}"}
            size = {"rows": case.rows, "view_rows": case.view_rows, "side": case.side, "points": 64, "walks": 200, "views": model in SEEN}
            found.append(Setting({**values, **size}, 5, 5, case.cost))
        lstm = (QUICK if quick else PAPER)["lstm"]
        for model, chosen in ROWS.items():
            values = {"model": model, "data": "none", "target": f"interpolation:factored,{chosen}"}
            side = lstm.side if model in SEEN else 0
            size = {"rows": 64, "view_rows": 64, "side": side, "points": 64, "walks": 200, "views": model in SEEN}
            found.append(Setting({**values, **size}, 5, 5, 1.2))
        return found

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One model: its runs, and everything that is measured of them."""
        return run_unit(values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """Of lines, of paths beside walks, of obstacles, and of the factored models beside the LSTM."""
        return all_claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Lines, paths beside walks, surfaces, planes, and the factored models beside the LSTM."""
        return all_figures()


STUDY = Interpolation()
