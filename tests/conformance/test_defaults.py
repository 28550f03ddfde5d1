"""Inputs that a request leaves out and for which the signature has a default."""

from __future__ import annotations

import grpc
import pytest
from conformance.case import Case, check, floats, inputs, named, outputs, spec, strings


def ok(name: str, request: str, y: str) -> Case:
    return Case(
        name,
        "Predict",
        spec("defaults") + request,
        reply=outputs(y=y) + spec("defaults", "serving_default", version=1),
    )


def wrong(name: str, request: str, message: str) -> Case:
    return Case(name, "Predict", spec("defaults") + request, "INVALID_ARGUMENT", message)


TWO = floats(2, shape=[])
CASES = [
    ok("the default", inputs(x=floats(1, 2)), floats(3, 6)),
    ok("another value", inputs(x=floats(1, 2), factor=TWO), floats(2, 4)),
    wrong(
        "an input without a default",
        inputs(factor=TWO),
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {factor}, or default input alias set: factor",
    ),
    wrong(
        "nothing",
        "",
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {}, or default input alias set: factor",
    ),
    wrong(
        "another name in the place of the default's",
        inputs(x=floats(1), q=TWO),
        "Inputs contains invalid name. Used request inputs: x, request input: q,x",
    ),
    wrong(
        "too many",
        inputs(x=floats(1), factor=TWO, q=TWO),
        "input size does not match signature: 3!=2 len({factor,q,x}) != len({factor,x}). Sent extra: {q}. "
        "Missing but required: {}.",
    ),
    wrong("a value that is none", inputs(x=floats(1, shape=[-1])), "tensor parsing error: x"),
    wrong("another dtype", inputs(x=strings("a")), "Expects arg[1] to be float but string is provided"),
]


@pytest.mark.parametrize(**named(CASES))
def test_defaults(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)
