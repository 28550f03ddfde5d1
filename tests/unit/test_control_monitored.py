"""The daemon as probes see it, with made-up children: from its start to its drain."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from unit.test_control_daemon import Daemon, term

from fastserve.errors import StartError


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


class Probe:
    """Asks at the unix socket."""

    def __init__(self, daemon: Daemon) -> None:
        self._path = str(daemon.root / "state" / "monitor.sock")

    async def __call__(self, path: str) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(self._path)) as client,
            client.get(f"http://localhost{path}") as response,
        ):
            return response.status, await response.json()

    async def until(self, path: str, holds: Callable[[int, Any], bool]) -> Any:
        """What another process does has no event here: asks until it is done."""
        async with asyncio.timeout(20):
            while True:
                try:
                    status, body = await self(path)
                    if holds(status, body):
                        return body
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.01)


async def test_a_daemon_that_waits_for_its_models_lives_and_is_not_ready(daemon: Daemon) -> None:
    daemon.model("ranker", {"hang": True})
    running = daemon.start()
    probe = Probe(daemon)
    body = await probe.until("/readyz", lambda status, body: "ranker" in body.get("models", {}))
    assert body == {"ok": False, "why": "it is starting", "models": {"ranker": "it is LOADING"}}
    assert await probe("/healthz") == (200, {"ok": True})
    (model,) = (await probe.until("/status.json", lambda status, body: body["models"]))["models"]
    assert model["versions"][0]["state"] == "LOADING"
    mode = (daemon.root / "state" / "monitor.sock").stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    term()
    assert await running == 0
    assert not daemon.leftovers()


async def test_ready_means_every_model_and_the_body_says_which_has_failed(daemon: Daemon) -> None:
    daemon.model("good", {})
    daemon.model("bad", {"error": "there is no such op: Frobnicate"})
    running = daemon.start()
    await daemon.ready(running)
    probe = Probe(daemon)
    status, body = await probe("/readyz")
    assert status == 503 and body == {"ok": False, "models": {"bad": "there is no such op: Frobnicate"}}
    assert (await probe("/healthz"))[0] == 200
    events = (await probe("/status.json"))[1]["events"]
    kinds = [(event["kind"], event["model"]) for event in events]
    assert ("available", "good") in kinds and ("failed", "bad") in kinds
    # It is mended, and tried again.
    (daemon.root / "bad" / "1" / "trial.json").write_text(json.dumps({}))
    body = await probe.until("/readyz", lambda status, body: status == 200)
    assert body == {"ok": True}
    term()
    assert await running == 0


async def test_draining_is_not_ready_and_lives(daemon: Daemon) -> None:
    daemon.model("m", {})
    draining = asyncio.Event()
    go_on = asyncio.Event()

    async def drain(command: dict[str, Any]) -> None:
        draining.set()
        await go_on.wait()

    daemon.cores.answers["drain"] = drain
    running = daemon.start()
    await daemon.ready(running)
    probe = Probe(daemon)
    assert (await probe("/readyz"))[0] == 200
    term()
    await daemon.until(draining, running)
    assert await probe("/readyz") == (503, {"ok": False, "why": "it is draining"})
    assert (await probe("/healthz"))[0] == 200
    go_on.set()
    assert await running == 0
    assert not daemon.leftovers()


async def test_a_core_that_dies_makes_both_fail_until_it_is_back(daemon: Daemon) -> None:
    daemon.model("m", {})
    running = daemon.start()
    await daemon.ready(running)
    probe = Probe(daemon)
    again = asyncio.Event()
    loading = asyncio.Event()

    async def load(command: dict[str, Any]) -> None:
        loading.set()
        await again.wait()

    daemon.cores.answers["load"] = load
    daemon.cores.now.die(-signal.SIGSEGV)
    await daemon.until(loading, running)
    status, body = await probe("/healthz")
    assert status == 503 and "core" in body["why"]
    assert (await probe("/readyz"))[0] == 503
    again.set()
    await probe.until("/healthz", lambda status, body: status == 200)
    assert (await probe("/readyz"))[0] == 200
    shown = await probe.until("/status.json", lambda status, body: body["core"]["restarts"] == 1)
    texts = [event["text"] for event in shown["events"] if event["kind"] == "core"]
    assert any("died" in text for text in texts) and texts[-1].endswith("is back")
    term()
    assert await running == 0


async def test_its_own_addresses_and_path(daemon: Daemon) -> None:
    daemon.model("m", {})
    daemon.models = (
        f'[monitoring]\nlisten = ["127.0.0.1:0", "unix:{daemon.root}/watch.sock"]\n'
        'metrics_path = "/metrics"\n' + daemon.models
    )
    running = daemon.start()
    ready = await daemon.ready(running)
    tcp, unix = ready["monitoring"]
    assert unix == f"unix:{daemon.root}/watch.sock"
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://{tcp}/readyz") as response:
            assert response.status == 200
        async with client.get(f"http://{tcp}/metrics") as response:
            text = await response.text()
        assert 'fastserve_loads_total{model="m",result="success"} 1\n' in text
        labels = f'model_path="{daemon.root}/m/1",status="success"'
        assert f":tensorflow:cc:saved_model:load_attempt_count{{{labels}}} 1\n" in text
        async with client.get(f"http://{tcp}/monitoring/prometheus/metrics") as response:
            assert response.status == 404
    term()
    assert await running == 0
    assert not daemon.leftovers()


async def test_an_address_that_is_taken_ends_the_start(daemon: Daemon) -> None:
    daemon.model("m", {})
    (daemon.root / "file").write_text("")
    daemon.models = f'[monitoring]\nlisten = ["unix:{daemon.root}/file"]\n' + daemon.models
    with pytest.raises(StartError, match="file: the path exists and is not a socket"):
        await daemon.run()
    assert not daemon.leftovers()


async def test_what_a_dead_daemon_left_is_no_hindrance(daemon: Daemon) -> None:
    daemon.model("m", {})
    (daemon.root / "state").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(daemon.root / "state" / "monitor.sock"))
    running = daemon.start()
    await daemon.ready(running)
    assert (await Probe(daemon)("/healthz"))[0] == 200
    term()
    assert await running == 0
    assert not daemon.leftovers()
