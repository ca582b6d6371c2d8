"""Fan-out with real processes, a real dask cluster, and, for its bookkeeping, executors that do what a test says."""

import asyncio
import os
import pty
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from unittest import mock

import fanout_tasks
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyneq.catalog import fanout
from dyneq.catalog.cluster import cluster_pool, hand_over
from dyneq.catalog.fanout import Failure, Lane, Pool, TaskDropped, WorkerDied, run_all
from dyneq.catalog.pools import local_pool
from dyneq.errors import DyneqError, UsageError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def answers(function, tasks, pool):
    """Run all tasks and return their results in order; every task must be answered exactly once."""
    got = {}

    def done(index, result):
        assert index not in got
        got[index] = result

    run_all(function, tasks, pool, done=done)
    assert sorted(got) == list(range(len(tasks)))
    return [got[i] for i in range(len(tasks))]


@pytest.fixture(scope="module")
def here():
    with local_pool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs="CRITICAL"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def there(cluster):
    with cluster_pool(cluster.scheduler_address) as pool:
        assert pool.notices == []
        yield pool


@pytest.fixture(params=["here", "there"])
def pool(request):
    """Either kind of pool: what holds for one holds for the other."""
    return request.getfixturevalue(request.param)


# --- what tasks do --------------------------------------------------------------------------------------------------


def test_every_kind_of_task_gets_its_own_answer(pool):
    tasks = [
        ("square", 3),
        ("raise", 1),
        ("dyneq", 7),
        ("picky", 2),
        ("unprintable", 0),
        ("leave", 4),
        ("lambda", 0),
        ("unreadable", 0),
        (lambda: 0, 0),
        ("square", 5),
    ]
    got = answers(fanout_tasks.act, tasks, pool)
    assert (got[0], got[9]) == (9, 25)
    assert {failure.kind for failure in got[1:9]} == {"raised"}
    sentences = [failure.sentence for failure in got[1:9]]
    assert sentences[:5] == [
        "ValueError: bad number 1",
        "the number 7 should be even; give another",
        "Picky: 2 and 2",
        "Unprintable",
        "SystemExit: 4",
    ]
    assert sentences[5].startswith("the value cannot be sent back (AttributeError")
    assert sentences[6] == "the answer cannot be read (ValueError: not to be read)"
    assert sentences[7].startswith("the task cannot be sent to a worker (AttributeError")


def test_a_task_that_kills_its_worker_fails_alone(here):
    tasks = [("kill", i) if i in (2, 17) else ("exit", i) if i == 9 else ("square", i) for i in range(20)]
    got = answers(fanout_tasks.act, tasks, here)
    assert [got[i] for i in range(20) if i not in (2, 9, 17)] == [i * i for i in range(20) if i not in (2, 9, 17)]
    assert {got[i].kind for i in (2, 9, 17)} == {"died"}
    assert got[2].sentence == got[17].sentence
    assert got[2].sentence == "no answer, also with nothing else running: its process was ended by SIGKILL"
    assert got[9].sentence.endswith("its process ended by itself with exit code 3")


def test_a_task_that_kills_the_workers_of_a_cluster_fails_alone(there):
    got = answers(fanout_tasks.act, [("square", 1), ("kill", 0), ("square", 2)], there)
    assert [got[0], got[2]] == [1, 4]
    assert got[1] == Failure("died", "no answer, also with nothing else running: 4 workers died of it")


def test_an_answer_counts_although_its_task_is_pending_again():
    """The worker that held it has died after it was fetched and before anyone asked how its task stands."""

    class Recomputed:
        status = "pending"

        def __init__(self, got):
            self.got = got

        async def _result(self, raiseit):
            if isinstance(self.got, BaseException):
                raise self.got
            return self.got

    def handed(got):
        future = Future()
        asyncio.run(hand_over(Recomputed(got), future))
        return future

    assert handed(b"answer").result() == b"answer"
    assert handed(b"abc").result() == b"abc"  # as long as the library's own description of an error
    error = OSError("lost")
    assert handed((OSError, error, None)).exception() is error
    assert handed(error).exception() is error
    assert handed(asyncio.CancelledError()).cancelled()
    gone = Future()
    gone.cancel()
    asyncio.run(hand_over(Recomputed(b"late"), gone))
    assert gone.cancelled()


def test_a_task_whose_worker_died_once_is_tried_again(here, tmp_path):
    assert answers(fanout_tasks.once, [tmp_path / "a", tmp_path / "b"], here) == ["alive", "alive"]


def test_the_second_try_has_the_machine_to_itself(here, tmp_path):
    """The victim dies while anything else is at work; both others are at work whenever it is not alone."""
    tasks = [(tmp_path, "victim", 0.2), (tmp_path, "one", 0.3), (tmp_path, "two", 0.3)]
    assert answers(fanout_tasks.alone, tasks, here) == ["victim", "one", "two"]


def test_a_worker_killed_between_two_tasks_costs_nothing(here):
    (pid,) = answers(fanout_tasks.sleep, [0], here)
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert answers(fanout_tasks.identity, [1, 2, 3], here) == [1, 2, 3]


def test_large_tasks_and_answers(pool):
    big = b"x" * 5_000_000
    assert answers(fanout_tasks.identity, [big, b"", big], pool) == [big, b"", big]


def test_a_worker_that_dies_with_a_large_task_on_its_way_to_it_does_not_block(here):
    task = ("exit", b"x" * 5_000_000)
    assert [f.kind for f in answers(fanout_tasks.act, [task, ("square", 2), task], here) if f != 4] == ["died", "died"]


def test_no_tasks(pool):
    assert answers(fanout_tasks.act, [], pool) == []


def test_no_more_processes_than_tasks():
    with local_pool(64) as pool:
        answers(fanout_tasks.identity, [1, 2, 3], pool)
        assert len(processes_of(os.getpid())) <= 3 + 2 + 2  # the workers, those of `here`, the server and its tracker


def test_a_module_to_preload_that_is_not_there_is_skipped(here):
    with local_pool(1, preload=["there_is_no_such_module"]) as pool:
        assert answers(fanout_tasks.act, [("square", 3)], pool) == [9]


def test_both_workers_are_used(pool):
    assert len(set(answers(fanout_tasks.sleep, [0.2] * 4, pool))) == 2


def test_a_sweep_of_100_000_tasks_is_not_submitted_at_once(here):
    taken = []

    class Tasks:
        def __len__(self):
            return 100_000

        def __getitem__(self, index):
            taken.append(index)
            return index

    def done(index, result):
        raise InterruptedError

    with local_pool(2) as mine, pytest.raises(InterruptedError):
        run_all(fanout_tasks.identity, Tasks(), mine, done=done)
    assert len(taken) <= 4


def test_a_function_that_cannot_be_sent_is_an_error(here):
    with pytest.raises(DyneqError, match=r"<lambda> cannot be sent to a worker .*; define it at the top level"):
        run_all(lambda task: task, [1], here, done=pytest.fail)


def test_a_function_that_workers_cannot_import_fails_its_tasks(pool, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def act(task):\n    return task\n")
    if pool.lanes[0].held == 0:  # workers that run already were told where to look before
        answers(fanout_tasks.identity, [0, 0, 0, 0], pool)
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    got = answers(only_here.act, [1, 2], pool)
    assert [f.kind for f in got] == ["raised", "raised"]
    assert got[0].sentence == "the worker cannot load the task (ModuleNotFoundError: No module named 'only_here')"


# --- opening pools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "threads", "what"), [(0, 1, "workers"), (-3, 1, "workers"), (2, 0, "threads")])
def test_a_number_below_one_is_a_usage_error(workers, threads, what):
    with pytest.raises(UsageError, match=f"the number of {what} must be at least 1"), local_pool(workers, threads):
        pass


def test_another_number_of_threads_in_one_process_is_refused(here):
    with pytest.raises(UsageError, match="have 1 threads each, but now 2"), local_pool(1, threads=2):
        pass


def test_more_workers_than_cores_are_noticed(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    with local_pool(2) as pool:
        assert pool.notices == []
    with local_pool(3) as pool:
        assert pool.notices == ["3 workers share the 2 cores of this machine; more than 2 bring no more speed"]


def test_a_cluster_without_dask_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DyneqError, match=r"install dyneq\[dask\]"), cluster_pool("127.0.0.1:1"):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "odd://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer_is_one_sentence(address):
    """In a process of its own: the library logs from threads."""
    done = script(
        f"""
        from dyneq.catalog.cluster import cluster_pool
        from dyneq.errors import DyneqError
        try:
            with cluster_pool({address!r}, timeout=0.5):
                pass
        except DyneqError as error:
            print(error)
        """
    )
    out, err = done.communicate(timeout=20)
    assert err == ""
    assert out.startswith(f"no dask scheduler answers at {address!r} (")
    assert out.count("\n") == 1


def test_what_the_library_says_of_versions_is_one_line(cluster, monkeypatch):
    from distributed import versions

    real = versions.get_versions
    monkeypatch.setattr(
        versions, "get_versions", lambda *a, **k: {**real(*a, **k), "packages": {"toolz": str(time.perf_counter())}}
    )
    with cluster_pool(cluster.scheduler_address) as pool:
        (line,) = pool.notices
    assert line.startswith("Mismatched versions found; Package | Client | Scheduler | Workers; ")
    assert "toolz | " in line
    assert "\n" not in line


# --- ends -----------------------------------------------------------------------------------------------------------


def processes_of(session):
    """Return the ids of the other processes of a session, or those below this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            state, parent, its_session = fields[0], int(fields[1]), int(fields[3])
            if state != "Z" and int(entry.name) != session and session in (its_session, parent):
                found.append(int(entry.name))
    return found


def script(text, **environment):
    """Start Python in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]), **environment},
    )


def until(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


SWEEP = """
    import fanout_tasks
    from dyneq.catalog.fanout import run_all
    from dyneq.catalog.pools import local_pool
    try:
        with local_pool(2) as pool:
            run_all(fanout_tasks.mark, [({path!r}, 60)] * 10, pool, done=print)
    except KeyboardInterrupt:
        print("interrupted")
"""


def marks(path):
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("to_group", [True, False])  # from the keyboard all processes get it, by `kill` only one
def test_an_interrupt_stops_everything_at_once(tmp_path, to_group):
    path = tmp_path / "pids"
    process = script(SWEEP.format(path=str(path)))
    until(lambda: len(marks(path)) == 2, 20)
    assert set(marks(path)) <= set(processes_of(process.pid))
    begun = time.monotonic()
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    until(lambda: not processes_of(process.pid), 1)


def test_an_interrupt_while_workers_are_started_stops_them_too(tmp_path):
    (tmp_path / "slow_to_import.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(1)\n"
    )
    text = SWEEP.replace("local_pool(2)", "local_pool(2, preload=['slow_to_import'])")
    process = script(text.format(path=str(tmp_path / "pids")), PYTHONPATH=f"{tmp_path}:{HERE}:{ROOT}")
    until((tmp_path / "begun").exists, 20)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    until(lambda: not processes_of(process.pid), 3)
    assert marks(tmp_path / "pids") == []


@pytest.mark.slow
def test_an_interrupt_at_any_moment_leaves_nothing_and_says_nothing(tmp_path):
    moments = random.Random(0)
    before = '    print("ready", flush=True)\n'
    for round_ in range(100):
        process = script(SWEEP.format(path=str(tmp_path / str(round_))).replace("    try:", f"{before}    try:"))
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (out, err, process.returncode) == ("interrupted\n", "", 0), round_
        until(lambda pid=process.pid: not processes_of(pid), 2)


@pytest.mark.parametrize("tasks", [10, 1])  # with workers at work, and with one that waits for a task
def test_workers_end_by_themselves_when_the_caller_is_killed(tmp_path, tasks):
    path = tmp_path / "pids"
    text = SWEEP.format(path=str(path)).replace("* 10", f"* {tasks}")
    if tasks == 1:
        text = text.replace(", 60)", ", 0)").replace("done=print)", "done=lambda *_: __import__('time').sleep(60))")
    process = script(text)
    until(lambda: len(marks(path)) == min(tasks, 2), 20)
    process.kill()
    until(lambda: not processes_of(process.pid), 2)
    process.communicate()


def test_an_error_in_the_caller_stops_the_workers(tmp_path):
    def done(index, result):
        raise OSError("no space left")

    with local_pool(2) as pool, pytest.raises(OSError, match="no space left"):
        run_all(fanout_tasks.mark, [(tmp_path / "a", 0.5), (tmp_path / "b", 60), (tmp_path / "b", 60)], pool, done=done)
    assert marks(tmp_path / "b")
    for pid in marks(tmp_path / "b"):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_of_a_run_on_a_cluster_leaves_it_at_once(cluster):
    process = script(
        f"""
        import fanout_tasks
        from dyneq.catalog.fanout import run_all
        from dyneq.catalog.cluster import cluster_pool
        try:
            with cluster_pool({cluster.scheduler_address!r}) as pool:
                run_all(fanout_tasks.sleep, [0] + [3] * 20, pool, done=lambda *_: print("one", flush=True))
        except KeyboardInterrupt:
            print("interrupted")
        """
    )
    assert process.stdout.readline() == "one\n"
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - begun < 2
    assert (out, err) == ("interrupted\n", "")


def test_a_lost_scheduler_ends_the_run_with_one_sentence():
    distributed = pytest.importorskip("distributed")
    seen = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", silence_logs="CRITICAL"
    ) as cluster:

        def done(index, result):
            seen.append(result)
            cluster.close()

        with (
            cluster_pool(cluster.scheduler_address, timeout=0.5) as pool,
            pytest.raises(
                DyneqError, match=r"the connection to the scheduler at 'inproc.*' was lost .*run again to go on"
            ),
        ):
            run_all(fanout_tasks.identity, list(range(100)), pool, done=done)
    assert seen[0] == 0
    assert {result.kind for result in seen if isinstance(result, Failure)} <= {"cancelled"}


def test_a_server_that_cannot_start_is_one_error(tmp_path):
    (tmp_path / "broken_import.py").write_text("raise RuntimeError('broken')\n")
    text = SWEEP.replace("local_pool(2)", "local_pool(2, preload=['broken_import'])")
    text = text.replace("KeyboardInterrupt", "Exception as error").replace('"interrupted"', "error")
    process = script(text.format(path=str(tmp_path / "pids")), PYTHONPATH=f"{tmp_path}:{HERE}:{ROOT}")
    out, _ = process.communicate(timeout=20)
    assert out.startswith("the worker processes cannot be started: ")
    assert out.count("\n") == 1
    until(lambda: not processes_of(process.pid), 1)


def test_a_worker_that_cannot_start_is_one_error(tmp_path):
    """A script without `if __name__ == "__main__"` is run again by each worker, which then refuses to go on."""
    path = tmp_path / "unguarded.py"
    text = SWEEP.format(path=str(tmp_path / "pids")).replace("KeyboardInterrupt", "DyneqError as error")
    path.write_text("from dyneq.errors import DyneqError\n" + textwrap.dedent(text.replace('"interrupted"', "error")))
    process = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])},
    )
    assert process.stdout.startswith("the worker processes cannot be started: the first took no task, its process")
    assert process.stdout.count("\n") == 1


def test_a_pool_that_computes_nothing_does_not_wait_for_imports(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(30)\n")
    text = SWEEP.replace("local_pool(2)", "local_pool(2, preload=['slow_to_import'])").replace("* 10", "* 0")
    begun = time.monotonic()
    process = script(text.format(path=""), PYTHONPATH=f"{tmp_path}:{HERE}:{ROOT}")
    assert process.communicate(timeout=20) == ("", "")  # the server has our standard output: it would keep it open
    assert time.monotonic() - begun < 10


# --- threads --------------------------------------------------------------------------------------------------------


def test_threads_of_workers_and_bits_of_results():
    """The default is one thread, whatever the caller has, and results are the same bits for any number of workers."""
    text = """
        import os, sys
        import fanout_tasks
        from dyneq.catalog.fanout import run_all
        from dyneq.catalog.pools import local_pool
        def all_of(function, tasks, pool):
            got = {}
            run_all(function, tasks, pool, done=got.__setitem__)
            return [got[i] for i in range(len(tasks))]
        before = dict(os.environ)
        with local_pool(1, preload=["torch"]) as one, local_pool(2, preload=["torch"]) as two:
            print(all_of(fanout_tasks.threads, [0], one), all_of(fanout_tasks.threads, [0, 0], two))
            print(all_of(fanout_tasks.sums, range(6), one) == all_of(fanout_tasks.sums, range(6), two))
        print(os.environ == before, "torch" in sys.modules)
    """
    process = script(text, OMP_NUM_THREADS="5")
    out, err = process.communicate(timeout=60)
    one = "(1, '1', '1')"
    assert (out.splitlines(), err) == ([f"[{one}] [{one}, {one}]", "True", "True False"], "")


def test_the_number_of_threads_asked_for_arrives():
    text = """
        import os
        from dyneq.catalog.fanout import run_all
        from dyneq.catalog.pools import local_pool
        with local_pool(1, threads=2) as pool:
            run_all(os.getenv, ["OMP_NUM_THREADS"], pool, done=print)
    """
    out, err = script(text, OMP_NUM_THREADS="5").communicate(timeout=60)
    assert (out, err) == ("0 2\n", "")


# --- bookkeeping, with executors that do what the test says ---------------------------------------------------------

OUTCOMES = ["value", "raise", "victim", "dies", "dropped"]


class World:
    """Fake lanes of given capacities. Nothing finishes before the caller waits; then a random task does."""

    def __init__(self, capacities, seed):
        self.random = random.Random(seed)
        self.flying = {}
        self.tries = Counter()
        self.lanes = [FakeLane(self, capacity) for capacity in capacities]

    def inbox(self):
        world = self

        class Inbox:
            def __init__(self):
                self.queue = SimpleQueue()
                self.put = self.queue.put

            def get(self, timeout):
                while self.queue.empty():
                    world.finish()
                return self.queue.get_nowait()

        return Inbox()

    def finish(self):
        future = self.random.choice(list(self.flying))
        lane, packed = self.flying[future]
        outcome, index = lane.task_of(packed)
        self.tries[index] += 1
        alone = len(self.flying) == 1
        del self.flying[future]
        if outcome == "dies" or (outcome == "victim" and self.tries[index] == 1):
            assert self.tries[index] == 1 or alone
            future.set_exception(WorkerDied("how"))
        elif outcome == "dropped":
            future.set_exception(TaskDropped("by whom"))
        else:
            future.set_result(fanout.answer(packed, 1, ()))


class FakeLane(Lane):
    def __init__(self, world, capacity):
        self.world, self.capacity = world, capacity

    @staticmethod
    def task_of(packed):
        import pickle

        return pickle.loads(packed)[1]

    def free(self):
        return self.held < self.capacity

    def submit(self, packed):
        assert self.free()
        self.held += 1
        future = Future()
        self.world.flying[future] = self, packed
        return future

    def collect(self, future):
        self.held -= 1
        return future.result()

    def kill(self):
        raise AssertionError

    def close(self):
        raise AssertionError


@given(
    st.lists(st.sampled_from(OUTCOMES), max_size=30),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_every_task_is_reported_exactly_once_whatever_fails(outcomes, capacities, seed):
    world = World(capacities, seed)
    tasks = [(outcome, index) for index, outcome in enumerate(outcomes)]
    with mock.patch.object(fanout, "SimpleQueue", world.inbox):
        got = answers(fake_act, tasks, Pool(world.lanes))
    assert not world.flying
    assert [lane.held for lane in world.lanes] == [0] * len(capacities)
    for index, (outcome, result) in enumerate(zip(outcomes, got, strict=True)):
        kind = {"raise": "raised", "dies": "died", "dropped": "cancelled"}.get(outcome)
        assert result == index if kind is None else result.kind == kind
        assert world.tries[index] == (2 if outcome in ("victim", "dies") else 1)


def fake_act(task):
    outcome, index = task
    if outcome == "raise":
        raise ValueError("so it is")
    return index


# --- the display ----------------------------------------------------------------------------------------------------

SHOW = """
import sys
from dyneq.cli.run_display import display
with display(40, {quiet}) as update:
    update(7, 4, 2, 1, "[bold]floss-3@800 spectrum")
print("rich" in sys.modules)
"""


def shown(quiet):
    """Return what a terminal gets on standard error, and what is printed on standard output."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(quiet=quiet)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # Linux says so when the other end is closed
        pass
    os.close(ours)
    return text.decode(), done.stdout


def test_the_display_shows_counts_on_a_terminal():
    text, out = shown(quiet=False)
    for part in ("7/40", "4 computed, 2 found, 1 failed", "left", "[bold]floss-3@800 spectrum"):
        assert part in text
    assert out == "True\n"


def test_the_display_is_quiet_when_asked():
    assert shown(quiet=True) == ("", "False\n")


def test_the_display_needs_a_terminal():
    done = subprocess.run([sys.executable, "-c", SHOW.format(quiet=False)], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("False\n", "")
