"""Versions that come and go as they should: renewal, removal, labels, reloads by request, rollouts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from lifecycle import Caller, Serving, install, not_found, table
from predict_client import Client, request
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """Not started yet; what a test leaves of it is ended."""
    serving = Serving(tmp_path)
    yield serving
    serving.daemon.end()


def states(client: grpc.Channel, model: str) -> list[tuple[int, int, int, str]]:
    """Version, state, code and text of each version that GetModelStatus tells of."""
    wanted = get_model_status_pb2.GetModelStatusRequest()
    wanted.model_spec.name = model
    answer = model_service_pb2_grpc.ModelServiceStub(client).GetModelStatus(wanted, timeout=30)
    return [
        (row.version, row.state, row.status.error_code, row.status.error_message)
        for row in answer.model_version_status
    ]


# ---- settings that change ---------------------------------------------------------------------


def test_settings_of_a_served_model_are_applied_and_nobody_notices(serving: Serving) -> None:
    base, moved = serving.directory / "m", serving.directory / "moved"
    install("half", base / "1")
    small = "[models.batching]\nmax_batch_size = 2\nrefuse_larger = true\n"
    large = small.replace("2", "4")
    serving.start(serving.config(table("m", base, small)))
    with Caller(serving, "m") as caller, serving.daemon.channel() as channel:
        client = Client(channel)
        three = request("m", {"x": [1.0, 2.0, 3.0]})
        assert client.refused(three)[0] == "INVALID_ARGUMENT"
        assert serving.reload(serving.config(table("m", base, large))) == ["m: batching"]
        serving.daemon.until(lambda: serving.daemon.log.count("renewed") == 1)
        assert client.outputs(three)["y"].tolist() == [2.5, 3.0, 3.5]
        caller.more()
        # The same version from another place.
        install("half", moved / "1")
        assert serving.reload(serving.config(table("m", moved, large))) == ["m: base_path"]
        serving.daemon.until(lambda: serving.version("m", 1)["path"] == str(moved / "1"))
        caller.more()
        # A place where nothing is takes nothing out of service.
        nowhere = serving.directory / "nowhere"
        serving.reload(serving.config(table("m", nowhere, large)))
        serving.until_problem("m", f"there is no directory {nowhere}")
        caller.more()
        serving.reload(serving.config(table("m", moved, large)))
        # Versions are looked for there, too.
        install("half", base / "2")
        install("half", moved / "3")
        serving.until_version("m", 3)
        caller.until_served_by(3)
        assert caller.versions == {1, 3}
        # How versions take each other's places is a setting like others.
        keys = large + '[models.versions]\ntransition = "resource"\n'
        assert serving.reload(serving.config(table("m", moved, keys))) == ["m: versions"]
    install("half", moved / "4")
    serving.until_version("m", 4)
    log = serving.daemon.log
    assert log.index("unloaded servable=m:3") < log.index("trial passed servable=m:4")
    assert "not available" not in log and "not renewed" not in log
    assert serving.daemon.stop() == 0


# ---- models that leave ------------------------------------------------------------------------


def test_a_removed_model_drains_and_may_come_back_at_once(serving: Serving) -> None:
    base, slow = serving.directory / "m", serving.directory / "slow"
    install("half", base / "1")
    install("slow", slow / "1")
    one = table("m", base)
    both = one + table("slow", slow, "row_wise = false")
    serving.start(serving.config(both))
    with serving.daemon.channel() as channel:
        client = Client(channel)
        call = client.stub.Predict.future(request("slow", {"x": [4000.0]}), timeout=60)
        serving.daemon.until(lambda: serving.daemon.admin("stats")["bytes_in_flight"] > 0)
        assert serving.reload(serving.config(one)) == ["slow: removed"]
        serving.daemon.until(lambda: not_found(client, "slow"))
        assert client.refused(request("slow"))[1] == "Servable not found for request: Latest(slow)"
        assert not call.done()
        # It comes back while its last call still runs.
        assert serving.reload(serving.config(both)) == ["slow: added"]
        assert call.result().outputs["y"].float_val[0] == 2002.0
        serving.until_version("slow", 1)
        assert client.outputs(request("slow", {"x": [4.0]}))["y"].tolist() == [4.0]
    assert "not available" not in serving.daemon.log
    assert serving.daemon.stop() == 0


# ---- rollouts -----------------------------------------------------------------------------------

CANARY = '[models.rollout]\nmode = "canary"\nshare = 0.5\nduration_s = 1.0\nmin_requests = 50\n'
SHADOW = '[models.rollout]\nmode = "shadow"\nshare = 1.0\nduration_s = 1.0\nmin_requests = 50\n'


def test_a_canary_is_promoted_or_rolled_back(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base, CANARY)))
    with Caller(serving, "m") as caller:
        install("half", base / "2")
        said = serving.daemon.until(lambda: serving.model("m")["rollout"])
        assert (said["mode"], said["stable"], said["new"]) == ("canary", 1, 2)
        serving.daemon.until(lambda: serving.version("m", 1)["state"] == "END")
        caller.until_served_by(2)
        assert serving.model("m")["rollout"] is None
        assert {1, 2} <= caller.versions

    def bad_luck(error: grpc.RpcError) -> bool:
        return "13 is bad luck" in error.details()

    with Caller(serving, "m", values=[13.0], suffers=bad_luck) as caller:
        install("picky", base / "3")
        why = serving.until_failed("m", 3)
        assert why.startswith("rolled back to version 2: ") and "max_error_increase" in why
        assert 0 < caller.suffered < caller.answered
        suffered = caller.suffered
        caller.more()
        assert caller.suffered == suffered and caller.last_version == 2
        with serving.daemon.channel() as channel:
            assert [row[:3] for row in states(channel, "m") if row[0] >= 2] == [(3, 50, 2), (2, 30, 0)]
        # Its mended successor is the next.
        install("half", base / "4")
        serving.daemon.until(lambda: serving.version("m", 2)["state"] == "END")
        caller.until_served_by(4)
    assert serving.daemon.stop() == 0


def test_a_version_that_drifts_in_the_shadow_is_rolled_back(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base, SHADOW)))
    with Caller(serving, "m") as caller:
        install("other", base / "2")
        why = serving.until_failed("m", 2)
        assert why.startswith("rolled back to version 1: ") and "rows differ" in why
        install("half", base / "3")
        serving.daemon.until(lambda: serving.version("m", 1)["state"] == "END")
        caller.until_served_by(3)
        assert caller.versions == {1, 3}
    assert serving.daemon.stop() == 0
