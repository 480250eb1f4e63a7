"""Runs on disk: a folder that can be appended to, compared and read again after a crash."""

import errno
import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from gradoscope.errors import CannotRun, CannotWrite

if TYPE_CHECKING:
    from gradoscope.state import State

__all__ = ["RUN_SCHEMA", "Run"]

RUN_SCHEMA = "1.0"
DOCUMENT, STEPS, CHECKPOINTS = "run.json", "steps.jsonl", "checkpoints"
# Strict JSON has no such numbers; they are evidence here, so they are kept as these words.
WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
# A string that happens to be one of the words (a layer called "inf") is told apart by this prefix.
QUOTE = "str:"


class Run:
    """What was recorded while a training ran, in a folder that survives being killed at any moment.

    The folder holds `run.json` (provenance, and how the training is made), `steps.jsonl` (one JSON line per recorded step)
    and `checkpoints/step-00000123.safetensors`. Lines and files are only added, so nothing that was recorded is lost when
    the process dies; a torn last line and a torn checkpoint are passed over on reading.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> run = Run.create(folder, target="digits:healthy", steps=100)
        >>> run.append({"step": 0, "loss": 2.3})
        >>> run.append({"step": 1, "loss": float("inf")})
        >>> Run.open(folder).records()
        [{'step': 0, 'loss': 2.3}, {'step': 1, 'loss': inf}]
    """

    def __init__(self, path: Path, provenance: dict[str, Any]) -> None:
        self.path, self.provenance = path, provenance
        self.dropped = 0  # records and checkpoints that could not be written
        self._file: IO[bytes] | None = None
        self._end = 0
        self._told = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, target={self.target!r})"

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        target: str | None = None,
        name: str = "",
        seed: int = 0,
        steps: int | None = None,
        settings: dict[str, Any] | None = None,
    ) -> Self:
        """Start a run in `path`, which is made where it is missing.

        A run that is there already is kept: it moves to `path/earlier-1` (or -2, ...).

        Args:
            path: an empty or missing folder, or one that holds a run.
            target: how the training is made, where that is known: a catalogue name or "path/file.py:function".
            name: what reports call it.
            seed: the seed of the training.
            steps: the number of optimizer steps that are planned.
            settings: whatever else should be found again; plain JSON values.

        Raises:
            CannotWrite: where the folder cannot be written, or holds other things than a run.
        """
        path = Path(path)
        document = {
            "schema": RUN_SCHEMA,
            "name": name,
            "training": None if target is None else {"target": target, "folder": os.getcwd()},
            "seed": seed,
            "steps": steps,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "platform": platform.platform(),
            "settings": settings or {},
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            _set_aside(path)
            (path / CHECKPOINTS).mkdir(exist_ok=True)
            _write(path / DOCUMENT, json.dumps(encode(document), indent=2, allow_nan=False).encode())
            (path / STEPS).touch()
        except OSError as error:
            raise CannotWrite(
                f"the run cannot be recorded in {path}: {error.strerror or error}. "
                "Name a folder that can be written and has room, e.g. record='runs/first'."
            ) from error
        return cls(path, document)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder that `create` made; nothing in it changes.

        Raises:
            CannotRun: where there is no run, or its `run.json` cannot be read.
        """
        path = Path(path)
        expected = f"expected a folder with {DOCUMENT}, {STEPS} and {CHECKPOINTS}/, as gradoscope.watch(..., record=folder) makes it"
        if not path.is_dir():
            raise CannotRun(f"{path} is {'a file' if path.exists() else 'not there'}; {expected}.")
        try:
            document = decode(json.loads((path / DOCUMENT).read_bytes()))
        except FileNotFoundError as error:
            raise CannotRun(f"{path} is no recorded run: it has no {DOCUMENT}; {expected}.") from error
        except (OSError, ValueError) as error:
            raise CannotRun(f"{path / DOCUMENT} cannot be read ({error}); {expected}.") from error
        if not isinstance(document, dict) or "schema" not in document:
            raise CannotRun(f"{path / DOCUMENT} does not describe a run (it has no 'schema'); {expected}.")
        if str(document["schema"]).split(".")[0] != RUN_SCHEMA.split(".")[0]:
            raise CannotRun(
                f"{path} was recorded in the format {document['schema']}, this version reads {RUN_SCHEMA}. "
                "Use the version of gradoscope that recorded it."
            )
        return cls(path, document)

    @property
    def target(self) -> str | None:
        """How the training is made: a catalogue name, "file.py:function" (absolute where only that is found), or None."""
        made = self.provenance.get("training")
        if not made:
            return None
        target = str(made["target"])
        file, colon, function = target.rpartition(":")
        if colon and file.endswith(".py") and not Path(file).is_file():
            there = Path(made.get("folder", ".")) / file
            if there.is_file():
                return f"{there}:{function}"
        return target

    def append(self, record: dict[str, Any]) -> None:
        """Add one line; it is in the operating system's hands when this returns, so a killed process loses nothing.

        A full disk ends neither the training nor the run: one warning is given, what was written stays, and later
        records are tried again.
        """
        line = json.dumps(encode(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            if self._file is None:
                self._file = self._open_end()
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._end += len(line)
        except OSError as error:
            self._lost(error, "a record")
            self._cut()

    def records(self) -> list[dict[str, Any]]:
        """The recorded steps in order; lines that were torn by a crash are left out."""
        return list(self._lines())

    def checkpoint(self, state: "State") -> Path | None:
        """Write `state` as `checkpoints/step-XXXXXXXX.safetensors`; None, with one warning, where there is no room."""
        file = self.path / CHECKPOINTS / f"step-{state.step:08d}.safetensors"
        try:
            state.save(file)
        except Exception as error:  # safetensors has its own error for a failed write
            if not isinstance(error, OSError) and "Safetensor" not in type(error).__name__:
                raise
            self._lost(error, "a checkpoint")
            _remove(file.with_name(file.name + ".part"))
            return None
        return file

    def checkpoints(self) -> list[Path]:
        """The checkpoint files, first step first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*.safetensors"), key=_step)

    def thin(self, steps: set[int]) -> None:
        """Remove every checkpoint whose step is not in `steps`."""
        for file in self.checkpoints():
            if _step(file) not in steps:
                _remove(file)

    def last_state(self) -> "State | None":
        """The latest checkpoint that can be read, or None where there is none."""
        from gradoscope.state import State

        for file in reversed(self.checkpoints()):
            try:
                return State.load(file)
            except CannotRun:
                continue  # torn: the one before it is whole
        return None

    def close(self) -> None:
        """Close the file of records; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            data = (self.path / STEPS).read_bytes()
        except FileNotFoundError:
            return
        for line in data.splitlines():
            try:
                record = decode(json.loads(line))
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def _open_end(self) -> IO[bytes]:
        """Open the records for appending, without what a crash left of a last line."""
        file = (self.path / STEPS).open("ab", buffering=0)
        try:
            data = (self.path / STEPS).read_bytes() if (self.path / STEPS).is_file() else b""
            self._end = data.rfind(b"\n") + 1
            if self._end < len(data):
                file.truncate(self._end)
        except OSError:
            file.close()
            raise
        return file

    def _cut(self) -> None:
        """Take back the half of a line that a full disk let through."""
        if self._file is None:
            return
        try:
            self._file.truncate(self._end)
        except OSError:
            self.close()  # e.g. no ordinary file: the reader passes over torn lines

    def _lost(self, error: Exception, what: str) -> None:
        self.dropped += 1
        if not self._told:
            self._told = True
            warnings.warn(
                f"{what} could not be written to {self.path} ({error}). The training goes on and what was recorded stays; "
                "make room, or records and checkpoints go on missing.",
                RuntimeWarning,
                stacklevel=4,
            )


def encode(value: Any) -> Any:
    """Strict JSON values for `value`: nan, inf and -inf become words, numpy and torch scalars plain numbers."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return QUOTE + value if value in WORDS or value.startswith(QUOTE) else value
    if isinstance(value, dict):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    if hasattr(value, "tolist"):
        return encode(value.tolist())
    return encode(str(value))


def decode(value: Any) -> Any:
    """What `encode` was given, tuples as lists."""
    if isinstance(value, str):
        return WORDS[value] if value in WORDS else value.removeprefix(QUOTE)
    if isinstance(value, dict):
        return {k: decode(v) for k, v in value.items()}
    if isinstance(value, list):
        return [decode(v) for v in value]
    return value


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("gradoscope", "torch", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _set_aside(path: Path) -> None:
    """Move a run that is there already out of the way; refuse a folder with other things in it."""
    there = [p for p in path.iterdir() if not p.name.startswith("earlier-")]
    if not there:
        return
    if not (path / DOCUMENT).is_file():
        raise CannotWrite(
            f"{path} is no recorded run and not empty (it holds {', '.join(sorted(p.name for p in there)[:3])}). "
            "Name an empty or new folder, so that nothing of yours is mixed with the run."
        )
    k = 1
    while (path / f"earlier-{k}").exists():
        k += 1
    (path / f"earlier-{k}").mkdir()
    for name in (STEPS, CHECKPOINTS, DOCUMENT):  # the document last: until then the folder is still known as a run
        if (path / name).exists():
            os.replace(path / name, path / f"earlier-{k}" / name)


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once: a crash leaves the old one or the new one."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _remove(path: Path) -> None:
    # What cannot be removed only takes room.
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _step(file: Path) -> int:
    digits = file.name.removeprefix("step-").removesuffix(".safetensors")
    return int(digits) if digits.isdigit() else -1
