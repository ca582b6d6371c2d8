"""What a spectrum costs, as ratios taken in one run: products against forces, token Krylov spaces against ARPACK.

    python benchmarks/spectrum.py            # both sizes; about ten minutes on two cores
    python benchmarks/spectrum.py reference  # the size of the packaged checkpoints only

(a) one product with the Jacobian over one force evaluation: medians of interleaved runs;
(b) the leading pairs of every sample and token, with residual, left vector and condition, against SciPy's ARPACK asked
    for k=6 pairs of the whole Jacobian through the same product, and through central differences of the force;
(c) peak resident memory of each, in a process of its own, above that of a process that only evaluates the force.

The weights are random, of the size training gives them; the state is relaxed. ARPACK works on one Krylov space over all
samples at once and knows nothing of tokens.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse.linalg
import torch

from dyneq.dynamics.linearization import Linearization
from dyneq.dynamics.relax import relax
from dyneq.linalg.dense import dense_eigenpairs
from dyneq.linalg.krylov_schur import eigenpairs
from dyneq.linalg.targets import Rightmost
from dyneq.systems.block import BoundBlock
from dyneq.systems.thick import ThickBlock, ThickConfig

SIZES = {
    "big": {"channels": 512, "heads": 16, "tokens": 256, "samples": 2, "dtype": torch.float32, "tol": 1e-5},
    "reference": {"channels": 64, "heads": 4, "tokens": 32, "samples": 16, "dtype": torch.float64, "tol": 1e-8},
}
METHODS = {
    "token": "all token blocks, right pairs",
    "certified": "all token blocks, with left vectors and conditions",
    "lapack": "all token blocks by LAPACK, the default up to 128 channels",
    "arpack": "ARPACK k=6, the same product",
    "differences": "ARPACK k=6, central differences",
}


def problem(size: str, attention: str = "plain") -> tuple[BoundBlock, torch.Tensor]:
    """Return a bound block of random weights and its relaxed state."""
    s = SIZES[size]
    generator = torch.Generator().manual_seed(1)
    config = ThickConfig(
        vocabulary=256, channels=s["channels"], heads=s["heads"], tokens=s["tokens"], attention=attention
    )
    block = ThickBlock(config, generator).to(s["dtype"])
    with torch.no_grad():
        tokens = torch.randint(0, 256, (s["samples"], s["tokens"]), generator=generator)
        system = block.bind(tokens)
        return system, relax(system, 100).z


def interleaved(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each piece of work, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 2):
        for name, call in work.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values[2:]) for name, values in times.items()}


@torch.no_grad()
def products(size: str) -> None:
    """Print part (a)."""
    system, z = problem(size)
    fused = problem(size, "fused")[0]
    v = torch.randn(z.shape, generator=torch.Generator().manual_seed(2), dtype=z.dtype)
    whole, whole_t = system.linearize(z)
    token, token_t = system.linearize_tokens(z)
    work = {
        "force, plain attention": lambda: system.force(z),
        "force, fused attention": lambda: fused.force(z),
        "J v, whole": lambda: whole(v),
        "J^T w, whole": lambda: whole_t(v),
        "J v, token blocks": lambda: token(v),
        "J^T w, token blocks": lambda: token_t(v),
        "torch.func.jvp": lambda: torch.func.jvp(system.force, (z,), (v,)),
    }
    median = interleaved(work, 15)
    plain, quick = median["force, plain attention"], median["force, fused attention"]
    print(f"(a) one product over one force evaluation [{size}]: median of 15, interleaved")
    print(f"    {'':26s} {'ms':>8s}  {'/plain force':>12s}  {'/fused force':>12s}")
    for name, seconds in median.items():
        print(f"    {name:26s} {1e3 * seconds:8.2f}  {seconds / plain:12.2f}  {seconds / quick:12.2f}")


def peak_mib() -> float:
    """Return this process's peak resident memory; getrusage would report that of the parent if it was larger."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status names no VmHWM; peak memory can be measured on Linux only")


@torch.no_grad()
def solve(size: str, method: str) -> dict[str, object]:
    """Run one method of part (b) and return what it found and what it cost."""
    system, z = problem(size)
    linearization = Linearization(system, z)
    tol = SIZES[size]["tol"]
    begun = time.perf_counter()
    if method == "floor":
        values, cost = np.empty(0, dtype=complex), {"products": sum(1 for _ in range(3) if system.force(z) is not None)}
    elif method == "lapack":
        operator = linearization.token_diagonal()
        found = dense_eigenpairs(operator.to_dense(), [Rightmost()], 1)
        values = found.values[:, 0]
        cost = {"products": operator.products, "converged": int(found.converged[:, 0].sum()), "of": operator.batch}
    elif method in ("token", "certified"):
        operator = linearization.token_diagonal()
        generator = torch.Generator().manual_seed(0)
        found = eigenpairs(operator, [Rightmost()], 1, generator=generator, tol=tol, left=method == "certified")
        values = found.values[:, 0]
        cost = {"products": operator.products, "converged": int(found.converged[:, 0].sum()), "of": operator.batch}
        if method == "certified":
            cost["worst_error"] = float(np.nanmax(found.error_bound[:, 0]))
    else:
        count = [0]

        def product(x: np.ndarray) -> np.ndarray:
            count[0] += 1
            v = torch.from_numpy(x.ravel()).view(z.shape).to(z.dtype)
            if method == "arpack":
                return linearization.matvec(v).numpy().ravel()
            # the step that balances truncation and rounding of a central difference
            h = torch.finfo(z.dtype).eps ** (1 / 3) * float(z.norm()) / float(v.norm())
            return ((system.force(z + h * v) - system.force(z - h * v)) / (2 * h)).numpy().ravel()

        n = z.numel()
        operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=product, dtype=z.numpy().dtype)
        start = np.random.default_rng(0).standard_normal(n).astype(z.numpy().dtype)
        try:
            values = scipy.sparse.linalg.eigs(
                operator, k=6, which="LR", tol=tol, v0=start, return_eigenvectors=False, maxiter=60
            )
            lost = 0
        except scipy.sparse.linalg.ArpackNoConvergence as stopped:
            values, lost = stopped.eigenvalues, 6 - len(stopped.eigenvalues)
        cost = {"products": count[0], "converged": 6 - lost, "of": 6}
    seconds = time.perf_counter() - begun
    top = sorted(values[~np.isnan(values)], key=lambda mu: (-mu.real, -mu.imag))[:12]
    return {"seconds": seconds, "MiB": peak_mib(), "top": [[float(mu.real), float(mu.imag)] for mu in top], **cost}


def spectra(size: str) -> None:
    """Print parts (b) and (c): each method in a process of its own, three times, interleaved."""
    # LAPACK on 512 blocks of 512 channels would take many minutes
    methods = {m: text for m, text in METHODS.items() if m != "lapack" or SIZES[size]["channels"] <= 128}
    runs: dict[str, list[dict[str, object]]] = {m: [] for m in ("floor", *methods)}
    for _ in range(3 if size == "reference" else 1):
        for method in runs:
            done = subprocess.run(
                [sys.executable, __file__, "--one", size, method], capture_output=True, text=True, check=True
            )
            runs[method].append(json.loads(done.stdout))
    median = {m: statistics.median(float(r["seconds"]) for r in runs[m]) for m in methods}  # type: ignore[arg-type]
    print(f"(b, c) leading pairs, rightmost first [{size}]: seconds, and how many times slower than the token method")
    print(f"    {'':60s} {'s':>8s} {'ratio':>6s} {'products':>9s} {'converged':>12s} {'MiB':>6s}")
    floor = float(runs["floor"][0]["MiB"])  # type: ignore[arg-type]
    for method, text in methods.items():
        run = runs[method][0]
        print(
            f"    {text:60s} {median[method]:8.2f} {median[method] / median['certified']:6.2f} {run['products']:9d} "
            f"{run['converged']:>5d} of {run['of']:>4d} {run['MiB'] - floor:6.0f}"
        )
    ours = np.array([complex(*mu) for mu in runs["certified"][0]["top"]])  # type: ignore[union-attr]
    print(
        f"    largest estimated error (condition x residual) of a token pair: {runs['certified'][0]['worst_error']:.1e}"
    )
    for method in ("arpack", "differences"):
        theirs = np.array([complex(*mu) for mu in runs[method][0]["top"]])  # type: ignore[union-attr]
        if len(theirs):
            upper = [mu for mu in theirs if mu.imag >= 0]
            gap = max(float(np.abs(ours - mu).min()) for mu in upper)
            print(f"    {METHODS[method]}: {len(theirs)} pairs, largest distance to the nearest token pair {gap:.1e}")


def main() -> None:
    """Print the tables of the sizes named, both if none is."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(solve(sys.argv[2], sys.argv[3])))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in sys.argv[1:] or ["reference", "big"]:
        if size not in SIZES:
            sys.exit(f"there is no size {size!r}; known are {', '.join(SIZES)}")
        products(size)
        spectra(size)


if __name__ == "__main__":
    main()
