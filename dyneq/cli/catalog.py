"""``dyneq catalog``: checkpoints by name."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dyneq.cli import tables
from dyneq.cli.options import json_option, limit_option, progress_display, quiet_option, select_option, store_option
from dyneq.errors import DyneqError, UsageError
from dyneq.files import is_folder

if TYPE_CHECKING:
    from dyneq.catalog.entries import Record


@click.group()
def catalog() -> None:
    """Checkpoints by name: which there are, where they are, and whether they are what they were."""


@catalog.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE|FOLDER...", type=click.Path(path_type=Path))
@click.option("--copy", is_flag=True, help="Keep copies in the store instead of referring to the files.")
@click.option("--run", metavar="NAME", help="Run they belong to (default: the run folder they lie in, else none).")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Label to give each; repeatable.")
@click.option(
    "--mapping", metavar="FILE.toml", type=click.Path(path_type=Path), help="They are foreign: how to convert."
)
@click.option("--trust", is_flag=True, help="Unpickle whatever a checkpoint holds: it can run any code.")
@store_option
@quiet_option
@json_option
def add(
    paths: tuple[Path, ...],
    copy: bool,
    run: str | None,
    tags: tuple[str, ...],
    mapping: Path | None,
    trust: bool,
    store: str | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Add checkpoint files, or all below a folder, to the catalog."""
    from dyneq.catalog.checkpoints import add_file, checkpoint_files, count_others
    from dyneq.catalog.store import Store

    files = [file for path in paths for file in (checkpoint_files(path) if is_folder(path) else [path])]
    if not files:
        raise DyneqError(
            f"there is no .pt or .safetensors file below {', '.join(map(str, paths))}; name another folder"
        )
    how = None
    if mapping is not None:
        from dyneq.catalog.mapping import read_mapping

        how = read_mapping(mapping)
    if skipped := sum(count_others(path) for path in paths if is_folder(path)):
        click.echo(f"dyneq: {skipped} files that end in .pth, .ckpt or .PT were left out; name them .pt", err=True)
    home, added, failed = Store(store), [], []
    with progress_display("adding", quiet) as progress:
        for i, file in enumerate(files):
            progress(file.name, i / len(files))
            try:
                added.append(add_file(home, file, run=run, tags=tags, copy=copy, mapping=how, trust=trust, tell=_tell))
            except DyneqError as error:
                if len(files) == 1 or isinstance(error, UsageError):
                    raise
                failed.append(str(error))
                _tell(str(error))
    if as_json:
        rows = [
            {"sha256": r.sha256, "step": r.content.step, "names": sorted({p.name for p in r.places})} for r in added
        ]
        click.echo(json.dumps({"schema": 1, "command": "catalog add", "results": rows, "failed": failed}))
    else:
        click.echo(f"{len(added)} of {len(files)} checkpoints are in the catalog of {home.root}")
    return 3 if failed and added else 1 if failed else 0


@catalog.command(name="list")
@select_option
@limit_option
@store_option
@json_option
def listing(selection: str | None, limit: int | None, store: str | None, as_json: bool) -> None:
    """List checkpoints, the newest last."""
    from dyneq.catalog import query
    from dyneq.catalog.store import Store

    brief = (
        "c.sha256, c.run, c.name, c.step, c.path, c.added_at, c.bytes, c.made_by, "
        "(SELECT json_group_array(t.tag) FROM tags t WHERE t.sha256 = c.sha256) AS tags, "
        f"{'c.metrics' if as_json else 'c.metrics ->> ' + _LOSS + ' AS val'}"
    )
    order = "c.added_at DESC, c.step DESC, c.sha256"
    home, most = Store(store), tables.most(limit, as_json)
    with home.reading() as index:
        rows = [] if index is None else query.select(index, "checkpoints", selection, brief, order, most or None)
        more = 0 if index is None or not most or len(rows) < most else query.count(index, "checkpoints", selection)
    rows.reverse()
    if as_json:
        keys = ("sha256", "run", "name", "step", "added_at", "bytes", "made_by")
        results = [
            {
                **{key: row[key] for key in keys},
                "path": str(home.place(row["path"])),
                "tags": json.loads(row["tags"]),
                "metrics": json.loads(row["metrics"]),
            }
            for row in rows
        ]
        click.echo(tables.document("catalog list", results))
        return
    if not rows:
        met = (
            "is empty; `dyneq catalog add` fills it" if selection is None else f"holds nothing that meets {selection!r}"
        )
        click.echo(f"the catalog of {home.root} {met}", err=True)
        return
    click.echo(
        tables.table(
            ("digest", "checkpoint", "step", "val", "added (UTC)", "tags", "made by"),
            [
                (
                    row["sha256"][:12],
                    f"{row['run']}@{row['step']}" if row["run"] else row["name"],
                    str(row["step"]),
                    f"{row['val']:.4f}" if isinstance(row["val"], int | float) else "",
                    tables.moment(row["added_at"]),
                    " ".join(json.loads(row["tags"])),
                    row["made_by"],
                )
                for row in rows
            ],
        )
    )
    tables.tell_more(len(rows), more)


_LOSS = "'$.validation_loss'"


@catalog.command()
@click.argument("name", metavar="CKPT")
@store_option
@json_option
def show(name: str, store: str | None, as_json: bool) -> None:
    """Show all that the catalog knows of one checkpoint, and whether its file is there."""
    from dyneq.catalog.store import Store

    home = Store(store)
    record = _record(home, name)
    with home.reading() as index:
        found = [] if index is None else index.rows(_RESULTS_OF, (record.sha256,))
    places = [(p, home.place(p.path)) for p in record.places]
    if as_json:
        result = json.loads(record.to_json())
        for kept in result["places"]:
            kept |= {"path": str(path := home.place(kept["path"])), "exists": path.exists()}
        result["results"] = {row["probe"]: row["n"] for row in found}
        click.echo(tables.document("catalog show", [result]))
        return
    content = record.content
    lines = [
        f"{'  '.join(sorted({p.name for p in record.places}))}  {record.sha256}",
        f"  block     {content.kind}, eps {content.eps}, {content.samples} pinned samples",
        f"  size      {tables.size(content.bytes)}",
        f"  step      {content.step}",
        f"  tags      {' '.join(sorted(record.tags)) or '(none)'}",
        f"  results   {', '.join(f'{row[0]}: {row[1]}' for row in found) or '(none)'}",
    ]
    for place, path in places:
        held = "a copy in the store" if place.copied else str(path)
        lines.append(f"  place     {held}{'' if path.exists() else '  MISSING'}")
        lines.append(f"            run {place.run or '(none)'}, made {place.made_at} by {place.made_by}")
    for title, values in (("metrics", content.metrics), ("config", content.config), ("recipe", content.recipe)):
        lines += [f"  {title}", *_indented(values)]
    click.echo("\n".join(map(tables.visible, lines)))


_RESULTS_OF = "SELECT probe, count(*) AS n FROM results WHERE checkpoint = ? GROUP BY probe ORDER BY probe"


@catalog.command()
@click.argument("names", nargs=-1, required=True, metavar="[CKPT] TAG...")
@click.option("--remove", is_flag=True, help="Take the tags away instead.")
@select_option
@store_option
def tag(names: tuple[str, ...], remove: bool, selection: str | None, store: str | None) -> None:
    """Give tags to CKPT, or to all checkpoints of --select."""
    from dyneq.catalog.checkpoints import require_name
    from dyneq.catalog.entries import change_tags
    from dyneq.catalog.resolve import selected
    from dyneq.catalog.store import Store

    home = Store(store)
    if selection is None and len(names) < 2:
        raise UsageError(f"a tag for {names[0]!r} was expected after its name, but there is none; add one, or --select")
    tags = names if selection is not None else names[1:]
    if not remove:
        for text in tags:
            require_name(text, "tag")
    digests = [_record(home, names[0]).sha256] if selection is None else [e.sha256 for e in selected(home, selection)]
    for sha256 in digests:
        change_tags(home, sha256, () if remove else tags, tags if remove else ())
    click.echo(f"{'untagged' if remove else 'tagged'} {len(digests)} checkpoint{'s' * (len(digests) != 1)}")


@catalog.command()
@store_option
@quiet_option
@json_option
def verify(store: str | None, quiet: bool, as_json: bool) -> int:
    """Compare every checkpoint and result with its hash, and the index with both; nothing is changed."""
    from dyneq.catalog.store import Store
    from dyneq.catalog.verify import verify as check

    home = Store(store)
    with progress_display("verifying", quiet) as progress:
        found = check(home, progress)
    if as_json:
        counts = {"checkpoints": found.checkpoints, "results": found.results, "problems": found.problems}
        click.echo(tables.document("catalog verify", [counts], "damaged" if found.problems else "complete"))
        return 1 if found.problems else 0
    for problem in found.problems:
        click.echo(tables.visible(problem))
    state = f"{len(found.problems)} problems" if found.problems else "all as written"
    click.echo(f"{found.checkpoints} checkpoints and {found.results} results of {home.root}: {state}")
    return 1 if found.problems else 0


@catalog.command()
@store_option
def rebuild(store: str | None) -> int:
    """Make the index again from the checkpoint records and results."""
    from dyneq.catalog.rebuild import rebuild as make
    from dyneq.catalog.store import Store

    home = Store(store)
    if not home.exists:
        raise DyneqError(f"there is no store at {home.root}, so there is no index to make; name another --store")
    made = make(home)
    for sentence in made.left_out:
        click.echo(f"dyneq: left out: {sentence}", err=True)
    click.echo(f"the index of {home.root} lists {made.checkpoints} checkpoints and {made.results} results")
    return 3 if made.left_out else 0


@catalog.command()
@click.option("--missing", is_flag=True, help="Also forget checkpoints whose files are gone; their results stay.")
@click.option("--damaged", is_flag=True, help="Also move damaged results to .damaged in the store.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@store_option
def gc(missing: bool, damaged: bool, dry_run: bool, store: str | None) -> None:
    """Remove what killed processes left behind; a finished result is never removed."""
    from dyneq.catalog.gc import collect
    from dyneq.catalog.store import Store

    home = Store(store)
    done = collect(home, missing=missing, damaged=damaged, dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    for path, count in done.files.items():
        click.echo(f"{verb} {path} ({tables.size(count)})")
    for sentence in done.forgotten:
        click.echo(f"{'would forget' if dry_run else 'forgot'} {sentence}")
    for sentence in done.moved:
        click.echo(f"{'would move' if dry_run else 'moved'} {sentence}")
    click.echo(f"{verb} {len(done.files)} leftovers, {tables.size(sum(done.files.values()))}")


def _record(home: Any, name: str) -> "Record":
    """Return the record of the checkpoint a name stands for.

    Raises:
        UsageError: If nothing in the catalog is called so.
    """
    from dyneq.catalog import names
    from dyneq.catalog.entries import read_record

    with home.reading() as index:
        entry = None if index is None else names.resolve(home, index, name)
        if entry is None:
            close = "" if index is None else names.similar(index, name, [])
            raise UsageError(f"no checkpoint in the catalog of {home.root} is called {name!r}{close}")
    record = read_record(home, entry.sha256)
    if record is None:
        raise DyneqError(f"the record of {entry.label} is gone from the store; run `dyneq catalog rebuild`")
    return record


def _tell(sentence: str) -> None:
    click.echo(f"dyneq: {sentence}", err=True)


def _indented(values: dict[str, Any], depth: int = 4) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [" " * depth + str(key), *_indented(value, depth + 2)]
        else:
            lines.append(f"{' ' * depth}{key} = {value}")
    return lines
