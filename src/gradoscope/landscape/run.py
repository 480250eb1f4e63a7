"""The landscape of a training, from one run of it: everything that `gradoscope landscape` shows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradoscope import tree
from gradoscope.batches import make_batches
from gradoscope.errors import CannotRun, Usage
from gradoscope.guard import derive_seed
from gradoscope.landscape import points as engine
from gradoscope.landscape import sections
from gradoscope.landscape.record import Recorded, record
from gradoscope.landscape.result import Landscape
from gradoscope.landscape.scene import Scene, halves
from gradoscope.objective import Objective
from gradoscope.rehearsal import rehearse
from gradoscope.remedies.restart import Restart
from gradoscope.target import is_run, open_run, resolve
from gradoscope.training import Live, Training, enough, split

__all__ = ["PARTS", "explore", "training_of"]

PARTS = ("line", *sections.PLANES, "view", "evidence", "questions")
ROWS = 1024  # examples on which lines and surfaces are evaluated
CURVED = (64, 128, 256, 512, 1024, 2048)  # examples on which gradients and Hessian-vector products are taken
SIDES = (11, 15, 21, 31)  # points along each side of a surface
GRADIENTS = 600  # what readings cost together, roughly, in gradients
SECONDS = 15.0  # of processor time that surfaces, and again readings, may take; the training's own if that is longer
STRETCHES = (0.0, 0.1, 0.5, 1.0)
FEWEST = 4  # recorded points below which there is no path

Progress = Callable[[str, float], None]


def explore(
    training: Training,
    *,
    parts: Sequence[str] = PARTS,
    seed: int = 0,
    device: str | torch.device | None = None,
    points: int | None = None,
    rows: int | None = None,
    coarse: bool = False,
    progress: Progress | None = None,
    keep_interrupted: bool = False,
) -> Landscape:
    """Run a training once, and a second time from another start, and draw the landscape that it went through.

    What was handed over is left as it was: the runs are those of copies, or are put back.

    Args:
        training: what is run.
        parts: which parts to compute, of "line" (start to end, and end to end of two runs), "pca", "random", "hessian", "three"
            (surfaces over planes), "view" (projection against residual), "evidence" (conditioning and noise), "questions".
        seed: of the order of the data, of directions and of random walks; the second run has the next one.
        device: where to run, by default where the model is.
        points: along each side of a surface. By default 11, 15, 21 or 31: as many as take about as long as the training, or 15 seconds.
        rows: examples on which gradients and curvature are taken; by default from 64 to 2,048 by the same rule. With both given, the
            same seed gives the same landscape on a machine of any speed.
        coarse: whether surfaces may be interpolated from fewer points, with an estimate of the error.
        progress: called with (text, share done).
        keep_interrupted: return what was measured up to Ctrl-C instead of passing it on.

    Returns:
        The landscape; what could not be measured is left out, and its notes say why.

    Raises:
        Usage: where a part is not known.
        CannotRun: where the training cannot be run, or breaks in its first steps.
        KeyboardInterrupt: on Ctrl-C, unless `keep_interrupted`.

    Cost: two runs; by default about as much again for surfaces, and some 500 gradients and Hessian-vector products.

    Example:
        >>> net = lambda: torch.nn.Linear(2, 1)
        >>> sgd = lambda p: torch.optim.SGD(p, lr=0.1)
        >>> data = (torch.eye(2).repeat(8, 1), torch.ones(16, 1))
        >>> task = Training(model=net, optimizer=sgd, loss_fn=torch.nn.functional.mse_loss, data=data, steps=20)
        >>> found = explore(task, parts=["line"])
        >>> round(found.sections["line"]["rise"]["rise"], 6)
        0.0
    """
    unknown = [p for p in parts if p not in PARTS]
    if unknown or not parts:
        raise Usage(f"parts must be some of {', '.join(PARTS)}; got {', '.join(unknown) or 'none'}.")
    return _Exploration(training, parts, seed, device, points, rows, coarse, progress or (lambda _, __: None), keep_interrupted).run()


def training_of(target: str, *, seed: int | None = None, steps: int | None = None) -> tuple[Training, int]:
    """The training that the words of the command line name, and the seed to run it with.

    Args:
        target: a catalogue name, path/to/file.py:function, or the folder of a recorded run, whose training is made and run again.
        seed: by default 0, or that of the recorded run.
        steps: instead of the training's own, or the recorded run's.

    Raises:
        Usage: where there is no such target.
        CannotRun: where it cannot be made, or a run does not say how.
    """
    if is_run(target):
        run = open_run(target)
        if run.target is None:
            raise CannotRun(
                f"the run in {target} does not say how its training is made, so that it cannot be run again. "
                "Record it with its target, a catalogue name or file.py:function."
            )
        target = run.target
        seed = int(run.provenance.get("seed") or 0) if seed is None else seed
        steps = steps or run.provenance.get("steps")
    training = resolve(target, seed=seed or 0)
    return training if steps is None else replace(training, steps=int(steps)), seed or 0


class _Exploration:
    def __init__(
        self,
        training: Training,
        parts: Sequence[str],
        seed: int,
        device: Any,
        points: int | None,
        rows: int | None,
        coarse: bool,
        progress: Progress,
        keep_interrupted: bool,
    ) -> None:
        self.training, self.parts, self.seed, self.device = training, parts, seed, device
        self.points, self.rows, self.coarse, self.progress, self.keep = points, rows, coarse, progress, keep_interrupted
        self.budget = SECONDS
        self.notes: list[str] = []
        self.found: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.interrupted = False
        self.provenance: dict[str, Any] = {"seed": seed}

    def run(self) -> Landscape:
        began = time.perf_counter()
        with Live.of(self.training, seed=self.seed, device=self.device) as live:
            validation = self.training.validation
            held = None
            if validation is not None:
                size = self.training.batch_size
                held = make_batches(validation, size, derive_seed(self.seed, 106), shuffle=False, most=enough(self.training))
            rehearse(live, held)
            for change in self.training.changes:
                change.prepare(live)
            recorded = self._record(live, "the training as given", 0.0, 0.25, STRETCHES if "evidence" in self.parts else ())
            self.interrupted = recorded.interrupted
            self._tell_run(live, recorded)
            try:
                if not recorded.interrupted or len(recorded.steps) >= FEWEST:
                    self._measure(live, recorded)
            except KeyboardInterrupt:
                self.interrupted = True
            if self.interrupted and not self.keep:
                raise KeyboardInterrupt
        planes = [self.found.pop(kind) for kind in sections.PLANES if kind in self.found]
        self.found |= {"planes": planes} if planes else {}
        if self.interrupted:
            self.notes.append("Interrupted with Ctrl-C: only what was measured up to there is shown.")
        self.progress("done", 1.0)
        cost = {f"{name}_seconds": s for name, s in self.seconds.items()} | {"total_seconds": time.perf_counter() - began}
        return Landscape(self.training.name, self.found, tuple(self.notes), cost, self.provenance, self.interrupted)

    def _record(self, live: Live, text: str, low: float, high: float, stretches: Sequence[float] = ()) -> Recorded:
        began, busy = time.perf_counter(), time.process_time()
        live.model.train()
        kept = record(live, self.training.steps, stretches=stretches, tell=lambda s: self.progress(text, low + (high - low) * s))
        self.seconds[text] = time.perf_counter() - began
        self.budget = max(self.budget, time.process_time() - busy)
        return kept

    def _tell_run(self, live: Live, kept: Recorded) -> None:
        """What the run was, and whether it can be drawn at all."""
        dim = kept.points.shape[1]
        if kept.broke is not None:
            if len(kept.steps) < FEWEST:
                raise CannotRun(
                    f"the training breaks at step {kept.broke}: its loss is not finite there, so that there is no path to draw. "
                    "Run `gradoscope diagnose` on it, or use a smaller learning rate."
                )
            last = int(kept.steps[-1])
            self.notes.append(f"The loss was not finite at step {kept.broke}: the landscape is that of the run up to step {last}.")
        elif len(kept.steps) < FEWEST and not kept.interrupted:
            raise CannotRun(f"a path needs at least {FEWEST - 1} steps, this training has {kept.done}. Use more steps (--steps).")
        if kept.every > 1:
            self.notes.append(f"The path is drawn from {len(kept.steps)} points, one every {kept.every} steps, kept in float32.")
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in live.model.modules()):
            self.notes.append("Dropout is off on lines and surfaces; gradients and curvature are those of the training, with fixed masks.")
        if self._batch_norm(live):
            self.notes.append("Batch normalisation: its statistics are computed anew at every point of lines and surfaces.")
        self.provenance |= {
            "steps": kept.done,
            "parameters": dim,
            "optimizer": type(live.optimizer).__name__,
            "recorded_points": len(kept.steps),
            "device": str(live.device),
        }

    @staticmethod
    def _batch_norm(live: Live) -> bool:
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in live.model.modules())

    def _measure(self, live: Live, kept: Recorded) -> None:
        again = None if kept.interrupted else self._again()
        chosen = engine.subject(live, rows=ROWS)
        chosen = engine.Subject(chosen.train, chosen.validation, chosen.metric or _accuracy(chosen.train), chosen.metric_mode)
        self.provenance |= {
            "metric": "the training's own" if self.training.metric is not None else "none" if chosen.metric is None else "accuracy",
            "validation": chosen.validation is not None,
        }
        scene = Scene(
            live=live,
            recorded=kept,
            again=again,
            subject=chosen,
            halves=halves(live, self.rows or self._rows(live)),
            side=self.points or SIDES[0],
            coarse=self.coarse,
            batch_norm="recomputed" if self._batch_norm(live) else "stored",
            seed=self.seed,
            notes=self.notes,
        )
        self._part("run", 0.4, lambda tell: sections.run_part(scene))
        if self.points is None and not kept.interrupted:
            scene.side = self._side(scene)
        jobs: list[tuple[str, str, Callable[[Callable[[float], None]], Any]]] = [
            ("line", "line", lambda tell: sections.line_part(scene, tell)),
            ("line", "solutions", lambda tell: sections.solutions_part(scene, tell)),
            ("questions", "questions", lambda tell: sections.question_part(scene, tell)),
            ("evidence", "evidence", lambda tell: sections.evidence_part(scene, tell)),
            ("view", "view", lambda tell: sections.view_part(scene, tell)),
            *((kind, kind, lambda tell, kind=kind: sections.plane_part(scene, kind, tell)) for kind in sections.PLANES),
        ]
        jobs = [job for job in jobs if job[0] in self.parts and not kept.interrupted]
        for k, (_, name, make) in enumerate(jobs):
            self._part(name, 0.45 + 0.53 * k / len(jobs), make, 0.53 / len(jobs))

    def _rows(self, live: Live) -> int:
        """Examples on which gradients and Hessian-vector products can be afforded, from the processor time of one gradient."""
        probe = Objective.of(live, live.batches.sample(512, "probe")[:1])
        each = _busy(lambda: probe.batch_gradient(0)) / (tree.rows(probe.batches[0]) or 1)
        return max([n for n in CURVED if n * each * GRADIENTS <= self.budget] or CURVED[:1])

    def _again(self) -> Recorded | None:
        """The run from another start, on the same kind of data in another order; None where it is not wanted or breaks."""
        if not {"line", "three", "questions"} & set(self.parts):
            return None
        with Live.of(self.training, seed=self.seed + 1, device=self.device) as other:
            for change in (Restart(1), *self.training.changes):
                change.prepare(other)
            kept = self._record(other, "the training from another start", 0.25, 0.4)
        if kept.interrupted:
            raise KeyboardInterrupt
        if kept.broke is not None or len(kept.steps) < 2:
            self.notes.append(f"The run from another start broke at step {kept.broke}: nothing is compared with it.")
            return None
        return kept

    def _part(self, name: str, done: float, make: Callable[[Callable[[float], None]], Any], width: float = 0.0) -> None:
        """Compute one part; what fails is left out, and noted."""
        began = time.perf_counter()
        self.progress(_TEXT.get(name, name), done)
        try:
            value = make(lambda share: self.progress(_TEXT.get(name, name), done + width * share))
        except Exception as error:  # a picture less, and a note of it
            if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
                raise
            text = _TEXT.get(name, name)
            self.notes.append(f"{text[0].upper()}{text[1:]} could not be measured: {error}")
            return
        self.seconds[name] = time.perf_counter() - began
        if value is not None:
            self.found[name] = value

    def _side(self, scene: Scene) -> int:
        """Points along each side that all surfaces together can afford, from the processor time of a few points."""
        surfaces = len({*sections.PLANES, "view"} & set(self.parts))
        if not surfaces:
            return SIDES[0]
        rows = torch.stack([scene.end - scene.start, scene.start])
        grid = [[0.1 * i, 0.01 * i] for i in range(16)]
        each = _busy(lambda: engine.evaluate(scene.subject.train, scene.start, rows, grid, batch_norm=scene.batch_norm)) / len(grid)
        return max([n for n in SIDES if surfaces * n * n * each <= self.budget] or SIDES[:1])


def _busy(work: Callable[[], object]) -> float:
    """Seconds of processor time, the second time that it is done: other programs on the machine do not count, nor does warming up."""
    work()
    began = time.process_time()
    work()
    return time.process_time() - began


_TEXT = {
    "run": "the path",
    "line": "the line from start to end",
    "solutions": "the line between two solutions",
    "questions": "the five questions",
    "evidence": "conditioning and noise",
    "view": "projection and residual",
    "pca": "the plane of the path's principal components",
    "random": "a random plane",
    "hessian": "the plane of two Hessian eigenvectors",
    "three": "the plane through start and two solutions",
}


def _accuracy(objective: Any) -> engine.Metric | None:
    """The share of right classes, where outputs are scores and targets are classes; else None."""
    try:
        with objective.inside(0), torch.no_grad():
            inputs, target = split(objective.batches[0])
            output = objective.model(*inputs)
    except Exception:  # batches of another form: then there is no accuracy either
        return None
    scores = isinstance(output, Tensor) and isinstance(target, Tensor) and output.dim() == 2 and output.is_floating_point()
    if not scores or target.dtype != torch.int64 or target.dim() != 1 or len(target) != len(output):
        return None

    def accuracy(out: Any, classes: Any) -> float:
        return float((out.argmax(1) == classes).float().mean())

    return accuracy
