"""What the words of the command line name: a target (problem, file:function, recorded run), a device, a report's path."""

import ast
import importlib.util
import inspect
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradoscope.errors import CannotRun, CannotWrite, GradoscopeError, Usage

if TYPE_CHECKING:
    from gradoscope.store import Run
    from gradoscope.training import Training

__all__ = ["absolute", "check_device", "check_writable", "is_run", "open_run", "record", "resolve"]

EXPECTED = "a name of the catalogue (`gradoscope list`), path/to/file.py:function, or the folder of a recorded run"


def is_run(target: str) -> bool:
    """Whether `target` is a folder, and so can only be a recorded run."""
    return os.path.isdir(target)


def open_run(target: str) -> "Run":
    """The run that was recorded in the folder `target`.

    Raises:
        Usage: where the folder holds no run.
    """
    from gradoscope.store import Run

    if not os.path.isfile(os.path.join(target, "run.json")):
        raise Usage(f"the folder {target} holds no run.json, so no run was recorded there. Expected {EXPECTED}.")
    return Run.open(target)


def record(folder: str, target: str, training: "Training", seed: int) -> "Run":
    """Start a recorded run in `folder` that says how its training is made, so that it can be forked again later.

    Raises:
        CannotWrite: where the folder cannot be written, or holds other things than a run.
    """
    from gradoscope.store import Run

    return Run.create(folder, target=absolute(target), name=training.name, seed=seed, steps=training.steps)


def absolute(target: str) -> str:
    """`target` so that it means the same from every folder: the path of a user's file is made absolute.

    Example:
        >>> absolute("parity:d=30")
        'parity:d=30'
    """
    file, function = _split(target)
    return target if file is None else f"{Path(file).resolve()}:{function}"


def resolve(target: str, *, seed: int = 0) -> "Training":
    """The training that `target` names: a catalogue name with options, or `path/to/file.py:function`.

    Args:
        target: what to look up.
        seed: handed to a problem of the catalogue, and to a user's function that has an argument `seed`.

    Raises:
        Usage: where there is no such name, file or function.
        CannotRun: where the user's file or function fails or returns something else.

    Example:
        >>> resolve("linear-network:healthy,steps=5").steps
        5
    """
    file, function = _split(target)
    if file is not None:
        return _call(Path(file), function, seed)
    if "/" in target or "\\" in target:
        raise Usage(f"there is no file or folder {target!r}. Expected {EXPECTED}.")
    from gradoscope.problems import find

    return find(target, seed=seed)


def check_device(device: str | None) -> None:
    """Raise Usage unless tensors can be made on `device`."""
    if device is None:
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise Usage(f"--device {device!r} cannot be used here: {reason}. Name another one, such as cpu, or leave it out.") from error


def check_writable(path: str) -> None:
    """Raise CannotWrite unless a file can be made at `path`; nothing is left there, and what is there stays.

    A file is really made, and removed: permission bits tell neither of read-only mounts nor of names that are too long.
    """
    # os.path and not Path: it answers False, instead of raising, where a name is too long or no name at all.
    folder = os.path.dirname(os.path.realpath(path)) if "\0" not in path else path
    if os.path.isdir(path):
        raise CannotWrite(f"cannot write {path}: this is a folder. Name a file in it, e.g. {os.path.join(path, 'report.html')}.")
    if not os.path.isdir(folder):
        raise CannotWrite(f"cannot write {path}: there is no folder {folder}. Make it first, or name another path.")
    try:
        if os.path.lexists(path):
            with open(path, "r+b"):
                pass
        else:
            with open(path, "xb"):
                pass
            os.unlink(path)
        with tempfile.TemporaryFile(dir=folder):  # it is written beside and then moved, so the folder must take new files
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotWrite(f"cannot write {path}: {reason}. Name a path that you may write to.") from error


def _split(target: str) -> tuple[str | None, str]:
    """(file, function) of a target that names a Python file, else (None, "")."""
    file, colon, function = target.rpartition(":")
    if colon and file.endswith(".py"):
        return file, function.strip()
    return (target, "") if target.endswith(".py") else (None, "")


def _call(path: Path, name: str, seed: int) -> "Training":
    if not os.path.isfile(path):
        raise Usage(f"there is no file {path}. Expected {EXPECTED}.")
    if not name:
        raise Usage(f"{path} is a file, but which function of it returns the Training? Say {path}:FUNCTION; it has {_functions(path)}.")
    function = getattr(_load(path), name, None)
    if function is None:
        raise Usage(f"{path} has no function {name!r}; it has {_functions(path)}.")
    if not callable(function):
        raise Usage(f"{name!r} in {path} is a {type(function).__name__}; expected a function that returns a gradoscope.Training.")
    return _training(path, name, function, seed)


def _training(path: Path, name: str, function: Callable[..., Any], seed: int) -> "Training":
    from gradoscope.guard import derive_seed, private_random
    from gradoscope.training import Training

    try:
        signature = inspect.signature(function).parameters
    except (TypeError, ValueError):
        signature = {}  # type: ignore[assignment]
    needed = [p.name for p in signature.values() if p.default is p.empty and p.kind <= p.KEYWORD_ONLY and p.kind != p.VAR_POSITIONAL]
    if set(needed) - {"seed"}:
        raise Usage(f"{name} in {path} needs arguments ({', '.join(needed)}). Give them defaults; only `seed` is handed over.")
    # What the user's function draws (its model's start, its data) follows from the seed, and the streams are put back.
    with private_random(derive_seed(seed, 103)), _reported(path, f"{name} in {path}"):
        training = function(**({"seed": seed} if "seed" in signature else {}))
    if not isinstance(training, Training):
        raise CannotRun(f"{name} in {path} returned a {type(training).__name__}; expected a gradoscope.Training. Return Training(...).")
    return training


def _load(path: Path) -> ModuleType:
    """Import a user's file, with its folder first on the search path for the modules beside it."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # Its own name, so that data-loader workers can import it, unless another module has it already.
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) != str(path.resolve()):
        name = f"_gradoscope_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise Usage(f"{path} cannot be read as a Python file. Expected {EXPECTED}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _reported(path, f"{path}"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _reported(path: Path, what: str) -> Iterator[None]:
    """Tell an error of the user's code as theirs: its file, line and text, and nothing of ours."""
    try:
        yield
    except GradoscopeError:
        raise
    except SyntaxError as error:
        raise CannotRun(f"{what} is no valid Python: {error.filename}, line {error.lineno}: {error.msg}.") from error
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}".rstrip(": .")
        raise CannotRun(f"{what} failed{_place(error, path)}: {text}. The error is the file's own; mend it there.") from error


def _place(error: BaseException, path: Path) -> str:
    """Where in the user's file it happened, and where below that, if deeper."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).resolve() == path.resolve()]
    if not own:
        return ""
    place = f" at {own[-1].filename}, line {own[-1].lineno}, `{own[-1].line}`"
    last = frames[-1]
    return place if last is own[-1] else f"{place} (raised in {last.filename}, line {last.lineno})"


def _functions(path: Path) -> str:
    """The functions of a file, read without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return "no functions that can be read"
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return ", ".join(names) or "no functions"
