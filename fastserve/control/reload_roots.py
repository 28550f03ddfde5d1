"""Where a request may have models lie, and requests logged: [server] reload_roots.

Called by reload_request, on the event loop. Knows paths and URLs; knows no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from fastserve.config import Model


class OutsideRoots(Exception):
    """A place that is not below the roots. The text names the model, the place and the setting."""


def check_roots(models: Sequence[Model], before: Mapping[str, Model], roots: Sequence[str]) -> None:
    """OutsideRoots when a model's base_path is not below one of `roots`, if there are any, with links
    followed. What is served already stays allowed."""
    for model in models:
        served = before.get(model.name)
        if not roots or (served is not None and served.base_path == model.base_path):
            continue
        if not any(_is_below(model.base_path, root) for root in roots):
            raise OutsideRoots(
                f"the base_path of model {model.name}, {model.base_path}, is not below one of the "
                "[server] reload_roots",
            )


def check_log_places(
    models: Sequence[Model], before: Mapping[str, Model], roots: Sequence[str], logs: str
) -> None:
    """OutsideRoots when requests of a model would be logged neither below `logs` nor below one of `roots`, if
    there are any. Where they are logged already stays allowed."""
    for model in models:
        prefix = model.logging.filename_prefix
        served = before.get(model.name)
        if not roots or not model.logging.sampling_rate:
            continue
        if served is not None and served.logging.filename_prefix == prefix:
            continue
        # A prefix ends in a part of the files' names.
        if not any(_is_below(os.path.dirname(prefix), root) for root in (logs, *roots)):
            raise OutsideRoots(
                f"the filename_prefix of model {model.name}, {prefix}, is neither below {logs} nor below one "
                "of the [server] reload_roots",
            )


def _is_below(path: str, root: str) -> bool:
    if ("://" in path) != ("://" in root):
        return False
    if "://" in path:
        # Whether a store would make something of "..", or of an escaped one, is not for us to find out.
        parts = path.partition("://")[2].split("/")
        plain = not any(part in (".", "..") or re.search(r"[%?#\\]|::", part) for part in parts)
        return plain and f"{path}/".startswith(f"{root.rstrip('/')}/")
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, real_root]) == real_root
