"""``dyneq list``."""

import click

_KINDS = {"probes": "dyneq.probes", "estimators": "dyneq.estimators", "systems": "dyneq.systems"}


@click.command(name="list")
@click.argument("kind", type=click.Choice([*_KINDS, "recipes", "checkpoints"]))
def listing(kind: str) -> None:
    """Name what is installed: probes, estimators, kinds of systems, packaged recipes or checkpoints."""
    from importlib.resources import files

    from dyneq import plugins

    if kind == "checkpoints":
        from dyneq.catalog.resolve import reference_names

        found = reference_names()
    elif kind == "recipes":
        folder = files("dyneq") / "train" / "recipes"
        found = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    else:
        found = plugins.names(_KINDS[kind])
    for name in found:
        click.echo(name)
