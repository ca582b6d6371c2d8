"""Systems named on the command line: ``module:factory`` or ``path/to/file.py:factory``."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from dyneq.errors import DyneqError, UsageError, nearest
from dyneq.systems.protocol import System
from dyneq.systems.validate import check_system


def load_system(name: str) -> System:
    """Import a factory, call it without arguments, and return the system it made, checked.

    The current directory is importable while this happens, and so is the folder of a named file.

    Args:
        name: ``module:factory`` or ``path/to/file.py:factory``. A System class whose arguments all have defaults is a
            factory too.

    Raises:
        UsageError: If the name does not lead to a factory that takes no arguments.
        DyneqError: If importing or calling it fails, or what it made is not a System that keeps its promises.
    """
    target, colon, attribute = name.rpartition(":")
    if not colon or not target or not attribute:
        raise UsageError(
            f"a system is named module:factory or file.py:factory, but {name!r} is neither; "
            "write, for example, dyneq.systems.analytic:lorenz"
        )
    file = Path(target) if target.endswith(".py") or "/" in target else None
    with _importable(Path.cwd(), *([file.resolve().parent] if file else [])):
        module = _import_file(file) if file else _import_module(target)
        factory = _factory(module, target, attribute)
        try:
            system = factory()
        except (Exception, SystemExit) as error:
            raise DyneqError(f"the factory {name} failed ({_brief(error)}); repair it and try again") from error
    if not isinstance(system, System):
        raise DyneqError(
            f"the factory {name} should return a dyneq.System, but returned {type(system).__name__}; wrap a function "
            "with dyneq.System.from_map(f, z0)"
        )
    try:
        check_system(system)
    except DyneqError:
        raise
    except Exception as error:
        raise DyneqError(f"the force of {name} fails at its own start ({_brief(error)}); repair it") from error
    return system


def _import_module(target: str) -> ModuleType:
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is not None and (target == error.name or target.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {target!r} (no {error.name!r} here or among the installed packages); check the "
                "spelling, or run from the folder it is in"
            ) from None
        raise DyneqError(f"importing {target} failed ({_brief(error)}); install or repair what it needs") from error
    except (Exception, SystemExit) as error:
        raise DyneqError(f"importing {target} failed ({_brief(error)}); repair it and try again") from error


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise UsageError(f"there is no file {file} to take a system from; check the path")
    # a name of its own, so that a user's file called json.py shadows nothing
    name = f"_dyneq_{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise DyneqError(f"running {file} failed ({_brief(error)}); repair it and try again") from error
    return module


def _factory(module: ModuleType, target: str, attribute: str) -> Callable[[], object]:
    if not hasattr(module, attribute):
        offered = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UsageError(f"{target} has no {attribute!r}{nearest(attribute, offered)}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise UsageError(
            f"{target}:{attribute} should be a function returning a System, but is of type {type(factory).__name__}; "
            "name the function that makes it"
        )
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UsageError(
            f"{target}:{attribute} is called without arguments, but needs some ({error}); give them defaults"
        ) from None
    except ValueError:
        pass  # a builtin without a signature: calling it will tell
    return factory


@contextlib.contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _brief(error: BaseException) -> str:
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"{type(error).__name__}: {first[:200]}"
