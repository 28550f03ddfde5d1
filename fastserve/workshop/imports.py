"""Code of the user's own by its name on the command line: MODULE, MODULE:NAME, PATH.py and PATH.py:NAME."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fastserve.workshop.endpoint import first_line
from fastserve.workshop.errors import WorkshopError


def import_named(where: str, name: str) -> Any:
    """The module, or what it has by the name after the colon. `where` is for the messages. WorkshopError.

    Modules are found as `python -m` finds them: the working directory comes first.
    """
    module_name, colon, attribute = name.rpartition(":") if ":" in name else (name, "", "")
    module = _module(where, module_name)
    if not colon:
        return module
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            public = [known for known in vars(module) if not known.startswith("_")]
            raise WorkshopError(
                f"{where}: {module_name} has no {attribute!r}; it has "
                f"{', '.join(sorted(public)) or 'nothing'}"
            ) from None
    return found


def _module(where: str, name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if name.endswith(".py"):
            return _file(where, Path(name))
        return importlib.import_module(name)
    except WorkshopError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise WorkshopError(
                f"{where}: there is no module {name!r} in the working directory or where Python looks; give "
                "its file, PATH.py, or set PYTHONPATH"
            ) from None
        raise WorkshopError(f"{where}: importing {name} failed: {first_line(error)}") from error
    except Exception as error:
        raise WorkshopError(f"{where}: importing {name} failed: {first_line(error)}") from error


def _file(where: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise WorkshopError(f"{where}: {path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise WorkshopError(f"{where}: {path} is no Python file")
    # Neighbours that it imports are found, as when it is run.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
