"""Runs an image as a container engine would, in namespaces of its own. As root.

The root file system is read-only, with a tmpfs for /tmp and the state; the process is the image's user,
without capabilities and without a way to new ones; its entry point is process 1 of a pid namespace. Network
and resources are those of the test.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from image_build import Image

T = TypeVar("T")
_PATIENCE_S = 120.0
STATE = "/var/lib/fastserve"


class Container:
    """`docker run --read-only --tmpfs /tmp --tmpfs STATE -v ... -e ... IMAGE ARGS`. `volumes`: directories or
    files of ours, read-only, by their place in the image."""

    def __init__(
        self,
        image: Image,
        log: Path,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str] | None = None,
        volumes: Mapping[str, Path] | None = None,
    ) -> None:
        self._image = image
        self._log = log
        self._user = image.config["User"].split(":")
        self._env = [*image.config["Env"], *(f"{key}={value}" for key, value in (env or {}).items())]
        self._places: list[Path] = []
        root = image.root
        setup = ["mount --make-rprivate /", f"mount --bind {root} {root}", f"cd {root}"]
        for place, ours in (volumes or {}).items():
            self._make_place(root / place.lstrip("/"), ours)
            setup += [f"mount --bind {ours} .{place}", f"mount -o remount,ro,bind .{place}"]
        setup += [
            f"mount -o remount,ro,bind {root}",
            "mount -t proc proc proc",
            "mount --rbind /dev dev",
            "mount -t tmpfs -o mode=1777 tmpfs tmp",
            f"mount -t tmpfs -o mode=0700,uid={self._user[0]},gid={self._user[1]} tmpfs .{STATE}",
        ]
        entry = [*image.config["Entrypoint"], *args]
        script = " && ".join([*setup, f"exec {shlex.join(self._command(str(root), entry))}"])
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                ["unshare", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def _command(self, root: str, command: Sequence[str]) -> list[str]:
        """`command` in the image, as its user and with its environment."""
        user, group = self._user
        return [
            "chroot",
            root,
            *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
            *("env", "-i", *self._env),
            *command,
        ]

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Of its process 1, as we see it."""
        own = self._process.pid
        (child,) = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return int(child)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`docker exec`."""
        inside = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--root", "--wd=/"]
        return subprocess.run(
            [*inside, *self._command("/", command)], capture_output=True, text=True, timeout=60, check=False
        )

    def processes(self) -> dict[int, tuple[str, str]]:
        """State and command line of those inside, by their ids there."""
        found = {}
        for place in Path("/proc", str(self.pid), "root", "proc").glob("[0-9]*"):
            try:
                state = (place / "stat").read_text().rpartition(")")[2].split()[0]
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:
                continue
            found[int(place.name)] = (state, line)
        return found

    def until(self, look: Callable[[], T | None]) -> T:
        """What it is about to do has no event here."""
        end = time.monotonic() + _PATIENCE_S
        while not (found := look()):
            assert time.monotonic() < end and self._process.poll() is None, self.log
            time.sleep(0.05)
        return found

    def stop(self) -> int:
        """`docker stop`: SIGTERM to its process 1. The exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(_PATIENCE_S)

    def end(self) -> None:
        """Ends what is left of it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for place in self._places:
            place.rmdir() if place.is_dir() else place.unlink()

    def _make_place(self, place: Path, ours: Path) -> None:
        """Where a volume is mounted, as an engine makes it; the next container does not have it."""
        if place.exists():
            return
        if ours.is_dir():
            place.mkdir()
        else:
            place.touch()
        self._places.append(place)
