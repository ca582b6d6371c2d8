"""Options and output that several commands share."""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from dyneq.catalog.resolve import Subject
    from dyneq.probes.base import Probe, Progress

_COMMON = [
    click.argument("checkpoints", nargs=-1, metavar="[CKPT]..."),
    click.option("--batch", type=int, envvar="DYNEQ_BATCH", help="Samples of the pinned batch to use (default: all)."),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        default=0,
        show_default=True,
        envvar="DYNEQ_SEED",
        help="Seed of all randomness.",
    ),
    click.option("--device", envvar="DYNEQ_DEVICE", help="Torch device (default: cpu)."),
    click.option(
        "--dtype",
        type=click.Choice(["float64", "float32"]),
        envvar="DYNEQ_DTYPE",
        help="Precision (default: float64; float32 is about twice as fast and resolves residuals to 1e-6).",
    ),
    click.option("--eps", type=float, envvar="DYNEQ_EPS", help="Step of the relaxation (default: the checkpoint's)."),
    click.option("--json", "as_json", is_flag=True, envvar="DYNEQ_JSON", help="Print one JSON document."),
    click.option("--out", type=click.Path(path_type=Path), help="Write the dataset: FILE.zarr or FILE.nc."),
    click.option("--plot", type=click.Path(path_type=Path), help="Write the figure: FILE.png, .pdf or .svg."),
    click.option("--trust", is_flag=True, help="Unpickle whatever a checkpoint holds: it can run any code."),
    click.option("--quiet", is_flag=True, envvar="DYNEQ_QUIET", help="No progress on standard error."),
]


def probe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the arguments and options every probe command has."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def run_probe_command(
    name: str,
    params: dict[str, Any],
    common: dict[str, Any],
    show: Callable[["xr.Dataset"], str],
    entries: Callable[["xr.Dataset"], list[dict[str, Any]]],
) -> int:
    """Run one probe over the checkpoints named and print or write what it found.

    Args:
        name: Name of the probe.
        params: Its parameters.
        common: The values of the common options.
        show: Turns a result into the text to print.
        entries: Turns a result into the entries of ``results`` in the JSON document.

    Returns:
        The exit code: 0, or 3 if some of several checkpoints failed.

    Raises:
        DyneqError: If the only checkpoint, or all of them, failed.
    """
    from dyneq.catalog.output import DATASET_SUFFIXES, FIGURE_SUFFIXES, check_target
    from dyneq.catalog.resolve import open_checkpoint, reference_names
    from dyneq.probes.registry import get_probe, make_params

    probe = get_probe(name)
    make_params(probe, params)  # a wrong parameter is an error before anything is opened
    names = list(common["checkpoints"]) or reference_names()
    if not names:
        raise UsageError("no checkpoint was named and none are packaged; name a checkpoint file")
    for option, suffixes in (("out", DATASET_SUFFIXES), ("plot", FIGURE_SUFFIXES)):
        for target in _targets(common[option], names, f"--{option}"):
            check_target(target, suffixes, f"--{option}")
    documents, failures = [], []
    for position, given in enumerate(names):
        try:
            subject = open_checkpoint(given, trust=common["trust"])
            with progress_display(subject.name, common["quiet"]) as progress:
                ds = _measure(probe, subject, params, common, progress)
            if not common["as_json"]:
                if position:
                    click.echo()
                click.echo(show(ds))
            _write(probe, ds, common, names, given)
            held = {key: ds.attrs[key] for key in ("system", "time", "eps", "dtype", "device")}
            documents.append(
                {
                    "checkpoint": subject.identity(),
                    "system": {**held, "samples": ds.sizes["sample"]},
                    "results": plain(entries(ds)),
                    "status": ds.attrs["status"],
                }
            )
        except DyneqError as error:
            if len(names) == 1:
                raise
            failures.append(error)
            click.echo(f"dyneq: {error}", err=True)
            documents.append({"checkpoint": {"name": given}, "results": [], "status": f"failed: {error}"})
    if common["as_json"]:
        shared = {"schema": 1, "command": name, "params": plain(params)}
        body = documents[0] if len(names) == 1 else {"checkpoints": documents}
        click.echo(json.dumps({**shared, **body}, allow_nan=False))
    if failures and len(failures) == len(names):
        raise DyneqError(f"none of the {len(names)} checkpoints could be probed; the reasons are above")
    return 3 if failures else 0


def _measure(
    probe: "Probe", subject: "Subject", params: dict[str, Any], common: dict[str, Any], progress: "Progress"
) -> "xr.Dataset":
    import torch

    from dyneq.probes.registry import run_probe

    dtype = None if common["dtype"] is None else getattr(torch, common["dtype"])
    with torch.no_grad():
        try:
            system = subject.bind(common["batch"], eps=common["eps"], dtype=dtype, device=common["device"])
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"the device {common['device']!r} cannot be used ({_first_line(error)}); choose cpu or another"
            ) from error
    provenance = subject.provenance(common["batch"])
    # what a user's own system raises in mid-run is not a fault of this program: say what it was, without a traceback
    expected: tuple[type[Exception], ...] = (RuntimeError, ArithmeticError, MemoryError)
    if subject.system is not None:
        expected = (Exception,)
    try:
        return run_probe(probe, system, provenance=provenance, progress=progress, **params)
    except DyneqError:
        raise
    except expected as error:
        raise DyneqError(
            f"{subject.name} could not be probed: {type(error).__name__}: {_first_line(error)}; check its force, its "
            "derivatives and the memory at hand"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0].rstrip(".")


def _targets(pattern: Path | None, names: list[str], option: str) -> list[Path]:
    """Return the files to be written, one a checkpoint."""
    if pattern is None:
        return []
    if len(names) == 1:
        return [Path(str(pattern).replace("{name}", _stem(names[0])))]
    if "{name}" not in pattern.name:
        raise UsageError(
            f"{option} {pattern} names one file for {len(names)} checkpoints; put {{name}} into it to write one each"
        )
    targets = [Path(str(pattern).replace("{name}", _stem(n))) for n in names]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{option} {pattern} would write {target} more than once; name checkpoints that differ")
    return targets


def _stem(name: str) -> str:
    """Return what {name} stands for: the file's stem, a packaged name, or module-factory."""
    source, colon, factory = name.rpartition(":")
    if colon and not Path(name).exists():
        return f"{Path(source).name.removesuffix('.py')}-{factory}"
    return Path(name).stem if Path(name).suffix in (".pt", ".safetensors") else Path(name).name


def _write(probe: "Probe", ds: "xr.Dataset", common: dict[str, Any], names: list[str], given: str) -> None:
    from dyneq.catalog.output import write_dataset, write_figure

    at = names.index(given)
    if common["out"] is not None:
        write_dataset(ds, _targets(common["out"], names, "--out")[at])
    if common["plot"] is not None:
        write_figure(probe.plot(ds), _targets(common["plot"], names, "--plot")[at])


@contextlib.contextmanager
def progress_display(title: str, quiet: bool) -> Iterator["Progress"]:
    """Show what a probe is doing on standard error, only on a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=1.0)
        yield lambda what, share: display.update(task, description=f"{title}: {what}", completed=share)


def heading(ds: "xr.Dataset") -> str:
    """Return the first line of a printed result: what was measured."""
    a = ds.attrs
    name = a.get("checkpoint", a["system"])
    step = f", step {a['checkpoint_step']}" if "checkpoint_step" in a else ""
    kind = "a map" if a["time"] == "map" else f"eps {a['eps']:g}"
    return f"{name} ({a['system']}{step}), {ds.sizes['sample']} samples, {kind}, {a['dtype']}"


def findings(probe_name: str, ds: "xr.Dataset") -> list[str]:
    """Return a result's findings as printed lines."""
    from dyneq.probes.registry import get_probe

    mark = {"fact": "-", "warning": "!", "undetermined": "?"}
    return [f"  {mark[f.level]} {f.text}" for f in get_probe(probe_name).summary(ds)]


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: tuples as lists, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
