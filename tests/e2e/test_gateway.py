"""The gateway as users have it: it may die, be replaced and be drained, and gRPC does not notice."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from conformance.rest.rest_case import address_of, fetch
from daemon_process import Daemon, alive
from exported_models import exported_models
from predict_client import request as predict_request
from prometheus_client.parser import text_string_to_metric_families

EXPORTER = Path(__file__).parents[1] / "conformance" / "export_models.py"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
PATIENCE_S = 60.0
START = Callable[..., Daemon]

CONFIG = """
[server]
listen = ["127.0.0.1:0"]
state_dir = "state"
drain_timeout_s = 20
[executor]
threads = 2
[gateway]
listen = ["{address}"]
nice = 7
{gateway}
"""
MODEL = '[[models]]\nname = "{name}"\nbase_path = "{path}"\n{keys}\n'


@pytest.fixture(scope="module")
def exported() -> Path:
    return exported_models(EXPORTER)


@pytest.fixture
def start(tmp_path: Path, exported: Path) -> Iterator[START]:
    daemons: list[Daemon] = []

    def start(models: str = "", address: str = "127.0.0.1:0", gateway: str = "") -> Daemon:
        models = models or model(exported, "half_plus_two") + model(exported, "many")
        daemons.append(Daemon(tmp_path, CONFIG.format(address=address, gateway=gateway) + models))
        return daemons[-1]

    yield start
    for daemon in daemons:
        gateways = gateway_pids(daemon)
        daemon.end()
        for pid in gateways:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def model(exported: Path, name: str, keys: str = "") -> str:
    return MODEL.format(name=name, path=exported / name, keys=keys)


def gateway_pids(daemon: Daemon) -> list[int]:
    """As the daemon remembers them."""
    try:
        data = json.loads((daemon.directory / "state/state.json").read_text())
    except (FileNotFoundError, ValueError):
        return []
    return [pid for pid, _ in data.get("gateways", ())]


def half(where: tuple[str, int], value: float = 1.0) -> Any:
    answered = fetch(where, "POST", "/v1/models/half_plus_two:predict", {"instances": [[value]]})
    assert answered.status == 200, answered.body
    return answered.value["predictions"]


class GrpcLoad:
    """Calls over gRPC, one after the other, for as long as the block lasts; each must be answered well."""

    def __init__(self, daemon: Daemon) -> None:
        self._address = daemon.ready["addresses"][0]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.wrong: list[str] = []

    def __enter__(self) -> GrpcLoad:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join(PATIENCE_S)
        assert self.wrong == [] and self.answered > 0

    def more(self) -> None:
        before, deadline = self.answered, time.monotonic() + PATIENCE_S
        while self.answered < before + 50:
            assert time.monotonic() < deadline and not self.wrong, self.wrong
            time.sleep(0.01)

    def _run(self) -> None:
        message = predict_request("half_plus_two", {"x": [[1.0]]}).SerializeToString()
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._address, options=options) as channel:
            call = channel.unary_unary(PREDICT)
            while not self._end.is_set():
                try:
                    call(message, timeout=PATIENCE_S)
                except grpc.RpcError as error:
                    self.wrong.append(str(error))
                    return
                self.answered += 1


class RestLoad(GrpcLoad):
    """The same over REST, each on a connection of its own."""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon)
        self._where = address_of(daemon.ready)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                assert half(self._where) == [[2.5]]
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.wrong.append(repr(error))
                return
            self.answered += 1


def test_a_gateway_that_is_killed_comes_back_and_grpc_does_not_notice(start: START) -> None:
    daemon = start().wait_ready()
    where = address_of(daemon.ready)
    assert half(where) == [[2.5]]
    assert f", http://{daemon.ready['gateway_addresses'][0]} in " in daemon.line
    core, (gateway,) = daemon.core_pid, gateway_pids(daemon)
    assert os.getpriority(os.PRIO_PROCESS, gateway) == 7
    with GrpcLoad(daemon) as load:
        for _ in range(2):
            load.more()
            (gateway,) = gateway_pids(daemon)
            os.kill(gateway, signal.SIGKILL)
            # Whoever connects meanwhile waits in the queue of the listening socket.
            assert half(where, 3.0) == [[3.5]]
            load.more()
            assert gateway_pids(daemon) != [gateway]
    assert daemon.core_pid == core
    assert daemon.log.count("gateway died") == 2 and "how=SIGKILL" in daemon.log
    assert daemon.stop() == 0


LEAVES_BEHIND = """
import os, time
from fastserve.web import Response
def setup():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
def preprocess(request):
    there = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
        and os.path.exists(f"/proc/self/fd/{fd}")]
    sockets = [name for name in there if name.startswith("socket:")]
    return Response({"group": os.getpgid(0), "sockets": sockets})
def postprocess(outputs, request): ...
"""


def test_what_a_hook_leaves_behind_holds_up_no_end(start: START, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(LEAVES_BEHIND)
    route = '[[routes]]\npath = "/r"\nfile = "hooks.py"\nmodel = "half_plus_two"\n'
    daemon = start(model(exported, "half_plus_two") + route).wait_ready()
    where = address_of(daemon.ready)
    groups = set()
    try:
        said = fetch(where, "POST", "/r", []).value
        groups.add(said["group"])
        own = {os.readlink(f"/proc/{gateway_pids(daemon)[0]}/fd/{fd}") for fd in _open_fds(daemon)}
        # Neither the control socket nor what listens: the one to the gateway, and its loop's.
        assert not own & set(said["sockets"])
        (gateway,) = gateway_pids(daemon)
        os.kill(gateway, signal.SIGKILL)
        daemon.until(lambda: "gateway died" in daemon.log, 20)
        assert half(where) == [[2.5]]
        groups.add(fetch(where, "POST", "/r", []).value["group"])
        assert daemon.stop() == 0
    finally:
        for group in groups:
            os.killpg(group, signal.SIGKILL)


def _open_fds(daemon: Daemon) -> list[str]:
    return os.listdir(f"/proc/{gateway_pids(daemon)[0]}/fd")


def test_a_request_outlives_the_core(start: START) -> None:
    """What comes while the core restarts waits for it."""
    daemon = start().wait_ready()
    where = address_of(daemon.ready)
    assert half(where) == [[2.5]]
    core = daemon.core_pid
    os.kill(core, signal.SIGKILL)
    daemon.until(lambda: "core died" in daemon.log)
    assert half(where) == [[2.5]]
    assert daemon.core_pid != core and daemon.log.count("gateway started") == 1


def test_a_drain_answers_what_there_is(start: START) -> None:
    daemon = start().wait_ready()
    where = address_of(daemon.ready)
    idle = socket.create_connection(where)
    answers: list[Any] = []

    def slow() -> None:
        body = {"signature_name": "slow", "instances": [2000.0]}
        answers.append(fetch(where, "POST", "/v1/models/many:predict", body))

    used_us = _executors_us(daemon) + 50_000
    asking = threading.Thread(target=slow)
    asking.start()
    daemon.until(lambda: _have_used(daemon, used_us))  # the slow call burns a processor
    assert daemon.stop() == 0
    asking.join(PATIENCE_S)
    (answered,) = answers
    assert (answered.status, answered.value) == (200, {"predictions": [2000.0]})
    assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(where)
    assert not list((daemon.directory / "state").glob("*.sock"))


def _have_used(daemon: Daemon, used_us: int) -> bool:
    return _executors_us(daemon) > used_us


def _executors_us(daemon: Daemon) -> int:
    """The processor time that executors have taken."""
    used: int = daemon.admin("stats")["threads"]["executors"]
    return used


def test_the_next_control_process_takes_the_addresses_over(start: START) -> None:
    daemon = start().wait_ready()
    address = daemon.ready["gateway_addresses"][0]
    core, (gateway,) = daemon.core_pid, gateway_pids(daemon)
    with GrpcLoad(daemon) as load, RestLoad(daemon) as rest:
        load.more()
        daemon.process.kill()
        daemon.process.wait()
        load.more()
        rest.more()
        successor = start(address=address).wait_ready()
        load.more()
        rest.more()
        assert successor.core_pid == core
        (fresh,) = gateway_pids(successor)
        assert fresh != gateway and alive(fresh)
        successor.until(lambda: not alive(gateway))
        load.more()
        rest.more()
    assert "found the gateway of an earlier fastserve" in successor.log
    assert successor.stop() == 0 and not alive(fresh)


def test_a_gateway_whose_core_has_gone_gives_the_addresses_back(start: START) -> None:
    daemon = start().wait_ready()
    address = daemon.ready["gateway_addresses"][0]
    core, (gateway,) = daemon.core_pid, gateway_pids(daemon)
    daemon.process.kill()
    daemon.process.wait()
    os.kill(core, signal.SIGKILL)
    answered = fetch(address_of(daemon.ready), "GET", "/v1/models/many")
    assert answered.status == 503 and "error" in answered.value
    successor = start(address=address).wait_ready()
    assert not alive(gateway)
    assert half(address_of(successor.ready)) == [[2.5]]


def test_an_address_in_use_is_told_at_once(start: START) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = start(address=address)
        assert daemon.process.wait(PATIENCE_S) == 1
    assert f"cannot listen on {address}: the address is in use by another process" in daemon.log


def test_several_processes_share_the_addresses(start: START) -> None:
    daemon = start(gateway="processes = 2").wait_ready()
    pids = gateway_pids(daemon)
    assert len(pids) == 2 and all(map(alive, pids))
    os.kill(pids[0], signal.SIGKILL)
    for _ in range(10):
        assert half(address_of(daemon.ready)) == [[2.5]]


def test_a_unix_socket(start: START, tmp_path: Path) -> None:
    start(address=f"unix:{tmp_path}/rest").wait_ready()
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(f"{tmp_path}/rest")
    connection.request("GET", "/v1/models/many")
    assert connection.getresponse().status == 200
    connection.close()


def test_tokens_are_passed_on(start: START, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("secret\n")
    daemon = start(model(exported, "half_plus_two", 'token_file = "tokens"')).wait_ready()
    where, path = address_of(daemon.ready), "/v1/models/half_plus_two:predict"
    body = {"instances": [[1.0]]}
    with_token = {"Authorization": "Bearer secret"}
    for _ in range(2):  # what is remembered of signatures is not for others
        assert fetch(where, "POST", path, body).status == 401
        assert fetch(where, "POST", path, body, with_token).value == {"predictions": [[2.5]]}
        assert fetch(where, "POST", path, body, {"Authorization": "Bearer wrong"}).status in (401, 403)
    assert fetch(where, "GET", "/v1/models/half_plus_two/metadata", headers=with_token).status == 200
    assert fetch(where, "GET", "/v1/models/half_plus_two/metadata").status == 401


def test_another_signature_comes_with_another_version(start: START, exported: Path, tmp_path: Path) -> None:
    base = tmp_path / "changing"
    base.mkdir()
    (base / "1").symlink_to(exported / "versions" / "1")
    keys = "[models.versions]\nnum_versions = 1\n"
    text = MODEL.format(name="changing", path=base, keys=keys).replace(
        "[[models]]", "[loading]\npoll_s = 0.1\n[[models]]"
    )
    daemon = start(text).wait_ready()
    where, path = address_of(daemon.ready), "/v1/models/changing:predict"
    before = {"instances": [1.0]}
    after = {"instances": [{"a": [1, 2], "b": [1, 2, 3]}]}
    assert fetch(where, "POST", path, before).value == {"predictions": [2.5]}
    assert fetch(where, "POST", path, after).status == 400
    (base / "2").symlink_to(exported / "many" / "1")

    def changed() -> bool:
        # As long as it is the old one, its signature stays known.
        fetch(where, "POST", path, before)
        rows = fetch(where, "GET", "/v1/models/changing").value["model_version_status"]
        return ("2", "AVAILABLE") in [(row["version"], row["state"]) for row in rows]

    daemon.until(changed)
    assert fetch(where, "POST", path, after).value == {"predictions": [{"p": 9.0, "q": [1.0, 2.0]}]}
    assert fetch(where, "POST", path, before).status == 400


def test_a_canary_gets_its_share_and_a_caller_stays_on_one_side(
    start: START, exported: Path, tmp_path: Path
) -> None:
    base = tmp_path / "growing"
    base.mkdir()
    (base / "1").symlink_to(exported / "versions" / "1")
    keys = (
        '[models.rollout]\nmode = "canary"\nshare = 0.5\nsticky_header = "X-User"\nduration_s = 600\n'
        "min_requests = 1000000\nmax_latency_ratio = 1000\n"
    )
    text = MODEL.format(name="growing", path=base, keys=keys)
    daemon = start(text.replace("[[models]]", "[loading]\npoll_s = 0.1\n[[models]]")).wait_ready()
    where = address_of(daemon.ready)

    def asked(user: int) -> float:
        body, headers = {"instances": [2.0]}, {"X-User": f"user {user}"}
        answered = fetch(where, "POST", "/v1/models/growing:predict", body, headers)
        (value,) = answered.value["predictions"]
        return float(value)

    assert asked(1) == 3.0
    (base / "2").symlink_to(exported / "versions" / "2")
    daemon.until(lambda: any(asked(user) == 0.0 for user in range(20)))
    sides = {user: asked(user) for user in range(20)}
    assert set(sides.values()) == {3.0, 0.0}
    for _ in range(3):
        assert {user: asked(user) for user in range(20)} == sides


def test_whoever_hangs_up_is_not_worked_for(start: START) -> None:
    daemon = start().wait_ready()
    where = address_of(daemon.ready)
    body = json.dumps({"signature_name": "slow", "instances": [500.0]}).encode()
    request = b"POST /v1/models/many:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
    for _ in range(8):  # more than executors
        used_us = _executors_us(daemon) + 50_000
        with socket.create_connection(where) as sock:
            sock.sendall(request % (len(body), body))
            daemon.until(partial(_have_used, daemon, used_us))
    daemon.until(lambda: daemon.counters("many", "slow")["cancelled"] > 0)
    assert half(where) == [[2.5]]


def test_the_monitor_is_there_on_its_port_too(start: START) -> None:
    """As it answers on its own socket: compressed or not, with the page's policy, and a stream stays one."""
    daemon = start(gateway="processes = 2").wait_ready()
    where = address_of(daemon.ready)
    assert half(where) == [[2.5]]

    def get(path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(*where, timeout=PATIENCE_S)
        connection.request(
            "GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        response = connection.getresponse()
        return response, response.read()

    def counted() -> bool:
        families = text_string_to_metric_families(get("/monitoring/prometheus/metrics")[1].decode())
        return any(
            sample.name == ":tensorflow:serving:request_latency_count"
            and sample.labels == {"model_name": "half_plus_two", "API": "predict", "entrypoint": "REST"}
            and sample.value == 1.0
            for family in families
            for sample in family.samples
        )

    daemon.until(counted)
    packed, body = get("/monitoring/prometheus/metrics", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b":tensorflow:serving:request_count" in gzip.decompress(body)
    for path in ("/healthz", "/readyz"):
        assert get(path)[0].status == 200
    page, body = get("/")
    assert page.headers["Content-Type"].startswith("text/html") and b"<html" in body
    assert "sha256-" in page.headers["Content-Security-Policy"]
    status = json.loads(get("/status.json")[1])
    assert status["gateway"] == {"pids": gateway_pids(daemon), "restarts": 0, "up": True}
    connection = http.client.HTTPConnection(*where, timeout=PATIENCE_S)
    connection.request("GET", "/events")
    events = connection.getresponse()
    assert events.headers["Content-Type"].startswith("text/event-stream")
    seen = [line for line in (events.readline() for _ in range(12)) if line.startswith(b"data:")]
    assert len(seen) >= 2 and json.loads(seen[0][5:])["ready"] is True
    connection.close()
    killed = gateway_pids(daemon)[0]
    os.kill(killed, signal.SIGKILL)
    daemon.until(lambda: json.loads(get("/status.json")[1])["gateway"]["restarts"] == 1)
    kinds = [(event["kind"], event["text"]) for event in json.loads(get("/status.json")[1])["events"]]
    assert ("gateway", f"process {killed} died: SIGKILL") in kinds
