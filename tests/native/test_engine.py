"""The engine as the core's commands drive it: versions of models on the null runtime, from load to close."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from core_driver import (
    EXECUTOR,
    LIMITS,
    PATIENCE_S,
    PREDICT,
    SERVER,
    predict_reply,
    predict_request,
    servable,
)
from fastserve._native.engine import Engine
from fastserve._native.front_end import FrontEnd
from fastserve._native.runtime import Runtime, RuntimeFailure

from fastserve.core.listener import Listener
from fastserve.protos import message


class Rig:
    """An engine on the test's loop, and a front end whose connections are an epoll thread's."""

    def __init__(
        self,
        nice: int = 19,
        ablate: Iterable[str] = (),
        server: dict[str, Any] | None = None,
        **executor: int,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.runtime = Runtime("null")
        server = SERVER | (server or {})
        self.engine = Engine(self.loop, server, LIMITS, {**EXECUTOR, **executor}, {"nice": nice}, ablate)
        self.front_end = FrontEnd(self.loop, self.engine, LIMITS, {}, print, io_threads=1)
        sock = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{sock.getsockname()[1]}"
        self._listener = Listener(self.loop, self.front_end, [{"fd": sock.detach()}], 100, print)
        self._listener.start()
        self.channel = grpc.insecure_channel(self.address)

    async def close(self) -> None:
        await asyncio.to_thread(self.channel.close)
        self._listener.close()
        self.front_end.shutdown()
        async with asyncio.timeout(PATIENCE_S):
            await self.front_end.all_closed()
        self.front_end.stop()
        self.engine.stop()

    async def load(self, *, replacement: bool = False, **changes: Any) -> tuple[float, int]:
        loading = self.engine.load(self.runtime, servable(**changes), replacement)
        return await asyncio.wait_for(loading, PATIENCE_S)

    async def serve(self, **changes: Any) -> None:
        await self.load(**changes)
        await self.engine.publish(changes.get("model", "m"), changes.get("version", 1))

    async def unserve(self, model: str = "m", version: int = 1) -> None:
        await asyncio.wait_for(self.engine.retire(model, version), PATIENCE_S)
        await asyncio.wait_for(self.engine.close(model, version), PATIENCE_S)

    async def ask(self, *values: float, model: str = "m") -> list[float]:
        request = predict_request(model, struct.pack(f"<{len(values)}f", *values), [len(values), 1])
        method = self.channel.unary_unary(PREDICT)
        return predict_reply(await asyncio.to_thread(method, request, timeout=PATIENCE_S))

    def row(self, model: str = "m", version: int = 1) -> dict[str, Any]:
        (row,) = [row for row in self.engine.stats() if (row["model"], row["version"]) == (model, version)]
        return row

    def states(self) -> dict[tuple[str, int], str]:
        return {(v["model"], v["version"]): v["state"] for v in self.engine.versions()}


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Rig]]:
    rigs = []

    def make_rig(**options: Any) -> Rig:
        rigs.append(Rig(**options))
        return rigs[-1]

    yield make_rig
    for rig in rigs:
        await rig.close()


@pytest.fixture
async def rig(make: Callable[..., Rig]) -> Rig:
    return make()


# ---- a version's life ------------------------------------------------------------------------


async def test_a_version_from_load_to_close(rig: Rig) -> None:
    assert rig.engine.versions() == []
    seconds, failures = await rig.load(options="open_us=3000")
    assert 0.003 <= seconds < PATIENCE_S
    assert failures == 0
    assert rig.states() == {("m", 1): "loaded"}
    await rig.engine.publish("m", 1)
    assert rig.states() == {("m", 1): "published"}
    assert await rig.ask(1.0, 2.0) == [2.5, 3.0]
    await rig.engine.retire("m", 1)
    assert rig.states() == {("m", 1): "loaded"}
    await rig.engine.publish("m", 1)
    assert await rig.ask(4.0) == [4.0]
    await rig.unserve()
    assert rig.engine.versions() == []


async def test_a_version_that_does_not_open_can_be_tried_again(rig: Rig) -> None:
    with pytest.raises(RuntimeFailure, match="opening failed as configured") as failure:
        await rig.load(options="fail_open=1")
    assert failure.value.code == "INTERNAL"
    assert rig.engine.versions() == []
    await rig.serve()
    assert await rig.ask(0.0) == [2.0]
    await rig.unserve()


async def test_warm_up_failures_are_counted(rig: Rig) -> None:
    assert (await rig.load(options="fail_every=4"))[1] == 2  # of 11 runs
    await rig.engine.close("m", 1)


async def test_commands_come_in_their_order(rig: Rig) -> None:
    async def refused(command: Any, code: str, text: str) -> None:
        with pytest.raises(RuntimeFailure) as failure:
            await command
        assert (failure.value.code, failure.value.message) == (code, text)

    engine = rig.engine
    for command in (engine.publish, engine.close):
        await refused(command("m", 1), "FAILED_PRECONDITION", "m:1 is not here, not loaded")
    await refused(engine.retire("m", 1), "FAILED_PRECONDITION", "m:1 is not here, not published")
    await rig.load()
    await refused(rig.load(), "ALREADY_EXISTS", "m:1 is loaded")
    await refused(engine.retire("m", 1), "FAILED_PRECONDITION", "m:1 is loaded, not published")
    await engine.publish("m", 1)
    await refused(engine.publish("m", 1), "FAILED_PRECONDITION", "m:1 is published, not loaded")
    await refused(engine.close("m", 1), "FAILED_PRECONDITION", "m:1 is published, not loaded")
    await rig.unserve()


async def test_a_version_is_loading_only_once(rig: Rig) -> None:
    first = asyncio.ensure_future(rig.engine.load(rig.runtime, servable(options="open_us=20000")))
    await asyncio.sleep(0)
    assert rig.states() == {("m", 1): "loading"}
    with pytest.raises(RuntimeFailure, match="m:1 is loading"):
        await rig.load()
    with pytest.raises(RuntimeFailure, match="m:1 is loading, not loaded"):
        await rig.engine.publish("m", 1)
    await first
    await rig.engine.close("m", 1)


async def test_several_versions_load_at_once(make: Callable[..., Rig]) -> None:
    rig = make(load_threads=4)
    took = await asyncio.gather(*(rig.load(version=v, options="open_us=100000") for v in range(4)))
    assert max(seconds for seconds, _ in took) < 0.4  # a load's time does not count what it waited for others
    await asyncio.gather(*(rig.engine.close("m", v) for v in range(4)))


async def test_too_many_buckets_are_refused_before_anything_is_done(rig: Rig) -> None:
    spec = servable()
    spec["signatures"][0]["buckets"] = list(range(1, 34))
    with pytest.raises(ValueError, match="serving_default: 33 buckets; at most 32"):
        await rig.engine.load(rig.runtime, spec)
    assert rig.engine.versions() == []


async def test_a_load_shows_how_far_it_has_come(rig: Rig) -> None:
    waiting = asyncio.ensure_future(rig.load(version=1, options="open_us=50000,run_us=5000"))
    second = asyncio.ensure_future(rig.load(version=2, options="open_us=1000"))
    stages: dict[int, list[str]] = {1: [], 2: []}
    done: list[int] = []
    while not second.done():
        for row in rig.engine.versions():
            assert row["seconds"] >= 0
            if row["state"] != "loading":
                assert "stage" not in row
                continue
            stages[row["version"]].append(row["stage"])
            if row["version"] == 1 and row["stage"] == "warm":
                assert row["total"] == 11
                done.append(row["done"])
        await asyncio.wait([second], timeout=0.001)
    await waiting
    assert list(dict.fromkeys(stages[1]))[-2:] == ["open", "warm"]
    assert stages[2][0] == "queued"
    assert done == sorted(done)
    assert len(set(done)) > 3
    await asyncio.gather(rig.engine.close("m", 1), rig.engine.close("m", 2))


async def test_recorded_requests_are_run_and_one_that_fails_ends_the_load(rig: Rig, tmp_path: Path) -> None:
    def record(*rows: float) -> bytes:
        request = predict_request("m", struct.pack(f"<{len(rows)}f", *rows), [len(rows), 1])
        return struct.pack("<I", len(request)) + request

    requests = tmp_path / "warm up é"
    requests.write_bytes(record(1.0, 2.0, 3.0) + record(4.0))
    warm_up = {"iterations": 2, "requests": str(requests)}
    assert (await rig.load(warmup=warm_up, options="fail_nan=1"))[1] == 0
    await rig.engine.close("m", 1)
    requests.write_bytes(record(1.0) + record(float("nan")))
    with pytest.raises(RuntimeFailure) as failure:
        await rig.load(warmup=warm_up, options="fail_nan=1")
    assert failure.value.code == "INVALID_ARGUMENT"
    assert failure.value.message == f"warm-up request 2 of 2 in {requests}: input 'x' has a NaN"
    assert rig.engine.versions() == []


# ---- what is left out for measurement --------------------------------------------------------------


async def test_without_warm_up_nothing_runs_before_the_first_request(make: Callable[..., Rig]) -> None:
    rig = make(ablate=["warmup", "allocator"])
    assert (await rig.load(options="fail_every=1"))[1] == 0
    await rig.engine.close("m", 1)


async def test_without_a_loader_for_it_a_version_is_closed_at_once(make: Callable[..., Rig]) -> None:
    rig = make(ablate=["unload"])
    await rig.load()
    await rig.engine.close("m", 1)
    assert rig.engine.versions() == []


async def test_loaders_give_way_as_far_as_configured(make: Callable[..., Rig]) -> None:
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    assert make(nice=3).engine.nice == min(normal + 3, 19)
    assert make(nice=3, ablate=["nice"]).engine.nice == normal
    assert make(nice=3).engine.nice_limited is False


# ---- which version answers ----------------------------------------------------------------------


async def code_of(answer: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as failure:
        await answer
    return failure.value.code().name, failure.value.details()


async def test_the_newest_published_version_answers(rig: Rig) -> None:
    assert await code_of(rig.ask(1.0)) == ("NOT_FOUND", "Servable not found for request: Latest(m)")
    await rig.serve(version=1)
    await rig.serve(version=3, options="op=echo")
    await rig.load(version=4)
    assert await rig.ask(8.0) == [8.0]
    await rig.unserve(version=3)
    assert await rig.ask(8.0) == [6.0]
    await rig.engine.close("m", 4)
    await rig.unserve(version=1)
    assert await code_of(rig.ask(1.0)) == ("NOT_FOUND", "Servable not found for request: Latest(m)")


async def test_labels_are_replaced_as_a_whole(rig: Rig) -> None:
    request = message("tensorflow.serving.PredictRequest")()
    request.ParseFromString(predict_request("m", struct.pack("<f", 8.0), [1, 1]))
    method = rig.channel.unary_unary(PREDICT)

    async def ask(label: str) -> list[float]:
        request.model_spec.version_label = label
        return predict_reply(await asyncio.to_thread(method, request.SerializeToString(), timeout=PATIENCE_S))

    await rig.serve(version=1)
    await rig.serve(version=2, options="op=echo")
    await rig.engine.label("m", {"stable": 1, "canary": 2})
    assert await ask("stable") == [6.0]
    assert await ask("canary") == [8.0]
    await rig.engine.label("m", {"stable": 2})
    assert await ask("stable") == [8.0]
    unknown = ("INVALID_ARGUMENT", "Unrecognized servable version label: canary")
    assert await code_of(ask("canary")) == unknown
    await rig.engine.label("m", {})
    await rig.unserve(version=1)
    await rig.unserve(version=2)


async def test_calls_around_a_retirement_are_answered_or_find_nothing(rig: Rig) -> None:
    await rig.serve(options="run_us=2000")
    answers = [asyncio.ensure_future(rig.ask(float(i))) for i in range(20)]
    await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    retire = asyncio.ensure_future(rig.engine.retire("m", 1))
    await asyncio.sleep(0)
    assert rig.states() == {("m", 1): "retiring"}
    await asyncio.wait_for(retire, PATIENCE_S)
    await rig.engine.close("m", 1)
    answered = 0
    for i, answer in enumerate(await asyncio.gather(*answers, return_exceptions=True)):
        if isinstance(answer, grpc.RpcError):
            assert answer.code() is grpc.StatusCode.NOT_FOUND
        else:
            assert answer == [0.5 * i + 2]
            answered += 1
    assert answered > 0


async def test_a_replacement_takes_over_and_no_call_is_without_an_answer(rig: Rig) -> None:
    with pytest.raises(RuntimeFailure, match="m:1 is not here, not published"):
        await rig.load(replacement=True)
    await rig.serve(options="run_us=2000")
    with pytest.raises(RuntimeFailure, match="m:1 has no replacement that is loaded"):
        await rig.engine.replace("m", 1)
    await rig.load(replacement=True)
    answers = [asyncio.ensure_future(rig.ask(float(i))) for i in range(20)]
    await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait_for(rig.engine.replace("m", 1), PATIENCE_S)
    assert await asyncio.gather(*answers) == [[0.5 * i + 2] for i in range(20)]
    # What is there now has answered none of the calls that the one before has.
    assert rig.states() == {("m", 1): "published"}
    assert rig.row()["calls"] < 20
    assert await rig.ask(4.0) == [4.0]
    # One that is not wanted after all leaves what is served alone.
    await rig.load(replacement=True)
    await rig.engine.close("m", 1)
    assert await rig.ask(4.0) == [4.0]
    await rig.unserve()


async def test_a_route_decides_while_it_is_set(rig: Rig) -> None:
    await rig.serve(version=1)
    await rig.serve(version=2, options="op=echo,fail_nan=1")
    route = {"mode": "canary", "stable": 1, "new": 2, "share": 0.0}
    await rig.engine.route("m", route)
    assert await rig.ask(8.0) == [6.0]
    assert await rig.ask(float("inf")) == [float("inf")]
    await rig.engine.route("m", route | {"share": 1})
    assert await rig.ask(8.0) == [8.0]
    assert (await code_of(rig.ask(float("nan"))))[0] == "INVALID_ARGUMENT"
    stats = rig.engine.rollout_stats("m")
    assert stats["versions"]["1"]["requests"] == 0  # since this route was set
    new = stats["versions"]["2"]
    assert (new["requests"], new["failed"], new["refused"], new["cancelled"]) == (2, 0, 1, 0)
    assert 0 < new["latency_us"]["p50"] == new["latency_us"]["p99"] < PATIENCE_S * 1e6
    await rig.unserve(version=2)
    assert await rig.ask(8.0) == [6.0]
    await rig.engine.route("m", None)
    with pytest.raises(RuntimeFailure, match="m has no route"):
        rig.engine.rollout_stats("m")
    await rig.unserve(version=1)


async def test_rollouts_at_the_same_time_share_a_few_headers(rig: Rig) -> None:
    def route(header: str) -> dict[str, Any]:
        return {"mode": "shadow", "stable": 1, "new": 2, "share": 0.5, "sticky_header": header}

    for i in range(4):
        await rig.engine.route(f"m{i}", route(f"x-{i}"))
    await rig.engine.route("more", route("X-3"))
    with pytest.raises(RuntimeFailure, match="4 different sticky headers in all") as failure:
        await rig.engine.route("m4", route("x-4"))
    assert failure.value.code == "FAILED_PRECONDITION"
    with pytest.raises(RuntimeFailure, match="m4 has no route"):
        rig.engine.rollout_stats("m4")
    await rig.engine.route("m0", None)
    await rig.engine.route("m4", route("x-4"))


# ---- what it counts --------------------------------------------------------------------------------


async def test_calls_are_counted(rig: Rig) -> None:
    await rig.serve(options="fail_nan=1")
    row = rig.row()
    assert (row["model"], row["version"], row["signature"]) == ("m", 1, "serving_default")
    assert row["calls"] == row["ok"] == row["batches"] == 0
    for _ in range(3):
        await rig.ask(1.0, 2.0, 3.0)
    assert (await code_of(rig.ask(float("nan"))))[0] == "INVALID_ARGUMENT"
    row = rig.row()
    assert (row["ok"], row["failed"], row["calls"]) == (3, 1, 4)
    assert (row["batches"], row["rows"]) == (4, 10)
    assert row["batch_size_hist"] == {"4": 3, "1": 1}
    assert row["run_us"] >= 0
    await rig.engine.retire("m", 1)
    assert rig.row()["ok"] == 3
    await rig.engine.close("m", 1)
    assert rig.engine.stats() == []


async def test_what_the_executors_use(rig: Rig) -> None:
    await rig.serve(options="run_us=20000,busy=1")
    before_us = rig.engine.cpu_us()
    await rig.ask(1.0)
    assert rig.engine.cpu_us() - before_us > 500  # others may have the rest of the 20 ms
    allocs = rig.engine.system_allocs()
    assert allocs > 0
    for _ in range(5):
        await rig.ask(1.0)
    assert rig.engine.system_allocs() == allocs
    await rig.unserve()


async def test_an_engine_may_stop_twice(rig: Rig) -> None:
    rig.engine.stop()
    rig.engine.stop()


# ---- what a servable says of its signatures ------------------------------------------------------


def port(alias: str, dtype: int, dims: list[int], **more: Any) -> dict[str, Any]:
    return {"alias": alias, "tensor": f"{alias}:0", "dtype": dtype, "dims": dims, **more}


def with_signature(**changes: Any) -> dict[str, Any]:
    """servable(), whose signature has the fields in `changes`."""
    spec = servable()
    spec["signatures"][0] |= changes
    return spec


async def test_an_input_that_a_request_leaves_out_has_the_servables_default(rig: Rig) -> None:
    default = message("tensorflow.TensorProto")(dtype=1, float_val=[10.0])
    default.tensor_shape.dim.add(size=1)
    default.tensor_shape.dim.add(size=1)
    encoded = b64encode(default.SerializeToString()).decode()
    inputs = [port("x", 1, [-1, 1]), port("z", 1, [-1, 1], default=encoded)]
    outputs = [port("w", 1, [-1, 1]), port("y", 1, [-1, 1])]
    await rig.engine.load(rig.runtime, with_signature(inputs=inputs, outputs=outputs))
    await rig.engine.publish("m", 1)
    assert await rig.ask(4.0) == [7.0]  # y is of z
    assert await rig.ask(4.0, 5.0) == [7.0]
    await rig.unserve()


async def test_a_default_that_is_no_base64_is_refused(rig: Rig) -> None:
    with pytest.raises(ValueError):
        await rig.engine.load(rig.runtime, with_signature(inputs=[port("x", 1, [-1, 1], default="?")]))
    assert rig.engine.versions() == []


async def test_method_names_are_the_servables(make: Callable[..., Rig]) -> None:
    rig = make(server={"check_method_names": True})
    await rig.engine.load(rig.runtime, with_signature(method_name="tensorflow/serving/regress"))
    await rig.engine.publish("m", 1)
    assert await rig.ask(4.0) == [4.0]
    await rig.unserve()
    await rig.engine.load(rig.runtime, with_signature(method_name="odd"))
    await rig.engine.publish("m", 1)
    code, text = await code_of(rig.ask(4.0))
    assert code == "INTERNAL" and text.endswith(". Was: odd")
    await rig.unserve()


async def test_classify_regress_and_multi_inference_are_the_engines(rig: Rig) -> None:
    inputs, outputs = [port("inputs", 7, [-1])], [port("classes", 7, [-1, 2])]
    await rig.engine.load(rig.runtime, with_signature(inputs=inputs, outputs=outputs))
    await rig.engine.publish("m", 1)
    request = message("tensorflow.serving.ClassificationRequest")(model_spec={"name": "m"})
    for _ in range(3):
        request.input.example_list.examples.add()
    encoded = request.SerializeToString()

    async def refusal(name: str, data: bytes) -> tuple[str, str]:
        method = rig.channel.unary_unary(f"/tensorflow.serving.PredictionService/{name}")
        return await code_of(asyncio.to_thread(method, data, timeout=PATIENCE_S))

    # The null runtime answers with its input, which is no classes.
    shape = ("INVALID_ARGUMENT", "Expected Tensor shape: [batch_size num_classes] but got [3]")
    assert await refusal("Classify", encoded) == shape
    assert rig.row()["rows"] == 3
    assert await refusal("Regress", encoded) == (
        "INVALID_ARGUMENT",
        "No regression outputs found in SignatureDef: serving_default",
    )
    task = {"model_spec": {"name": "m"}, "method_name": "tensorflow/serving/classify"}
    multi = message("tensorflow.serving.MultiInferenceRequest")(tasks=[task], input=request.input)
    assert await refusal("MultiInference", multi.SerializeToString()) == shape
    await rig.unserve()
