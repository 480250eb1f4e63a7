"""Draws the picture on each obstacle's page and writes its line below it: `python docs/make_obstacles.py [NAME ...]`; all by default.

Each is the diagnosis of a training that was built to have this obstacle and no other; it is run here, some three minutes in all.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from gradoscope import diagnose
from gradoscope.report.static import save_figure
from gradoscope.trials.trial import all_trials

HERE = Path(__file__).parent
PURE = {
    "bayes_floor": "logistic-blobs/clouds-that-overlap",
    "end_to_end_composition": "signs-of-parts/four-parts",
    "exploding_gradient": "digits-mlp/large-start",
    "frozen_parameters": "digits-mlp/head-only",
    "ill_conditioning": "least-squares/stretched",
    "local_minimum": "tones/one-lobe-off",
    "low_gradient_snr": "least-squares/two-rows-a-step",
    "missing_symmetry": "set-maximum/length-of-a-row",
    "overfitting": "digits-mlp/few-images",
    "saddle_point": "factorisation/near-zero",
    "step_too_large": "digits-mlp/huge-step",
    "step_too_small": "deep-linear/tiny-step",
    "surrogate_mismatch": "rare-clouds/recall-of-a-rarer-class",
    "uninformative_gradient": "parity-mlp/fifteen-of-thirty",
    "unnormalised_inputs": "cancer-mlp/raw-units",
    "vanishing_gradient": "digits-mlp/deep-sigmoid",
    "wrong_loss_output": "digits-mlp/two-softmax",
}
PLACE = re.compile(r"\n<!-- picture -->\n.*?<!-- /picture -->\n", re.DOTALL)


def main(names: list[str]) -> None:
    trials = all_trials()
    (HERE / "images" / "obstacles").mkdir(parents=True, exist_ok=True)
    for name in names or list(PURE):
        trial = trials[PURE[name]]
        diagnosis = diagnose(replace(trial.build(0), name=trial.name), step_seconds=trial.step_seconds)
        save_figure(diagnosis, HERE / "images" / "obstacles" / f"{name}.svg", width=10.0, height=3.8)
        page = HERE / "obstacles" / f"{name}.md"
        told = diagnosis.headline()
        alt = f"Loss over steps as it was and under the changes that were tried, and what each gained. {told}"
        block = (
            f"\n<!-- picture -->\n![{alt}](../images/obstacles/{name}.svg)\n\n"
            f"*In its purest form* (`{trial.name}` of the [trial set](../trials.md)): {trial.says}\n\n`{told}`\n<!-- /picture -->\n"
        )
        text = page.read_text(encoding="utf-8")
        text = PLACE.sub("", text)
        head, rest = text.split("\n\n**How it shows.**", 1)
        page.write_text(f"{head}\n{block}\n**How it shows.**{rest}", encoding="utf-8")
        assert name in {f.obstacle for f in diagnosis.present}, f"{trial.name} is told {told}"


if __name__ == "__main__":
    main(sys.argv[1:])
