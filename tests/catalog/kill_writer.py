"""A process that forks writers and kills them: told what to do line by line on its standard input.

It imports what writers need, once, and never runs zarr itself: forking beside zarr's event loop is not safe.
"""

import contextlib
import importlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from dyneq.catalog import results, zarr_io
from dyneq.catalog.entries import Content, Place, Record, change_record, change_tags
from dyneq.catalog.gc import collect
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.request import Request
from dyneq.catalog.store import Store
from dyneq.catalog.verify import verify

#: Files whose every line is a point to crash at.
TRACED = {"files.py", "store.py", "results.py", "rebuild.py", "entries.py", "index.py", "gc.py", "locks.py"}


def request(number: int) -> Request:
    return Request(f"{number:064x}", "spectrum", 1, {"number": number}, 4, 0.1, "float64", "cpu")


def dataset(number: int, salt: str) -> xr.Dataset:
    rng = np.random.default_rng([number, *salt.encode()])
    mu = rng.normal(size=(2, 3)) + 1j * rng.normal(size=(2, 3))
    mu[0, 0] = complex(-0.0, np.nan)
    return xr.Dataset(
        {"mu": (("sample", "mode"), mu, {"units": "days since 2000-01-01"}), "zero": ("sample", np.zeros(2))},
        coords={"label": ("sample", np.array(["", f"é{number}"], dtype=object))},
        attrs={"number": number, "salt": salt, "status": "ok", "duration_s": 0.5},
    )


def sha(number: int) -> str:
    return f"{number:064x}"


def record(number: int, run: str = "") -> Record:
    content = Content(number, "thick", 4, 0.1, 10, {"validation_loss": 2.5}, {"kind": "thick"}, {})
    place = Place(run, f"step-{number}", f"../runs/{number}.pt", False, "2026-01-01", "unknown", "2026-01-02")
    return Record(sha(number), content, (place,))


def add_place(store: Store, number: int, run: str) -> None:
    new = record(number, run)
    change_record(store, new.sha256, lambda present: new if present is None else present.at(new.places[0]))


def write_until_killed(root: str, acks: str, seed: int, stop: str | None = None) -> None:
    """Do what writers and maintainers do, in random order, noting in ``acks`` what was acknowledged."""
    rng = random.Random(seed)
    handle = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    store = Store(root)
    while stop is None or not os.path.exists(stop):
        deed = rng.choices(
            ["new", "shared", "force", "place", "tag", "rebuild", "verify", "gc"], [8, 6, 3, 3, 3, 1, 1, 1]
        )[0]
        done: dict[str, object] = {"deed": deed}
        salt = uuid.uuid4().hex
        if deed in ("new", "shared", "force"):
            number = rng.randrange(10**9) if deed == "new" else rng.randrange(20)
            stored = results.put(store, request(number), dataset(number, salt), name=str(number), force=deed == "force")
            done |= {"number": number, "id": stored.id, "salt": salt if deed == "force" else None}
        elif deed == "place":
            number, run = rng.randrange(5), f"run-{salt[:8]}"
            add_place(store, number, run)
            done |= {"number": number, "run": run}
        elif deed == "tag":
            number = rng.randrange(5)
            add_place(store, number, "")
            change_tags(store, sha(number), [f"tag-{salt[:8]}"], [])
            done |= {"number": number, "tag": f"tag-{salt[:8]}"}
        elif deed == "rebuild":
            done["left_out"] = rebuild(store).left_out
        elif deed == "verify":
            found = verify(store).problems
            # the checkpoints of these records are made up, so their files cannot be read
            done["problems"] = [p for p in found if "cannot be read at" not in p]
        else:
            collect(store)
        os.write(handle, json.dumps(done).encode() + b"\n")
        os.fsync(handle)


def fast_writes(template: str) -> None:
    """Let results be written as copies of one folder: where zarr is killed is of no account, it writes to a draft."""

    def write(ds: xr.Dataset, target: Path) -> None:
        shutil.copytree(template, target)

    zarr_io.write_zarr = write


def crash_at(point: int) -> None:
    """Kill this process before the ``point``-th line that it runs of the files traced."""
    left = point

    def trace(frame, event, argument):
        nonlocal left
        name = frame.f_code.co_filename
        if "dyneq" not in name or os.path.basename(name) not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def deed(kind: str, root: str) -> None:
    """Do one thing to a store that can be interrupted."""
    store = Store(root)
    if kind == "put":
        results.put(store, request(1), dataset(1, "a"), name="one")
    elif kind == "force":
        results.put(store, request(0), dataset(0, "b"), name="zero", force=True)
    elif kind == "record":
        change_record(store, sha(0), lambda present: replace(present, tags=present.tags | {"new"}))
    elif kind == "gc":
        collect(store, missing=True)
    elif kind == "only-if-missing":
        rebuild(store, only_if_missing=True)
    else:
        rebuild(store)


def fork(work, *arguments) -> int:
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
            sys.settrace(None)
            os._exit(0)
        except BaseException:
            sys.settrace(None)
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return child


def crash(kind: str, root: str, point: int, template: str) -> None:
    fast_writes(template)
    crash_at(point)
    deed(kind, root)


def kill_round(root: str, acks: str, seed: int, writers: int, longest: float) -> list[int]:
    """Run writers and kill each at a random moment; return how each ended, -9 for killed."""
    rng = random.Random(seed)
    begun = time.monotonic()
    ends = {}
    for slot in range(writers):
        child = fork(write_until_killed, root, f"{acks}.{seed}.{slot}", rng.randrange(2**60))
        ends[child] = begun + rng.uniform(0.0, longest)
    for child, end in sorted(ends.items(), key=lambda pair: pair[1]):
        time.sleep(max(0.0, end - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ends]


def as_user(uid: int, name: str, *arguments) -> list:
    """Call one of the functions below as another user; return the kind of the error, if any, and what it gave."""
    reading, writing = os.pipe()

    def work() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        try:
            answer = ["", {"read": read_all, "write": write_one, "maintain": maintain}[name](*arguments)]
        except Exception as error:
            answer = [type(error).__name__, str(error)]
        os.write(writing, json.dumps(answer).encode())

    child = fork(work)
    os.close(writing)
    with open(reading, "rb") as pipe:
        data = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(data)


def read_all(root: str) -> dict[str, list]:
    """Return salt and tags of what a store lists, having read all of it."""
    store = Store(root)
    with store.reading() as index:
        if index is None:
            return {"salts": [], "tags": []}
        rows = index.rows("SELECT probe, id FROM results ORDER BY id")
        tags = [row["tag"] for row in index.rows("SELECT tag FROM tags ORDER BY tag")]
    opened = [results.open_stored(store, row["probe"], row["id"]).open().load() for row in rows]
    return {"salts": sorted(ds.attrs["salt"] for ds in opened), "tags": tags}


def write_one(root: str, number: int) -> str:
    store = Store(root)
    store.require_writable()
    return results.put(store, request(number), dataset(number, "w"), name="w").id


def maintain(root: str, what: str) -> list[str]:
    store = Store(root)
    if what == "verify":
        return verify(store).problems
    return rebuild(store).left_out if what == "rebuild" else collect(store).forgotten


class Driver:
    """The process that forks the writers."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def tell(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answered(self):
        return bool(select.select([self.process.stdout], [], [], 0.02)[0])

    def reply(self):
        return json.loads(self.process.stdout.readline())

    def ask(self, *command):
        self.tell(*command)
        return self.reply()

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


def main() -> None:
    """Answer commands, each a JSON list of a verb and its arguments, with one line of JSON."""
    busy: list[int] = []
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        if verb == "round":
            reply = kill_round(*arguments)
        elif verb == "crash":
            reply = os.waitstatus_to_exitcode(os.waitpid(fork(crash, *arguments), 0)[1])
        elif verb == "template":
            reply = warm_up(Path(arguments[0]))
        elif verb == "as":
            reply = as_user(*arguments)
        elif verb == "start":
            root, acks, stop, writers = arguments
            busy = [fork(write_only, root, f"{acks}.{slot}", slot, stop) for slot in range(writers)]
            reply = len(busy)
        else:
            reply = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in busy]
        print(json.dumps(reply), flush=True)


def warm_up(template: Path) -> int:
    """Write a folder of data in a child, and import what that child had to: the others need not then."""
    known, heard = set(sys.modules), template.with_suffix(".modules")

    def work() -> None:
        zarr_io.write_zarr(dataset(0, "template"), template)
        zarr_io.read_zarr(template).load()
        heard.write_text(json.dumps(sorted(set(sys.modules) - known)))

    ended = os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])
    for name in json.loads(heard.read_text()) if ended == 0 else []:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return ended


def write_only(root: str, acks: str, slot: int, stop: str) -> None:
    """Store one result after another until a file appears."""
    store, number = Store(root), 0
    with open(acks, "a") as file:
        while not os.path.exists(stop):
            number += 1
            unique = 1000 * slot + number
            results.put(store, request(unique), dataset(unique, "w"), name="w")
            print(unique, file=file, flush=True)


if __name__ == "__main__":
    main()
