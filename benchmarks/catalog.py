"""What listing, naming and selecting cost, above the start of the interpreter, and how that grows with the catalog.

    python benchmarks/catalog.py             # about two minutes
    python benchmarks/catalog.py --sizes 1000 10000 100000 1000000

A size is the number of results; there is one checkpoint for every ten. Records and index are written by the functions
the catalog itself uses, from made-up checkpoints with the recipe and configuration of a real one; only the arrays of
the results are left out, which none of these commands opens. Every command is a process of its own, timed in turn with
`python -c pass`, the floor; the table gives medians, the difference to the floor, and the ratio.
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dyneq.catalog.checkpoints import content_of
from dyneq.catalog.entries import Content, Place, Record, put_record, record_file
from dyneq.catalog.index import Index
from dyneq.catalog.manifest import Manifest
from dyneq.catalog.rebuild import rebuild
from dyneq.catalog.request import Request
from dyneq.catalog.resolve import open_checkpoint
from dyneq.catalog.store import Store

PYTHON = [sys.executable]
FLOOR = [*PYTHON, "-c", "pass"]
PARAMS = {"at": "relaxed", "count": 16, "depth": [800], "method": "auto", "numerical_abscissa": True, "seed": 0}
#: Snapshots a run has.
STEPS = 50


def fill(store: Store, results: int) -> None:
    """Write a store of so many results, and a tenth as many checkpoints."""
    subject = open_checkpoint("after")
    assert subject.checkpoint is not None
    real = content_of(subject.checkpoint, 198_000)
    store.require_writable()
    rebuild(store)
    digests = [hashlib.sha256(f"checkpoint {i}".encode()).hexdigest() for i in range(max(results // 10, 1))]
    with store.writing(), Index(store.index_file) as index, index.transaction():
        for i, digest in enumerate(digests):
            run, step = f"floss-{i // STEPS}", 100 * (i % STEPS)
            held = Content(
                **{**vars(real), "step": step, "metrics": {**real.metrics, "validation_loss": 3.0 - 0.01 * (i % STEPS)}}
            )
            stamp = f"2026-01-{1 + i // 86400:02d}T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.000000+00:00"
            place = Place(
                run, f"step-{step:06d}", f"../runs/{run}/step-{step:06d}.pt", False, stamp, "dyneq train", stamp
            )
            record = Record(digest, held, (place,), frozenset({"baseline"} if i % 100 == 0 else ()))
            record_file(store, digest).write_bytes(record.to_json())
            put_record(index, record)
        for i in range(results):
            request = Request(
                digests[i % len(digests)], "spectrum", 1, {**PARAMS, "seed": i}, 64, 0.1, "float64", "cpu"
            )
            stamp = f"2026-02-{1 + i // 86400:02d}T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.000000+00:00"
            manifest = Manifest(
                f"{request.key[:16]}-1",
                1,
                request,
                "step",
                "floss",
                0,
                "complete",
                stamp,
                1.5,
                {"zarr.json": (100, "0" * 64)},
            )
            index.put("results", manifest.row())


def commands(store: Store, results: int) -> dict[str, list[str]]:
    """Return what is timed, by what it is called in the table."""
    last = max(results // 10, 1) - 1
    name = f"floss-{last // STEPS}@{100 * (last % STEPS)}"
    dyneq = [*PYTHON, "-m", "dyneq"]
    where = ["--store", str(store.root)]
    return {
        "list checkpoints": [*dyneq, "catalog", "list", *where],
        "list all checkpoints": [*dyneq, "catalog", "list", "--limit", "0", *where],
        "resolve run@step": [*dyneq, "catalog", "show", name, *where],
        "select checkpoints": [*dyneq, "catalog", "list", "--select", "run=floss-1 and step>=800 and val<2.9", *where],
        "select by a metric": [*dyneq, "catalog", "list", "--select", "val<2.515 and not tag=baseline", *where],
        "select by the recipe": [
            *dyneq,
            "catalog",
            "list",
            "--select",
            "recipe.optimizer.lr<1e-9 or tag=baseline",
            *where,
        ],
        "list results": [*dyneq, "results", "list", *where],
        "select results": [*dyneq, "results", "list", "--select", "probe=spectrum and run=floss-1 and step=0", *where],
        "list all results": [*dyneq, "results", "list", "--limit", "0", *where],
    }


def seconds(command: list[str]) -> float:
    """Return the time of a process from its start to its end, its output read through a pipe."""
    begun = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Fill stores of the sizes asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"medians of {options.repeats}; floor: `python -c pass`\n")
    print(f"{'results':>9} {'checkpoints':>11}  {'command':<28} {'ms':>7} {'above floor, ms':>16} {'ratio':>7}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            store = Store(Path(scratch) / "store")
            fill(store, size)
            timed = commands(store, size)
            taken: dict[str, list[float]] = {name: [] for name in ("floor", *timed)}
            for command in (FLOOR, *timed.values()):  # files and byte code into the cache
                seconds(command)
            for _ in range(options.repeats):
                taken["floor"].append(seconds(FLOOR))
                for name, command in timed.items():
                    taken[name].append(seconds(command))
        floor = statistics.median(taken["floor"])
        for name in timed:
            median = statistics.median(taken[name])
            above = 1000 * (median - floor)
            line = f"{size:>9} {max(size // 10, 1):>11}  {name:<28} {1000 * median:>7.0f}"
            print(f"{line} {above:>16.0f} {median / floor:>7.1f}")


if __name__ == "__main__":
    main()
