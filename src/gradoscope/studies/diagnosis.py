"""F8: the project's own diagnosis on every failing and every mended training of the other studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing

from gradoscope.claims import Claim, each, share
from gradoscope.report import plots
from gradoscope.study import Context, Figure, Result, Results, Scale, Setting, Study

__all__ = ["CASES", "STUDY", "Case", "DiagnosisStudy"]

STATIONARY = ("local_minimum", "saddle_point")


@dataclass(frozen=True)
class Case:
    """A training of the catalogue with what its source says of it.

    Args:
        target: of the catalogue, with options.
        blamed: the obstacle that the source blames, or "healthy" for a training that it mended.
        mended_by: beginnings of the names of the remedies that the source shows to work; empty where it says that none does.
        source: where it says so.
        cost: rough seconds of one diagnosis.
        step_seconds: what a step is taken to last, about what it does on one core: the diagnosis is then the same everywhere.
    """

    target: str
    blamed: str
    mended_by: tuple[str, ...]
    source: str
    cost: float
    step_seconds: float = 1e-3

    @property
    def failing(self) -> bool:
        """Whether the source says that this training fails."""
        return self.blamed != "healthy"


SUPERVISION = ("decompose",)
PRECONDITIONING = ("krylov_newton", "whiten")
UPDATE_RULE = ("unblock",)
GATES = ("gate",)
LINES = "size=16,channels=4,hidden=16,batch=100,steps=600"
CASES = (
    Case("parity:d=30", "uninformative_gradient", (), "paper, figure 1: d = 30 stays at chance", 30),
    Case("linear-periodic", "uninformative_gradient", (), "paper, section 2.2 and theorem 2", 30),
    Case(f"lines:end-to-end,{LINES}", "end_to_end_composition", SUPERVISION, "paper, figure 3: end-to-end, k = 3", 60, 8e-3),
    Case("stocks:end-to-end", "low_gradient_snr", SUPERVISION, "extended version, section 3.2: end-to-end", 30),
    Case("curves:linear", "ill_conditioning", PRECONDITIONING, "extended version, section 4: the linear map", 30),
    Case("curves:convolution", "ill_conditioning", PRECONDITIONING, "extended version, section 4: the filter, not whitened", 20),
    Case("steps:direct", "vanishing_gradient", UPDATE_RULE, "slides, part 2: the gradient of steps is zero", 15),
    Case("steps:smooth", "vanishing_gradient", UPDATE_RULE, "extended version, section 5: the non-flat approximation", 20),
    Case("recurrent:sigmoid", "vanishing_gradient", GATES, "slides, part 2: recurrent networks; gates, smooth steps, mend them", 60, 6e-3),
    Case("parity:sparse", "healthy", (), "paper, section 2.1: few bits are learnt", 15),
    Case("parity:full-lstm", "healthy", (), "paper, section 2.1, remark: the full parity", 30, 2.5e-3),
    Case("linear-periodic:slow", "healthy", (), "paper, theorem 2: small |w*| and d", 10),
    Case(f"lines:decomposed,{LINES}", "healthy", (), "paper, figure 3: decomposition, k = 3", 40, 8e-3),
    Case("stocks:decomposed", "healthy", (), "extended version, section 3.2: decomposition", 15),
    Case("curves:whitened", "healthy", (), "extended version, section 4: the whitened filter", 15),
    Case("steps:forward-only", "healthy", (), "extended version, section 5: forward-only", 10),
    Case("steps:multi-class", "healthy", (), "extended version, section 5: multi-class", 30),
    Case("recurrent:lstm", "healthy", (), "slides, part 2: gates", 60, 6e-3),
)


class DiagnosisStudy(Study):
    """Which obstacle the diagnosis names, what it proposes, and what it says of minima and saddles."""

    name = "diagnosis"
    title = "Does the diagnosis name what the sources blame?"
    source = "Shalev-Shwartz, Shamir and Shammah 2017; each training as in the study of its family"
    about = (
        "Every training that the sources show to fail, and every one that they show to be mended, is handed to the project's own "
        "diagnosis, which knows nothing of where a training comes from. It should name the obstacle that the source blames, propose the "
        "kind of change that the source shows to work, and find nothing wrong with the mended training.",
        "The sources' main thesis is that these failures are not about stationary points: no local minimum and no saddle holds the "
        "training back. For each failing training, the diagnosis rules both out by measurement.",
        "A row of the table is a training; each seed draws another target, start and data order. The time per step is a fixed number "
        "here, not measured, so that the result does not depend on the machine.",
    )

    def grid(self, scale: Scale) -> list[Setting]:
        """See `Study.grid`."""
        # The sources have no setting of this study's own: both scales are one.
        return [Setting({"target": case.target, "step_seconds": case.step_seconds}, seeds=5, block=1, cost=case.cost) for case in CASES]

    def run(self, values: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Result:
        """See `Study.run`."""
        rows = []
        for i, seed in enumerate(seeds):
            rows.append(_diagnosed(values, seed, context.device))
            context.tick((i + 1) / len(seeds))
        return Result(rows)

    def claims(self, scale: Scale) -> list[Claim]:
        """See `Study.claims`."""
        return [claim for case in CASES for claim in _claims(case)]

    def figures(self, scale: Scale) -> list[Figure]:
        """See `Study.figures`."""
        return [
            Figure(
                "verdicts",
                "What the diagnosis says of each training, as the number of seeds with each finding present. A frame marks what the "
                "source blames; trainings above the line fail, those below it are mended.",
                _draw_verdicts,
            ),
            Figure(
                "gains",
                "What the confirmed remedy removes of the loss that was left, per training and seed. Where the source says that no "
                "gradient method helps, there is none to draw.",
                _draw_gains,
            ),
        ]


def _diagnosed(values: Mapping[str, Any], seed: int, device: str) -> dict[str, Any]:
    """One diagnosis as a flat row."""
    from gradoscope.diagnose import diagnose
    from gradoscope.problems import find

    found = diagnose(find(values["target"], seed=seed), seed=seed, device=device, step_seconds=values["step_seconds"])
    present = found.present
    first = present[0] if present else None
    row: dict[str, Any] = {
        "seed": seed,
        "verdict": found.verdict,
        "present": "+".join(finding.obstacle for finding in present),
        "named": first.obstacle if first else "",
        "confidence": first.confidence if first else 0.0,
        "gain": first.gain if first and first.gain is not None else float("nan"),
        "remedy": (first.counterfactual or "") if first else "",
        "undetermined": "+".join(f.obstacle for f in found.findings if f.status == "undetermined"),
    }
    for name in STATIONARY:
        finding = found[name]
        row[name] = finding.status
        told = [e.measurement for e in finding.evidence if isinstance(e.measurement.value, (int, float))]
        numbers = [f"{m.name} = {m.value:.4g}" for m in told]
        row[f"{name}_evidence"] = "; ".join(numbers)
    return row


def _claims(case: Case) -> list[Claim]:
    def rows(results: Results) -> Any:
        return results.rows.where(target=case.target)

    def named(results: Results) -> list[float]:
        if not case.failing:
            return [float(row["verdict"] == "healthy") for row in rows(results)]
        return [float(row["verdict"] == "obstructed" and row["named"] == case.blamed) for row in rows(results)]

    def ruled_out(results: Results) -> list[float]:
        return [float(all(row[name] == "absent" for name in STATIONARY)) for row in rows(results)]

    def mended(results: Results) -> list[float]:
        if not case.mended_by:
            return [float(row["remedy"] == "") for row in rows(results)]
        return [float(row["remedy"].startswith(case.mended_by)) for row in rows(results)]

    most = share(low=0.8, among=(1.0, 1.0))
    verdict = f"is obstructed by {case.blamed}" if case.failing else "is healthy"
    found = [Claim(f"{case.target}/verdict", f"{case.target} {verdict}.", case.source, named, most)]
    if case.failing:
        what = f"The change that mends it is {' or '.join(case.mended_by)}." if case.mended_by else "No change that was tried mends it."
        found.append(Claim(f"{case.target}/remedy", f"{case.target}: {what[0].lower()}{what[1:]}", case.source, mended, most))
        says = f"{case.target}: neither a local minimum nor a saddle holds it back."
        found.append(
            Claim(f"{case.target}/stationary", says, "paper, section 5: not local minima or saddle points", ruled_out, each(low=1.0))
        )
    return found


def _draw_verdicts(results: Results) -> Drawing:
    columns = list(dict.fromkeys([*(case.blamed for case in CASES), *_seen(results)]))
    columns.sort(key=lambda name: (name == "healthy", name == "undetermined"))
    table = np.zeros((len(CASES), len(columns)))
    for i, case in enumerate(CASES):
        for row in results.rows.where(target=case.target):
            for name in _outcomes(row):
                table[i, columns.index(name)] += 1
    figure, axes = plots.new(1, 1, width=9.0, height=1.6 + 0.32 * len(CASES))
    ax = axes[0, 0]
    ax.imshow(table / max(table.max(), 1), cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for i, case in enumerate(CASES):
        for j, name in enumerate(columns):
            if table[i, j]:
                ax.text(j, i, f"{table[i, j]:.0f}", ha="center", va="center", fontsize=9, color=plots.INK)
            if name == case.blamed:
                ax.add_patch(_frame(i, j))
    ax.set_xticks(range(len(columns)), [name.replace("_", "\n") for name in columns], fontsize=7.5)
    ax.set_yticks(range(len(CASES)), [case.target for case in CASES], fontsize=8)
    ax.tick_params(length=0)
    ax.xaxis.tick_top()
    ax.grid(False)
    return figure


def _frame(i: int, j: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, edgecolor=plots.PALETTE[1], linewidth=1.6)


def _outcomes(row: Mapping[str, Any]) -> list[str]:
    return row["present"].split("+") if row["present"] else [row["verdict"]]


def _seen(results: Results) -> list[str]:
    return [name for row in results.rows for name in _outcomes(row)]


def _draw_gains(results: Results) -> Drawing:
    cases = [case for case in CASES if case.failing]
    figure, axes = plots.new(1, 1, width=9.0, height=1.2 + 0.32 * len(cases))
    ax = axes[0, 0]
    for i, case in enumerate(cases):
        gains = np.array(results.rows.where(target=case.target).column("gain"), dtype=float)
        color = plots.PALETTE[0] if case.mended_by else plots.MUTED
        ax.plot(100 * gains, np.full(len(gains), i), linestyle="none", marker="o", markersize=5, alpha=0.6, color=color)
    ax.set_yticks(range(len(cases)), [case.target for case in cases], fontsize=8)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.set_xlim(-5, 105)
    plots.label(ax, x="share of the loss that was left, removed by the remedy (%)")
    return figure


STUDY = DiagnosisStudy()
