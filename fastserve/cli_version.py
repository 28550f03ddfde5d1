"""`fastserve version`: what is installed, found without importing any of it."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from importlib import metadata

from fastserve.environment import installed_litert, installed_tensorflow
from fastserve.version import __version__


def versions() -> list[tuple[str, str]]:
    """Names and versions, for people."""
    tensorflow, litert = installed_tensorflow(), installed_litert()
    return [
        ("fastserve", __version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("nghttp2", _nghttp2()),
        ("tensorflow", f"{tensorflow.version} in {tensorflow.directory}" if tensorflow else "not installed"),
        ("litert", f"{_version('ai-edge-litert')} in {litert}" if litert else "not installed"),
        (
            "platform",
            f"{platform.system()} {platform.machine()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        ),
    ]


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


class _Nghttp2Info(ctypes.Structure):
    _fields_ = (("age", ctypes.c_int), ("version_num", ctypes.c_int), ("version_str", ctypes.c_char_p))


def _nghttp2() -> str:
    """The library that the native core is linked with, bundled or the system's, as it reports itself."""
    spec = importlib.util.find_spec("fastserve._native.front_end")
    if spec is None or spec.origin is None:
        return "unknown: the native core is not built"
    try:
        # A symbol is looked for in the core's libraries too.
        nghttp2_version = ctypes.CDLL(spec.origin).nghttp2_version
    except (OSError, AttributeError) as error:
        return f"unknown: {error}"
    nghttp2_version.restype = ctypes.POINTER(_Nghttp2Info)
    return str(nghttp2_version(0).contents.version_str.decode())
