"""Predict: what is refused, in which order, with which code and in which words."""

from __future__ import annotations

import re

import grpc
import pytest
from conformance.case import Case, ask, check, floats, inputs, named, spec, strings, tensor

HALF = "half_plus_two"
ONE = inputs(x=floats(1))
PAIR = inputs(a=floats(1, 2, shape=[1, 2]), b=floats(1, 2, 3, shape=[1, 3]))


def wrong(name: str, request: str, message: str, code: str = "INVALID_ARGUMENT") -> Case:
    return Case(name, "Predict", request, code, message)


def absent(name: str, request: str, wanted: str) -> Case:
    return wrong(name, request, f"Servable not found for request: {wanted}", "NOT_FOUND")


def wrong_inputs(name: str, request: str, sent: str, signature: str, extra: str, missing: str) -> Case:
    counts = [len(names.split(",")) if names else 0 for names in (sent, signature)]
    return wrong(
        name,
        request,
        f"input size does not match signature: {counts[0]}!={counts[1]} len({{{sent}}}) != "
        f"len({{{signature}}}). Sent extra: {{{extra}}}. Missing but required: {{{missing}}}.",
    )


MODEL_SPEC = [
    wrong("no model spec", ONE, "Missing ModelSpec"),
    wrong("nothing at all", "", "Missing ModelSpec"),
    wrong("no name", spec("") + ONE, "ModelSpec has no name specified."),
    wrong("a version of no name", spec("", version=1) + ONE, "ModelSpec has no name specified."),
    absent("unknown model", spec("nope") + ONE, "Latest(nope)"),
    absent("a version of an unknown model", spec("nope", version=3) + ONE, "Specific(nope, 3)"),
    absent("unknown version", spec(HALF, version=7) + ONE, f"Specific({HALF}, 7)"),
    absent("version 0", spec(HALF, version=0) + ONE, f"Specific({HALF}, 0)"),
    absent("a negative version", spec(HALF, version=-1) + ONE, f"Specific({HALF}, -1)"),
    wrong("unknown label", spec("versions", label="zzz") + ONE, "Unrecognized servable version label: zzz"),
    wrong(
        "a model without labels",
        spec(HALF, label="stable") + ONE,
        "Unrecognized servable version label: stable",
    ),
    wrong(
        "unknown model, unknown label",
        spec("nope", label="x") + ONE,
        "Unrecognized servable version label: x",
    ),
]

SIGNATURE = [
    wrong(
        "unknown signature",
        spec(HALF, "zzz") + ONE,
        'Serving signature key "zzz" not found.',
        "FAILED_PRECONDITION",
    ),
    wrong(
        "no default signature",
        spec("identity") + ONE,
        'Serving signature key "serving_default" not found.',
        "FAILED_PRECONDITION",
    ),
]

INPUTS = [
    wrong_inputs("none", spec(HALF), "", "x", "", "x"),
    wrong_inputs("one too many", spec(HALF) + inputs(x=floats(1), q=floats(1)), "q,x", "x", "q", ""),
    wrong_inputs(
        "three instead of one",
        spec(HALF) + inputs(c=floats(1), a=floats(1), b=floats(1)),
        "a,b,c",
        "x",
        "a,b,c",
        "x",
    ),
    wrong_inputs("one missing", spec("many") + inputs(a=floats(1, 2, shape=[1, 2])), "a", "a,b", "", "b"),
    wrong(
        "another name",
        spec(HALF) + inputs(q=floats(1)),
        "Signature input alias: x(feed name: x:0) not found in request and no default value provided. "
        "Inputs expected to be in the request {q}, or default input alias set: ",
    ),
    wrong(
        "one of two has another name",
        spec("many") + inputs(a=floats(1, 2, shape=[1, 2]), c=floats(1, 2, 3, shape=[1, 3])),
        "Signature input alias: b(feed name: serving_default_b:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {a,c}, or default input alias set: ",
    ),
]

DTYPES = [
    wrong(
        f"{theirs} for {ours}",
        request,
        f"Expects arg[{index}] to be {ours} but {theirs} is provided",
    )
    for request, index, ours, theirs in [
        (spec(HALF) + inputs(x=tensor([1], "int_val: 1", "DT_INT32")), 0, "float", "int32"),
        (spec(HALF) + inputs(x=tensor([1], "double_val: 1", "DT_DOUBLE")), 0, "float", "double"),
        (spec(HALF) + inputs(x=strings("1")), 0, "float", "string"),
        (spec(HALF) + inputs(x=tensor([1], "half_val: 0", "DT_HALF")), 0, "float", "half"),
        (spec(HALF) + inputs(x=tensor([1], "", "DT_VARIANT")), 0, "float", "variant"),
        (spec("many", "strings") + inputs(word=floats(1)), 0, "string", "float"),
        (
            spec("many") + inputs(a=floats(1, 2, shape=[1, 2]), b=tensor([1, 3], "int64_val: 1", "DT_INT64")),
            1,
            "float",
            "int64",
        ),
    ]
]

FILTERS = [
    wrong(
        "unknown output",
        spec(HALF) + ONE + 'output_filter: "nope"',
        "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
    ),
    wrong(
        "unknown output among several",
        spec("many") + PAIR + 'output_filter: ["p", "nope"]',
        "output tensor alias not found in signature: nope Outputs expected to be in the set {p,q}.",
    ),
    wrong(
        "no name", spec(HALF) + ONE + 'output_filter: ""',
        "output tensor alias not found in signature:  Outputs expected to be in the set {y}.",
    ),
    wrong("twice", spec(HALF) + ONE + 'output_filter: ["y", "y"]', "duplicate output tensor alias: y"),
]  # fmt: skip

# What the kernels say; it goes on with the node's name, where one exports with TensorFlow 2.
MODEL = [
    wrong(
        "a rank that an op refuses",
        spec("many") + inputs(a=floats(1, 2), b=floats(1, 2, 3, shape=[1, 3])),
        "Invalid reduction dimension (1 for input with 1 dimension(s)...",
    ),
    wrong(
        "the signature of initialization",
        spec("many", "__saved_model_init_op"),
        "Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0",
        "OUT_OF_RANGE",
    ),
    wrong(
        "an assertion",
        spec("many", "positive") + inputs(x=floats(1, -1)),
        "assertion failed: [not positive]...",
    ),
    wrong(
        "an example that is none",
        spec("classes", "predict") + inputs(examples=strings("garbage")),
        "Could not parse example input, value: 'garbage'...",
    ),
    wrong(
        "an example without a required feature",
        spec(HALF, "regress_x_to_y") + inputs(inputs=strings("")),
        "Name: <unknown>, Feature: x (data type: float) is required but could not be found....",
    ),
]

# The first of several things that are wrong.
ORDER = [
    absent("the model before the signature", spec("nope", "zzz"), "Latest(nope)"),
    wrong(
        "the signature before the inputs", spec(HALF, "zzz"), 'Serving signature key "zzz" not found.',
        "FAILED_PRECONDITION",
    ),
    wrong_inputs(
        "the number of inputs before the outputs", spec(HALF) + 'output_filter: "nope"', "", "x", "", "x"
    ),
    wrong(
        "values before the outputs",
        spec(HALF) + inputs(x=tensor([-1], "float_val: 1")) + 'output_filter: "nope"',
        "tensor parsing error: x",
    ),
    wrong(
        "outputs before dtypes",
        spec(HALF) + inputs(x=strings("1")) + 'output_filter: "nope"',
        "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
    ),
]  # fmt: skip

LONG = [
    absent("a message of 1024 characters", spec("n" * 984) + ONE, f"Latest({'n' * 984})"),
    wrong(
        "a longer message is cut",
        spec("n" * 2000) + ONE,
        f"Servable not found for request: Latest({'n' * 985}...TRUNCATED",
        "NOT_FOUND",
    ),
]


@pytest.mark.parametrize(**named(MODEL_SPEC + SIGNATURE + INPUTS + DTYPES + FILTERS + MODEL + ORDER + LONG))
def test_refused(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)


@pytest.mark.parametrize(
    ("request_text", "message"),
    [
        (
            spec("many") + inputs(a=floats(1, 2), b=floats(1, 2, 3, shape=[1, 3])),
            r"Invalid reduction dimension \(1 for input with 1 dimension\(s\)"
            r"\n\t \[\[\{\{function_node __inference_serving_default_\d+\}\}\{\{node Sum\}\}\]\]",
        ),
        (
            spec("many", "positive") + inputs(x=floats(1, -1)),
            r"assertion failed: \[not positive\]"
            r"\n\t \[\[\{\{function_node __inference_positive_\d+\}\}\{\{node Assert/Assert\}\}\]\]",
        ),
    ],
    ids=["an op", "an assertion"],
)
def test_an_error_in_a_kernel_names_its_node(channel: grpc.Channel, request_text: str, message: str) -> None:
    for _ in range(2):
        answer = ask(channel, "Predict", request_text)
        assert answer.code == "INVALID_ARGUMENT" and re.fullmatch(message, answer.message), answer
