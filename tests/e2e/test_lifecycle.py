"""Versions that come and go as they should: renewal, removal, labels, reloads by request, rollouts."""

from __future__ import annotations

import subprocess
import sys
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


# ---- labels, and reloads by request ------------------------------------------------------------


def test_labels_by_configuration_and_by_command(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    install("other", base / "2")
    all_of_them = '[models.versions]\npolicy = "all"\n'
    labels = "[models.labels]\nstable = 1\nlater = 3\n"
    serving.start(serving.config(table("m", base, all_of_them + labels)))
    serving.until_version("m", 1)

    def labels_by_command(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "fastserve", "labels", "m", *words],
            cwd=serving.directory,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    with serving.daemon.channel() as channel:
        client = Client(channel)

        def answer(label: str) -> float:
            outputs = client.outputs(request("m", {"x": [2.0]}, label=label))
            return float(outputs["y"][0])

        assert answer("stable") == 3.0
        refused = client.refused(request("m", {"x": [2.0]}, label="later"))
        assert refused == ("INVALID_ARGUMENT", "Unrecognized servable version label: later")
        assert labels_by_command("canary=2", "stable=2")[0] == 0
        assert answer("canary") == answer("stable") == 8.0
        code, said = labels_by_command("canary=7")
        assert code == 1
        assert (
            "Request to assign label to version 7 of model m, which is not currently available for inference"
            in said
        )
        assert labels_by_command("canary=")[0] == 0
        assert client.refused(request("m", {"x": [2.0]}, label="canary"))[0] == "INVALID_ARGUMENT"
        # What the configuration promised comes true.
        install("half", base / "3")
        serving.until_version("m", 3)
        serving.daemon.until(lambda: label_is_there(client, "later"))
        assert answer("later") == 3.0
    assert serving.daemon.stop() == 0


def label_is_there(client: Client, label: str) -> bool:
    try:
        client.predict(request("m", {"x": [1.0]}, label=label))
    except grpc.RpcError:
        return False
    return True


def config_of(*models: tuple[str, Path | str], **first: Any) -> Any:
    """A ReloadConfigRequest; `first` are further fields of its first model."""
    wanted = model_management_pb2.ReloadConfigRequest()
    configs = wanted.config.model_config_list.config
    for name, path in models:
        configs.add(name=name, base_path=str(path), model_platform="tensorflow")
    for key, value in first.items():
        if isinstance(value, dict):
            getattr(configs[0], key).update(value)
        else:
            setattr(configs[0], key, value)
    return wanted


def test_clients_reload_with_the_stock_stubs(serving: Serving) -> None:
    base, more = serving.directory / "m", serving.directory / "more"
    install("half", base / "1")
    install("half", more / "5")
    serving.start(serving.config(table("m", base)))
    with Caller(serving, "m"), serving.daemon.channel() as channel:
        client, stub = Client(channel), model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(*models: tuple[str, Path | str], **first: Any) -> Any:
            return stub.HandleReloadConfigRequest(config_of(*models, **first), timeout=60).status.error_code

        def refused(wanted: Any) -> tuple[str, str]:
            with pytest.raises(grpc.RpcError) as caught:
                stub.HandleReloadConfigRequest(wanted, timeout=60)
            return caught.value.code().name, caught.value.details()

        # When it is answered the model is there.
        assert reload(("m", base), ("more", more), version_labels={"stable": 1}) == 0
        assert client.outputs(request("more", {"x": [2.0]}))["y"].tolist() == [3.0]
        assert client.outputs(request("m", {"x": [2.0]}, label="stable"))["y"].tolist() == [3.0]
        assert states(channel, "more") == [(5, 30, 0, "")]

        assert reload(("m", base)) == 0
        serving.daemon.until(lambda: not_found(client, "more"))
        assert client.refused(request("m", {"x": [2.0]}, label="stable"))[0] == "INVALID_ARGUMENT"

        assert refused(config_of(("m", base), version_labels={"stable": 9})) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 9 of model m, which is not currently available for inference",
        )
        assert refused(config_of(("m", base), ("m", base))) == (
            "INVALID_ARGUMENT",
            "Illegal to list model m multiple times in config list",
        )
        assert refused(config_of(("m", base), model_platform="")) == (
            "INVALID_ARGUMENT",
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        )
        assert refused(config_of(("m", base), model_type=1)) == (
            "INVALID_ARGUMENT",
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            "ModelServerConfig::model_platform, model name is m",
        )
        assert refused(config_of(("m", "here"))) == (
            "INVALID_ARGUMENT",
            "Expected model m to have an absolute path or URI; got base_path()=here",
        )
        assert refused(config_of(("m", base), model_platform="other")) == (
            "INVALID_ARGUMENT",
            "Illegal to change a model's platform. For model m platform was tensorflow and new platform "
            "requested is other",
        )
        code, text = refused(model_management_pb2.ReloadConfigRequest())
        assert code == "INVALID_ARGUMENT" and "Only ModelConfigList is currently supported" in text
        nowhere = serving.directory / "nowhere"
        code, text = refused(config_of(("m", base), ("gone", nowhere)))
        assert code == "UNKNOWN"
        assert text.startswith("1 model(s) did not become available: {{{name: gone} due to error: ")
    assert serving.daemon.stop() == 0


def test_get_model_status_follows_a_version_through_its_life(serving: Serving) -> None:
    base = serving.directory / "m"
    install("half", base / "1")
    serving.start(serving.config(table("m", base)))
    with Caller(serving, "m") as caller, serving.daemon.channel() as channel:
        seen: list[Any] = []

        def look() -> bool:
            now = [row[:2] for row in states(channel, "m")]
            if now not in seen:
                seen.append(now)
            return now == [(2, 30), (1, 50)]

        assert states(channel, "m") == [(1, 30, 0, "")]
        install("half", base / "2")
        serving.daemon.until(look)
        assert [(2, 20), (1, 30)] in seen
        assert seen.index([(2, 20), (1, 30)]) < len(seen) - 1
        caller.until_served_by(2)
        install("crashing", base / "3")
        serving.until_failed("m", 3)
        serving.daemon.until(lambda: states(channel, "m")[0][1] == 50)
        version, _, code, text = states(channel, "m")[0]
        assert (version, code) == (3, 2) and text.startswith("the trial ended with SIGABRT")
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
