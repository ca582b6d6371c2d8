"""What an update of a training costs: every gradient against bptt150, and every penalty against the same without it.

    python benchmarks/training.py                        # both tables; about ten minutes on two quiet cores
    python benchmarks/training.py penalties              # one of `gradients` and `penalties`
    python benchmarks/training.py penalties --reg floss:samples=4 --updates 100

The subject is the block of the packaged checkpoint `after` (48 channels, 32 tokens) with the batch of its recipe, 16
samples, in single precision: weights at which samples do not settle, so that the penalties have something to do. Each
row is a process of its own, in which the updates of two trainers are timed in turn: the row's and that of the peer.
`time` is the ratio of their processor times, which other processes do not add to, summed over all updates, so that a
penalty that applies in every K-th is amortised; the number behind it is half the range of that ratio over quarters of
the run. `MiB above` is the peak of the resident set above that of a process which holds the block and evaluates forces.

`torchdeq` trains the same block by its implicit gradient (`pip install torchdeq`; Anderson's method both ways, with the
options of benchmarks/gradients.py), for its natural map; `residual` is the worst force residual its forward pass left.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from gradients import PEERS, forces, implicit, status_mib

import dyneq
from dyneq.errors import DyneqError
from dyneq.gradients.base import Gradient
from dyneq.systems.block import BoundBlock
from dyneq.train.data import load_corpus
from dyneq.train.recipe import load_recipe
from dyneq.train.trainer import Trainer

GRADIENTS = [
    "bptt60",
    "bptt400",
    "adjoint",
    "adjoint:solver=gmres,tol=1e-5",
    "ep",
    "aep",
    "track",
    "holo4",
    "lockin",
    "dyadic",
    "fa",
    "phantom5",
    "tbpte10",
    *PEERS,
]
PENALTIES = [
    ["resreg"],
    ["floss"],
    ["floss:tangents=1"],
    ["spectral"],
    ["spectral:form=total"],
    ["jacreg"],
    ["resreg", "jacreg"],
    ["resreg", "floss", "spectral", "jacreg"],
]


class Peer:
    """torchdeq's implicit gradient as an estimator."""

    def __init__(self, name: str) -> None:
        self.name, self.options = name, PEERS[name]

    def gradient(self, system: BoundBlock) -> Gradient:
        """Return its gradient."""
        return implicit(system, self.options)()[0]


def trainer(gradient: str, penalties: list[str]) -> Trainer:
    """Return a trainer at the weights of `after`."""
    named = "adjoint" if gradient in PEERS else gradient
    recipe = load_recipe("reference", [f"gradient={named}", "run.snapshots=[]"], penalties)
    made = Trainer(recipe, load_corpus(recipe.data.corpus, None, recipe.data.validation))
    made.block.load_state_dict(dyneq.open_checkpoint("after").checkpoint.block.state_dict())
    if gradient in PEERS:
        made.task.estimator = Peer(gradient)
    return made


def one(gradient: str, penalties: list[str], peer: str, updates: int) -> dict[str, object]:
    """Measure one row in this process; weights are put back after every update, so that all are of the same block."""
    own, other = trainer(gradient, penalties), trainer(peer, [])
    start = {k: v.clone() for k, v in own.block.state_dict().items()}
    forces(own.block.bind(own.evaluation.tokens, own.evaluation.targets), 5)
    floor = status_mib("VmHWM")
    own.update()
    peak = status_mib("VmHWM")
    other.update()
    mine, theirs, residual = [], [], 0.0
    for _ in range(updates):
        for which, seconds in ((own, mine), (other, theirs)):
            which.block.load_state_dict(start)
            begun = time.process_time()
            record = which.update()
            seconds.append(time.process_time() - begun)
            if which is own:
                residual = max(residual, float(record["force_residual_max"]))
    quarter = max(1, updates // 4)
    parts = [sum(mine[i : i + quarter]) / sum(theirs[i : i + quarter]) for i in range(0, updates, quarter)]
    return {
        "ratio": sum(mine) / sum(theirs),
        "range": (max(parts) - min(parts)) / 2,
        "seconds": statistics.median(mine),
        "above": peak - floor,
        "residual": residual,
    }


def row(gradient: str, penalties: list[str], peer: str, updates: int) -> None:
    """Print what a fresh process measures."""
    name = " + ".join(penalties) or gradient
    command = [sys.executable, __file__, "--one", json.dumps([gradient, penalties, peer, updates])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  {name:42s} {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}", flush=True)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"  {name:42s} {found['ratio']:8.3f} +- {found['range']:5.3f} {1e3 * found['seconds']:9.0f} "
        f"{found['above']:9.0f} {found['residual']:9.1e}",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    if sys.argv[1:2] == ["--one"]:
        try:
            print(json.dumps(one(*json.loads(sys.argv[2]))))
        except DyneqError as error:
            sys.exit(str(error))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="gradients or penalties; both if none is named")
    parser.add_argument("--gradient", action="append", default=[], help="a row of the first table; repeat it")
    parser.add_argument("--reg", action="append", default=[], help="a row of the second; several joined by +")
    parser.add_argument("--base", default="adjoint", help="gradient of the second table")
    parser.add_argument("--updates", type=int, default=40, help="updates timed for each of the two in a row")
    given = parser.parse_args()
    tables = given.tables or ["gradients", "penalties"]
    for table in tables:
        if table not in ("gradients", "penalties"):
            parser.error(f"there is no table {table!r}; known are gradients and penalties")
    header = f"  {'':42s} {'time':>8s} {'':8s} {'ms/update':>9s} {'MiB above':>9s} {'residual':>9s}"
    print(f"C=48 H=4 T=32 B=16 float32, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "gradients" in tables:
        print(f"update by gradient, against bptt150\n{header}", flush=True)
        for gradient in given.gradient or ["bptt150", *GRADIENTS]:
            row(gradient, [], "bptt150", max(4, given.updates // 4))
    if "penalties" in tables:
        print(f"update with penalties, against {given.base} without\n{header}", flush=True)
        for specs in [spec.split("+") for spec in given.reg] or PENALTIES:
            row(given.base, specs, given.base, given.updates)


if __name__ == "__main__":
    main()
