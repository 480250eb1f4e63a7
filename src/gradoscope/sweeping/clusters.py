"""Tasks on a Dask or a Ray cluster."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from gradoscope.errors import CannotRun, Usage
from gradoscope.sweeping.ledger import Ledger
from gradoscope.sweeping.task import BEAT, Pulse, Results, Task, cores, deaf, work

__all__ = ["Dask", "Ray"]

PATIENCE = 10.0  # seconds in which a scheduler must answer
ABSENCE = 600.0  # seconds without any worker, e.g. in a queue for machines, after which the run ends


@dataclass(frozen=True)
class Dask:
    """A Dask cluster, see `dask`."""

    address: str
    workers: int | None = None
    name = "dask"

    @property
    def shares_disk(self) -> bool:
        """Whether its workers certainly see the files of this machine."""
        return self.address == "local"

    def record(self) -> dict[str, Any]:
        """Name, address, number of workers (None: all), threads of each."""
        return {"where": self.name, "address": self.address, "workers": self.workers, "threads": 1}

    def results(self, tasks: Sequence[Task], attempts: int, pulse: Pulse) -> Results:
        """See `Where.results`."""
        with _dask_client(self.address, self.workers or cores(), attempts) as client:
            yield from _on_dask(client, tasks, self.workers, attempts, pulse)


@dataclass(frozen=True)
class Ray:
    """A Ray cluster, see `ray`."""

    address: str
    workers: int | None = None
    name = "ray"

    @property
    def shares_disk(self) -> bool:
        """Whether its workers certainly see the files of this machine."""
        return self.address == "local"

    def record(self) -> dict[str, Any]:
        """Name, address, number of workers (None: all), threads of each."""
        return {"where": self.name, "address": self.address, "workers": self.workers, "threads": 1}

    def results(self, tasks: Sequence[Task], attempts: int, pulse: Pulse) -> Results:
        """See `Where.results`."""
        with _ray_session(self.address, self.workers or cores()):
            yield from _on_ray(tasks, self.workers, attempts, pulse)


def _missing(library: str) -> Usage:
    return Usage(f"{library} is not installed: pip install 'gradoscope[cluster]'")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log from the terminal; what it has to say comes as an error."""
    logger = logging.getLogger(name)
    loggers = [logger, *(logging.getLogger(other) for other in list(logging.root.manager.loggerDict) if other.startswith(f"{name}."))]
    before = [logger.level for logger in loggers]
    for logger in loggers:  # those below have levels of their own
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _environment(**defaults: str) -> Iterator[None]:
    """Environment variables for the time of the block, where the user has not set them."""
    mine = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


class _Absence:
    """Ends the wait for a cluster that has had no worker for long: it may never have one again."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seen = time.monotonic()

    def check(self, workers: float) -> None:
        """Note how many workers (or CPUs) there are now."""
        now = time.monotonic()
        if workers:
            self.seen = now
        elif now - self.seen > ABSENCE:
            raise CannotRun(
                f"the {self.kind} cluster has had no worker for {now - self.seen:.0f} s: start workers and run it again; "
                "what is finished is kept"
            )


@contextmanager
def _dask_client(address: str, workers: int, attempts: int) -> Iterator[Any]:
    """A client of the cluster; a cluster that is started here is stopped in the end, and any other is left as it is."""
    try:
        from distributed import Client
    except ImportError as error:
        raise _missing("Dask") from error
    with _quiet("distributed"), _quiet("tornado"), ExitStack() as stack:
        try:
            cluster = stack.enter_context(_own_dask(workers, attempts)) if address == "local" else None
            client = stack.enter_context(Client(cluster or address, timeout=PATIENCE, set_as_default=False))
        except (OSError, ValueError, RuntimeError) as error:
            raise CannotRun(
                f"no Dask scheduler answers at {address!r} ({error}): give the address that `dask scheduler` shows, like "
                'tcp://host:8786, or "local"'
            ) from error
        yield client


@contextmanager
def _own_dask(workers: int, attempts: int) -> Iterator[Any]:
    import dask.config
    from distributed import LocalCluster

    # a worker that is not back after 15 s would be struck off, and a busy machine needs longer to start one
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 day", "distributed.scheduler.allowed-failures": attempts - 1}):
        with deaf():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # no limit of its own: Dask would divide the memory evenly, and kill who exceeds its part
                dashboard_address="127.0.0.1:0",  # any free port: Dask would complain about one that is taken
                silence_logs=logging.CRITICAL,
            )
        with cluster:
            yield cluster


def _on_dask(client: Any, tasks: Sequence[Task], limit: int | None, attempts: int, pulse: Pulse) -> Results:
    """No more tasks are handed out than there are workers: one that waits at a worker would be blamed for that worker's death."""
    from distributed import KilledWorker, wait

    ledger = Ledger(tasks, attempts)
    absence = _Absence("Dask")
    try:
        while ledger.open():
            with _link(client):
                workers = len(client.nthreads())
            absence.check(workers)
            room = limit or max(1, workers)
            while ledger.room(room):
                ledger.begun(client.submit(work, ledger.next(), pure=False))
            pulse()
            with _link(client), suppress(TimeoutError), client.as_current():
                wait(list(ledger.running), timeout=BEAT, return_when="FIRST_COMPLETED")
            for future in [future for future in ledger.running if future.done()]:
                try:
                    data = future.result()
                except KilledWorker as error:  # the scheduler itself has tried it again so many times
                    ledger.died(future, "its process ended", 1 + error.allowed_failures)
                except Exception as error:
                    ledger.broke(future, "Dask", error)
                else:
                    yield from ledger.ended(future, data)
            ledger.check()
    finally:
        with suppress(Exception):  # the cluster may be gone
            client.cancel(list(ledger.running), force=True)


@contextmanager
def _link(client: Any) -> Iterator[None]:
    """Talks to the scheduler; when it is gone, the futures are cancelled ones."""
    try:
        yield
    except (OSError, CancelledError) as error:
        gone = f"the Dask scheduler at {client.scheduler.address} is gone: start it and run it again; what is finished is kept"
        raise CannotRun(gone) from error


@contextmanager
def _ray_session(address: str, workers: int) -> Iterator[None]:
    """A connection to the cluster; what is started or connected here is ended, and any other is left as it is."""
    try:
        with _environment(RAY_DEDUP_LOGS_SKIP_REGEX="."):  # it would print each worker's death, whatever its log level
            import ray
    except ImportError as error:
        raise _missing("Ray") from error
    if ray.is_initialized():
        yield
        return
    place = urlsplit(address if "//" in address else f"//{address}")
    hint = (
        f'no Ray cluster answers at {address!r}: give host:port as `ray start --head` shows it, ray://host:port, "auto" or "local", '
        "and for a cluster that asks for a token the variables RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    )
    try:
        if ":" in address:  # Ray itself would wait for minutes, and may end this process
            socket.create_connection((place.hostname or "", place.port or 0), timeout=PATIENCE).close()
        new = {"num_cpus": workers} if address == "local" else {}
        with deaf(), _environment(RAY_USAGE_STATS_ENABLED="0"):
            ray.init(address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, logging_level=logging.CRITICAL, **new)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise CannotRun(f"{hint} ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _on_ray(tasks: Sequence[Task], limit: int | None, attempts: int, pulse: Pulse) -> Results:
    import ray
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, OutOfMemoryError, WorkerCrashedError

    remote = ray.remote(num_cpus=1, max_retries=0)(work)  # deaths are counted here
    ledger = Ledger(tasks, attempts)
    absence = _Absence("Ray")
    try:
        while ledger.open():
            absence.check(ray.cluster_resources().get("CPU", 0.0))
            while ledger.room(limit):
                ledger.begun(remote.remote(ledger.next()))
            pulse()
            running = list(ledger.running)
            ray.wait(running, num_returns=1, timeout=BEAT)
            for reference in ray.wait(running, num_returns=len(running), timeout=0)[0]:
                try:
                    data = ray.get(reference)
                except (WorkerCrashedError, OutOfMemoryError, NodeDiedError, LocalRayletDiedError) as error:
                    ledger.died(reference, type(error).__name__)
                except Exception as error:
                    ledger.broke(reference, "Ray", error)
                else:
                    yield from ledger.ended(reference, data)
            ledger.check()
    finally:
        for reference in ledger.running:
            with suppress(Exception):  # the cluster may be gone
                ray.cancel(reference, force=True)
