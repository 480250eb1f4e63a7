"""Tasks on this machine: in this process, or in worker processes that may die without harm to the others."""

import os
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradoscope.sweeping.ledger import Ledger
from gradoscope.sweeping.task import BEAT, PULSE, Pulse, Results, Task, deaf, one_thread, work

__all__ = ["Local"]

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR")}


@dataclass(frozen=True)
class Local:
    """Worker processes on this machine, each with one thread; one worker is this process itself."""

    workers: int
    name = "local"
    shares_disk = True

    def record(self) -> dict[str, Any]:
        """Name, number of workers, threads of each."""
        return {"where": self.name, "workers": self.workers, "threads": 1}

    def results(self, tasks: Sequence[Task], attempts: int, pulse: Pulse) -> Results:
        """See `Where.results`."""
        if self.workers == 1:
            return _here(tasks, pulse)
        return _processes(tasks, min(self.workers, len(tasks)), attempts, pulse)


def _here(tasks: Sequence[Task], pulse: Pulse) -> Results:
    for task in tasks:
        token = PULSE.set(pulse)
        try:
            with one_thread():
                result = task.function(*task.args)
        except BaseException as error:
            error.add_note(f"in task {task.key}")
            raise
        finally:
            PULSE.reset(token)
        yield task.key, result


def _enlist(parent: int) -> None:
    """Make this process a worker that ignores Ctrl-C and ends itself, also in mid-task, when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _processes(tasks: Sequence[Task], workers: int, attempts: int, pulse: Pulse) -> Results:
    """Each worker is a pool of one process: a death then concerns exactly the task that it was running, and no other worker."""
    from concurrent.futures import FIRST_COMPLETED, wait

    from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    ledger = Ledger(tasks, attempts)
    crews: list[Any] = []  # all that may have a living process
    idle: list[Any] = []
    crew_of: dict[Any, Any] = {}
    try:
        while ledger.open():
            while ledger.room(workers):
                if not idle:
                    crews.append(ProcessPoolExecutor(1, initializer=_enlist, initargs=(os.getpid(),), env=ONE_THREAD))
                    idle.append(crews[-1])
                crew = idle.pop()
                call = ledger.next()
                try:
                    with deaf():
                        future = crew.submit(work, call)
                except BrokenProcessPool:  # it died while it had nothing to do
                    _dismiss([crew])
                    crews.remove(crew)
                else:
                    crew_of[future] = crew
                    ledger.begun(future)
            pulse()
            for future in wait(ledger.running, timeout=BEAT, return_when=FIRST_COMPLETED).done:
                crew = crew_of.pop(future)
                try:
                    data = future.result()
                except TerminatedWorkerError as error:
                    ledger.died(future, _how(error))
                    _dismiss([crew])
                    crews.remove(crew)
                else:
                    idle.append(crew)
                    yield from ledger.ended(future, data)
            ledger.check()
    finally:
        _dismiss(crews)


def _how(error: Exception) -> str:
    """The exit codes that loky's message names, such as SIGKILL(-9)."""
    found = re.search(r"exit codes? of the workers? (?:are|is) \{(.+?)\}", str(error))
    return found[1] if found else "killed"


def _dismiss(crews: list[Any]) -> None:
    """Kill the workers, all at the same time; none is left afterwards."""
    threads = [threading.Thread(target=crew.shutdown, kwargs={"wait": True, "kill_workers": True}) for crew in crews]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
