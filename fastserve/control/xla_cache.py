"""The compile cache: a directory of what XLA has compiled, filled by trials and read by the core.

TensorFlow keeps its executables there (one file each, named by what was compiled) and trusts what it finds: a
damaged file fails the run that wanted it, and so does a directory that cannot be written. So this guards it.
Before a trial everything goes that no trial of ours has made, or that is no longer what it made; a manifest
beside the directory has the checksums. Before the core opens a version, that version's entries are checked
again. Whatever fails here costs a compilation, never a version.

  ROOT/KEY/       the directory, named by xla_cache_key
  ROOT/KEY.json   the manifest: of each entry its SHA-256 and when it was last of use

Owned by the daemon, called by the manager and trial_runner from worker threads: hashing may take a while.
Knows nothing of trials, and no TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastserve.config import TensorFlow
from fastserve.control.xla_cache_key import cache_key
from fastserve.environment import XLA_CACHE_FLAG
from fastserve.log import Log

SUFFIX = ".pb"
# All entries together. One batch size of a ranking model takes some 60 KiB.
MAX_BYTES = 1 << 30
# With less than this to spare, TensorFlow might fail in the middle of an entry.
_FREE_BYTES = 32 << 20
# An entry that nobody has asked for in so long is of a model that is no more.
_UNUSED_S = 30 * 86400.0
_NAME_MAX = 255


def entries_of(servable: Mapping[str, Any]) -> dict[str, str]:
    """The entries that a servable's trial made or used, with their checksums."""
    entries = servable.get("xla_cache")
    return dict(entries) if isinstance(entries, dict) else {}


def open_cache(
    state_dir: str | Path,
    settings: TensorFlow,
    environment: Mapping[str, str],
    log: Log,
) -> XlaCache | None:
    """The cache for these settings, below the state directory, made when the first trial needs it. None: it
    is off, or `environment` already has one that is not ours."""
    if not settings.xla_cache:
        return None
    if XLA_CACHE_FLAG in environment.get("TF_XLA_FLAGS", ""):
        log.info("no compile cache", why=f"TF_XLA_FLAGS has {XLA_CACHE_FLAG}")
        return None
    return XlaCache(Path(state_dir) / "xla", cache_key(settings, environment), log)


class XlaCache:
    """One directory of compiled code. Every method may be called from any thread."""

    def __init__(
        self,
        root: str | Path,
        key: str,
        log: Log,
        *,
        max_bytes: int = MAX_BYTES,
        free_bytes: int = _FREE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = Path(root).absolute() / key
        self._manifest = self.directory.with_name(key + ".json")
        self._log = log
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes
        self._clock = clock
        self._turn = threading.Lock()

    def prepare(self) -> str:
        """Makes the directory fit for a trial: what is damaged, foreign or old goes. Empty, or why a trial
        must do without a cache."""
        with self._turn:
            try:
                self._make()
                known = self._read()
                kept = self._sweep(known)
                if kept != known:
                    self._write(kept)
                self._drop_other_keys()
                free = os.statvfs(self.directory)
                if free.f_bavail * free.f_frsize < self._free_bytes:
                    return f"{self.directory}: less than {self._free_bytes >> 20} MiB are left on the disk"
            except OSError as error:
                return f"{self.directory}: {error.strerror}"
        return ""

    def record(self, entries: Mapping[str, str]) -> None:
        """Takes up what a trial has made or used: names of files and their SHA-256."""
        if not entries:
            return
        with self._turn:
            known = self._read()
            now = self._clock()
            for name, digest in entries.items():
                if not _is_entry(name):
                    continue
                known[name] = {"sha256": digest, "used": now}
                with suppress(OSError):
                    (self.directory / name).chmod(0o444)
            self._write(known)

    def verify(self, servable: Mapping[str, Any]) -> list[str]:
        """The entries of a version that are missing or damaged; the damaged ones are removed. Not empty: the
        core would have to compile them, while it serves; a new trial does that better."""
        with self._turn:
            bad = [
                name
                for name, digest in entries_of(servable).items()
                if not _is_entry(name) or _digest(self.directory / name) != digest
            ]
            self._remove(bad, "damaged or missing")
        return bad

    def discard(self, servable: Mapping[str, Any]) -> None:
        """Removes the entries of a version that cannot be opened with them."""
        self.discard_entries(entries_of(servable))

    def discard_entries(self, names: Mapping[str, str] | list[str]) -> None:
        with self._turn:
            self._remove([name for name in names if _is_entry(name)], "of no use")

    # ---- inside, with the lock held --------------------------------------------------------

    def _make(self) -> None:
        if self.directory.is_symlink() or (self.directory.exists() and not self.directory.is_dir()):
            self.directory.unlink()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Root may write where the bits say no, but not to a full disk or a read-only one.
        fd, name = tempfile.mkstemp(prefix=".probe", dir=self.directory)
        try:
            os.write(fd, b"\0" * 4096)
        finally:
            os.close(fd)
            os.unlink(name)

    def _sweep(self, known: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Removes what is not as the manifest says, then the longest unused. The entries that stay."""
        kept: dict[str, dict[str, Any]] = {}
        sizes: dict[str, int] = {}
        oldest = self._clock() - _UNUSED_S
        for found in list(os.scandir(self.directory)):
            entry = known.get(found.name)
            why = "foreign"
            if entry is not None and found.is_file(follow_symlinks=False):
                damaged = _digest(Path(found.path)) != entry["sha256"]
                why = "damaged" if damaged else "unused" if entry["used"] < oldest else ""
            if why:
                self._drop(found, why)
            else:
                kept[found.name] = known[found.name]
                sizes[found.name] = found.stat(follow_symlinks=False).st_size
        total = sum(sizes.values())
        for name in sorted(kept, key=lambda name: float(kept[name]["used"])):
            if total <= self._max_bytes:
                break
            total -= sizes[name]
            del kept[name]
            (self.directory / name).unlink()
        return kept

    def _drop(self, found: os.DirEntry[str], why: str) -> None:
        if why != "unused":
            self._log.warning("compile cache entry removed", path=found.path, why=why)
        if found.is_dir(follow_symlinks=False):
            shutil.rmtree(found.path)
        else:
            os.unlink(found.path)

    def _remove(self, names: list[str], why: str) -> None:
        if not names:
            return
        known = self._read()
        for name in names:
            known.pop(name, None)
            with suppress(OSError):
                if _is_entry(name):
                    (self.directory / name).unlink(missing_ok=True)
        self._log.warning(
            "compile cache entries removed", directory=self.directory, count=len(names), why=why
        )
        self._write(known)

    def _drop_other_keys(self) -> None:
        """Directories of other versions, machines or settings that nobody has used for long."""
        oldest = self._clock() - _UNUSED_S
        for manifest in self.directory.parent.glob("*.json"):
            with suppress(OSError):
                if manifest != self._manifest and manifest.stat().st_mtime < oldest:
                    shutil.rmtree(manifest.with_suffix(""), ignore_errors=True)
                    manifest.unlink()

    def _read(self) -> dict[str, dict[str, Any]]:
        """The manifest. What cannot be read knows no entry: they are compiled again."""
        try:
            entries = json.loads(self._manifest.read_bytes())["entries"]
            return {
                str(name): {"sha256": str(entry["sha256"]), "used": float(entry["used"])}
                for name, entry in entries.items()
                if _is_entry(name)
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log.warning("compile cache manifest ignored", path=self._manifest, why=error)
            return {}

    def _write(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        new = self._manifest.with_suffix(".json.new")
        try:
            with open(new, "w", encoding="utf-8") as file:
                json.dump({"entries": entries}, file, indent=1)
            os.replace(new, self._manifest)
        except OSError as error:
            self._log.warning("compile cache manifest not written", path=self._manifest, why=error.strerror)
            with suppress(OSError):
                new.unlink()


def _is_entry(name: str) -> bool:
    """Whether `name` is one that TensorFlow gives to a finished entry, and no path."""
    return name.endswith(SUFFIX) and len(name) <= _NAME_MAX and "/" not in name and not name.startswith(".")


def _digest(path: Path) -> str:
    """The SHA-256 of a file; empty when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
