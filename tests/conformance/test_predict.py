"""Predict: what is answered, to the last field."""

from __future__ import annotations

import grpc
import pytest
from conformance.case import Case, check, floats, inputs, named, outputs, spec, strings, tensor

HALF = "half_plus_two"
ONE = inputs(x=floats(1))
PAIR = inputs(a=floats(1, 2, shape=[1, 2]), b=floats(1, 2, 3, shape=[1, 3]))


def says(name: str, y: str, version: int, signature: str = "serving_default") -> str:
    return outputs(y=y) + spec(name, signature, version=version)


def ok(name: str, request: str, reply: str) -> Case:
    return Case(name, "Predict", request, reply=reply)


MODEL_SPEC = [
    ok("the default signature", spec(HALF) + ONE, says(HALF, floats(2.5), 123)),
    ok("named", spec(HALF, "serving_default") + ONE, says(HALF, floats(2.5), 123)),
    ok("a version", spec(HALF, version=123) + ONE, says(HALF, floats(2.5), 123)),
    ok("the newest", spec("versions") + ONE, says("versions", floats(1), 2)),
    ok("an older one", spec("versions", version=1) + ONE, says("versions", floats(2.5), 1)),
    ok("label stable", spec("versions", label="stable") + ONE, says("versions", floats(2.5), 1)),
    ok("label canary", spec("versions", label="canary") + ONE, says("versions", floats(1), 2)),
    ok(
        "the signature that has answered is told",
        spec("many", "scalar") + inputs(x=floats(14, shape=[])),
        says("many", floats(42, shape=[]), 1, "scalar"),
    ),
    ok(
        "what does not belong to it is passed over",
        spec(HALF) + ONE + 'client_id: "me" request_options { } ',
        says(HALF, floats(2.5), 123),
    ),
]

P, Q = floats(9), floats(1, 2, shape=[1, 2])
FILTERS = [
    ok(
        "no filter: all outputs",
        spec("many") + PAIR,
        outputs(p=P, q=Q) + spec("many", "serving_default", version=1),
    ),
    ok(
        "one of two",
        spec("many") + PAIR + 'output_filter: "q"',
        outputs(q=Q) + spec("many", "serving_default", version=1),
    ),
    ok(
        "both, in another order",
        spec("many") + PAIR + 'output_filter: ["q", "p"]',
        outputs(p=P, q=Q) + spec("many", "serving_default", version=1),
    ),
]

SHAPES = [
    ok("many rows", spec(HALF) + inputs(x=floats(1, 2, 5)), says(HALF, floats(2.5, 3, 4.5), 123)),
    ok(
        "rows as the signature has them",
        spec(HALF) + inputs(x=floats(1, 2, shape=[2, 1])),
        says(HALF, floats(2.5, 3, shape=[2, 1]), 123),
    ),
    ok("a scalar", spec(HALF) + inputs(x=floats(4, shape=[])), says(HALF, floats(4, shape=[]), 123)),
    ok(
        "no shape",
        spec(HALF) + inputs(x="dtype: DT_FLOAT float_val: 1"),
        says(HALF, floats(2.5, shape=[]), 123),
    ),
    ok(
        "unknown rank",
        spec(HALF) + inputs(x="dtype: DT_FLOAT tensor_shape { unknown_rank: true } float_val: 1"),
        says(HALF, floats(2.5, shape=[]), 123),
    ),
    ok("an empty batch", spec(HALF) + inputs(x=floats()), says(HALF, floats(), 123)),
    ok("rows of nothing", spec(HALF) + inputs(x=floats(shape=[2, 0])), says(HALF, floats(shape=[2, 0]), 123)),
    ok(
        "more rows than a batch",
        spec(HALF) + inputs(x=floats(1, shape=[1000])),
        says(HALF, floats(*[2.5] * 1000), 123),
    ),
    ok(
        "a vector where the signature has a scalar",
        spec("many", "scalar") + inputs(x=floats(2, 3)),
        says("many", floats(6, 9), 1, "scalar"),
    ),
    ok(
        "unequal first dimensions, which the model takes",
        spec("many") + inputs(a=floats(1, 2, 3, 4, shape=[2, 2]), b=floats(1, 2, 3, shape=[1, 3])),
        outputs(p=floats(9, 13), q=floats(1, 2, 3, 4, shape=[2, 2]))
        + spec("many", "serving_default", version=1),
    ),
    ok(
        "any rank",
        spec("many", "any_rank") + inputs(x=floats(1, shape=[1, 1, 2, 1])),
        outputs(y=floats(2, 2, shape=[1, 1, 2, 1]), shape=tensor([4], "int_val: [1, 1, 2, 1]", "DT_INT32"))
        + spec("many", "any_rank", version=1),
    ),
    ok(
        "an output without rows",
        spec("many", "total") + inputs(x=floats(1, 2, 3)),
        says("many", floats(6, shape=[]), 1, "total"),
    ),
    ok(
        "rows of any length",
        spec("many", "row_sum") + inputs(x=floats(1, 2, 3, shape=[1, 3])),
        says("many", floats(6), 1, "row_sum"),
    ),
]

STRINGS = [
    ok(
        "strings in and out",
        spec("many", "strings") + inputs(word=strings("ab", "", "a\\000b")),
        outputs(upper=strings("AB", "", "A\\000B"), length=tensor([3], "int_val: [2, 0, 3]", "DT_INT32"))
        + spec("many", "strings", version=1),
    ),
    ok(
        "a table of words",
        spec("vocabulary") + inputs(words=strings("three", "nine")),
        outputs(id=tensor([2], "int64_val: [2, -1]", "DT_INT64"))
        + spec("vocabulary", "serving_default", version=1),
    ),
    ok(
        "examples that leave everything out",
        spec("classes", "predict") + inputs(examples=strings("", "")),
        outputs(x=floats(1, 1), name=strings("nobody", "nobody")) + spec("classes", "predict", version=1),
    ),
]


@pytest.mark.parametrize(**named(MODEL_SPEC + FILTERS + SHAPES + STRINGS))
def test_predict(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)
