"""A batcher, [executor] policy = "priority": models run strictly by weight. priority.c says how."""

from __future__ import annotations

import importlib.util


def batcher() -> str:
    """The path of priority.c's library. It is no Python module, though setuptools names it like one."""
    spec = importlib.util.find_spec("fastserve_priority.priority")
    if spec is None or spec.origin is None:
        raise ImportError("fastserve_priority was installed without its library: pip install it again")
    return spec.origin
