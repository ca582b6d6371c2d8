"""The spectra of the packaged checkpoints, and why one of them does not settle: what `make demo` runs.

python examples/demo.py [FOLDER]     # writes FOLDER/spectrum.png and diagnose.png, by default into demo-output
"""

import sys
import tempfile
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from dyneq.cli.main import run
from dyneq.probes.registry import get_probe

CHECKPOINTS = ("converges", "before", "after", "bptt-twin")
#: The first samples of the pinned 64; enough to hold the one whose fixed point becomes unstable first.
SAMPLES = "24"


def main() -> int:
    """Print the tables and the diagnosis, write the figures, and return the exit code."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--batch", SAMPLES, "--count", "4"]
    with tempfile.TemporaryDirectory() as scratch:
        depths = ["--depth", "150", "--depth", "400", "--depth", "800"]
        code = run(["spectrum", *CHECKPOINTS, *depths, *common, "--out", f"{scratch}/{{name}}.zarr"])
        if not code:
            print("\nThe same at the root that `after` no longer settles on:\n")
            code = run(["spectrum", "after", "--at", "root", *common, "--out", f"{scratch}/root.zarr"])
        if code:
            return code
        rows = {
            "before, relaxed": f"{scratch}/before.zarr",
            "after, relaxed": f"{scratch}/after.zarr",
            "after, at the root": f"{scratch}/root.zarr",
        }
        results = {title: xr.open_zarr(path, consolidated=False).load() for title, path in rows.items()}
    figure = Figure(figsize=(11, 4.2 * len(results)), layout="constrained")
    for axes, (title, ds) in zip(figure.subplots(len(results), 2), results.items(), strict=True):
        get_probe("spectrum").plot(ds, axes)
        axes[0].set_title(f"{title}\n{axes[0].get_title()}", fontsize=10)
    path = folder / "spectrum.png"
    figure.savefig(path, dpi=100)
    print("\nWhy does `after` not settle?\n")
    page = folder / "diagnose.png"
    code = run(["diagnose", "after", "--batch", SAMPLES, "--plot", str(page)])
    print(f"\nfigures: {path}, {page}")
    return code


if __name__ == "__main__":
    sys.exit(main())
