"""The command of a probe that has none of its own: options from its Params, tables and JSON from its dataset."""

import enum
import json
import types
import typing
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from dyneq.cli.common import findings, heading, plain, probe_options, run_probe_command
from dyneq.cli.listing import first_line, parameters, type_text
from dyneq.errors import DyneqError, UsageError

if TYPE_CHECKING:
    import xarray as xr

    from dyneq.probes.base import Probe

#: What the values of the probe's own options are called in the command, so that no parameter can hide a common option.
_PREFIX = "parameter_"
_SCALARS: dict[Any, click.ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING}


def probe_command(name: str) -> click.Command:
    """Return the command ``dyneq NAME`` of a probe.

    Its options are those every probe has and one for each parameter of the probe. A parameter whose option is taken
    by a common one is called ``--NAME-parameter``; ``seed`` is the common ``--seed``.

    Args:
        name: Name of the probe.

    Raises:
        UsageError: If there is no such probe, or it cannot be used.
    """
    from dyneq.probes.registry import get_probe

    probe = get_probe(name)

    def run(**values: Any) -> int:
        source = click.get_current_context().get_parameter_source
        common = dict.fromkeys(probe.overrides) | {k: v for k, v in values.items() if not k.startswith(_PREFIX)}
        # what was not given is left to the probe's own default
        given = [k for k in values if k.startswith(_PREFIX) and source(k) is ParameterSource.COMMANDLINE]
        params = {k.removeprefix(_PREFIX): values[k] for k in given}
        params |= _seed(probe, int(values["seed"]))
        del common["seed"]
        try:
            return run_probe_command(name, params, common, lambda ds: show(name, ds), lambda ds: [entry(name, ds)])
        except (DyneqError, click.ClickException, OSError):
            raise
        except Exception as error:  # somebody else's code: its bug is a sentence here, not a traceback
            raise DyneqError(
                f"the probe {name!r} failed ({type(error).__name__}: {error}); report it to whoever wrote "
                f"{type(probe).__module__}"
            ) from error

    command = click.command(name=name, help=_help(probe))(probe_options(run))
    command.params = [p for p in command.params if p.name not in probe.overrides]
    taken = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
    fields = probe.Params.model_fields
    described = {p["name"]: p for p in parameters(probe.Params)}
    own = [_option(name, key, fields[key].annotation, described[key], taken) for key in fields if key != "seed"]
    command.params[1:1] = own  # after the argument, before the common ones
    return command


def _help(probe: "Probe") -> str:
    needs = [what for what, wanted in (("a loss", probe.needs_loss), ("causality", probe.needs_causal)) if wanted]
    text = first_line(probe) or f"The probe {probe.name}."
    needed = f"\n\nThe system must have {' and '.join(needs)}." if needs else ""
    return f"{text}{needed}\n\nCKPT is a checkpoint file, a packaged reference checkpoint, or module:factory."


def _seed(probe: "Probe", seed: int) -> dict[str, int]:
    """Return the seed as a parameter where the probe has one; without it, a seed that was asked for is an error."""
    source = click.get_current_context().get_parameter_source("seed")
    if "seed" in probe.Params.model_fields:
        return {} if source is ParameterSource.DEFAULT else {"seed": seed}
    if source is ParameterSource.COMMANDLINE:
        raise UsageError(f"the probe {probe.name!r} draws nothing at random, so it takes no --seed; leave it out")
    return {}


def _option(probe: str, name: str, annotation: Any, described: dict[str, Any], taken: set[str]) -> click.Option:
    """Return the option of one parameter."""
    flag = name.replace("_", "-")
    if taken & {f"--{flag}", f"--no-{flag}"}:
        flag = f"{probe}-{flag}"
    optional, inner = _optional(annotation)
    if optional and described["default"] is not None:
        inner = Any  # only JSON has a word for None, which differs from leaving the option out
    text = described["description"]
    if not described["required"] and described["default"] is not None and described["default"] != []:
        text += f"{'  ' if text else ''}[default: {_shown(described['default'])}]"
    settings: dict[str, Any] = {"help": text or None}
    settings |= {"required": True} if described["required"] else {"default": None}
    dest, wide = _PREFIX + name, typing.get_origin(inner) in (tuple, list, set, frozenset)
    members = typing.get_args(inner)
    if inner is bool:
        return click.Option([f"--{flag}/--no-{flag}", dest], **settings)
    if wide and (len(members) == 1 or members[-1] is Ellipsis) and (kind := _kind(members[0])) is not None:
        settings["help"] = f"{text}{'  ' if text else ''}[repeatable]"
        return click.Option([f"--{flag}", dest], type=kind, multiple=True, **settings)
    if wide and typing.get_origin(inner) is tuple and all(_kind(m) is not None for m in members):
        return click.Option([f"--{flag}", dest], type=tuple(_kind(m) for m in members), **settings)
    if (kind := _kind(inner)) is not None:
        return click.Option([f"--{flag}", dest], type=kind, **settings)
    return click.Option([f"--{flag}", dest], type=_Json(annotation), **settings)


def _optional(annotation: Any) -> tuple[bool, Any]:
    """Return whether a type allows None, and what is left without it."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return False, annotation
    args = typing.get_args(annotation)
    rest = tuple(a for a in args if a is not type(None))
    return len(rest) < len(args), rest[0] if len(rest) == 1 else Any


def _kind(annotation: Any) -> click.ParamType | None:
    """Return how one value of a type is read, None where it is no scalar."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return _OneOf(typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _OneOf(tuple(member.value for member in annotation))
    return _SCALARS.get(annotation)


class _OneOf(click.Choice):
    """A choice whose values need not be strings."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = {str(v): v for v in values}
        super().__init__(list(self.values))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.values[super().convert(value, param, ctx)]


class _Json(click.ParamType):
    """Any other type: its JSON, or the bare text where it is none; the probe's own validation decides."""

    name = "json"

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"JSON ({type_text(self.annotation)})"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except ValueError:
            return value


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return ", ".join(map(_shown, default))
    return default if isinstance(default, str) else json.dumps(default)


def show(name: str, ds: "xr.Dataset") -> str:
    """Return a result as text: heading, the probe's own text or the range of every variable, findings."""
    from dyneq.probes.registry import get_probe

    text = get_probe(name).text(ds)
    if text is not None:
        return "\n".join([heading(ds), "", text, "", *findings(name, ds)])
    sizes = [f"{dim} {size}{_span(ds, str(dim))}" for dim, size in ds.sizes.items()]
    rows = [
        (
            str(variable),
            ", ".join(map(str, values.dims)) or "-",
            _range(values),
            str(values.attrs.get("units", "")),
            str(values.attrs.get("long_name", "")),
        )
        for variable, values in ds.data_vars.items()
    ]
    rows = [("variable", "over", "value or range", "units", "meaning"), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    table = [
        "  " + "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    dimensions = f"  dimensions: {', '.join(sizes) or 'none'}"
    return "\n".join([heading(ds), "", dimensions, "", *table, "", *findings(name, ds)])


def _span(ds: "xr.Dataset", dim: str) -> str:
    """Return the range of a dimension's coordinate as `` (10 to 800)``."""
    if dim not in ds.coords or not ds.sizes[dim]:
        return ""
    return f" ({_range(ds[dim])})"


def _range(values: "xr.DataArray") -> str:
    """Return a value, or the range of the finite values with how many are not; counts where they are no numbers."""
    import numpy as np

    flat = np.ravel(values.values)
    if not flat.size:
        return "empty"
    if flat.dtype.kind not in "biufc":
        names, counts = np.unique(flat.astype(str), return_counts=True)
        counted = [f"{n} {c}" if flat.size > 1 else str(n) for n, c in zip(names, counts, strict=True)]
        return ", ".join(counted[:4]) + (f", ... ({len(counted)} in all)" if len(counted) > 4 else "")
    if flat.dtype.kind == "b":
        return f"{int(flat.sum())} of {flat.size} true" if flat.size > 1 else str(bool(flat[0])).lower()
    if flat.size == 1:
        return _number(flat[0])
    finite = flat[np.isfinite(flat)]
    missing = f"; {flat.size - finite.size} of {flat.size} not finite" if finite.size < flat.size else ""
    if not finite.size:
        return f"none of {flat.size} finite"
    if flat.dtype.kind == "c":
        sizes = np.abs(finite)
        return f"modulus {_number(sizes.min())} to {_number(sizes.max())}{missing}"
    low, high = _number(finite.min()), _number(finite.max())
    return f"{low}{'' if low == high else f' to {high}'}{missing}"


def _number(value: Any) -> str:
    return f"{value:d}" if value.dtype.kind in "iu" else f"{value:.6g}"


def entry(name: str, ds: "xr.Dataset") -> dict[str, Any]:
    """Return a result as plain values: what the probe makes of it, or dims, coords, data_vars, attrs; and findings.

    Complex numbers are pairs [re, im]; numbers that are not finite are None.
    """
    from dyneq.probes.registry import get_probe

    probe = get_probe(name)
    found = [{"level": f.level, "text": f.text} for f in probe.summary(ds)]
    own = probe.document(ds)
    if own is not None:
        return {**own, "findings": found}

    def arrays(held: Any) -> dict[str, Any]:
        return {
            str(key): {
                "dims": list(map(str, variable.dims)),
                "attrs": {str(k): _plain(v) for k, v in variable.attrs.items()},
                "data": _plain(variable.values),
            }
            for key, variable in held.items()
        }

    return {
        "dims": {str(dim): size for dim, size in ds.sizes.items()},
        "coords": arrays(ds.coords),
        "data_vars": arrays(ds.data_vars),
        "attrs": {str(k): _plain(v) for k, v in ds.attrs.items()},
        "findings": found,
    }


def _plain(value: Any) -> Any:
    """Return an attribute or array as JSON can hold it."""
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind == "c":
        array = np.stack([array.real, array.imag], axis=-1)
    elif array.dtype.kind not in "biuf":
        # dates as they are printed; in arrays of objects, what is missing is no word
        return _words(array.astype(str if array.dtype.kind in "mM" else object).tolist())
    return plain(array.tolist())


def _words(value: Any) -> Any:
    if isinstance(value, list):
        return [_words(v) for v in value]
    return None if value is None or value != value else str(value)
