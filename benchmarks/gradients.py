"""What a gradient estimate costs, in forces, time and memory, and how far it is from the exact gradient.

    python benchmarks/gradients.py                         # both sizes; about fifteen minutes on two quiet cores
    python benchmarks/gradients.py reference               # the smaller size only
    python benchmarks/gradients.py big --estimator bptt800 --estimator "adjoint:t1=80,steps=80@eps=0.5"

Each estimator is a process of its own. In it the estimate and plain forces on the same batch are timed in turn, and
`time` is the ratio of the medians: processor time, which other processes do not add to, in units of one force; `s` are
seconds by the clock. `counted` is what the estimator says it took, in the same unit; the rest of the time went into
losses, parameter gradients, vectors and factorisations. `MiB above` is the peak of the resident set above that of a
process which only evaluates forces, `GiB whole` that of the whole process. `residual` and `adjoint` are the force
residual and that of the adjoint equation, the worst sample's. `error` is the relative distance of all parameters'
gradients from the adjoint by substitution over tokens, at the root or (big size) after 600 steps; `cosine` is that of
their angle: an estimate that is short on purpose, as phantom is, can only be judged by it. Marks are the estimate's.

The peer is torchdeq's implicit gradient (Geng and Kolter, arXiv:2310.18605; `pip install torchdeq`) on the same block,
for its natural map z <- z + F(z)/(1 + c), with its own solvers in both directions. Where its forward pass ends above a
force residual of 1e-4 it has not converged, and the table says so instead of giving ratios. Ours relax with eps = 0.1,
a fifth of that map's step; for an equal job on an equal map, `@eps=0.5` after a spec sets the step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dyneq.dynamics.residuals import residuals
from dyneq.errors import DyneqError
from dyneq.gradients.base import Gradient, Grouped, ParameterList
from dyneq.gradients.registry import parse
from dyneq.systems.block import BoundBlock
from dyneq.systems.thick import ThickBlock, ThickConfig

#: At the big size Newton over tokens would take many minutes.
EXACT = {
    "reference": "adjoint:solver=substitution,at=root",
    "big": "adjoint:solver=substitution,t1=600",
}
SIZES = {
    "reference": {"channels": 64, "heads": 4, "tokens": 32, "samples": 16, "dtype": torch.float64},
    "big": {"channels": 512, "heads": 16, "tokens": 256, "samples": 2, "dtype": torch.float32},
}
#: With repeats; what takes minutes at the big size is left out there, or given fewer steps, which the name says.
ESTIMATORS = {
    "reference": [
        ("bptt60", 5),
        ("bptt400", 3),
        ("tbpte10", 5),
        ("phantom5", 5),
        ("adjoint", 5),
        ("adjoint:solver=gmres,t1_tol=1e-6", 5),
        ("adjoint:t1=80,steps=80@eps=0.5", 5),
        ("adjoint:solver=substitution,t1_tol=1e-6", 3),
        (EXACT["reference"], 1),
        ("fa", 5),
        ("ep", 3),
        ("aep", 3),
        ("holo4", 3),
        ("track", 3),
        ("lockin", 1),
        ("dyadic", 3),
    ],
    "big": [
        ("bptt60", 1),
        ("bptt800", 1),
        ("tbpte10", 3),
        ("phantom5", 3),
        ("adjoint", 3),
        ("adjoint:solver=gmres,t1_tol=1e-4,tol=1e-5", 1),
        ("adjoint:t1=60,steps=60@eps=0.5", 1),
        (EXACT["big"], 1),
        ("aep:t2=40", 1),
        ("track:t2=40", 1),
        ("dyadic", 1),
    ],
}
PEERS = {
    "torchdeq anderson": {"f_solver": "anderson", "b_solver": "anderson"},
    "torchdeq broyden": {"f_solver": "broyden", "b_solver": "broyden"},
    "torchdeq fixed point": {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter"},
}
#: Force residual above which a forward pass of the peer counts as not converged.
CONVERGED = 1e-4


def problem(size: str) -> BoundBlock:
    """Return a bound block of random weights; tanh GELU."""
    s = SIZES[size]
    generator = torch.Generator().manual_seed(1)
    config = ThickConfig(vocabulary=256, channels=s["channels"], heads=s["heads"], tokens=s["tokens"], gelu="tanh")
    block = ThickBlock(config, generator).to(s["dtype"])
    text = torch.randint(0, 256, (s["samples"], s["tokens"] + 1), generator=generator)
    return block.bind(text[:, :-1].contiguous(), text[:, 1:].contiguous())


def status_mib(field: str) -> float:
    """Return a figure of this process's memory; getrusage would report the parent's peak if that was larger."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status names no {field}; peak memory can be measured on Linux only")


@torch.no_grad()
def forces(system: BoundBlock, count: int) -> list[float]:
    """Return the processor seconds of each of ``count`` plain forces."""
    z, seconds = system.initial_state(), []
    for _ in range(count):
        begun = time.process_time()
        system.force(z)
        seconds.append(time.process_time() - begun)
    return seconds


def implicit(system: BoundBlock, options: dict[str, str]) -> Callable[[], tuple[Gradient, str]]:
    """Return a call that takes torchdeq's implicit gradient, as one of ours, and what its solvers did."""
    try:
        import torchdeq
    except ImportError:
        raise DyneqError(
            "torchdeq is not installed, so there is no peer to compare with; pip install torchdeq"
        ) from None
    single = system.initial_state().dtype == torch.float32
    deq = torchdeq.get_deq(
        **options,
        ift=True,
        f_max_iter=200,
        b_max_iter=200,
        f_tol=1e-5 if single else 1e-7,
        b_tol=1e-5 if single else 1e-8,
        f_stop_mode="rel",
        b_stop_mode="rel",
    )
    calls = [0]
    step = 1 / (1 + system.block.config.damping)

    def functor(z: Tensor) -> Tensor:
        calls[0] += 1
        return z + step * system.force(z)

    def call() -> tuple[Gradient, str]:
        calls[0] = 0
        parameters = ParameterList(system)
        states, info = deq(functor, system.initial_state().detach())
        z = states[-1]
        # its solvers hold absolute constants against the loss gradient: the sum gives it the size they are made for
        scale = system.tokens.numel()
        parameters.add(system.loss(z).mean() * scale)
        for i, total in enumerate(parameters.totals):
            parameters.totals[i] = None if total is None else total / scale
        with torch.no_grad():
            residual = residuals(system, z.detach()).force
        steps = int(info["nstep"].max())
        found = Gradient(parameters.grouped(), z.detach(), system.loss(z.detach()), {"force_residual": residual})
        return found, f"{steps} forward steps"

    return call


def flat(grouped: Grouped) -> Tensor:
    """Return all parameters' gradients as one vector, float64."""
    return torch.cat([p.double().flatten() for members in grouped.values() for p in members.values()])


def one(size: str, spec: str, repeats: int, exact: str) -> dict[str, object]:
    """Measure one estimator in this process."""
    spec, _, eps = spec.partition("@eps=")
    system = problem(size)
    if eps:
        system = system.with_eps(float(eps))
    forces(system, 5)
    floor = status_mib("VmHWM")
    if spec == "floor":
        return {"floor": floor}
    note = ""
    if spec in PEERS:
        peer = implicit(system, PEERS[spec])
    else:
        estimator = parse(spec)
        peer = lambda: (estimator.gradient(system), "")  # noqa: E731
    plain, own, clock = [], [], []
    for _ in range(repeats):
        plain += forces(system, 10)
        begun, begun_clock = time.process_time(), time.perf_counter()
        found, note = peer()
        own.append(time.process_time() - begun)
        clock.append(time.perf_counter() - begun_clock)
    plain += forces(system, 10)
    peak = status_mib("VmHWM")
    gradient = flat(found.parameters)
    if spec == EXACT[size]:
        torch.save(gradient, exact)
    true = torch.load(exact, weights_only=True) if Path(exact).exists() else torch.full_like(gradient, torch.nan)
    norm = torch.linalg.vector_norm
    diagnostics = {name: float(value.max()) for name, value in found.diagnostics.items()}
    return {
        "forces": statistics.median(own) / statistics.median(plain),
        "force_ms": 1e3 * statistics.median(plain),
        "seconds": statistics.median(clock),
        "counted": found.cost,
        "above": peak - floor,
        "peak": peak,
        "error": float(norm(gradient - true) / norm(true)),
        "cosine": float(gradient @ true / norm(gradient) / norm(true)),
        "force_residual": diagnostics["force_residual"],
        "adjoint_residual": diagnostics.get("adjoint_residual", float("nan")),
        "marks": [mark.name for mark in found.marks],
        "note": note,
    }


def measure(size: str, spec: str, repeats: int, exact: Path) -> dict[str, object] | str:
    """Return what a fresh process measures, or the sentence it ends with."""
    command = [sys.executable, __file__, "--one", size, spec, str(repeats), str(exact)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def table(size: str, specs: list[tuple[str, int]], folder: Path) -> None:
    """Print the table of one size."""
    s, exact = SIZES[size], folder / f"{size}.pt"
    truth = measure(size, EXACT[size], 1, exact)
    print(
        f"{size}: C={s['channels']} H={s['heads']} T={s['tokens']} B={s['samples']} {str(s['dtype'])[6:]}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    if isinstance(truth, str):
        print(f"  no exact gradient to compare with: {truth}")
    else:
        print(f"  one force takes {truth['force_ms']:.2f} ms; its process {truth['peak'] - truth['above']:.0f} MiB")  # type: ignore[operator]
    print(
        f"  {'':42s} {'time':>8s} {'counted':>8s} {'s':>8s} {'MiB above':>9s} {'GiB whole':>9s} {'residual':>9s} "
        f"{'adjoint':>8s} {'error':>8s} {'cosine':>8s}  marks"
    )
    for spec, repeats in [*specs, *((name, 3) for name in PEERS)]:
        found = truth if spec == EXACT[size] else measure(size, spec, repeats, exact)
        if isinstance(found, str):
            print(f"  {spec:42s} {found}", flush=True)
            continue
        start = f"  {spec:42s}"
        if spec in PEERS and not found["force_residual"] <= CONVERGED:  # type: ignore[operator]
            print(
                f"{start} did not converge: force residual {found['force_residual']:.1e}, {found['note']}", flush=True
            )
            continue
        counted = f"{found['counted']:8.0f}" if found["counted"] is not None else f"{'':8s}"
        print(
            f"{start} {found['forces']:8.1f} {counted} {found['seconds']:8.2f} {found['above']:9.0f} "
            f"{found['peak'] / 1024:9.2f} {found['force_residual']:9.1e} {found['adjoint_residual']:8.1e} "  # type: ignore[operator]
            f"{found['error']:8.1e} {found['cosine']:8.5f}  {', '.join(found['marks'])} {found['note']}",  # type: ignore[arg-type]
            flush=True,
        )


def main() -> None:
    """Print the tables of the sizes named, both if none is."""
    if sys.argv[1:2] == ["--one"]:
        size, spec, repeats, exact = sys.argv[2:]
        try:
            print(json.dumps(one(size, spec, int(repeats), exact)))
        except DyneqError as error:
            sys.exit(str(error))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", help=f"out of {', '.join(SIZES)}; both if none is named")
    parser.add_argument("--estimator", action="append", default=[], help="spec to measure; repeat it; a list if none")
    arguments = parser.parse_args()
    for size in arguments.sizes or list(SIZES):
        if size not in SIZES:
            parser.error(f"there is no size {size!r}; known are {', '.join(SIZES)}")
        with tempfile.TemporaryDirectory() as folder:
            specs = [(spec, 1) for spec in arguments.estimator] or ESTIMATORS[size]
            table(size, specs, Path(folder))


if __name__ == "__main__":
    main()
