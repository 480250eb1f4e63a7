"""A task as every kind of worker runs it: alone in its process, with one thread, and with its result or error as bytes."""

import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gradoscope.errors import CannotRun

__all__ = ["BEAT", "PULSE", "Pulse", "Results", "Task", "Ticker", "cores", "deaf", "one_thread", "payload", "shares", "work"]

Results = Generator[tuple[str, Any], None, None]
Pulse = Callable[[], None]

BEAT = 1.0  # seconds between two pulses, and between two writes of a ticker
PULSE: ContextVar[Pulse | None] = ContextVar("pulse", default=None)

_ALONE = threading.RLock()  # tasks seed and read process-wide state: a worker with several threads runs one task at a time


@dataclass(frozen=True)
class Task:
    """One piece of work: `function(*args)`, under a key of its own; function, arguments and result must be picklable."""

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and for the BLAS of numpy and scipy inside the block, and as before after it."""
    import scipy.linalg  # noqa: F401 - brings its own BLAS, which must be there to be limited
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _versions() -> dict[str, str]:
    """What must be the same on both sides; asked of the installed packages, because the parent need not import torch."""
    import gradoscope

    return {"gradoscope": gradoscope.__version__, "torch": version("torch")}


def payload(task: Task) -> bytes:
    """Task and versions as bytes: the same for every kind of worker, without the shared memory in which torch would send tensors."""
    import cloudpickle

    call: bytes = cloudpickle.dumps((task.function, task.args))
    return pickle.dumps((_versions(), call))


def work(payload: bytes) -> bytes:
    """Run one task in a worker; result and error both come back as bytes, so that no library wraps or repeats an error."""
    try:
        expected, call = pickle.loads(payload)
        if (found := _versions()) != expected:
            raise CannotRun(f"the worker on {socket.gethostname()} has {found}, but this run has {expected}: install the same there")
        function, args = pickle.loads(call)
        with _ALONE, one_thread():
            return pickle.dumps((True, function(*args), ""))
    except BaseException as error:
        return _failure(error, traceback.format_exc())


def _failure(error: BaseException, text: str) -> bytes:
    try:
        data = pickle.dumps((False, error, text))
        if type(pickle.loads(data)[1]) is type(error):
            return data
    except Exception:  # an exception with a constructor of its own often cannot be pickled
        pass
    return pickle.dumps((False, CannotRun(f"{type(error).__name__}: {error}"), text))


@contextmanager
def deaf() -> Iterator[None]:
    """Processes and threads that start inside the block do not hear Ctrl-C, from their first moment on: only the parent does."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Ticker:
    """Keeps the share of a task that is done in a small file, at most once per second; `shares` reads it.

    Args:
        file: where; its folder must be there. A share that cannot be written is left out: progress stops no work.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Ticker(folder / "a.share")(0.25)
        >>> shares(folder)
        {'a': 0.25}
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._next = 0.0

    def __call__(self, share: float) -> None:
        """Note the share, from 0 to 1."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + BEAT
        with suppress(OSError):
            self.file.write_text(f"{share:.4f}")
        if pulse := PULSE.get():  # in the one process nobody else can draw the progress
            pulse()


def shares(folder: Path) -> dict[str, float]:
    """The shares that the tickers of a folder last noted, by the name of the file without `.share`."""
    found = {}
    for file in sorted(folder.glob("*.share")):
        with suppress(OSError, ValueError):  # just being written, or just deleted
            found[file.stem] = float(file.read_text())
    return found
