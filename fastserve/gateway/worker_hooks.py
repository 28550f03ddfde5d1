"""A route's file, imported: its hooks, and the words for what they raise.

Called by a route's worker, on its one thread. Knows nothing of sockets and requests.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from fastserve.web import Hook
from fastserve.web_file import HOOKS

# What the file is called as a module: a name that hides nobody else's.
MODULE = "fastserve_route"
# The end of a traceback says most, and a line of the log has so much room.
_TRACEBACK_CHARS = 2500
_TEXT_CHARS = 2000
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


class HookError(Exception):
    """A file that cannot be served with. The text says why, `details` is the traceback, or ""."""

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


@dataclass(frozen=True)
class Hooks:
    """The functions of a file. `concurrent`: requests may overlap, because both hooks are async."""

    preprocess: Hook
    postprocess: Hook
    setup: Callable[[], Any] | None
    concurrent: bool


def load(file: str) -> Hooks:
    """Runs the file, with its directory first on the path, as `python FILE` does. HookError."""
    # A cached file is told from its source by the second and the size: too little for a reload.
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.dirname(file))
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise HookError(f"{file}: expected the name of a Python file, such as route.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        if error.filename == file:
            raise HookError(f"{file}: {error.strerror}") from None
        raise HookError(*explain(error, file)) from None
    except (Exception, SystemExit) as error:
        raise HookError(*explain(error, file)) from None
    found: list[Hook] = []
    for name in HOOKS:
        hook = getattr(module, name, None)
        if callable(hook):
            found.append(hook)
        else:
            raise HookError(
                f"{file}: has no function {name}(): expected preprocess(request) and "
                "postprocess(outputs, request)"
            )
    setup = getattr(module, "setup", None)
    if setup is not None and not callable(setup):
        raise HookError(f"{file}: setup is not a function")
    return Hooks(found[0], found[1], setup, all(is_async(hook) for hook in found))


def is_async(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(hook, "__call__", None))  # noqa: B004


def loaded_files(file: str) -> list[str]:
    """The file and what has been imported from its directory: what a reload looks at."""
    directory = os.path.dirname(file) + os.sep
    found = {file}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.startswith(directory) and "site-packages" not in path:
            found.add(path)
    return sorted(found)


def explain(error: BaseException, file: str) -> tuple[str, str]:
    """What a user's code raised: in one line, with where, and as a traceback that begins in that code."""
    if isinstance(error, SyntaxError) and error.filename:
        return _cut(f"{error.filename}:{error.lineno or 1}: {error.msg}"), ""
    trace = error.__traceback__
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    last = trace
    place = file
    while last is not None:
        if last.tb_frame.f_code.co_filename.startswith(os.path.dirname(file) + os.sep):
            place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
        last = last.tb_next
    details = "".join(traceback.format_exception(type(error), error, trace))
    if len(details) > _TRACEBACK_CHARS:
        details = "..." + details[-_TRACEBACK_CHARS:]
    try:
        text = str(error)
    except Exception:  # by its own __str__
        text = "it has no text, as its __str__ failed"
    return _cut(f"{place}: {type(error).__name__}{f': {text}' if text else ''}"), details


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_CHARS else text[:_TEXT_CHARS] + "..."


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_code.co_filename
    return name.startswith((_OURS, "<frozen importlib"))
