"""From a noisy detector to scene graphs: what context is worth, and what bounds on labels add (Herzig et al. 2018)."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradoscope.claims import Claim
from gradoscope.problems.scene_graphs import has_vrd
from gradoscope.studies import _scene_graphs as parts
from gradoscope.studies._scene_graphs_claims import claims
from gradoscope.studies._scene_graphs_figures import figures
from gradoscope.study import Context, Figure, Result, Scale, Setting, Study

__all__ = ["REAL", "STUDY", "SYNTHETIC", "SceneGraphs"]

SYNTHETIC = {
    "data": "synthetic",
    "train": 600,
    "test": 200,
    "batch": 20,
    "steps": 300,
    "lr": 1e-2,
    "width": 32,
    "hidden": 48,
    "alone": 64,
    "dropout": 0.1,
}
REAL = {
    "data": "vrd",
    "train": 0,
    "test": 0,
    "batch": 20,
    "steps": 1000,
    "lr": 3e-3,
    "width": 64,
    "hidden": 128,
    "alone": 220,
    "dropout": 0.2,
}


class SceneGraphs(Study):
    """Models with and without context on the same simulated detections, scored by entity accuracy and recall of triplets."""

    name = "scene_graphs"
    title = "Scene graphs: what the other boxes of an image tell about a box"
    source = "Globerson's slides; Herzig, Raboh, Chechik, Berant & Globerson 2018; bounds: Brukhim & Globerson 2018"
    about = (
        "An image is a set of boxes. A detector says, with much noise, what each shows and how each pair relates; a second model is to "
        "correct it. The source demands that the model does not care in which order the boxes come, and shows what form it then has: a box "
        "sees a sum over its neighbours and a sum over all boxes. Here such models are compared with one of similar size that sees "
        "each box, and each pair, by itself.",
        "The detector is simulated: Gaussian noise of 1.6 on logits in which the true class is raised by 4, for boxes and pairs alike, so "
        "that its best guess of 100 classes is right for half of the boxes. Published numbers for Visual Genome need the authors' detector "
        "outputs, which are not public here, and are not claimed. The scenes are those of VRD where the folder named by "
        "GRADOSCOPE_DATA holds them; otherwise synthetic ones in which classes of one kind occur together.",
        "What context is worth depends on the baseline. A network that sees single boxes can learn the detector's noise by heart, which is "
        "drawn once for each image; given fainter features it does so less and names more boxes right. Both are in the table, and so is "
        "the gain over the better one. The model with context has the same data and number of steps, and a similar number of weights.",
        "As published, phi and alpha are linear; here a ReLU follows both, and at paper scale the linear form is in the table too. Word "
        "vectors, which the linguistic variant takes from elsewhere, start at random and are learnt. Recall at K counts true triplets "
        "among the K likeliest of an image. With one predicate for each pair not all can be found, since VRD names several for some "
        "pairs: the ceiling is in the table.",
        "By the source's theorem one step can be any function that does not care for order. Its model takes two or three with shared "
        "weights; here they are compared with one at the same number of optimizer steps; on synthetic scenes one does best.",
        "The last part bounds how many boxes may show one class. With the true number of tables as the bound (or that of every class) the "
        "likeliest labels within the bound are found exactly; the number can also be predicted from the detector's scores. How much this "
        "changes is reported also where it is next to nothing. Projecting the probabilities onto the bound, and taking the "
        "best class then, does not ensure that the labels keep it.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """The detector, each way to pool, and other numbers of recurrent steps."""
        real = scale == "paper" and has_vrd()
        base: dict[str, Any] = {**(REAL if real else SYNTHETIC), "recurrent": 2}
        cost = 40.0 if real else 3.0
        found = [Setting({**base, "model": "detector"}, 5, 1, 5.0 if real else 1.0)]
        models = [m for m in parts.LINKS if scale == "paper" or m not in ("mean, linear", "linguistic")]
        # without context a second step would see nothing that the first did not
        found += [Setting({**base, "model": m, "recurrent": 1 if parts.LINKS[m][0] == "none" else 2}, 5, 1, cost) for m in models]
        return [
            *found,
            *(
                Setting({**base, "model": "feature attention", "recurrent": t}, 5, 1, cost * t / 2)
                for t in ((1, 3) if scale == "paper" else (1,))
            ),
        ]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """One model."""
        return parts.run(values, seeds, context)

    def claims(self, scale: Scale) -> list[Claim]:
        """The order of the models, recurrence, recall, bounds."""
        return claims(scale)

    def figures(self, scale: Scale) -> list[Figure]:
        """Models, recall against K, a scene, recurrence, bounds."""
        return figures(scale)


STUDY = SceneGraphs()
