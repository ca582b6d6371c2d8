"""The folder of a run: recipe.toml, log.jsonl, step-000300.pt, stable-000275.pt, best.pt, last.pt."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dyneq.errors import DyneqError, UsageError
from dyneq.files import is_file, is_there
from dyneq.train import parallel
from dyneq.train.moving import STABLE, stable_name
from dyneq.train.recipe import Recipe, load_recipe


class RunFolder:
    """Where a run keeps everything.

    Args:
        path: The folder, made by :meth:`create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.toml"
        self.log_file = self.path / "log.jsonl"
        self.last_file = self.path / "last.pt"
        self.best_file = self.path / "best.pt"

    def snapshot_file(self, step: int) -> Path:
        """Return where the snapshot after ``step`` updates is kept."""
        return self.path / f"step-{step:06d}.pt"

    def stable_file(self, step: int) -> Path:
        """Return where the guard keeps the stable weights after ``step`` updates, with all training needs."""
        return self.path / stable_name(step)

    def forget_stable(self, but: int | None) -> None:
        """Remove the stable snapshots that no saved state refers to; comes after a save.

        Args:
            but: The updates of the one that is referred to.
        """
        for path in self.path.glob(STABLE):
            if but is None or path != self.stable_file(but):
                path.unlink(missing_ok=True)

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe) -> "RunFolder":
        """Make the folder with its resolved recipe, both at once, so that a kill never leaves one without the other.

        Raises:
            UsageError: If there is something at ``path`` already.
            DyneqError: If it cannot be made.
        """
        run = cls(path)
        if is_there(run.path):
            raise UsageError(
                f"there is already something at {run.path}, and a run never starts over another; continue it with "
                f"--resume {run.path}, or choose another --run"
            )
        draft = cls(run.path.with_name(f".{run.path.name}.{uuid.uuid4().hex}.tmp"))
        try:
            draft.path.mkdir(parents=True)
            draft.recipe_file.write_text(recipe.to_toml(), encoding="utf-8")
            os.replace(draft.path, run.path)
        except OSError as error:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise DyneqError(
                f"the run folder {run.path} cannot be made ({error.strerror or error}); choose a writable --run"
            ) from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Return an existing run's folder.

        Raises:
            DyneqError: If there is no run.
        """
        run = cls(path)
        if not is_file(run.recipe_file):
            raise DyneqError(f"{run.path} holds no run to resume (no recipe.toml in it); name the folder of a run")
        return run

    def recipe(self) -> Recipe:
        """Return the recipe the run was started with."""
        return load_recipe(self.recipe_file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against a second process; a kill releases it.

        Of several processes that train together the first one holds it.

        Raises:
            DyneqError: If another process is training here, or the folder cannot be written.
        """
        if not parallel.first():
            yield
            return
        try:
            file = open(self.recipe_file, "rb")  # noqa: SIM115
        except OSError as error:
            raise DyneqError(
                f"{self.recipe_file} cannot be read ({error.strerror or error}); see to its permissions"
            ) from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DyneqError(f"another process is training in {self.path}; wait for it or stop it") from None
            # only this process writes here now: what an earlier one was writing when it was killed is waste
            try:
                for leftover in self.path.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            except OSError as error:
                raise DyneqError(
                    f"{self.path} cannot be written ({error.strerror or error}); see to its permissions, or copy the "
                    "run to a writable place and resume it there"
                ) from None
            yield

    def discard(self) -> None:
        """Remove the folder of a run that could not begin; one with a snapshot stays, but for the guard's."""
        if set(self.path.glob("*.pt")) <= set(self.path.glob(STABLE)):
            shutil.rmtree(self.path, ignore_errors=True)
