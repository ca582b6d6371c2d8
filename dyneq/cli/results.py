"""``dyneq results``: what was measured and kept."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dyneq.cli import tables
from dyneq.cli.options import json_option, limit_option, select_option, store_option

if TYPE_CHECKING:
    import xarray as xr

    from dyneq.catalog.results import StoredResult


@click.group()
def results() -> None:
    """Stored results: list, show, export, diff."""


@results.command(name="list")
@select_option
@limit_option
@store_option
@json_option
def listing(selection: str | None, limit: int | None, store: str | None, as_json: bool) -> None:
    """List results, the newest last."""
    from dyneq.catalog import query
    from dyneq.catalog.index import RESULT
    from dyneq.catalog.store import Store

    keys = [key for key in RESULT if key not in ("key", "serial", "manifest")]
    brief = ", ".join(f"r.{key}" for key in keys)
    home, most = Store(store), tables.most(limit, as_json)
    with home.reading() as index:
        order = "r.stored_at DESC, r.id"
        rows = [] if index is None else query.select(index, "results", selection, brief, order, most or None)
        more = 0 if index is None or not most or len(rows) < most else query.count(index, "results", selection)
    rows.reverse()
    if as_json:
        shown = [{**{key: row[key] for key in keys}, "params": json.loads(row["params"])} for row in rows]
        click.echo(tables.document("results list", shown))
        return
    if not rows:
        met = "; every probe keeps its own there" if selection is None else f" that meet {selection!r}"
        click.echo(f"the store {home.root} holds no results{met}", err=True)
        return
    cells = [
        (
            row["id"],
            row["probe"],
            row["name"],
            str(row["step"]),
            str(row["batch"]),
            "" if row["eps"] is None else f"{row['eps']:g}",
            row["dtype"],
            tables.moment(row["stored_at"]),
            row["status"],
            _brief(row["params"]),
        )
        for row in rows
    ]
    head = ("result", "probe", "checkpoint", "step", "batch", "eps", "dtype", "stored (UTC)", "status", "parameters")
    click.echo(tables.table(head, cells))
    tables.tell_more(len(rows), more)


def _brief(params: str) -> str:
    return params[1:-1].replace('"', "").replace(":", "=")


@results.command()
@click.argument("name", metavar="RESULT")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the figure: FILE.png, .pdf or .svg.")
@store_option
@json_option
def show(name: str, plot: Path | None, store: str | None, as_json: bool) -> None:
    """Show one result: what it answers, where it came from, and what it says."""
    from dyneq.catalog.output import FIGURE_SUFFIXES, check_target, write_figure
    from dyneq.catalog.plain import to_plain
    from dyneq.probes.registry import get_probe

    if plot is not None:
        check_target(plot, FIGURE_SUFFIXES, "--plot")
    stored = _stored(name, store)
    ds = stored.open().load()
    if as_json:
        manifest = json.loads(stored.manifest.to_json())
        click.echo(tables.document("results show", [{"manifest": manifest, "dataset": to_plain(ds)}]))
    else:
        click.echo("\n".join([_origin(stored, ds), "", _said(stored.manifest.request.probe, ds)]))
    if plot is not None:
        write_figure(get_probe(stored.manifest.request.probe).plot(ds), plot)


def _origin(stored: "StoredResult", ds: "xr.Dataset") -> str:
    manifest, a = stored.manifest, ds.attrs
    request = manifest.request
    git = a.get("git_sha", "")
    lines = [
        f"{stored.id}: {request.probe} version {request.version} of {manifest.name} ({request.checkpoint[:12]})",
        f"  parameters  {json.dumps(request.params)}",
        f"  bound with  batch {request.batch}, eps {request.eps}, {request.dtype} on {request.device}",
        f"  computed    {a.get('created_at', 'unknown')} in {manifest.duration:.1f} s by dyneq "
        f"{a.get('creation_library_version', 'unknown')}, torch {a.get('torch_version', 'unknown')}",
        f"  folder      {f'commit {git[:12]}' if git else 'no git'}{' with changes' if a.get('git_dirty') else ''}",
        f"  stored      {tables.moment(manifest.stored_at)} UTC, {tables.size(manifest.size)}, {stored.folder}",
    ]
    return "\n".join(lines)


def _said(probe: str, ds: "xr.Dataset") -> str:
    """Return what the probe's own command would print."""
    from dyneq import plugins
    from dyneq.cli.generic import show as generic_show
    from dyneq.cli.main import command_module

    if probe not in plugins.names(plugins.PROBES):
        return f"{ds}\n\n  ! the probe {probe!r} is not installed, so nothing is read out of its numbers here"

    module = command_module(probe)
    own: Callable[[xr.Dataset], str] | None = None if module is None else getattr(import_module(module), "show", None)
    return generic_show(probe, ds) if own is None else own(ds)


@results.command()
@click.argument("name", metavar="RESULT")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="FILE.nc, FILE.json or FILE.zarr.")
@store_option
def export(name: str, out: Path, store: str | None) -> None:
    """Write one result as netCDF, JSON or zarr."""
    from dyneq.catalog.export import EXPORT_SUFFIXES, write_export
    from dyneq.catalog.output import check_target

    check_target(out, EXPORT_SUFFIXES, "--out")
    write_export(_stored(name, store).open().load(), out)
    click.echo(str(out))


@results.command()
@click.argument("first", metavar="RESULT")
@click.argument("second", metavar="RESULT")
@store_option
@json_option
def diff(first: str, second: str, store: str | None, as_json: bool) -> None:
    """Say what moved between two results, and by how much relative to their error bars."""
    from dyneq.catalog.diff import compare

    a, b = _stored(first, store), _stored(second, store)
    comparison = compare(a.open().load(), b.open().load())
    if as_json:
        click.echo(tables.document("results diff", [{"first": a.id, "second": b.id, **comparison.to_plain()}]))
        return
    for mark, stored in (("a", a), ("b", b)):
        request = stored.manifest.request
        click.echo(f"{mark}: {stored.id}, {request.probe} version {request.version} of {stored.manifest.name}")
    click.echo("\n".join(comparison.lines()))


def _stored(name: str, store: str | None) -> "StoredResult":
    from dyneq.catalog.results import open_named
    from dyneq.catalog.store import Store

    return open_named(Store(store), name)
