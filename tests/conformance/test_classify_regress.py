"""Classify and Regress: what is answered and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conformance.case import Case, ask, check, named, spec
from tensorflow_serving.apis import classification_pb2, regression_pb2

HALF = "half_plus_two"


def feature(name: str, value: str) -> str:
    return f'feature {{ key: "{name}" value {{ {value} }} }} '


def features(**values: float | str) -> str:
    """The features of a tf.Example."""
    text = ""
    for name, value in values.items():
        kind = "bytes_list" if isinstance(value, str) else "float_list"
        shown = f'"{value}"' if isinstance(value, str) else value
        text += feature(name, f"{kind} {{ value: {shown} }}")
    return f"features {{ {text} }}"


def examples(*each: str, context: str | None = None) -> str:
    """An Input: a list of examples, or one with a context."""
    text = " ".join(f"examples {{ {one} }}" for one in each)
    if context is None:
        return f"input {{ example_list {{ {text} }} }}"
    return f"input {{ example_list_with_context {{ {text} context {{ {context} }} }} }}"


X = examples(features(x=2.0), features(x=4.0))
ONE = examples(features(x=3.0, name="ada"))


def regressed(name: str, signature: str, version: int, *values: float) -> str:
    result = " ".join(f"regressions {{ value: {value} }}" for value in values)
    return f"result {{ {result} }} {spec(name, signature, version=version)}"


def classified(name: str, signature: str, version: int, *rows: Sequence[tuple[str, float | None]]) -> str:
    """Rows of (label, score); an empty label and None are left out."""
    result = ""
    for row in rows:
        each = ""
        for label, score in row:
            fields = f'label: "{label}" ' if label else ""
            each += f"classes {{ {fields}{'' if score is None else f'score: {score}'} }} "
        result += f"classifications {{ {each} }} "
    return f"result {{ {result} }} {spec(name, signature, version=version)}"


ANSWERED = [
    Case(
        "scores",
        "Classify",
        spec(HALF, "classify_x_to_y") + X,
        reply=classified(HALF, "classify_x_to_y", 123, [("", 3.0)], [("", 4.0)]),
    ),
    Case(
        "classes and scores",
        "Classify",
        spec("classes", "both") + ONE,
        reply=classified("classes", "both", 1, [("ada", 3.0), ("ada?", 6.0), ("z", -3.0)]),
    ),
    Case(
        "only scores",
        "Classify",
        spec("classes", "only_scores") + ONE,
        reply=classified("classes", "only_scores", 1, [("", 3.0), ("", 6.0), ("", -3.0)]),
    ),
    Case(
        "only classes",
        "Classify",
        spec("classes", "only_classes") + ONE,
        reply=classified("classes", "only_classes", 1, [("ada", None), ("ada?", None), ("z", None)]),
    ),
    Case(
        "a signature without a method",
        "Classify",
        spec("classes", "anonymous") + ONE,
        reply=classified("classes", "anonymous", 1, [("", 3.0), ("", 6.0), ("", -3.0)]),
    ),
    Case(
        "a version",
        "Classify",
        spec("classes", "only_scores", version=1) + ONE,
        reply=classified("classes", "only_scores", 1, [("", 3.0), ("", 6.0), ("", -3.0)]),
    ),
    Case(
        "an empty example",
        "Classify",
        spec("classes", "both") + examples(""),
        reply=classified("classes", "both", 1, [("nobody", 1.0), ("nobody?", 2.0), ("z", -1.0)]),
    ),
    Case(
        "a context",
        "Classify",
        spec(HALF, "classify_x_to_y") + examples("", features(x=4.0), context=features(x=2.0)),
        reply=classified(HALF, "classify_x_to_y", 123, [("", 3.0)], [("", 4.0)]),
    ),
    Case(
        "features of context and example",
        "Classify",
        spec("classes", "both") + examples(features(name="ada"), context=features(x=3.0)),
        reply=classified("classes", "both", 1, [("ada", 3.0), ("ada?", 6.0), ("z", -3.0)]),
    ),
    Case(
        "an empty context",
        "Classify",
        spec(HALF, "classify_x_to_y") + examples(features(x=2.0), context=""),
        reply=classified(HALF, "classify_x_to_y", 123, [("", 3.0)]),
    ),
    Case(
        "regress",
        "Regress",
        spec(HALF, "regress_x_to_y") + X,
        reply=regressed(HALF, "regress_x_to_y", 123, 3.0, 4.0),
    ),
    Case(
        "another signature",
        "Regress",
        spec(HALF, "regress_x_to_y2") + X,
        reply=regressed(HALF, "regress_x_to_y2", 123, 4.0, 5.0),
    ),
    Case(
        "a column", "Regress", spec("classes", "column") + ONE, reply=regressed("classes", "column", 1, 3.0)
    ),
    Case(
        "a vector", "Regress", spec("classes", "vector") + ONE, reply=regressed("classes", "vector", 1, 3.0)
    ),
    Case(
        "a context, regressed",
        "Regress",
        spec(HALF, "regress_x_to_y") + examples("", context=features(x=2.0)),
        reply=regressed(HALF, "regress_x_to_y", 123, 3.0),
    ),
]


def wrong(name: str, method: str, request: str, message: str, code: str = "INVALID_ARGUMENT") -> Case:
    return Case(f"{method}: {name}", method, request, code, message)


def for_both(name: str, request: str, message: str, code: str = "INVALID_ARGUMENT") -> list[Case]:
    """SIG stands for a signature of the method."""
    return [
        wrong(name, method, request.replace("SIG", signature), message, code)
        for method, signature in (("Classify", "classify_x_to_y"), ("Regress", "regress_x_to_y"))
    ]


REQUEST = [
    *for_both("no model spec", X, "Missing ModelSpec"),
    *for_both("no name", spec("", "SIG") + X, "ModelSpec has no name specified."),
    *for_both(
        "unknown model", spec("nope", "SIG") + X, "Servable not found for request: Latest(nope)", "NOT_FOUND"
    ),
    *for_both(
        "unknown version",
        spec(HALF, "SIG", version=5) + X,
        f"Servable not found for request: Specific({HALF}, 5)",
        "NOT_FOUND",
    ),
    *for_both("unknown label", spec(HALF, "SIG", label="x") + X, "Unrecognized servable version label: x"),
    *for_both("unknown signature", spec(HALF, "zzz") + X, "No signature was found with the name: zzz"),
    *for_both(
        "no default signature", spec("classes") + X, "No signature was found with the name: serving_default"
    ),
    *for_both("no input", spec(HALF, "SIG"), "Input is empty."),
    *for_both("an empty input", spec(HALF, "SIG") + "input { }", "Input is empty."),
    *for_both("no examples", spec(HALF, "SIG") + examples(), "Input is empty."),
    *for_both(
        "a context and no examples", spec(HALF, "SIG") + examples(context=features(x=2.0)), "Input is empty."
    ),
    *for_both(
        "the model before the input",
        spec("nope", "SIG"),
        "Servable not found for request: Latest(nope)",
        "NOT_FOUND",
    ),
    *for_both(
        "the signature before the input", spec(HALF, "zzz"), "No signature was found with the name: zzz"
    ),
    *for_both(
        "a feature is missing",
        spec(HALF, "SIG") + examples(""),
        "Name: <unknown>, Feature: x (data type: float) is required but could not be found....",
    ),
    *for_both(
        "a feature of another type",
        spec(HALF, "SIG") + examples(f"features {{ {feature('x', 'int64_list { value: 1 }')} }}"),
        "Name: <unknown>, Key: x, Index: 0.  Data types don't match. Data type: int64 but "
        "expected type: float...",
    ),
]


def odd(signature: str, message: str, method: str = "Classify") -> Case:
    return wrong(signature, method, spec("classes", signature) + examples("", ""), message)


SIGNATURES = [
    wrong("of Predict", "Classify", spec(HALF) + X, "No classification inputs found in SignatureDef: ..."),
    odd("two_inputs", "Expected one input Tensor."),
    odd("three_outputs", "Expected one or two output Tensors, found 3"),
    odd("wrong_input", "No classification inputs found in SignatureDef: ..."),
    odd(
        "wrong_output",
        'Expected classification signature outputs to contain at least one of "classes" or "scores". '
        "Signature was: ...",
    ),
    odd("flat_scores", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    odd("flat_classes", "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    odd("double_scores", "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
    odd("float_classes", "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    odd("few_scores", "Expected scores output batch size of 2. Got: 1"),
    odd("few_classes", "Expected classes output batch size of 2. Got: 1"),
    odd("unequal", "Tensors class and score should match in dim_size(1). Got 3 vs. 2"),
    wrong("of Predict", "Regress", spec(HALF) + X, "No regression inputs found in SignatureDef: ..."),
    wrong(
        "of Classify",
        "Regress",
        spec(HALF, "classify_x_to_y") + X,
        "No regression outputs found in SignatureDef: ...",
    ),
    odd("regress_two_inputs", "Expected one input Tensor.", "Regress"),
    odd("regress_two_outputs", "Expected one output Tensor.", "Regress"),
    odd("anonymous", "Expected one output Tensor.", "Regress"),
    odd("regress_wrong_input", "No regression inputs found in SignatureDef: ...", "Regress"),
    odd("regress_wrong_output", "No regression outputs found in SignatureDef: ...", "Regress"),
    odd(
        "regress_matrix",
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,3]",
        "Regress",
    ),
    odd("regress_double", "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE", "Regress"),
    odd("regress_few", "Input batch size did not match output batch size: 2 vs. 1", "Regress"),
    # Before it is looked at whether there are examples.
    wrong(
        "the signature before the input",
        "Classify",
        spec("classes", "two_inputs"),
        "Expected one input Tensor.",
    ),
    wrong(
        "the outputs before the input", "Regress", spec("classes", "anonymous"), "Expected one output Tensor."
    ),
]


@pytest.mark.parametrize(**named(ANSWERED + REQUEST + SIGNATURES))
def test_classify_and_regress(channel: grpc.Channel, case: Case) -> None:
    check(channel, case)


# ---- with TensorFlow's own answers -------------------------------------------------------------

SIGNATURES_WITH_ANSWERS = [
    (HALF, "classify_x_to_y"),
    (HALF, "regress_x_to_y"),
    (HALF, "regress_x_to_y2"),
    ("classes", "both"),
    ("classes", "only_scores"),
    ("classes", "only_classes"),
    ("classes", "column"),
    ("classes", "vector"),
]


@pytest.mark.parametrize("context", [False, True], ids=["examples", "context"])
@pytest.mark.parametrize(("model", "signature"), SIGNATURES_WITH_ANSWERS)
def test_the_values_are_tensorflows(
    channel: grpc.Channel, models: Path, model: str, signature: str, context: bool
) -> None:
    with np.load(models / model / "expected.npz", allow_pickle=True) as arrays:
        found = {
            key.removeprefix(f"{signature}/"): arrays[key]
            for key in arrays
            if key.startswith(f"{signature}/")
        }
    regress = "out/outputs" in found
    request: Any = (
        regression_pb2.RegressionRequest() if regress else classification_pb2.ClassificationRequest()
    )
    request.model_spec.name, request.model_spec.signature_name = model, signature
    kind = request.input.example_list_with_context if context else request.input.example_list
    for serialized in found["in/inputs"]:
        kind.examples.add().ParseFromString(serialized)
    answer = ask(channel, "Regress" if regress else "Classify", request)
    assert answer.code == "OK", answer.message
    result = answer.reply.result  # type: ignore[union-attr]
    if regress:
        assert [one.value for one in result.regressions] == found["out/outputs"].reshape(-1).tolist()
        return
    rows = [row.classes for row in result.classifications]
    if "out/scores" in found:
        assert [[one.score for one in row] for row in rows] == found["out/scores"].tolist()
    if "out/classes" in found:
        assert [[one.label.encode() for one in row] for row in rows] == found["out/classes"].tolist()
