"""What systemd is told, read from a socket as systemd has it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastserve.control.service_manager import ServiceManager


class Systemd:
    """The other end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """All that has come, the lines of each datagram."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fastserve-{tmp_path}"


@pytest.fixture
def systemd(address: str) -> Iterator[Systemd]:
    made = Systemd(address)
    yield made
    made.socket.close()


def test_a_life(systemd: Systemd, address: str) -> None:
    serves = "serves ranker:4"
    service = ServiceManager(address, lambda: serves)
    service.ready()
    with service.reloading():
        (ready, reloading) = systemd.heard()
        assert ready == ["READY=1", "STATUS=serves ranker:4"]
        assert reloading[0] == "RELOADING=1"
        assert int(reloading[1].removeprefix("MONOTONIC_USEC=")) > 0
        serves = "serves ranker:5"
    assert systemd.heard() == [["READY=1", "STATUS=serves ranker:5"]]
    service.stopping(50.0)
    assert systemd.heard() == [["STOPPING=1", "STATUS=draining", "EXTEND_TIMEOUT_USEC=65000000"]]


def test_a_refused_configuration_leaves_it_ready(systemd: Systemd, address: str) -> None:
    service = ServiceManager(address)
    service.ready()
    with pytest.raises(RuntimeError), service.reloading():
        raise RuntimeError
    assert [lines[0] for lines in systemd.heard()] == ["READY=1", "RELOADING=1", "READY=1"]


def test_who_stops_is_not_ready_again(systemd: Systemd, address: str) -> None:
    service = ServiceManager(address)
    with service.reloading():  # before it is ready for the first time
        pass
    assert systemd.heard() == []
    service.ready()
    with service.reloading():
        service.stopping(1.0)
    assert [lines[0] for lines in systemd.heard()] == ["READY=1", "RELOADING=1", "STOPPING=1"]


def test_the_name_is_not_handed_on(systemd: Systemd, address: str) -> None:
    environment = {"NOTIFY_SOCKET": address, "PATH": "/bin"}
    ServiceManager.of(lambda: "x", environment).ready()
    assert environment == {"PATH": "/bin"}
    assert systemd.heard() == [["READY=1", "STATUS=x"]]
    ServiceManager.of(lambda: "x", environment).ready()
    assert systemd.heard() == []


def test_nobody_waits_for_a_systemd_that_is_stuck(systemd: Systemd, address: str) -> None:
    service = ServiceManager(address, lambda: "x" * 1000)
    for _ in range(5000):  # its queue is full soon, and this comes to an end all the same
        service.ready()
    assert systemd.heard()
    systemd.socket.close()
    service.ready()
