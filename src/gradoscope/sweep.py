"""Where the tasks of a study run: in this process, in worker processes, on a Dask cluster or on a Ray cluster.

Every task runs alone in its process and with one thread, wherever it runs, so that a result does not depend on the place. A worker
that is lost (killed, out of memory) costs only the task that it was running, and that task is run again.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from gradoscope.errors import Usage
from gradoscope.sweeping.clusters import Dask, Ray
from gradoscope.sweeping.processes import Local
from gradoscope.sweeping.task import Pulse, Results, Task, Ticker, cores, shares

__all__ = ["Task", "Ticker", "Where", "cores", "dask", "local", "ray", "run", "shares"]


class Where(Protocol):
    """A place where tasks run."""

    @property
    def name(self) -> str:
        """The name of the kind of place: local, dask or ray."""

    @property
    def shares_disk(self) -> bool:
        """Whether the tasks certainly see the files of this machine."""

    def record(self) -> dict[str, Any]:
        """What to note down about the place beside the results."""

    def results(self, tasks: Sequence[Task], attempts: int, pulse: Pulse) -> Results:
        """Run the tasks, and give (key, result) in the order in which they end."""


def run(tasks: Sequence[Task], where: Where, *, attempts: int = 3, pulse: Pulse = lambda: None) -> Results:
    """Run the tasks and give each result as soon as it is there.

    The iterator should be closed when it is left early (`with contextlib.closing(run(...)) as results:`): closing it stops what still
    runs. An exception of a task is raised as it is, with a note that names the task, after the other running tasks were stopped.

    Args:
        tasks: what to run, begun in this order; keys must differ.
        where: the place, from `local`, `dask` or `ray`.
        attempts: how many workers may die while they run a task, before it is given up.
        pulse: called about once per second while waiting, e.g. to draw the progress.

    Returns:
        an iterator over (key, result) in the order of completion.

    Raises:
        CannotRun: a task's workers died `attempts` times, or the cluster cannot be reached.
        Usage: the cluster's library is not installed.

    Example:
        >>> dict(run([Task("a", max, (1, 2)), Task("b", pow, (2, 5))], local(1)))
        {'a': 2, 'b': 32}
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    if len({task.key for task in tasks}) < len(tasks):
        raise ValueError("two tasks have the same key")
    return where.results(tasks, attempts, pulse)


def local(workers: int | None = None) -> Local:
    """This machine: so many worker processes, or this very process for 1; None: as many as the cores that this process may use."""
    if workers is not None and workers < 1:
        raise Usage(f"the number of workers must be at least 1, not {workers}")
    return Local(workers or cores())


def dask(address: str, workers: int | None = None) -> Dask:
    """A Dask cluster: the address of its scheduler (tcp://host:port), or "local" to start one here for the time of the run.

    At most `workers` tasks are handed out at a time; None: as many as the cluster has workers, also when more of them come. A worker
    runs one task at a time, so workers should be started with one thread each. The running tasks of a cluster that was there before
    cannot be stopped from outside: when a run is left early they end by themselves, and only those that wait are taken back.
    """
    return Dask(address, workers)


def ray(address: str, workers: int | None = None) -> Ray:
    """A Ray cluster: its address (host:port, ray://host:port, "auto" for the running one), or "local" to start one for the run.

    One that is started here has `workers` CPUs. Otherwise at most that many tasks are handed out at a time; None: all, and Ray
    runs as many at a time as it has CPUs.
    """
    return Ray(address, workers)
