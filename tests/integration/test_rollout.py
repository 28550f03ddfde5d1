"""Rollouts over gRPC: two versions in a core, and the watch that decides between them.

The models are the null runtime's: half plus two, or wrong, failing or slow on purpose. Time passes only as
requests are sent: the watch's sleep is a round of them.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from core_driver import PATIENCE_S, PREDICT, Core, Refused, predict_request, servable

from fastserve.config import Model, Rollout
from fastserve.control.rollout import Decision, Figures, Verdict
from fastserve.control.rollout_watch import RolloutWatch
from fastserve.errors import CoreError
from fastserve.protos import message

X = struct.pack("<2f", 4.0, 6.0)  # half plus two makes 4 and 5 of it


class Client:
    """A core with version 1 of "m", and a client of it."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.channel = grpc.insecure_channel(core.address)
        self._predict = self.channel.unary_unary(PREDICT)
        self._read = message("tensorflow.serving.PredictResponse").FromString

    def version(self, user: str = "") -> int:
        """Which version answers a request that names none; 0: it failed."""
        metadata = [("x-user", user)] if user else []
        try:
            reply = self._predict(predict_request("m", X, [2, 1]), metadata=metadata, timeout=PATIENCE_S)
        except grpc.RpcError:
            return 0
        answered: int = self._read(reply).model_spec.version.value
        return answered

    def route(self, mode: str, share: float, **more: Any) -> None:
        route = {"mode": mode, "stable": 1, "new": 2, "share": share, **more}
        self.core.call("route", model="m", route=route)

    def add(self, version: int = 2, options: str = "") -> None:
        self.core.call("load", servable=servable(version=version, options=options))
        self.core.call("publish", model="m", version=version)


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Core(server={"io_threads": getattr(request, "param", 0)}, executor={"threads": 2}) as core:
        core.serve(servable(version=1))
        client = Client(core)
        try:
            yield client
        finally:
            client.channel.close()


both_fronts = pytest.mark.parametrize("client", [0, 1], ids=["loop", "io_threads"], indirect=True)


@both_fronts
def test_a_canary_gets_its_share(client: Client) -> None:
    client.route("canary", 0.25)
    client.add()
    calls = 800
    new = [client.version() for _ in range(calls)].count(2)
    # The draws have a fixed seed; five standard deviations, should it ever change.
    assert abs(new - calls * 0.25) < 5 * (calls * 0.25 * 0.75) ** 0.5
    stats = client.core.call("rollout_stats", model="m")["versions"]
    assert {version: row["requests"] for version, row in stats.items()} == {"1": calls - new, "2": new}
    assert all(0 < row["latency_us"]["p50"] <= row["latency_us"]["p99"] < 30e6 for row in stats.values())


@both_fronts
def test_a_caller_stays_with_its_version_while_the_share_grows(client: Client) -> None:
    client.add()
    users = [f"user-{i}" for i in range(60)]
    before: set[str] = set()
    for share in (0.2, 0.5, 0.8):
        client.route("canary", share, sticky_header="X-User")
        seen = {user: {client.version(user) for _ in range(3)} for user in users}
        assert all(len(versions) == 1 for versions in seen.values())
        new = {user for user, versions in seen.items() if versions == {2}}
        assert before < new < set(users)
        before = new


def test_a_route_ends_and_versions_that_are_named_are_not_its_business(client: Client) -> None:
    client.add()
    client.route("canary", 0.0)
    assert {client.version() for _ in range(20)} == {1}
    client.core.call("labels", model="m", labels={"new": 2})
    spec = message("tensorflow.serving.PredictRequest")()
    spec.ParseFromString(predict_request("m", X, [2, 1]))
    spec.model_spec.version_label = "new"
    reply = client.channel.unary_unary(PREDICT)(spec.SerializeToString(), timeout=PATIENCE_S)
    assert message("tensorflow.serving.PredictResponse").FromString(reply).model_spec.version.value == 2
    assert client.core.call("rollout_stats", model="m")["versions"]["2"]["requests"] == 0
    client.core.call("route", model="m", route=None)
    assert client.version() == 2
    with pytest.raises(Refused, match="FAILED_PRECONDITION: m has no route"):
        client.core.call("rollout_stats", model="m")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mode": "blue"}, "canary or shadow"),
        ({"share": 1.5}, "share 1.5: 0 to 1"),
        ({"new": 1}, "both version 1"),
    ],
)
def test_a_route_that_cannot_be(client: Client, change: dict[str, Any], why: str) -> None:
    route = {"mode": "canary", "stable": 1, "new": 2, "share": 0.5} | change
    with pytest.raises(Refused, match=why):
        client.core.call("route", model="m", route=route)


def watch(
    client: Client, round_of: Callable[[], object], **rollout: Any
) -> tuple[Verdict, RolloutWatch, Figures]:
    """Runs a rollout from 1 to 2, in which a second is a round of requests."""
    now = 0.0
    last = Figures()

    async def call(op: str, **params: Any) -> dict[str, Any]:
        try:
            return client.core.call(op, **params)
        except Refused as refused:
            raise CoreError("UNKNOWN", str(refused)) from None

    async def sleep(seconds: float) -> None:
        nonlocal now
        assert now < 100, "no verdict in a hundred rounds"
        now += seconds
        round_of()

    def progress(text: str, figures: Figures) -> None:
        nonlocal last
        last = figures

    model = Model(name="m", base_path="/m", rollout=Rollout(**rollout))
    watcher = RolloutWatch(call, clock=lambda: now, sleep=sleep)
    asyncio.run(watcher.prepare(model, 1, 2))
    return asyncio.run(watcher.watch(model, 1, 2, progress)), watcher, last


def test_a_good_canary_is_promoted(client: Client) -> None:
    client.add()
    verdict, _, figures = watch(
        client,
        lambda: [client.version() for _ in range(50)],
        mode="canary",
        share=0.5,
        duration_s=4,
        min_requests=60,
    )
    assert verdict.decision is Decision.PROMOTE
    assert figures.new.requests >= 60
    assert {client.version() for _ in range(5)} == {2}


def test_a_canary_that_fails_is_rolled_back(client: Client) -> None:
    client.add(options="fail_every=3")
    verdict, watcher, figures = watch(client, lambda: [client.version() for _ in range(50)], mode="canary")
    assert verdict.decision is Decision.ROLLBACK
    assert "max_error_increase" in verdict.reason
    assert figures.new.failed > 0
    assert figures.stable.failed == 0
    # Nobody gets it any more, newest though it is, until it is gone and after.
    assert {client.version() for _ in range(20)} == {1}
    client.core.call("retire", model="m", version=2)
    asyncio.run(watcher.clear("m"))
    assert {client.version() for _ in range(20)} == {1}


def test_a_canary_that_is_slow_is_rolled_back(client: Client) -> None:
    client.add(options="run_us=3000")
    verdict, _, figures = watch(
        client,
        lambda: [client.version() for _ in range(300)],
        mode="canary",
        share=0.5,
        max_latency_ratio=1.5,
    )
    assert verdict.decision is Decision.ROLLBACK
    assert "p99 latency" in verdict.reason
    assert figures.new.p50_us > 3000 > figures.stable.p50_us


def shadowed(client: Client) -> None:
    """A round of requests, all answered by version 1, whose shadows have ended."""
    assert {client.version() for _ in range(20)} == {1}
    made = client.core.call("rollout_stats", model="m")["versions"]["1"]["requests"]
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        shadow = client.core.call("rollout_stats", model="m")["shadow"]
        if sum(shadow[name] for name in ("compared", "failed", "dropped", "skipped")) >= made:
            return
    pytest.fail("shadows do not end")


@both_fronts
def test_a_shadow_finds_drift_that_no_caller_sees(client: Client) -> None:
    client.add(options="op=echo")
    verdict, _, figures = watch(client, lambda: shadowed(client), mode="shadow", share=1.0)
    assert verdict.decision is Decision.ROLLBACK
    assert "50 % of" in verdict.reason
    assert "max_drift" in verdict.reason
    assert figures.shadow.rows == 2 * figures.shadow.compared
    assert figures.shadow.different_rows == figures.shadow.compared  # 6 where it should be 5
    assert figures.shadow.largest_difference == pytest.approx(0.2)


def test_a_shadow_finds_failures_that_no_caller_sees(client: Client) -> None:
    client.add(options="fail_every=2")
    verdict, _, figures = watch(client, lambda: shadowed(client), mode="shadow", share=1.0)
    assert verdict.decision is Decision.ROLLBACK
    assert "fail in the shadow" in verdict.reason
    assert figures.stable.failed == 0


def test_a_good_shadow_is_promoted(client: Client) -> None:
    client.add()
    verdict, _, figures = watch(
        client, lambda: shadowed(client), mode="shadow", share=1.0, duration_s=3, min_requests=50
    )
    assert verdict.decision is Decision.PROMOTE
    assert figures.shadow.compared == figures.new.requests == figures.stable.requests
    assert figures.shadow.different_rows == 0
    assert client.version() == 2
