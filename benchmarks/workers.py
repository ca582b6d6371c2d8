"""How much sooner two workers finish a sweep than one, and whether they find the same.

    python benchmarks/workers.py             # about eight minutes on two idle cores
    python benchmarks/workers.py --repeats 1

A sweep is `dyneq run` as a user calls it, in a process of its own: 4 packaged checkpoints x 8 seeds, 32 spectra of
two to three seconds each, into a fresh store. Sweeps with 1 and with 2 workers take turns. `whole` is the time of the
command from its start to its end; `tasks` is what the tasks took, summed over them and divided by the workers; `around`
is the rest: the interpreter, the imports, the start of the workers, the last task when the other worker has none left.
Two sweeps found the same if every array of every result is the same byte for byte, except `seconds`, which is a time.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xarray as xr

CHECKPOINTS = ("after", "before", "bptt-twin", "converges")
SEEDS = 8
SETTINGS = ("--batch", "32")
PROBE = "spectrum:depth=[200],seed={seed}"


def sweep(workers: int, store: Path) -> dict[str, float]:
    """Run one sweep and return its times in seconds: whole, tasks, around."""
    probes = [PROBE.format(seed=seed) for seed in range(SEEDS)]
    chosen = [part for name in CHECKPOINTS for part in ("--checkpoint", name)]
    command = [sys.executable, "-m", "dyneq", "run", *probes, *chosen, *SETTINGS, "--workers", str(workers), "--json"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DYNEQ_")}
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, "--store", str(store)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    whole = time.perf_counter() - begun
    results = json.loads(done.stdout)["results"]
    if len(results) != len(CHECKPOINTS) * SEEDS or any(r["status"] != "computed" for r in results):
        sys.exit(f"every one of {len(CHECKPOINTS) * SEEDS} tasks should have been computed, but: {done.stdout}")
    tasks = sum(r["seconds"] for r in results) / workers
    return {"whole": whole, "tasks": tasks, "around": whole - tasks}


def digest(store: Path) -> str:
    """Return a digest of all arrays of all results of a store; the folder of a result names what was asked for."""
    total = hashlib.sha256()
    folders = sorted((store / "results" / "spectrum").iterdir())
    assert len(folders) == len(CHECKPOINTS) * SEEDS
    for folder in folders:
        total.update(folder.name.encode())
        with xr.open_zarr(folder / "data.zarr", consolidated=False) as ds:
            for name in sorted(map(str, ds.variables)):
                if name != "seconds":
                    values = ds[name].values
                    text = values.dtype == object or values.dtype.kind == "T"
                    total.update(f"{name} {values.dtype} {values.shape}".encode())
                    total.update(repr(values.tolist()).encode() if text else values.tobytes())
    return total.hexdigest()


def main() -> None:
    """Print a line for every sweep, then medians, their ratio, and whether all found the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="sweeps with each number of workers (default: 3)")
    repeats = parser.parse_args().repeats
    cores = len(os.sched_getaffinity(0))
    print(f"{len(CHECKPOINTS)} checkpoints x {SEEDS} seeds on {cores} cores, load before {os.getloadavg()[0]:.1f}")
    print(f"{'workers':>7s} {'whole s':>8s} {'tasks s':>8s} {'around s':>8s}")
    times: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    digests = set()
    for _ in range(repeats):
        for workers, runs in times.items():
            with tempfile.TemporaryDirectory() as folder:
                runs.append(sweep(workers, Path(folder)))
                digests.add(digest(Path(folder)))
            print(f"{workers:7d} " + " ".join(f"{seconds:8.2f}" for seconds in runs[-1].values()), flush=True)
    median = {w: {part: statistics.median(r[part] for r in runs) for part in runs[0]} for w, runs in times.items()}
    print(f"medians of {repeats}, interleaved:")
    for workers, parts in median.items():
        print(f"{workers:7d} " + " ".join(f"{seconds:8.2f}" for seconds in parts.values()))
    print(f"one worker takes {median[1]['whole'] / median[2]['whole']:.2f} times as long as two (aim: at least 1.8)")
    same = len(digests) == 1
    print(f"results of all {2 * repeats} sweeps the same bit for bit: {'yes' if same else 'NO'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
