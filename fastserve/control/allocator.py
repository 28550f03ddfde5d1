"""Which malloc the core runs on: the C library's, jemalloc, or another that is preloaded.

Called by the daemon before it starts a core. Of the core alone: trials and the control process keep the C
library's. Knows the dynamic linker, and nothing of the core.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastserve.errors import StartError

_JEMALLOC = "libjemalloc.so.2"
_LDCONFIG = ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig")
_FOLDERS = ("/usr/lib64", "/usr/lib", "/usr/local/lib")
_TIMEOUT_S = 30.0

# Pages that were freed go back to the system from a thread of jemalloc's own, not from whichever thread frees
# or allocates when their time has come, which would often be one that runs a batch.
_JEMALLOC_CONF = "background_thread:true"


def allocator_environment(allocator: str, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What [server] allocator adds to the core's environment. StartError when there is no such library, or it
    cannot be preloaded."""
    if allocator == "system":
        return {}
    library = _jemalloc() if allocator == "jemalloc" else _at_path(allocator)
    preload = " ".join(filter(None, [library, inherited.get("LD_PRELOAD")]))
    _try(library, preload, inherited)
    added = {"LD_PRELOAD": preload}
    if allocator == "jemalloc":
        # What the user has set comes later in the string and wins.
        added["MALLOC_CONF"] = ",".join(filter(None, [_JEMALLOC_CONF, inherited.get("MALLOC_CONF")]))
    return added


def _at_path(path: str) -> str:
    if not os.path.isfile(path):
        raise StartError(
            f'[server] allocator = "{path}": there is no such file; expected "system", "jemalloc" or '
            "the path of a library that defines malloc"
        )
    return os.path.abspath(path)


def _jemalloc() -> str:
    found = _in_cache(_cached_libraries()) or _in_folders(_FOLDERS)
    if found is None:
        raise StartError(
            f'[server] allocator = "jemalloc": {_JEMALLOC} is not installed; apt-get install libjemalloc2 '
            "(dnf install jemalloc), or set allocator to its path"
        )
    return found


def _cached_libraries() -> str:
    """What the dynamic linker's cache holds, as `ldconfig -p` prints it."""
    for command in _LDCONFIG:
        try:
            listed = subprocess.run(
                [command, "-p"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except OSError:
            continue
        return listed.stdout
    return ""


def _in_cache(listing: str) -> str | None:
    """The first of jemalloc's paths: the cache has this machine's own architecture first."""
    for line in listing.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.split(" ", 1)[0] == _JEMALLOC and os.path.exists(path):
            return path
    return None


def _in_folders(folders: Sequence[str]) -> str | None:
    for folder in folders:
        for path in (Path(folder) / _JEMALLOC, *sorted(Path(folder).glob(f"*-linux-gnu/{_JEMALLOC}"))):
            if path.exists():
                return str(path)
    return None


def _try(library: str, preload: str, inherited: Mapping[str, str]) -> None:
    """The dynamic linker only warns of a library that it cannot preload, and then goes on without."""
    tried = subprocess.run(
        ["true"],
        env={**inherited, "LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if tried.returncode != 0 or library in tried.stderr:
        why = tried.stderr.strip() or f"a program with it ended with {tried.returncode}"
        raise StartError(f"[server] allocator: {library} cannot be preloaded: {why}")
