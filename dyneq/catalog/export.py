"""Writing a result in a format other programs read: JSON, netCDF or zarr, chosen by the file's ending."""

import json
from pathlib import Path

import xarray as xr

from dyneq.catalog.output import DATASET_SUFFIXES, check_target, write_dataset, write_whole
from dyneq.catalog.plain import from_plain, to_plain

__all__ = ["EXPORT_SUFFIXES", "from_plain", "to_plain", "write_export"]

EXPORT_SUFFIXES = (".json", *DATASET_SUFFIXES)


def write_export(ds: xr.Dataset, path: Path) -> None:
    """Write a dataset as ``.json``, ``.nc`` or ``.zarr``, whole or not at all.

    Args:
        ds: A result, or several combined.
        path: Where to; it must not exist.

    Raises:
        DyneqError: If it cannot be written, or holds something the format cannot hold.
        UsageError: If the ending is another, or the file exists.
    """
    check_target(path, EXPORT_SUFFIXES, "the export")
    if path.suffix != ".json":
        write_dataset(ds, path)
        return
    text = json.dumps(to_plain(ds), allow_nan=False)

    def write(target: Path) -> None:
        target.write_text(text + "\n", encoding="ascii")

    write_whole(path, write)
