"""The ``dyneq`` command: commands are imported when they are called, so that ``--help`` stays free of torch."""

import sys
from importlib import import_module

import click

from dyneq import __version__
from dyneq.errors import DyneqError, UsageError, nearest

_COMMANDS = {
    "spectrum": ("dyneq.cli.spectrum:spectrum", "Leading eigenvalues of the relaxation map, with certificates."),
    "root": ("dyneq.cli.root:root", "A fixed point of every sample, also where the relaxation cycles."),
    "train": ("dyneq.cli.train:train", "Train an equilibrium block and keep snapshots."),
    "list": ("dyneq.cli.listing:listing", "Probes, estimators, systems and recipes that are installed."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order a newcomer needs them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return a command."""
        if name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[name][0].split(":")
        return getattr(import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command of the first argument; an unknown one is an error that names the nearest.

        Raises:
            UsageError: If there is no such command.
        """
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            raise UsageError(f"there is no command or probe called {args[0]!r}{nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dyneq")
def app() -> None:
    """Why does a network that relaxes to a fixed point not converge? Spectra, roots and training, with certificates."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 error, 2 usage, 3 some of several failed, 130 interrupted."""
    sys.exit(run(argv))


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
        return _fail("interrupted; nothing was left half-written", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone; python would complain once more at exit
        return 1


def _fail(sentence: str, code: int) -> int:
    click.echo(f"dyneq: {sentence}", err=True)
    return code
