"""Runs a study: the units that are missing, anywhere; then claims, tables, figures and a page from what is in its folder."""

import csv
import io
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradoscope import sweep
from gradoscope.claims import Judged
from gradoscope.errors import CannotWrite, Usage
from gradoscope.measurement import plain
from gradoscope.report.write import write_bytes
from gradoscope.study import Context, Result, Results, Row, Scale, Study, Table, Unit

__all__ = ["Conducted", "Folder", "conduct", "document"]

CHECKPOINT, SHARE = ".partial", ".share"
# (text, seconds of work done, seconds of work in all): both in the grid's own estimate
Progress = Callable[[str, float, float], None]


@dataclass(frozen=True)
class Conducted:
    """What came of a study: its claims with their outcome, and the folder with everything else."""

    study: str
    scale: Scale
    claims: list[Judged]
    folder: Path
    ran: int
    found: int

    @property
    def surprises(self) -> list[Judged]:
        """Claims that fail and should hold, or hold and should fail."""
        return [claim for claim in self.claims if not claim.as_expected]


def conduct(
    study: Study,
    scale: Scale = "quick",
    *,
    seeds: int | None = None,
    where: sweep.Where | None = None,
    device: str = "cpu",
    out: str | Path = "studies",
    progress: Progress | None = None,
) -> Conducted:
    """Run what is missing of a study, judge its claims, and write tables, figures and its page.

    Units of work that are in the folder already are not run again. A unit is a setting with a block of seeds and is kept under a
    name made from both, so that an interrupted study, more seeds, other workers or another scale go on from what is there, with the
    same result, bit for bit, as one that was never interrupted.

    Args:
        study: see `gradoscope.study.find`.
        scale: "quick" shows the effect in about a minute; "paper" is the source's own setting.
        seeds: per setting, instead of the study's own number.
        where: where units run: `sweep.local(workers)`, `sweep.dask(address)` or `sweep.ray(address)`.
        device: what each unit computes on.
        out: the folder in which the study gets a folder of its own name.
        progress: called as units finish.

    Raises:
        CannotWrite: where the folder cannot be written; what was there before stays.
        CannotRun: where a unit loses its worker again and again.
    """
    folder = Folder(Path(out) / study.name)
    folder.prepare()
    units = [unit for setting in study.grid(scale) for unit in setting.units(study, seeds)]
    missing = [unit for unit in units if not folder.has(unit)]
    where = where or sweep.local(None)
    cost = {unit.key: unit.cost for unit in missing}
    total = sum(cost.values())
    finished: set[str] = set()

    def tell() -> None:
        if progress is not None:
            running = {key: share for key, share in folder.shares().items() if key in cost and key not in finished}
            done = sum(cost[key] for key in finished) + sum(cost[key] * share for key, share in running.items())
            progress(study.name, done, total)

    tell()
    by_key = {unit.key: unit for unit in missing}
    tasks = [
        sweep.Task(unit.key, run_unit, (study, dict(unit.values), unit.seeds, device, folder.base(unit) if where.shares_disk else None))
        for unit in _longest_first(missing)
    ]
    with closing(sweep.run(tasks, where, pulse=tell)) as arriving:
        for key, packed in arriving:
            folder.keep(by_key[key], packed)
            finished.add(key)
            tell()
    results = folder.results(study, scale, seeds)
    claims = [claim.judge(study.name, results) for claim in study.claims(scale)]
    folder.write(study, scale, units, results, claims)
    return Conducted(study.name, scale, claims, folder.path, len(missing), len(units) - len(missing))


def _longest_first(units: Sequence[Unit]) -> list[Unit]:
    """So that no long unit is left to one worker at the end; the results do not depend on the order."""
    return sorted(units, key=lambda unit: -unit.cost)


def run_unit(study: Study, values: Mapping[str, Any], seeds: Sequence[int], device: str, base: Path | None) -> tuple[bytes, bytes]:
    """One unit, packed for its way from the worker to the folder: (JSON, safetensors or nothing).

    Args:
        study: whose unit it is.
        values: its setting.
        seeds: its block of seeds.
        device: where to compute.
        base: the unit's file name without ending, for its checkpoint and its progress; None where the disk is not shared.
    """
    context = Context(device)
    if base is not None:
        context = Context(device, base.with_name(base.name + CHECKPOINT), sweep.Ticker(base.with_name(base.name + SHARE)))
    wall, cpu = time.perf_counter(), time.process_time()
    result = study.run(values, seeds, context)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return pack(study, values, seeds, result, {"seconds": seconds, "device": device, **machine(device)})


def pack(
    study: Study, values: Mapping[str, Any], seeds: Sequence[int], result: Result, provenance: Mapping[str, Any]
) -> tuple[bytes, bytes]:
    """A result as bytes: JSON with rows, curves, timings and where it was made, and its arrays as safetensors."""
    from safetensors.torch import save

    document = {
        "study": study.name,
        "version": study.version,
        "values": dict(values),
        "seeds": list(seeds),
        "rows": result.rows,
        "curves": result.curves,
        "timings": result.timings,
        "provenance": dict(provenance),
    }
    arrays = {name: array.detach().cpu().contiguous() for name, array in result.arrays.items()}
    return json.dumps(document, default=_number).encode(), save(arrays) if arrays else b""


def _number(value: Any) -> Any:
    """numpy's and torch's numbers, at full precision; NaN and infinity stay what they are in these internal files."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    raise TypeError(f"a study's rows hold numbers, words and booleans, not {type(value).__name__}")


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where something ran, in the words that a reader of a result needs."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "machine": name,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Folder:
    """The folder of one study: `units/` with what was run, and what is made from it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """Make the folder, or say why it cannot be made."""
        try:
            (self.path / "units").mkdir(parents=True, exist_ok=True)
            (self.path / "figures").mkdir(exist_ok=True)
        except OSError as error:
            raise CannotWrite(f"cannot write into {self.path}: {error.strerror or error}. Name another folder with --out.") from error

    def _file(self, unit: Unit, ending: str) -> Path:
        return self.path / "units" / f"{unit.key}{ending}"

    def base(self, unit: Unit) -> Path:
        """The unit's file name without ending."""
        return self._file(unit, "")

    def shares(self) -> dict[str, float]:
        """The share that is done of each unit that runs."""
        return sweep.shares(self.path / "units")

    def has(self, unit: Unit) -> bool:
        """Whether the unit's result is there and can be read; a damaged one is run again."""
        return self._read(unit) is not None

    def _read(self, unit: Unit) -> dict[str, Any] | None:
        try:
            document = json.loads(self._file(unit, ".json").read_bytes())
        except (OSError, ValueError):
            return None
        names = document.get("arrays", [])
        return None if names and not self._file(unit, ".safetensors").is_file() else document

    def keep(self, unit: Unit, packed: tuple[bytes, bytes]) -> None:
        """Write a unit's result, its arrays first: where the JSON is, all is."""
        text, arrays = packed
        document = json.loads(text)
        if arrays:
            write_bytes(self._file(unit, ".safetensors"), arrays)
            document["arrays"] = True
        write_bytes(self._file(unit, ".json"), (json.dumps(document) + "\n").encode())
        for ending in (CHECKPOINT, SHARE):
            self._file(unit, ending).unlink(missing_ok=True)

    def results(self, study: Study, scale: Scale, seeds: int | None) -> Results:
        """Everything of a scale, in the order of its grid.

        Raises:
            Usage: where units are missing.
        """
        rows: list[Row] = []
        curves: list[Row] = []
        arrays = []
        for setting in study.grid(scale):
            for unit in setting.units(study, seeds):
                document = self._read(unit)
                if document is None:
                    raise Usage(f"{study.name} is not complete: {unit.key} has not run. Run: gradoscope study {study.name} --scale {scale}")
                rows += [{**unit.values, **row} for row in document["rows"]]
                curves += [{**unit.values, **row} for row in document["curves"]]
                if document.get("arrays"):
                    arrays.append((unit.values, unit.seeds, partial(_load, self._file(unit, ".safetensors"))))
        return Results(Table(rows), Table(curves), arrays)

    def write(self, study: Study, scale: Scale, units: Sequence[Unit], results: Results, claims: Sequence[Judged]) -> None:
        """Tables, claims, figures and the page; nothing in them but provenance.json and the page depends on when or where units ran."""
        from gradoscope.report import plots
        from gradoscope.report.study import Drawn, Page, render_page

        write_bytes(self.path / "results.csv", _csv(results.rows))
        if len(results.curves):
            write_bytes(self.path / "curves.csv", _csv(results.curves))
        write_bytes(self.path / "claims.json", (json.dumps(document(claims), indent=2) + "\n").encode())
        drawn = []
        for figure in study.figures(scale):
            drawing = figure.draw(results)
            files = {kind: plots.render(drawing, kind) for kind in ("svg", "png")}
            for kind, content in files.items():
                write_bytes(self.path / "figures" / f"{figure.name}.{kind}", content)
            drawn.append(Drawn(figure.name, figure.caption, files["svg"].decode()))
        told = self.provenance(study, scale, units)
        write_bytes(self.path / "provenance.json", (json.dumps(plain(told), indent=2) + "\n").encode())
        page = Page(study.name, study.title, study.source, study.about, scale, list(claims), drawn, told)
        write_bytes(self.path / "index.html", render_page(page).encode())

    def provenance(self, study: Study, scale: Scale, units: Sequence[Unit]) -> dict[str, Any]:
        """How long the units took, and on what."""
        documents = [document for unit in units if (document := self._read(unit)) is not None]
        made = [document["provenance"] for document in documents]
        timings: dict[str, list[float]] = {}
        for document in documents:
            for name, seconds in document["timings"].items():
                timings.setdefault(name, []).append(seconds)
        return {
            "study": study.name,
            "version": study.version,
            "scale": scale,
            "units": len(documents),
            "cpu_seconds": sum(m["seconds"]["cpu"] for m in made),
            "longest_unit_seconds": max((m["seconds"]["wall"] for m in made), default=0.0),
            "devices": sorted({m["device"] for m in made}),
            "machines": sorted({m["machine"] for m in made}),
            "cores": sorted({m["cores"] for m in made}),
            "python": sorted({m["python"] for m in made}),
            "torch": sorted({m["torch"] for m in made}),
            "median_timings": {name: float(np.median(seconds)) for name, seconds in sorted(timings.items())},
        }


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _csv(table: Table) -> bytes:
    names = list(dict.fromkeys(name for row in table for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return out.getvalue().encode()


def document(claims: Sequence[Judged]) -> dict[str, Any]:
    """What `gradoscope study --json` prints and claims.json holds."""
    return {"claims": [claim.to_dict() for claim in claims]}
