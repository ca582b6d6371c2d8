"""Trains a recipe twice, once killed with SIGKILL at random moments; started by test_resume in a process of its own.

usage: kill_driver.py recipe.toml whole killed seed [kills]
"""

import os
import signal
import sys
import time

import numpy as np
import torch

from dyneq.train.loop import resume, start
from dyneq.train.recipe import load_recipe
from dyneq.train.run_folder import RunFolder


def in_child(recipe: str, folder: str) -> int:
    """Train in a child of this process, which has torch imported already; return the child's id."""
    child = os.fork()
    if child:
        return child
    try:
        if os.path.isdir(folder):
            resume(folder)
        else:
            start(load_recipe(recipe), folder)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def lines(folder: str) -> int:
    """Return how many lines of the log are finished."""
    log = RunFolder(folder).log_file
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main() -> None:
    """Train both ways and print where the kills struck: the number of finished log lines at each."""
    recipe, whole, killed, seed, *further = sys.argv[1:]
    kills = int(further[0]) if further else 6
    torch.set_num_threads(1)
    # what torch imports late, the children need not
    start(load_recipe(recipe, ["run.steps=1", "run.snapshots=[]"]), whole + "-warm-up")
    assert os.waitpid(in_child(recipe, whole), 0)[1] == 0
    rng = np.random.default_rng(int(seed))
    struck = []
    for n in range(kills):
        child = in_child(recipe, killed)
        # somewhere in the n-th part of the run, at a moment that has nothing to do with what it is doing
        target = 0 if n == 0 else rng.integers(6 * n, 6 * n + 6)
        while lines(killed) < target:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        struck.append(lines(killed))
    assert os.waitpid(in_child(recipe, killed), 0)[1] == 0
    print(*struck)


if __name__ == "__main__":
    main()
