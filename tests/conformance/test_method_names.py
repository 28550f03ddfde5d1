"""The method that a signature says it is for, where a setting asks that it is right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conformance.case import Case, check, floats, inputs, named, outputs, spec, strings

INPUT = "input { example_list { examples { } } }"


def wrong(name: str, method: str, signature: str, message: str, code: str = "INVALID_ARGUMENT") -> Case:
    given = inputs(inputs=strings("")) if method == "Predict" else INPUT
    return Case(name, method, spec("classes", signature) + given, code, message)


CASES = [
    wrong(
        "Predict, of none",
        "Predict",
        "anonymous",
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: ",
        "INTERNAL",
    ),
    Case(
        "Predict, of Regress",
        "Predict",
        spec("classes", "vector") + inputs(inputs=strings("")),
        reply=outputs(outputs=floats(1)) + spec("classes", "vector", version=1),
    ),
    wrong(
        "Classify, of Regress",
        "Classify",
        "vector",
        "Expected classification signature method_name to be tensorflow/serving/classify. "
        "Was: tensorflow/serving/regress",
    ),
    wrong(
        "Classify, of none",
        "Classify",
        "anonymous",
        "Expected classification signature method_name to be tensorflow/serving/classify. Was: ",
    ),
    wrong(
        "Regress, of Classify",
        "Regress",
        "both",
        "Expected regression signature method_name to be tensorflow/serving/regress. "
        "Was: tensorflow/serving/classify",
    ),
    Case(
        "Regress",
        "Regress",
        spec("classes", "vector") + INPUT,
        reply="result { regressions { value: 1 } } " + spec("classes", "vector", version=1),
    ),
]


@pytest.fixture(scope="module")
def checked(serve: Any) -> Iterator[grpc.Channel]:
    with serve({"classes": ""}, server="check_method_names = true").channel() as channel:
        yield channel


@pytest.mark.parametrize(**named(CASES))
def test_method_names(checked: grpc.Channel, case: Case) -> None:
    check(checked, case)
