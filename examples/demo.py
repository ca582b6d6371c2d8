"""The spectra of the packaged checkpoints at several depths, and the figure: what `make demo` runs.

python examples/demo.py [FOLDER]     # writes FOLDER/spectrum.png, by default demo-output/spectrum.png
"""

import sys
import tempfile
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from dyneq.catalog.resolve import reference_names
from dyneq.cli.main import run
from dyneq.probes.registry import get_probe

DEPTHS = (150, 400, 800)


def main() -> int:
    """Print the tables, write the figure, and return the exit code."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    folder.mkdir(parents=True, exist_ok=True)
    names = reference_names()
    with tempfile.TemporaryDirectory() as scratch:
        depths = [word for depth in DEPTHS for word in ("--depth", str(depth))]
        common = ["--batch", "16", "--count", "4", "--out", f"{scratch}/{{name}}.zarr"]
        code = run(["spectrum", *names, *depths, *common])
        if code:
            return code
        results = {name: xr.open_zarr(f"{scratch}/{name}.zarr", consolidated=False).load() for name in names}
    figure = Figure(figsize=(11, 4.2 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), 2, squeeze=False)
    for axes, (name, ds) in zip(rows, results.items(), strict=True):
        get_probe("spectrum").plot(ds, axes)
        axes[0].set_title(f"{name} (step {ds.attrs['checkpoint_step']}): {axes[0].get_title()}", fontsize=10)
    path = folder / "spectrum.png"
    figure.savefig(path, dpi=110)
    print(f"\nfigure: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
