"""Tasks in worker processes and on real small clusters of Dask and Ray: whatever dies, all results come, as from one process."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from gradoscope import sweep
from gradoscope.errors import CannotRun, Usage
from gradoscope.sweep import Task
from gradoscope.sweeping.ledger import Ledger
from gradoscope.sweeping.task import payload, work
from tests import sweep_tasks

ROOT = Path(__file__).parent.parent
PLACES = ["processes", "dask_cluster", "ray_cluster"]


@pytest.fixture(scope="module", autouse=True)
def ray_token():
    """A token for the cluster of these tests alone; Ray reads it when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        yield


@pytest.fixture(scope="module")
def processes():
    return sweep.local(2)


@pytest.fixture(scope="module")
def dask_cluster():
    """Two worker processes of Dask that were there before; a task is given up when its second worker has died."""
    config = pytest.importorskip("dask.config", reason="an extra: gradoscope[cluster]")
    distributed = pytest.importorskip("distributed", reason="an extra: gradoscope[cluster]")
    options = {"processes": True, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": "127.0.0.1:0", "silence_logs": 60}
    with (
        config.set({"distributed.scheduler.allowed-failures": 1, "distributed.deploy.lost-worker-timeout": "1 day"}),
        distributed.LocalCluster(n_workers=2, **options) as cluster,
    ):
        yield sweep.dask(cluster.scheduler_address)


@pytest.fixture(scope="module")
def ray_cluster():
    """A Ray cluster of two CPUs that another process has started and keeps."""
    pytest.importorskip("ray", reason="an extra: gradoscope[cluster]")
    script = """
        import ray
        print(ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False).address_info["gcs_address"], flush=True)
        input()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], **pipes) as process:
        yield sweep.ray(process.stdout.readline().strip())
        process.communicate("\n", timeout=30)


@pytest.fixture(params=PLACES)
def where(request):
    return request.getfixturevalue(request.param)


def same(a, b):
    assert a["losses"] == b["losses"]
    assert torch.equal(a["weights"], b["weights"])
    assert np.array_equal(a["values"], b["values"])


def alive(pid):
    """Whether it runs: a process that ended and was not yet fetched by its parent does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def pids(file):
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_a_dead_worker_loses_nothing_and_the_results_are_those_of_one_process(where, tmp_path):
    marker = tmp_path / "died"
    tasks = [Task("dies", sweep_tasks.die_once, (str(marker), 7)), Task("threads", sweep_tasks.threads)]
    tasks += [Task(f"seed {seed}", sweep_tasks.train, (seed,)) for seed in range(4)]
    found = list(sweep.run(tasks, where))
    assert sorted(key for key, _ in found) == sorted(task.key for task in tasks)
    assert marker.exists()
    results = dict(found)
    torch_threads, pools = results.pop("threads")
    assert torch_threads == 1
    assert set(pools) == {1}
    expected = dict(sweep.run(tasks, sweep.local(1)))
    for key, result in results.items():
        same(result, expected[key])


def test_a_task_that_fails_raises_its_own_error_with_its_key(where):
    with pytest.raises(sweep_tasks.OwnError, match="code 3") as caught:
        list(sweep.run([Task("good", sweep_tasks.train, (0,)), Task("bad one", sweep_tasks.fail, (3,))], where))
    assert caught.value.code == 3
    assert caught.value.__notes__ == ["in task bad one"]


def test_a_task_that_always_kills_its_worker_is_given_up_by_name(where):
    with pytest.raises(CannotRun, match=r"worker of task poison died 2 times.*memory.*--workers"):
        list(sweep.run([Task("poison", sweep_tasks.die_always)], where, attempts=2))


@pytest.mark.parametrize("place", ["dask", "ray"])
def test_a_cluster_that_was_there_is_left_running(place, request):
    where = request.getfixturevalue(f"{place}_cluster")
    for _ in range(2):
        assert dict(sweep.run([Task("a", pow, (2, 5))], where)) == {"a": 32}


def test_the_own_dask_cluster_never_strikes_off_a_slow_worker(tmp_path):
    """Dask forgets a worker that is not back in time, and the run would wait for ever: here no worker can be back in time."""
    config = pytest.importorskip("dask.config", reason="an extra: gradoscope[cluster]")
    pytest.importorskip("distributed", reason="an extra: gradoscope[cluster]")
    with config.set({"distributed.deploy.lost-worker-timeout": "10 ms"}):
        results = dict(sweep.run([Task("a", sweep_tasks.die_once, (str(tmp_path / "died"), 1))], sweep.dask("local", 1)))
    same(results["a"], sweep_tasks.train(1))


def test_a_cluster_that_stays_without_workers_is_an_error(monkeypatch):
    distributed = pytest.importorskip("distributed", reason="an extra: gradoscope[cluster]")
    monkeypatch.setattr("gradoscope.sweeping.clusters.ABSENCE", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=60) as cluster,
        pytest.raises(CannotRun, match=r"Dask cluster has had no worker for .* start workers"),
    ):
        list(sweep.run([Task("a", pow, (2, 5))], sweep.dask(cluster.scheduler_address)))


def test_a_scheduler_that_goes_away_is_an_error():
    pytest.importorskip("distributed", reason="an extra: gradoscope[cluster]")
    script = """
        import distributed
        with distributed.LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", silence_logs=60) as cluster:
            print(cluster.scheduler_address, flush=True)
            input()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], **pipes) as scheduler:
        where = sweep.dask(scheduler.stdout.readline().strip())
        with pytest.raises(CannotRun, match=r"Dask scheduler at tcp://.* is gone"):
            list(sweep.run([Task("a", pow, (2, 5))], where, pulse=scheduler.kill))


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (sweep.dask("tcp://127.0.0.1:1"), "no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
        (sweep.dask("nonsense://x"), "no Dask scheduler answers at 'nonsense://x'"),
        (sweep.ray("127.0.0.1:1"), "no Ray cluster answers at '127.0.0.1:1'"),
        (sweep.ray("ray://127.0.0.1:1"), "no Ray cluster answers at 'ray://127.0.0.1:1'"),
        (sweep.ray("nonsense"), "no Ray cluster answers at 'nonsense'"),
    ],
)
def test_a_cluster_that_does_not_answer(where, what, monkeypatch):
    pytest.importorskip("distributed", reason="an extra: gradoscope[cluster]")
    pytest.importorskip("ray", reason="an extra: gradoscope[cluster]")
    monkeypatch.setattr("gradoscope.sweeping.clusters.PATIENCE", 1.0)
    with pytest.raises(CannotRun, match=what):
        list(sweep.run([Task("a", pow, (2, 5))], where))


@pytest.mark.parametrize(("module", "where"), [("distributed", sweep.dask("local")), ("ray", sweep.ray("local"))])
def test_a_library_that_is_not_installed(module, where, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Usage, match=r"pip install 'gradoscope\[cluster\]'"):
        list(sweep.run([Task("a", pow, (2, 5))], where))


def test_only_the_task_of_the_killed_worker_runs_again(tmp_path):
    started, go = tmp_path / "started", tmp_path / "go"
    killed = []

    def pulse():
        if len(pids(started)) == 2 and not killed:
            killed.append(pids(started)[0])
            os.kill(killed[0], signal.SIGKILL)
        if len(pids(started)) == 3:
            go.touch()

    tasks = [Task(str(seed), sweep_tasks.start_and_wait, (str(started), str(go), seed)) for seed in range(2)]
    results = dict(sweep.run(tasks, sweep.local(2), pulse=pulse))
    assert len(pids(started)) == 3  # two, and the one that was killed once more
    for seed in range(2):
        same(results[str(seed)], sweep_tasks.train(seed))


def test_closing_stops_the_workers_at_once(tmp_path):
    started = tmp_path / "started"
    endless = [Task(f"endless {i}", sweep_tasks.start_and_wait, (str(started), str(tmp_path / "never"), 0)) for i in range(3)]
    with closing(sweep.run([Task("a", pow, (2, 5)), *endless], sweep.local(2))) as results:
        assert next(results) == ("a", 32)
        until(lambda: pids(started))
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    assert not any(alive(pid) for pid in pids(started))


@pytest.fixture
def interruptible(tmp_path):
    """A process with two busy workers, in a process group of its own, as in a terminal."""
    script = f"""
        import sys
        from gradoscope import sweep
        from tests.sweep_tasks import start_and_wait
        tasks = [sweep.Task(str(i), start_and_wait, ({str(tmp_path / "started")!r}, {str(tmp_path / "never")!r}, i)) for i in range(5)]
        try:
            list(sweep.run(tasks, sweep.local(2)))
        except KeyboardInterrupt:
            print("stopped")
    """
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], **pipes, env=environment, cwd=tmp_path, start_new_session=True
    )
    until(lambda: len(pids(tmp_path / "started")) == 2)
    yield process, pids(tmp_path / "started")
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_ctrl_c_stops_quietly_and_leaves_no_orphan(interruptible):
    process, workers = interruptible
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=15)
    assert (out, err) == ("stopped\n", "")
    assert not any(alive(pid) for pid in workers)


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_workers_go_when_the_parent_is_killed(interruptible):
    process, workers = interruptible
    process.kill()
    until(lambda: not any(alive(pid) for pid in workers), 10.0)


def test_one_worker_is_this_process_and_the_threads_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with closing(sweep.run([Task("pid", os.getpid), Task("threads", sweep_tasks.threads)], sweep.local(1))) as results:
            assert next(results) == ("pid", os.getpid())
            assert torch.get_num_threads() == 2  # also between two tasks
            assert next(results)[1][0] == 1
        with pytest.raises(sweep_tasks.OwnError) as caught:
            list(sweep.run([Task("bad", sweep_tasks.fail, (1,))], sweep.local(1)))
        assert caught.value.__notes__ == ["in task bad"]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_ended_together_with_a_failure_is_given():
    ledger = Ledger([Task("bad", sweep_tasks.fail, (1,)), Task("good", pow, (2, 5))], attempts=3)
    answers = {}
    for handle in "xy":
        answers[handle] = work(ledger.next())
        ledger.begun(handle)
    assert [pair for handle in "xy" for pair in ledger.ended(handle, answers[handle])] == [("good", 32)]
    with pytest.raises(sweep_tasks.OwnError):
        ledger.check()


@pytest.mark.parametrize(
    ("data", "error", "what"),
    [
        (payload(Task("a", sweep_tasks.fail_unpicklably)), Exception, "not picklable"),
        (payload(Task("a", sweep_tasks.give_unpicklable)), Exception, "pickle"),
        (pickle.dumps(({"gradoscope": "0.0", "torch": "0.0"}, b"")), CannotRun, "install the same there"),
    ],
)
def test_what_cannot_be_sent_is_an_error_of_the_task(data, error, what):
    ledger = Ledger([Task("a", pow)], attempts=3)
    ledger.begun("x")
    assert list(ledger.ended("x", work(data))) == []
    with pytest.raises(error, match=what):
        ledger.check()


def test_wrong_requests():
    with pytest.raises(Usage, match="at least 1"):
        sweep.local(0)
    with pytest.raises(ValueError, match="same key"):
        sweep.run([Task("a", pow), Task("a", pow)], sweep.local(1))
    with pytest.raises(ValueError, match="attempts"):
        sweep.run([], sweep.local(1), attempts=0)
    assert list(sweep.run([], sweep.local(4))) == []


def test_the_record_names_place_workers_and_threads():
    assert sweep.local(3).record() == {"where": "local", "workers": 3, "threads": 1}
    assert sweep.local(None).workers == sweep.cores() >= 1
    assert sweep.dask("tcp://a:1", 5).record() == {"where": "dask", "address": "tcp://a:1", "workers": 5, "threads": 1}
    assert sweep.ray("auto").record() == {"where": "ray", "address": "auto", "workers": None, "threads": 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_shares_of_running_tasks(workers, tmp_path):
    pulses = []
    list(sweep.run([Task("a", sweep_tasks.tick, (str(tmp_path / "a.share"),))], sweep.local(workers), pulse=lambda: pulses.append(1)))
    assert sweep.shares(tmp_path) == {"a": 0.25}
    assert pulses
    (tmp_path / "b.share").write_text("")  # just being written
    assert sweep.shares(tmp_path) == {"a": 0.25}


def test_importing_it_is_cheap():
    code = "import sys, gradoscope.sweep; print([name for name in ('torch', 'numpy', 'joblib', 'dask', 'ray') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout == "[]\n"
