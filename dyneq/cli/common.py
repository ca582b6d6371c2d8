"""Options and output that several commands share."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyneq.cli.options import json_option, progress_display, quiet_option, store_option
from dyneq.cli.tables import plain, visible
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from dyneq.catalog.resolve import Subject
    from dyneq.catalog.results import StoredResult
    from dyneq.catalog.store import Store
    from dyneq.probes.base import Probe

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
    json_option,
    click.option(
        "--out", envvar="DYNEQ_OUT", type=click.Path(path_type=Path), help="Write the dataset: FILE.zarr or FILE.nc."
    ),
    click.option(
        "--plot", envvar="DYNEQ_PLOT", type=click.Path(path_type=Path), help="Write the figure: FILE.png, .pdf or .svg."
    ),
    click.option(
        "--select",
        metavar="SELECTION",
        envvar="DYNEQ_SELECT",
        help="Checkpoints of the catalog, as 'run=floss-3 and step>=800'.",
    ),
    store_option,
    click.option("--force", is_flag=True, envvar="DYNEQ_FORCE", help="Measure again even if the store has the result."),
    click.option(
        "--trust", is_flag=True, envvar="DYNEQ_TRUST", help="Unpickle whatever a checkpoint holds: it can run any code."
    ),
    quiet_option,
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
    from dyneq.catalog.measure import measure
    from dyneq.catalog.output import DATASET_SUFFIXES, FIGURE_SUFFIXES, check_target
    from dyneq.catalog.store import Store
    from dyneq.probes.registry import get_probe, make_params

    probe = get_probe(name)
    checked = make_params(probe, params)  # a wrong parameter is an error before anything is opened
    store = Store(common["store"])
    settings = {key: common[key] for key in ("batch", "eps", "dtype", "device", "force")}
    subjects = named_subjects(common["checkpoints"], common["select"], store, common["trust"])
    names = [given for given, _ in subjects]
    for option, suffixes in (("out", DATASET_SUFFIXES), ("plot", FIGURE_SUFFIXES)):
        for target in _targets(common[option], names, f"--{option}"):
            check_target(target, suffixes, f"--{option}")
    documents, failures = [], []
    for position, (given, opened) in enumerate(subjects):
        try:
            subject = opened()
            with progress_display(subject.name, common["quiet"]) as progress:
                done = measure(subject, probe, checked, store=store, progress=progress, **settings)
            ds = done.dataset
            if not common["as_json"]:
                if position:
                    click.echo()
                click.echo(show(ds))
                if done.stored is not None:
                    click.echo(_where(done.stored, done.found))
            _write(probe, ds, common, names, given)
            held = {key: ds.attrs[key] for key in ("system", "time", "eps", "dtype", "device")}
            documents.append(
                {
                    "checkpoint": subject.identity(),
                    "system": {**held, "samples": ds.sizes["sample"]},
                    "results": plain(entries(ds)),
                    "stored": None if done.stored is None else {"id": done.stored.id, "found": done.found},
                    "status": ds.attrs["status"],
                }
            )
            if done.unsaved is not None:  # it is printed and written all the same: a finished result is not lost
                failures.append(done.unsaved)
                click.echo(
                    f"dyneq: the result of {subject.name} is above but not in the store: {done.unsaved}", err=True
                )
        except DyneqError as error:
            if len(names) == 1:
                raise
            failures.append(error)
            click.echo(f"dyneq: {error}", err=True)
            documents.append({"checkpoint": {"name": given}, "results": [], "status": f"failed: {error}"})
    if common["as_json"]:
        shared = {"schema": 1, "command": name, "params": plain(checked.model_dump(mode="json"))}
        body = documents[0] if len(names) == 1 else {"checkpoints": documents}
        click.echo(json.dumps({**shared, **body}, allow_nan=False))
    if failures and len(names) == 1:
        return 1
    if failures and len(failures) == len(names):
        raise DyneqError(f"none of the {len(names)} checkpoints could be probed; the reasons are above")
    return 3 if failures else 0


def named_subjects(
    given: tuple[str, ...], selection: str | None, store: "Store", trust: bool
) -> list[tuple[str, Callable[[], "Subject"]]]:
    """Return the name of every subject asked for, and how to open it.

    Without names and selection: the newest checkpoint of the catalog, and if that is empty, the packaged ones.

    Raises:
        UsageError: If names and a selection are given, or the selection is none or chooses none.
    """
    from dyneq.catalog import resolve
    from dyneq.catalog.packaged import reference_names

    if given and selection is not None:
        raise UsageError("checkpoints are named or selected, not both; leave out the names or --select")
    if given:
        return [(n, functools.partial(resolve.open_checkpoint, n, store=store, trust=trust)) for n in given]
    entries = resolve.default_entries(store) if selection is None else resolve.selected(store, selection)
    if entries:
        return [(e.label, functools.partial(resolve.open_entry, e, trust=trust)) for e in entries]
    return [(n, functools.partial(resolve.open_checkpoint, n, store=store)) for n in reference_names()]


def _where(stored: "StoredResult", found: bool) -> str:
    when = stored.manifest.stored_at[:19].replace("T", " ")
    return f"  stored result {stored.id} of {when} UTC; --force measures again" if found else f"  stored as {stored.id}"


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


def heading(ds: "xr.Dataset") -> str:
    """Return the first line of a printed result: what was measured."""
    a = ds.attrs
    name = visible(str(a.get("checkpoint", a["system"])))
    step = f", step {a['checkpoint_step']}" if "checkpoint_step" in a else ""
    kind = "a map" if a["time"] == "map" else f"eps {a['eps']:g}"
    return f"{name} ({a['system']}{step}), {ds.sizes['sample']} samples, {kind}, {a['dtype']}"


def findings(probe_name: str, ds: "xr.Dataset") -> list[str]:
    """Return a result's findings as printed lines."""
    from dyneq.probes.registry import get_probe

    mark = {"fact": "-", "warning": "!", "undetermined": "?"}
    return [f"  {mark[f.level]} {f.text}" for f in get_probe(probe_name).summary(ds)]
