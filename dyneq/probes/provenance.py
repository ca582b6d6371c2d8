"""The attributes every result carries: what was computed, from what, by what, when."""

import functools
import json
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch
import xarray as xr

import dyneq
from dyneq.probes.base import Params, Probe
from dyneq.systems.protocol import System

SCHEMA_VERSION = 1


def stamp(
    ds: xr.Dataset, probe: Probe, params: Params, system: System, duration: float, known: dict[str, Any]
) -> xr.Dataset:
    """Return the dataset with its provenance attributes.

    Args:
        ds: A probe's result; a ``status`` attribute it already has is kept.
        probe: The probe that made it.
        params: The parameters it was run with.
        system: What was measured.
        duration: Seconds it took.
        known: Further attributes; they win.
    """
    z0 = system.initial_state()
    sha, dirty = git_state()
    attributes = {
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "creation_library": "dyneq",
        "creation_library_version": dyneq.__version__,
        "schema_version": SCHEMA_VERSION,
        "probe": probe.name,
        "probe_version": probe.version,
        "params": json.dumps(params.model_dump(mode="json")),  # pydantic's own JSON has null for infinity and NaN
        "system": system.name,
        "time": str(system.time),
        "eps": system.eps,
        "seed": getattr(params, "seed", -1),
        "git_sha": sha,
        "git_dirty": int(dirty),
        "torch_version": str(torch.__version__),
        "device": str(z0.device),
        "dtype": str(z0.dtype).removeprefix("torch."),
        "duration_s": round(duration, 3),
        "status": "complete",
    }
    return ds.assign_attrs({**attributes, **ds.attrs, **known})


@functools.cache
def git_state() -> tuple[str, bool]:
    """Return the commit of the working directory and whether it has changes; ``("", False)`` without git."""
    try:
        sha = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "", False
    return sha.stdout.strip(), bool(state.stdout.strip())
