"""Copies reference results of studies into docs/studies and writes its README: `python docs/make_studies.py FOLDER`.

FOLDER is what `gradoscope study ... --scale paper --out FOLDER` wrote. For each study in it the claims, the provenance and the figures
are copied; the table of all claims is written anew from what lies in docs/studies. What a reader should know of a run beyond its claims
stands in docs/studies/remarks/NAME.md.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from gradoscope.claims import Judged
from gradoscope.report.study import outcome, value
from gradoscope.report.words import duration
from gradoscope.study import all_studies

HERE = Path(__file__).parent / "studies"
HEAD = """# Reference results of the studies

What `gradoscope study NAME --scale paper` gave: every claim with its criterion, which was fixed before the run, the measured
value with its 95% interval over seeds, and whether it holds. "Fails, as expected" marks statements of the sources that are
known to be wrong or to hold only for some settings; the corrected statement stands beside them. Written by `docs/make_studies.py`.
"""


def copy(folder: Path) -> None:
    """Take over claims, provenance and figures of every study that `folder` holds."""
    for source in sorted(path.parent for path in folder.glob("*/claims.json")):
        target = HERE / source.name
        shutil.rmtree(target, ignore_errors=True)
        (target / "figures").mkdir(parents=True)
        for name in ("claims.json", "provenance.json"):
            shutil.copy(source / name, target / name)
        for figure in sorted((source / "figures").glob("*.png")):
            shutil.copy(figure, target / "figures" / figure.name)


def judged(claim: dict[str, Any]) -> Judged:
    """A claim as it was written."""
    ci = claim["ci"]
    measured = float("nan") if claim["measured"] is None else claim["measured"]
    return Judged(**{**claim, "measured": measured, "ci": None if ci is None else tuple(ci)})


def page() -> str:
    """The README of docs/studies."""
    out = [HEAD]
    for name, study in all_studies().items():
        file = HERE / name / "claims.json"
        if not file.exists():
            continue
        told = json.loads((HERE / name / "provenance.json").read_text(encoding="utf-8"))
        machine = f"{', '.join(told['machines'])}; PyTorch {', '.join(told['torch'])}"
        out.append(f"\n## {study.title} (`{name}`)\n\n{study.source}. {duration(told['cpu_seconds'])} of processor time on {machine}.\n")
        remark = HERE / "remarks" / f"{name}.md"
        if remark.exists():
            out.append(remark.read_text(encoding="utf-8"))
        out += ["| claim | outcome | measured | criterion | values |", "|---|---|---|---|---|"]
        for claim in map(judged, json.loads(file.read_text(encoding="utf-8"))["claims"]):
            cells = [claim.says, outcome(claim)[0], value(claim), claim.criterion, str(claim.seeds)]
            out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        out.append("")
        out += [f"![{figure.name}]({name}/figures/{figure.name}.png)\n\n{figure.caption}\n" for figure in study.figures(told["scale"])]
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        copy(Path(argument))
    HERE.mkdir(exist_ok=True)
    (HERE / "README.md").write_text(page(), encoding="utf-8")
    print(f"wrote {HERE / 'README.md'}")
