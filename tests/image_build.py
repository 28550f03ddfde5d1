"""Builds an image of this checkout without a Docker engine: buildah with chroot isolation. As root.

The base image is Debian as debootstrap makes it from the machine's own mirror, so that nothing is pulled. pip
in the build is configured as pip here, by a file that is there during the build only.
"""

from __future__ import annotations

import configparser
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
_BUILD_TIMEOUT_S = 3000.0  # seven minutes on two cores that have nothing else to do
# Of pip's settings, those that say where packages are and how to get there.
_PIP_SETTINGS = ("cert", "client-cert", "index-url", "extra-index-url", "proxy", "timeout", "trusted-host")


@dataclass(frozen=True)
class Image:
    """`root`: its root file system, a directory. `config`: as Docker has it."""

    root: Path
    config: Mapping[str, Any]


class Builder:
    """A buildah storage of its own in `directory`, which `close` removes. A context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._containers: list[str] = []
        self._remove()
        directory.mkdir(parents=True)

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *exc: object) -> None:
        for container in self._containers:
            self._buildah("umount", container)
        self._remove()

    def build(self, dockerfile: str = "Dockerfile", **arguments: str) -> Image:
        """`arguments`: of the Dockerfile."""
        if "BASE" not in arguments:
            arguments["BASE"] = self._base()
        name = "localhost/fastserve-test"
        self._buildah(
            "build",
            "--isolation=chroot",
            "--format=docker",
            f"--file={REPO / dockerfile}",
            f"--tag={name}",
            *(f"--build-arg={key}={value}" for key, value in arguments.items()),
            *(f"--volume={ours}:{theirs}:ro" for ours, theirs in self._pip_files().items()),
            str(REPO),
        )
        inspected = json.loads(self._buildah("inspect", "--type=image", name))
        container = self._buildah("from", "--pull-never", name)
        self._containers.append(container)
        return Image(Path(self._buildah("mount", container)), inspected["Docker"]["config"])

    def _base(self) -> str:
        """The name of an image that is a minimal Debian."""
        root, name = self._directory / "base", "localhost/debian-test"
        suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
        _run("debootstrap", "--variant=minbase", suite, str(root), mirror(suite))
        container = self._buildah("from", "scratch")
        self._buildah("add", "--quiet", container, str(root), "/")
        self._buildah("commit", "--rm", "--quiet", container, name)
        shutil.rmtree(root)
        return name

    def _pip_files(self) -> dict[str, str]:
        """Files for the build, and where they are in it."""
        files: dict[str, str] = {}
        settings = configparser.RawConfigParser()
        settings.add_section("global")
        for key, value in pip_settings().items():
            if key in ("cert", "client-cert") and value:
                files[value] = f"/run/pip-{key}.pem"
                value = files[value]
            settings.set("global", key, value)
        ours = self._directory / "pip.conf"
        with open(ours, "w") as file:
            settings.write(file)
        return {**files, str(ours): "/etc/pip.conf"}

    def _remove(self) -> None:
        """Nothing that is mounted there, such as a machine's own /dev, may go with it."""
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        below = [place for place in mounted if Path(place).is_relative_to(self._directory)]
        assert not below, f"still mounted: {below}"
        if self._directory.exists():
            shutil.rmtree(self._directory)

    def _buildah(self, *args: str) -> str:
        storage = [
            "--storage-driver=vfs",
            f"--root={self._directory}/storage",
            f"--runroot={self._directory}/run",
        ]
        return _run("buildah", *storage, *args)


def mirror(suite: str) -> str:
    """Where this machine gets Debian's packages."""
    targets = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME) $(COMPONENT)")
    found = [
        line.split()[0] for line in targets.splitlines() if line.split()[1:] == ["Debian", suite, "main"]
    ]
    assert found, f"apt-get knows no mirror of Debian's {suite}; apt-get update?"
    return found[0]


def pip_settings(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """How pip reaches its packages here: its files' settings, then those of the environment."""
    said = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
    settings: dict[str, str] = {}
    for line in said.splitlines():
        name, _, value = line.partition("=")
        key = name.partition(".")[2]
        if key in _PIP_SETTINGS:
            settings[key] = value.strip("'\"")
    for key in _PIP_SETTINGS:
        if given := environment.get(f"PIP_{key.upper().replace('-', '_')}"):
            settings[key] = given
    # Folders of this machine are not there in the build.
    remote = " ".join(url for url in settings.get("extra-index-url", "").split() if "file:" not in url)
    return {**settings, "extra-index-url": remote} if "extra-index-url" in settings else settings


def _run(*command: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout.strip()
