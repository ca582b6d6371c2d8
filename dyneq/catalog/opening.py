"""Stored results as datasets: one by its name, or a whole selection in one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyneq.catalog import query
from dyneq.catalog.manifest import Manifest
from dyneq.catalog.results import StoredResult, open_named, result_folder
from dyneq.catalog.store import Store
from dyneq.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr


def open_result(name: str, *, store: Store | str | Path | None = None, chunks: Any = None) -> "xr.Dataset":
    """Return a stored result lazily: its numbers are read, and compared with their hashes, when they are used.

    Args:
        name: Its identifier, or the start of one, as `dyneq results list` shows it.
        store: The store, or its folder; ``DYNEQ_STORE`` or ``.dyneq`` if None.
        chunks: As in :func:`xarray.open_zarr`: ``{}`` for dask arrays, None for none.

    Raises:
        UsageError: If there is none, or there are several.
        Damaged: If it is not what was written.
    """
    return open_named(_store(store), name).open(chunks)


def open_results(
    selection: str | None = None, *, store: Store | str | Path | None = None, chunks: Any = None
) -> "xr.Dataset":
    """Return all results of a selection as one dataset.

    Its dimensions are ``checkpoint``, every parameter in which the results differ (``seed``, ``eps``, ``alpha``, ...),
    and those of the results; see :func:`dyneq.catalog.combine.combine`. Of several results of one request the newest is
    taken, and what was not computed is NaN.

    Args:
        selection: Such as ``"probe=spectrum and run=floss-3 and step>=800"``; all results if None.
        store: The store, or its folder; ``DYNEQ_STORE`` or ``.dyneq`` if None.
        chunks: As in :func:`xarray.open_zarr`: ``{}`` keeps a sweep that is larger than memory lazy.

    Raises:
        UsageError: If the text is no selection, chooses nothing, or chooses results of several probes.
        Damaged: If a result is not what was written.
    """
    from dyneq.catalog.combine import Labelled, combine

    home = _store(store)
    with home.reading() as index:
        rows = [] if index is None else query.select(index, "results", selection, _COLUMNS, "r.key, r.serial")
    if not rows:
        wanted = "" if selection is None else f" that meets {selection!r}"
        raise UsageError(f"there is no stored result in {home.root}{wanted}; `dyneq results list` shows what there is")
    newest = {row["key"]: row for row in rows}  # rows come in the order of their serial numbers
    labelled = []
    for row in newest.values():
        folder = result_folder(home, row["probe"], row["id"])
        stored = StoredResult(Manifest.read(folder), folder)
        manifest, request = stored.manifest, stored.manifest.request
        run = manifest.run or row["run"]
        labelled.append(
            Labelled(
                stored.open(chunks),
                {"sha256": request.checkpoint, "name": manifest.name, "run": run, "step": manifest.step},
                {
                    "params": request.params,
                    "eps": request.eps,
                    "dtype": request.dtype,
                    "device": request.device,
                    "batch": request.batch,
                },
                manifest.stored_at,
            )
        )
    return combine(labelled)


_COLUMNS = (
    "r.id, r.key, r.probe, (SELECT c.run FROM checkpoints c WHERE c.sha256 = r.checkpoint AND c.run != '' "
    "ORDER BY c.run LIMIT 1) AS run"
)


def _store(store: Store | str | Path | None) -> Store:
    return store if isinstance(store, Store) else Store(store)
