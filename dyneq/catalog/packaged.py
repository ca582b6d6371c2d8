"""The reference checkpoints that come with the package."""

from importlib.resources import files


def reference_names() -> list[str]:
    """Return the names of the packaged reference checkpoints."""
    folder = files("dyneq") / "reference"
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".pt") for entry in folder.iterdir() if entry.name.endswith(".pt"))
