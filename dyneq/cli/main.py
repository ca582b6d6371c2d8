"""The ``dyneq`` command: commands are imported when they are called, so that ``--help`` stays free of torch."""

import atexit
import contextlib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

import click

from dyneq import __version__
from dyneq.errors import DyneqError, UsageError, nearest

if TYPE_CHECKING:
    from dyneq.plugins import Plugin

#: Exit code of a command that was interrupted, as shells give it for SIGINT.
INTERRUPTED = 130

_COMMANDS = {
    "diagnose": ("dyneq.cli.diagnose:diagnose", "Why it does not settle: the battery, one verdict, its evidence."),
    "spectrum": ("dyneq.cli.spectrum:spectrum", "Leading eigenvalues of the relaxation map, with certificates."),
    "root": ("dyneq.cli.root:root", "A fixed point of every sample, also where the relaxation cycles."),
    "train": ("dyneq.cli.train:train", "Train an equilibrium block and keep snapshots."),
    "compare": ("dyneq.cli.compare:compare", "Train recipes, each with several seeds; one table with intervals."),
    "run": ("dyneq.cli.run:run", "Run probes over many checkpoints, resumable."),
    "catalog": ("dyneq.cli.catalog:catalog", "Checkpoints by name: add, list, show, tag, verify, rebuild, gc."),
    "drift": ("dyneq.cli.drift:drift", "How diagnostics move over the snapshots of a run, and when they turn."),
    "results": ("dyneq.cli.results:results", "Stored results: list, show, export, diff."),
    "list": ("dyneq.cli.listing:listing", "Probes, estimators, systems, penalties and recipes that are installed."),
}

#: Built-in probes whose command is made from their parameters, in the order a newcomer needs them.
_PROBES = {
    "census": "For every sample the token where it starts, the root there, and the cause.",
    "residual": "Residuals and loss against relaxation depth.",
    "cycle": "Cycle, torus, chaos or still decaying: a long relaxation, its period and Floquet multipliers.",
    "epsilon": "Sweep of the step at equal time: is the flow to blame, or Euler's step?",
    "ftle": "Lyapunov exponents, finite-time and asymptotic, with error bars.",
    "knockout": "Scale a part of the block and follow the root: where does it become unstable?",
    "solver": "Force evaluations that Euler, Anderson and Newton need.",
    "nonnormality": "Transient growth, pseudospectra and what the numerical abscissa does not say.",
    "branches": "Norms of the branches against the input, attention entropy, q/k RMS.",
    "mixing": "How far a perturbation reaches, loss by position, causality leak.",
    "triangulate": "Gradient estimators against exact references, by parameter group, with intervals.",
    "navg": "Averaging over batches: bias and variance of an estimator, apart.",
    "ablation": "One estimator over a grid of its parameters.",
    "lrsweep": "What one step of several gradients does to the loss, over learning rates.",
    "decompose": "The update split into task and penalty: who drives it?",
}


def _probes() -> list["Plugin"]:
    """Return the declared probes that are not listed above, without importing them."""
    from dyneq import plugins  # what finds entry points takes as long to import as all of click

    return [p for p in plugins.declared(plugins.PROBES) if p.name not in _COMMANDS and p.name not in _PROBES]


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called; a declared probe is one as well."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order a newcomer needs them, then the probes without a command of their own."""
        return [*_COMMANDS, *_PROBES, *dict.fromkeys(p.name for p in _probes())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a command; for a probe without one, make it from the probe's parameters."""
        if name in _COMMANDS:
            module, attribute = _COMMANDS[name][0].split(":")
            return getattr(import_module(module), attribute)
        if name not in _PROBES and not any(p.name == name for p in _probes()):
            return None
        from dyneq.cli.generic import probe_command

        return probe_command(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first argument; an unknown one is an error that names the nearest.

        Raises:
            UsageError: If there is no such command.
        """
        name = args[0] if args else "-"
        built_in = name in _COMMANDS or name in _PROBES
        if not built_in and not name.startswith("-") and name not in (known := self.list_commands(ctx)):
            raise UsageError(f"there is no command or probe called {name!r}{nearest(name, known)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them, and probes that other packages add under a heading of their own."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])
        with formatter.section("Probes"):
            formatter.write_dl(list(_PROBES.items()))
        if probes := _probes():
            with formatter.section("Further probes"):
                formatter.write_dl([(p.name, f"From {p.origin}; see dyneq {p.name} --help.") for p in probes])


def command_module(name: str) -> str | None:
    """Return the module of a built-in command, None if there is no such command."""
    return _COMMANDS[name][0].split(":")[0] if name in _COMMANDS else None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dyneq")
def app() -> None:
    """Why does a network that relaxes to a fixed point not converge? Spectra, roots and training, with certificates."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    0: done; 1: error; 2: usage; 3: some of several failed; 4: not as expected; 130: interrupted.
    """
    code = run(argv)
    if code == INTERRUPTED:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End the process with this exit code.

    An interrupt that comes while Python executes a string, as it does to make a dataclass, is remembered although it
    was caught, and at its regular end the interpreter kills itself by the same signal.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every expected error is one sentence on standard error."""
    try:
        code = app.main(args=argv, prog_name="dyneq", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except UsageError as error:
        return _fail(str(error), 2)
    except DyneqError as error:
        return _fail(str(error), 1)
    except click.ClickException as error:
        return _fail(error.format_message().rstrip("."), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was left half-written", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone; python would complain once more at exit
        return 1


def _fail(sentence: str, code: int) -> int:
    shown = (
        sentence
        if sentence.isprintable()
        else "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in sentence)
    )
    click.echo(f"dyneq: {shown}", err=True)
    return code
