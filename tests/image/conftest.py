"""The image, built once, and a network of its own for whoever runs it."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from exported_models import exported_models
from image_build import Builder, Image
from image_container import Container

REPO = Path(__file__).resolve().parents[2]
Run = Callable[..., Container]

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    with Builder(REPO / "build" / "image") as builder:
        yield builder.build()


@pytest.fixture(scope="session")
def models() -> Path:
    """half_plus_two is in there."""
    return exported_models()


@pytest.fixture(scope="session")
def network(image: Image) -> Iterator[None]:
    """Once the image is built, which takes packages from outside."""
    with Network():
        yield


@pytest.fixture
def run(image: Image, network: None, tmp_path: Path) -> Iterator[Run]:
    """Runs the image as Container does, on the network of these tests, where nobody else is."""
    containers: list[Container] = []

    def run(*args: str, **how: Any) -> Container:
        containers.append(Container(image, tmp_path / f"log{len(containers)}", args, **how))
        return containers[-1]

    yield run
    for container in containers:
        container.end()


class Network:
    """This thread, and what it starts, in a network that consists of a loopback interface."""

    def __enter__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._before = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._check(self._libc.unshare(_CLONE_NEWNET))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16sh14x", b"lo", 0)
            _, flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))

    def __exit__(self, *exc: object) -> None:
        self._check(self._libc.setns(self._before, _CLONE_NEWNET))
        os.close(self._before)

    def _check(self, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
