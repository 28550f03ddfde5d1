"""Batching: its limits where a setting asks for them, queues that are full, rows of unequal length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from conformance.case import Case, check, floats, inputs, named, outputs, spec
from predict_client import request
from tensorflow_serving.apis import prediction_service_pb2_grpc

HALF = "half_plus_two"
SMALL = "batching = { max_batch_size = 4, refuse_larger = true }"
PADDED = "batching = { pad_variable_length_inputs = true }"
NARROW = "batching = { max_batch_size = 1, max_enqueued_batches = 2, num_batch_threads = 1 }"


def half(x: str) -> str:
    return spec(HALF) + inputs(x=x)


def ok(name: str, x: str, y: str) -> Case:
    return Case(name, "Predict", half(x), reply=outputs(y=y) + spec(HALF, "serving_default", version=123))


def wrong(name: str, request: str, message: str) -> Case:
    return Case(name, "Predict", request, "INVALID_ARGUMENT", message)


INITIALIZATION = "__saved_model_init_op"  # what every SavedModel of TensorFlow 2 has, too
SCALAR = "Batching Run() input tensors must have at least one dimension"
SERVED = [
    ok("as many rows as a batch", floats(1, shape=[4]), floats(2.5, 2.5, 2.5, 2.5)),
    ok("no rows", floats(), floats()),
]
LIMITS = [
    wrong("a row more", half(floats(1, shape=[5])), "Task size 5 is larger than maximum input batch size 4"),
    wrong(
        "a thousand",
        half(floats(1, shape=[1000])),
        "Task size 1000 is larger than maximum input batch size 4",
    ),
    wrong("a scalar", half(floats(1, shape=[])), SCALAR),
    wrong("a scalar where one is wanted", spec("many", "scalar") + inputs(x=floats(14, shape=[])), SCALAR),
    wrong("no shape", half("dtype: DT_FLOAT float_val: 1"), SCALAR),
    wrong("unknown rank", half("dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 1"), SCALAR),
    wrong(
        "unequal first dimensions",
        spec("many") + inputs(a=floats(1, shape=[2, 2]), b=floats(1, shape=[1, 3])),
        "Batching Run() input tensors must have equal 0th-dimension size",
    ),
    wrong("no inputs", spec("many", INITIALIZATION), "Batching Run() must have at least one input tensor"),
    wrong(
        "a row more for outputs that depend on the whole batch",
        spec("many", "softmax") + inputs(x=floats(1, shape=[5])),
        "Task size 5 is larger than maximum input batch size 4",
    ),
]


@pytest.fixture(scope="module")
def limited(serve: Any) -> Iterator[grpc.Channel]:
    with serve({HALF: SMALL, "many": SMALL}).channel() as channel:
        yield channel


@pytest.mark.parametrize(**named(SERVED + LIMITS))
def test_limits_that_a_setting_asks_for(limited: grpc.Channel, case: Case) -> None:
    check(limited, case)


def test_a_request_that_expires_in_the_queue(serve: Any) -> None:
    """It is answered while the one before it runs, is never run, and harms no other."""
    daemon = serve({"many": NARROW})
    with daemon.channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def call(milliseconds: float, timeout: float) -> Any:
            message = request("many", {"x": [milliseconds]}, signature="slow")
            return stub.Predict.future(message, timeout=timeout, wait_for_ready=True)

        assert call(1.0, 60).code().name == "OK"  # connected: from here on, calls go out in their order
        first, late = call(3000.0, 60), call(3000.0, 0.1)
        assert (late.code().name, first.done()) == ("DEADLINE_EXCEEDED", False)
        after_it = call(1.0, 60)
        assert (first.code().name, after_it.code().name) == ("OK", "OK")
    counted = daemon.counters("many", "slow")
    # Its client hangs up as the deadline passes: either may be noticed first.
    assert (counted["ok"], counted["batches"], counted["expired"] + counted["cancelled"]) == (3, 3, 1)


def test_a_full_queue(serve: Any) -> None:
    """While one call runs and two wait, the others are refused at once."""
    with serve({"many": NARROW}).channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        message = request("many", {"x": [300.0]}, signature="slow")
        calls = [stub.Predict.future(message, timeout=60) for _ in range(8)]
        answers = [(call.code().name, call.details()) for call in calls]
    full = (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued "
        "and max_enqueued_batches is 2",
    )
    assert full in answers
    assert {answer for answer in answers if answer[0] != "OK"} == {full}
    assert 2 <= sum(code == "OK" for code, _ in answers) <= 4


@pytest.mark.parametrize("settings", ["", PADDED], ids=["each with its like", "padded"])
def test_rows_of_unequal_length(serve: Any, settings: str) -> None:
    """A row is padded with its request's first value, up to the longest in the batch."""
    rng = np.random.default_rng(5)
    requests = [rng.integers(1, 9, (int(n), int(m))) for n, m in rng.integers(1, 9, (60, 2))]
    with serve({"many": settings}).channel() as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        calls = [
            stub.Predict.future(
                request("many", {"x": x}, signature="row_sum"), timeout=60, wait_for_ready=True
            )
            for x in requests
        ]
        answers = [tf.make_ndarray(call.result().outputs["y"]) for call in calls]
    added = []
    for x, y in zip(requests, answers, strict=True):
        (padding,) = {*((y - x.sum(1)) / x[0, 0]).tolist()}
        assert padding == int(padding) and 0 <= padding <= 8 - x.shape[1]
        added.append(padding)
    assert any(added) == bool(settings)
