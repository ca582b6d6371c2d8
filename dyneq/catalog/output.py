"""Writing one result or figure where the user said, whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr

from dyneq.catalog.netcdf import read_netcdf, write_netcdf
from dyneq.catalog.zarr_io import read_zarr, write_zarr
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATASET_SUFFIXES = (".zarr", ".nc")
FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


def check_target(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Verify before any computation that a file can be written there.

    Args:
        path: The file to be written later.
        suffixes: The endings allowed.
        option: The option it came from, for the message.

    Raises:
        UsageError: If the ending is not one of ``suffixes``, or the file exists: nothing is ever overwritten.
        DyneqError: If the folder is missing or not writable.
    """
    if path.suffix not in suffixes:
        raise UsageError(f"{option} writes {' or '.join(suffixes)} files, but {path.name!r} was asked for; rename it")
    try:
        taken = path.exists() or path.is_symlink()
    except OSError as error:
        raise UsageError(
            f"{option} {str(path)[:60]!r} cannot be a file ({error.strerror}); choose another name"
        ) from None
    if taken:
        raise UsageError(f"{path} exists already and nothing is overwritten; choose another name for {option}")
    if not path.parent.is_dir():
        raise DyneqError(f"the folder {path.parent} of {option} {path.name} does not exist; create it first")
    probe = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise DyneqError(f"{path} cannot be written ({error.strerror}); choose another folder for {option}") from error


def write_dataset(ds: xr.Dataset, path: Path) -> None:
    """Write a dataset as zarr v3 (``.zarr``) or netCDF-4 (``.nc``, complex values as two variables).

    Raises:
        DyneqError: If it cannot be written; nothing is left behind then.
    """
    if path.suffix == ".zarr":
        write_whole(path, lambda target: write_zarr(ds, target))
        return
    write_whole(path, lambda target: write_netcdf(ds, target))


def read_dataset(path: Path) -> xr.Dataset:
    """Return a dataset that :func:`write_dataset` wrote, with complex variables joined again.

    Raises:
        DyneqError: If there is none, or it cannot be read.
    """
    try:
        if path.suffix == ".zarr":
            return read_zarr(path).load()
        return read_netcdf(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DyneqError(
            f"{path} cannot be read as a result ({error}); name a .zarr or .nc that dyneq wrote"
        ) from error


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure.

    Raises:
        DyneqError: If it cannot be written; nothing is left behind then.
    """
    write_whole(path, lambda target: figure.savefig(target, dpi=150, format=path.suffix[1:]))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary name beside ``path`` and rename, so that an interruption leaves nothing behind.

    Args:
        path: The file or folder to be written.
        write: Writes it at the path it is given.

    Raises:
        DyneqError: If it cannot be written, or ``path`` exists by then.
    """
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        write(temporary)
        if path.exists():
            raise DyneqError(f"{path} appeared while the result was computed and nothing is overwritten; it was kept")
        os.rename(temporary, path)
    except OSError as error:
        raise DyneqError(f"{path} cannot be written ({error.strerror or error}); choose a writable place") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
