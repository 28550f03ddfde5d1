"""Control processes that are killed, and the cores that outlive them: nobody's request is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import small_control
from core_driver import PATIENCE_S, PREDICT, predict_reply, predict_request
from daemon_process import alive

import fastserve
from fastserve._native.metrics import Metrics

RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


class Control:
    """A control process (tests/small_control.py)."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.state = state
        settings = {
            "listen": ["127.0.0.1:0", f"unix:{state}/s.sock"],
            "threads": 1,
            "versions": [1],
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, small_control.__file__, str(state), json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": str(Path(fastserve.__file__).parents[1])},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told: list[dict[str, Any]] = []
        self.core = 0

    @property
    def log(self) -> str:
        return (self.state / "log").read_text()

    def until(self, key: str) -> Any:
        """Reads what it tells until that has come."""
        while True:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            assert line, (self.told, self.log)
            self.told.append(json.loads(line))
            if key in self.told[-1]:
                return self.told[-1][key]

    def ready(self) -> Control:
        self.core = self.until("ready")
        self.addresses: list[str] = self.told[-1]["addresses"]
        return self

    def said(self, key: str) -> list[Any]:
        return [told[key] for told in self.told if key in told]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        self.process.terminate()
        assert self.until("ended") is True
        assert self.process.wait(PATIENCE_S) == 0


class Clients:
    """Calls that go on all the time: over one connection that stays, and over ever new ones."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answered = [0, 0]
        self.wrong: list[str] = []
        self.ending = threading.Event()
        self.threads = [
            threading.Thread(target=self._stay),
            threading.Thread(target=self._come_and_go),
        ]
        for thread in self.threads:
            thread.start()

    def more(self) -> None:
        """Waits until both have been answered some more."""
        before, deadline = list(self.answered), time.monotonic() + PATIENCE_S
        while not all(now >= then + 5 for now, then in zip(self.answered, before, strict=True)):
            assert time.monotonic() < deadline and not self.wrong, (self.answered, before, self.wrong)
            time.sleep(0.01)

    def end(self) -> None:
        self.ending.set()
        for thread in self.threads:
            thread.join(PATIENCE_S)
        assert self.wrong == []

    def _stay(self) -> None:
        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            while not self.ending.is_set() and not self.wrong:
                self._call(channel, 0)

    def _come_and_go(self) -> None:
        host, port = self.address.split(":")
        while not self.ending.is_set() and not self.wrong:
            try:
                socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
            except OSError as error:
                self.wrong.append(f"a connection: {error}")
                return
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(self.address, options=options) as channel:
                self._call(channel, 1)

    def _call(self, channel: grpc.Channel, who: int) -> None:
        value = float(self.answered[who] % 1000)
        request = predict_request("m", struct.pack("<f", value), [1, 1])
        try:
            reply = channel.unary_unary(PREDICT)(request, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            self.wrong.append(str(error))
            return
        if predict_reply(reply) != [0.5 * value + 2]:
            self.wrong.append(str(reply))
        self.answered[who] += 1


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Control]]:
    controls: list[Control] = []

    def start(**settings: Any) -> Control:
        controls.append(Control(tmp_path, **settings))
        return controls[-1]

    yield start
    for control in controls:
        control.kill()
        assert control.process.stdout is not None
        control.process.stdout.close()
        for pid in {control.core, *control.said("launched"), *control.said("adopted")}:
            if pid and alive(pid):
                os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], Any]) -> None:
    """Waits for what another process is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_core_is_adopted_and_nobody_notices(start: Callable[..., Control]) -> None:
    first = start().ready()
    address = first.addresses[0]
    clients = Clients(address)
    clients.more()
    first.kill()
    clients.more()
    # Three in a row; port 0 means the socket that is there.
    for _ in range(3):
        control = start().ready()
        assert control.said("adopted") == [first.core]
        assert control.said("notes") == [[{"for": 1}]]
        assert control.core == first.core
        assert control.addresses == first.addresses
        clients.more()
        control.kill()
        clients.more()
    last = start().ready()
    with grpc.insecure_channel(address) as channel:
        assert channel.unary_unary(RELOAD)(b"", timeout=PATIENCE_S) == b""
    clients.end()
    last.stop()
    assert last.said("request") == ["HandleReloadConfigRequest"]
    until(lambda: not alive(first.core))
    assert not list(first.state.glob("*.sock"))


def counted(control: Control) -> int:
    """The calls that its core has answered, as the control process could read them."""
    with open(control.told[-1]["memory"], "rb") as memory:
        series = Metrics(memory.fileno()).read().series
    return sum(one.requests.get(("Predict", "grpc", "OK"), 0) for one in series)


def test_what_was_counted_is_read_by_whoever_adopts(start: Callable[..., Control]) -> None:
    first = start().ready()
    request = predict_request("m", bytes(4), [1, 1])
    with grpc.insecure_channel(first.addresses[0]) as channel:
        for _ in range(7):
            channel.unary_unary(PREDICT)(request, timeout=PATIENCE_S)
        assert counted(first) == 7
        first.kill()
        channel.unary_unary(PREDICT)(request, timeout=PATIENCE_S)
        for calls in (9, 10):
            control = start().ready()
            assert control.said("adopted") == [first.core]
            channel.unary_unary(PREDICT)(request, timeout=PATIENCE_S)
            assert counted(control) == calls
            control.kill()
        last = start().ready()
    # Another core begins anew.
    os.kill(last.core, signal.SIGKILL)
    last.until("launched")
    with grpc.insecure_channel(first.addresses[0]) as channel:
        channel.unary_unary(PREDICT)(request, timeout=PATIENCE_S, wait_for_ready=True)
    last.stop()


def test_an_adopted_core_that_dies_is_restarted(start: Callable[..., Control]) -> None:
    first = start(versions=[1, 5]).ready()
    first.kill()
    control = start(versions=[1, 5]).ready()
    os.kill(control.core, signal.SIGKILL)
    core = control.until("launched")
    assert core != first.core
    # The socket has not been closed for a moment: who connects now is served by the next core.
    with grpc.insecure_channel(first.addresses[0]) as channel:
        reply = channel.unary_unary(PREDICT)(
            predict_request("m", bytes(4), [1, 1]), timeout=PATIENCE_S, wait_for_ready=True
        )
        assert predict_reply(reply) == [2.0]
    assert "core died" in control.log and "it was adopted" in control.log
    # And that one can be adopted again.
    control.kill()
    again = start(versions=[1, 5]).ready()
    assert again.said("adopted") == [core]
    assert again.said("notes") == [[{"for": 1}, {"for": 5}]]
    again.stop()


@pytest.mark.parametrize("change", ["threads", "listen"])
def test_a_core_with_other_settings_is_replaced_and_nobody_is_refused(
    start: Callable[..., Control], change: str
) -> None:
    first = start().ready()
    address = first.addresses[0]
    clients = Clients(address)
    clients.more()
    first.kill()
    clients.more()
    unix = f"unix:{first.state}/s.sock"
    changes = {"threads": {"threads": 2}, "listen": {"listen": [unix, address, "127.0.0.1:0"]}}
    control = start(**changes[change]).ready()
    assert control.said("adopted") == [] and control.said("drained") == [True]
    assert control.core != first.core
    until(lambda: not alive(first.core))
    assert address in control.addresses
    clients.more()
    with grpc.insecure_channel(unix) as channel:
        reply = channel.unary_unary(PREDICT)(predict_request("m", bytes(4), [1, 1]), timeout=PATIENCE_S)
        assert predict_reply(reply) == [2.0]
    # The one that took its place is found where that was.
    control.kill()
    again = start(**changes[change]).ready()
    assert again.said("adopted") == [control.core]
    clients.more()
    clients.end()
    again.stop()
    assert not list(first.state.glob("*.sock"))


def test_a_replacement_that_is_cut_short_leaves_one_core(start: Callable[..., Control]) -> None:
    """The new core has begun, and its control process dies before it serves: it ends, the old one goes on."""
    first = start().ready()
    first.kill()
    second = start(threads=2)
    core = second.until("launched")
    second.kill()
    until(lambda: not alive(core))
    assert alive(first.core)
    third = start().ready()
    assert third.said("adopted") == [first.core]
    third.stop()


def test_a_core_that_never_served_ends_with_its_control_process(start: Callable[..., Control]) -> None:
    first = start(versions=[])
    core = first.until("launched")
    first.kill()
    until(lambda: not alive(core))


def test_an_orphan_ends_by_sigterm_as_ever(start: Callable[..., Control]) -> None:
    first = start().ready()
    first.kill()
    os.kill(first.core, signal.SIGTERM)
    until(lambda: not alive(first.core))
    second = start().ready()
    assert second.core != first.core
    second.stop()


def test_output_of_an_orphan_hurts_nobody_and_goes_to_the_next_log(start: Callable[..., Control]) -> None:
    first = start().ready()
    first.kill()
    until(lambda: os.readlink(f"/proc/{first.core}/fd/2") == os.devnull)
    assert os.readlink(f"/proc/{first.core}/fd/1") == os.devnull
    status = Path(f"/proc/{first.core}/status").read_text()
    ignored = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")), 16)
    assert ignored >> (signal.SIGPIPE - 1) & 1
    second = start().ready()
    with open(f"/proc/{first.core}/fd/2", "w") as output:
        output.write("the core has something to say\n")
    until(lambda: "the core has something to say" in second.log)
    second.stop()


def test_who_is_no_control_process_keeps_none_from_coming(start: Callable[..., Control]) -> None:
    first = start().ready()
    first.kill()
    path = str(first.state / "core.sock")
    assert os.stat(path).st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(PATIENCE_S)
        silent.connect(path)
        silent.sendall(b"x" * 5000)
        assert silent.recv(1) == b""
    second = start().ready()
    assert second.said("adopted") == [first.core]
    second.stop()
