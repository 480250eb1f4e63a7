"""The ledger of a run: which tasks wait, which run, and how many workers died on each."""

import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from gradoscope.errors import CannotRun
from gradoscope.sweeping.task import Task, payload

__all__ = ["Ledger"]


class _WorkerTraceback(Exception):
    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Ledger:
    """Keeps account of the tasks of a run; each running one has a handle, the future of whoever runs it.

    Errors are gathered and raised by `check`, so that what ended at the same moment as a failure is given all the same.

    Args:
        tasks: what to run.
        attempts: how many workers may die on one task.
    """

    def __init__(self, tasks: Sequence[Task], attempts: int) -> None:
        self.attempts = attempts
        self.waiting = deque((task, 0) for task in tasks)
        self.running: dict[Any, tuple[Task, int]] = {}
        self.failures: list[BaseException] = []

    def open(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running)

    def room(self, limit: int | None) -> bool:
        """Whether a task waits and fewer than `limit` run."""
        return bool(self.waiting) and (limit is None or len(self.running) < limit)

    def next(self) -> bytes:
        """The payload of the task that is begun next."""
        return payload(self.waiting[0][0])

    def begun(self, handle: Any) -> None:
        """That task runs now."""
        self.running[handle] = self.waiting.popleft()

    def ended(self, handle: Any, data: bytes) -> Iterator[tuple[str, Any]]:
        """A task gave this back: its key and result, or its own exception, which is gathered."""
        task, _ = self.running.pop(handle)
        done, value, text = pickle.loads(data)
        if done:
            yield task.key, value
        else:
            value.add_note(f"in task {task.key}")
            value.__cause__ = _WorkerTraceback(text)
            self.failures.append(value)

    def died(self, handle: Any, how: str, times: int = 1) -> None:
        """Its worker died: the task waits again, behind the others, or is given up."""
        task, deaths = self.running.pop(handle)
        deaths += times
        if deaths < self.attempts:
            self.waiting.append((task, deaths))
            return
        self.failures.append(
            CannotRun(
                f"the worker of task {task.key} died {deaths} times while running it ({how}). Most likely the memory ran out: "
                "run it again with fewer workers (--workers 1) or where there is more memory; what is finished is kept."
            )
        )

    def broke(self, handle: Any, library: str, error: BaseException) -> None:
        """The library failed, not the task."""
        task, _ = self.running.pop(handle)
        failure = CannotRun(
            f"{library} could not run task {task.key}: {type(error).__name__}: {error} - is the cluster still there, and is the same "
            "version of gradoscope installed on its workers?"
        )
        failure.__cause__ = error
        self.failures.append(failure)

    def check(self) -> None:
        """Raise the first failure, if there is one."""
        if self.failures:
            raise self.failures[0]
