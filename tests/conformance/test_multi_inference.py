"""MultiInference: several signatures of one model over the same examples."""

from __future__ import annotations

import grpc
import pytest
from conformance.case import Case, check, named, spec

HALF = "half_plus_two"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
EXAMPLE = 'features { feature { key: "x" value { float_list { value: 2 } } } }'
X = f"input {{ example_list {{ examples {{ {EXAMPLE} }} }} }}"


def task(model_spec: str, method: str) -> str:
    return f'tasks {{ {model_spec} method_name: "{method}" }} '


def half(signature: str, method: str = REGRESS) -> str:
    return task(spec(HALF, signature), method)


def regression(name: str, signature: str, version: int, value: float) -> str:
    made = spec(name, signature, version=version)
    return f"results {{ {made} regression_result {{ regressions {{ value: {value} }} }} }} "


def classification(name: str, signature: str, version: int, *scores: float) -> str:
    each = " ".join(f"classes {{ score: {score} }}" for score in scores)
    made = spec(name, signature, version=version)
    return f"results {{ {made} classification_result {{ classifications {{ {each} }} }} }} "


def ok(name: str, request: str, reply: str) -> Case:
    return Case(name, "MultiInference", request, reply=reply)


def wrong(name: str, request: str, message: str, code: str = "INVALID_ARGUMENT") -> Case:
    return Case(name, "MultiInference", request, code, message)


ANSWERED = [
    ok("one", half("regress_x_to_y") + X, regression(HALF, "regress_x_to_y", 123, 3.0)),
    ok(
        "a regression and a classification",
        half("regress_x_to_y2") + half("classify_x_to_y", CLASSIFY) + X,
        regression(HALF, "regress_x_to_y2", 123, 4.0) + classification(HALF, "classify_x_to_y", 123, 3.0),
    ),
    ok(
        "in the order of the tasks",
        half("classify_x_to_y", CLASSIFY) + half("regress_x_to_y2") + half("regress_x_to_y") + X,
        classification(HALF, "classify_x_to_y", 123, 3.0)
        + regression(HALF, "regress_x_to_y2", 123, 4.0)
        + regression(HALF, "regress_x_to_y", 123, 3.0),
    ),
    ok(
        "a version",
        task(spec(HALF, "regress_x_to_y", version=123), REGRESS) + X,
        regression(HALF, "regress_x_to_y", 123, 3.0),
    ),
    ok(
        "the first task's version counts",
        half("regress_x_to_y") + task(spec(HALF, "regress_x_to_y2", version=7), REGRESS) + X,
        regression(HALF, "regress_x_to_y", 123, 3.0) + regression(HALF, "regress_x_to_y2", 123, 4.0),
    ),
]

REFUSED = [
    wrong("no tasks", X, "ModelSpec has no name specified."),
    wrong("nothing", "", "ModelSpec has no name specified."),
    wrong("no model spec", f'tasks {{ method_name: "{REGRESS}" }} {X}', "ModelSpec has no name specified."),
    wrong("no name", task(spec("", "regress_x_to_y"), REGRESS) + X, "ModelSpec has no name specified."),
    wrong(
        "no name in the second task",
        half("regress_x_to_y") + task(spec("", "regress_x_to_y2"), REGRESS) + X,
        "Found ModelSpec with an empty model name.",
    ),
    wrong(
        "unknown model",
        task(spec("nope", "x"), REGRESS) + X,
        "Servable not found for request: Latest(nope)",
        "NOT_FOUND",
    ),
    wrong(
        "unknown version",
        task(spec(HALF, "regress_x_to_y", version=7), REGRESS) + X,
        f"Servable not found for request: Specific({HALF}, 7)",
        "NOT_FOUND",
    ),
    wrong(
        "two models",
        half("regress_x_to_y") + task(spec("classes", "vector"), REGRESS) + X,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    wrong(
        "a signature twice",
        half("regress_x_to_y") + half("regress_x_to_y") + X,
        "Duplicate evaluation of signature: regress_x_to_y",
    ),
    wrong(
        "the default signature twice",
        half("", CLASSIFY) + half("serving_default", CLASSIFY) + X,
        "No classification inputs found in SignatureDef: ...",
    ),
    wrong("unknown signature", half("zzz") + X, "Requested signature not found in model graph: zzz"),
    wrong(
        "another method",
        half("regress_x_to_y", "tensorflow/serving/predict") + X,
        "Unsupported signature method_name: tensorflow/serving/predict",
        "UNIMPLEMENTED",
    ),
    wrong(
        "no method", half("regress_x_to_y", "") + X, "Unsupported signature method_name: ", "UNIMPLEMENTED"
    ),
    wrong(
        "a signature that the method does not fit",
        half("regress_x_to_y", CLASSIFY) + X,
        'Expected classification signature outputs to contain at least one of "classes" or "scores". '
        "Signature was: ...",
    ),
    wrong(
        "inputs that are not one",
        task(spec("classes", "vector"), REGRESS) + task(spec("classes", "regress_elsewhere"), REGRESS) + X,
        "Input tensor must be the same for all Signatures.",
    ),
    wrong("no input", half("regress_x_to_y"), "Input is empty."),
    wrong("no examples", half("regress_x_to_y") + "input { example_list { } }", "Input is empty."),
    wrong("the signature before the input", half("zzz"), "Requested signature not found in model graph: zzz"),
]


@pytest.mark.parametrize(**named(ANSWERED + REFUSED))
def test_multi_inference(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)
