"""``dyneq diagnose``: the generated command of the probe, with an expectation for scripts."""

from typing import TYPE_CHECKING, Any

import click

from dyneq.cli.common import probe_options, run_probe_command
from dyneq.cli.generic import entry, show
from dyneq.errors import UsageError

if TYPE_CHECKING:
    import xarray as xr

#: Exit code where ``--expect`` is not met.
NOT_MET = 4


@click.command()
@probe_options
@click.option("--depth", type=int, help="Relaxation steps after which what still moves is looked at [default: 1000].")
@click.option("--watch", type=int, help="Steps an attractor is watched for at most [default: 24000].")
@click.option("--patience", type=int, help="Steps a slow relaxation is continued for at most [default: 20000].")
@click.option("--further/--no-further", default=None, help="Run further probes where the census leaves the cause open.")
@click.option("--expect", metavar="VERDICT", help="Exit with 4 unless this is the verdict, such as fixed-point.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    help="With --expect: this share of the samples has to have the verdict, whatever the others have.",
)
def diagnose(expect: str | None, share: float | None, seed: int, **values: Any) -> int:
    """Why CKPT does not settle: the battery, one verdict for it and for every sample, its evidence and cure.

    CKPT is a checkpoint file, a packaged reference checkpoint, or module:factory; without it, all packaged ones.

    The verdict of a checkpoint is the worst cause that at least two samples support (one, where there are fewer than
    8): fixed-point, slow, fold, discrete-instability, saddle, limit-cycle, torus, chaos, diverged, absorbed,
    undetermined.
    """
    from dyneq.dynamics.verdict import Verdict
    from dyneq.probes.census_reading import overall

    wanted = None if expect is None else Verdict.of(expect)
    if share is not None and expect is None:
        raise UsageError("--share says how many samples should have the verdict of --expect; give that as well")
    own = ("depth", "watch", "patience", "further")
    params = {name: values.pop(name) for name in own if values[name] is not None}
    common = {name: value for name, value in values.items() if name not in own}
    unmet: list[str] = []

    def judge(ds: "xr.Dataset") -> None:
        if wanted is None:
            return
        found = overall(ds)
        held = found.share(wanted)
        if share is not None and held < share:
            unmet.append(f"expected {expect} for a share of {share:g} of the samples, found {held:.3g}")
        elif share is None and found.verdict is not wanted:
            unmet.append(f"expected {expect}, found {found.verdict.value}")

    def text(ds: "xr.Dataset") -> str:
        judge(ds)
        return show("diagnose", ds)

    def entries(ds: "xr.Dataset") -> list[dict[str, Any]]:
        if common["as_json"]:  # else the text has been judged already
            judge(ds)
        return [entry("diagnose", ds)]

    code = run_probe_command("diagnose", {**params, "seed": seed}, common, text, entries)
    for sentence in unmet:
        click.echo(f"dyneq: {sentence}", err=True)
    return code or (NOT_MET if unmet else 0)
