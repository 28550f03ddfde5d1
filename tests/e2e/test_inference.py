"""What the stock client gets for Classify, Regress and MultiInference, and for a Predict that leaves inputs
out: the numbers are TensorFlow's own, codes and words TensorFlow Serving's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from daemon_process import Daemon
from exported_models import INFERENCE, exported_models
from google.protobuf.message import DecodeError
from monitor_client import Monitor
from predict_client import Client as PredictClient
from predict_client import request as predict_request
from tensorflow.core.example import example_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from fastserve.client import Client as LightClient

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
FIRST, SECOND = "tensorflow1", "tensorflow2"


def config(server: str = "") -> str:
    root = exported_models(INFERENCE)
    models = "".join(
        f'[[models]]\nname = "{name}"\nbase_path = "{root / name}"\n' for name in (FIRST, SECOND, "defaults")
    )
    text = f'[server]\nlisten = ["127.0.0.1:0"]\nstate_dir = "state"\n{server}\n'
    return f"{text}[executor]\nthreads = 2\n{models}"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("inference"), config())
    yield daemon.wait_ready()
    daemon.end()


@pytest.fixture(scope="module")
def channel(daemon: Daemon) -> Iterator[grpc.Channel]:
    with daemon.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module", params=[FIRST, SECOND])
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def expected(model: str) -> dict[str, Any]:
    with np.load(exported_models(INFERENCE) / model / "expected.npz", allow_pickle=True) as arrays:
        return dict(arrays)


def example(data: bytes) -> Any:
    return example_pb2.Example.FromString(data)


def input_of(examples: Any, context: bytes | None = None) -> Any:
    made = [example(data) for data in examples]
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=made))
    both = input_pb2.ExampleListWithContext(examples=made, context=example(context))
    return input_pb2.Input(example_list_with_context=both)


def classification(model: str, signature: str, data: Any, **spec: Any) -> Any:
    return classification_pb2.ClassificationRequest(
        model_spec={"name": model, "signature_name": signature, **spec}, input=data
    )


def regression(model: str, signature: str, data: Any) -> Any:
    return regression_pb2.RegressionRequest(
        model_spec={"name": model, "signature_name": signature}, input=data
    )


def multi(model: str, data: Any, *tasks: tuple[str, str]) -> Any:
    return inference_pb2.MultiInferenceRequest(
        tasks=[
            {"model_spec": {"name": model, "signature_name": signature}, "method_name": method}
            for signature, method in tasks
        ],
        input=data,
    )


def refused(call: Any, message: Any, **options: Any) -> tuple[str, str]:
    try:
        reply = call(message, **{"timeout": 30, **options})
    except grpc.RpcError as error:
        return error.code().name, error.details()
    raise AssertionError(f"the call was served: {str(reply)[:300]}")


def check_classes(result: Any, scores: Any, labels: Any) -> None:
    assert len(result.classifications) == len(scores)
    for row, found in enumerate(result.classifications):
        assert [c.label.encode() for c in found.classes] == list(labels[row])
        np.testing.assert_allclose([c.score for c in found.classes], scores[row], rtol=1e-5)


def check_values(result: Any, values: Any) -> None:
    np.testing.assert_allclose([found.value for found in result.regressions], values, rtol=1e-5)


# ---- answers ---------------------------------------------------------------------------------


def test_classify_answers_as_tensorflow_does(stub: Any, model: str) -> None:
    known = expected(model)
    signature = "classify" if model == FIRST else ""
    key = signature or "serving_default"
    for context, suffix in ((None, ""), (known["context"][0], "/context")):
        reply = stub.Classify(
            classification(model, signature, input_of(known["examples"], context)), timeout=30
        )
        check_classes(reply.result, known[f"{key}/scores{suffix}"], known[f"{key}/classes{suffix}"])
        spec = reply.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == (model, 1, key)


def test_regress_answers_as_tensorflow_does(stub: Any, model: str) -> None:
    known = expected(model)
    for signature in ("regress", "column", "unlike") if model == FIRST else ("regress",):
        for context, suffix in ((None, ""), (known["context"][0], "/context")):
            reply = stub.Regress(
                regression(model, signature, input_of(known["examples"], context)), timeout=30
            )
            check_values(reply.result, known[f"{signature}/outputs{suffix}"])
            spec = reply.model_spec
            assert (spec.name, spec.version.value, spec.signature_name) == (model, 1, signature)


def test_labels_alone_and_scores_alone(stub: Any) -> None:
    known = expected(FIRST)
    data = input_of(known["examples"])
    labels = stub.Classify(classification(FIRST, "labels", data), timeout=30).result
    check_classes(labels, np.zeros_like(known["classify/scores"]), known["classify/classes"])
    scores = stub.Classify(classification(FIRST, "scores", data), timeout=30).result
    check_classes(scores, known["classify/scores"], np.full_like(known["classify/classes"], b""))


def test_several_tasks_on_one_input(stub: Any) -> None:
    known = expected(FIRST)
    tasks = (("regress", REGRESS), ("classify", CLASSIFY), ("column", REGRESS))
    reply = stub.MultiInference(
        multi(FIRST, input_of(known["examples"], known["context"][0]), *tasks), timeout=30
    )
    assert [result.WhichOneof("result") for result in reply.results] == [
        "regression_result",
        "classification_result",
        "regression_result",
    ]
    assert [result.model_spec.signature_name for result in reply.results] == ["regress", "classify", "column"]
    assert {(result.model_spec.name, result.model_spec.version.value) for result in reply.results} == {
        (FIRST, 1)
    }
    check_values(reply.results[0].regression_result, known["regress/outputs/context"])
    check_classes(
        reply.results[1].classification_result,
        known["classify/scores/context"],
        known["classify/classes/context"],
    )
    check_values(reply.results[2].regression_result, known["column/outputs/context"])


def test_more_examples_than_a_batch_takes(stub: Any, model: str) -> None:
    known = expected(model)
    times = 2000 // len(known["examples"]) + 1
    data = input_of(np.tile(known["examples"], times), known["context"][0])
    reply = stub.Regress(regression(model, "regress", data), timeout=30)
    check_values(reply.result, np.tile(known["regress/outputs/context"], times))


def test_signatures_that_take_examples_are_batched(daemon: Daemon, stub: Any) -> None:
    known = expected(FIRST)
    for signature in ("regress", "unlike"):
        before = daemon.counters(FIRST, signature)
        stub.Regress(regression(FIRST, signature, input_of(known["examples"][:3])), timeout=30)
        after = daemon.counters(FIRST, signature)
        assert after["rows"] - before["rows"] == 3
        assert after["unbatched"] == before["unbatched"]


def test_examples_are_counted_once_for_a_request(daemon: Daemon, stub: Any, tmp_path: Path) -> None:
    monitor = Monitor(daemon.directory / "state")
    counts, total = (":tensorflow:serving:request_example_" + name for name in ("counts", "count_total"))
    sizes = ":tensorflow:serving:batching_session:input_batch_size"

    def figures() -> list[float]:
        read = monitor.samples()
        model, none = frozenset({("model", FIRST)}), frozenset[tuple[str, str]]()
        keys = ((f"{counts}_count", model), (total, model), (f"{sizes}_count", none), (f"{sizes}_sum", none))
        return [read.get(key, 0.0) for key in keys]

    before = figures()
    examples = expected(FIRST)["examples"]
    stub.Regress(regression(FIRST, "regress", input_of(examples[:3])), timeout=30)
    stub.Classify(classification(FIRST, "classify", input_of(examples[:2])), timeout=30)
    both = multi(FIRST, input_of(examples[:4]), ("classify", CLASSIFY), ("regress", REGRESS))
    stub.MultiInference(both, timeout=30)
    assert refused(stub.Regress, regression(FIRST, "regress", input_of([])))[1] == "Input is empty."
    daemon.until(lambda: figures()[0] >= before[0] + 3)
    assert [now - then for now, then in zip(figures(), before, strict=True)] == [3, 9, 3, 9]


def test_a_label_and_compression(daemon: Daemon, stub: Any) -> None:
    known = expected(FIRST)
    data = input_of(known["examples"])
    reply = stub.Classify(
        classification(FIRST, "classify", data, version={"value": 1}),
        timeout=30,
        compression=grpc.Compression.Gzip,
    )
    check_classes(reply.result, known["classify/scores"], known["classify/classes"])
    both = stub.MultiInference(
        multi(FIRST, data, ("classify", CLASSIFY), ("regress", REGRESS)),
        timeout=30,
        compression=grpc.Compression.Deflate,
    )
    check_values(both.results[1].regression_result, known["regress/outputs"])
    assert refused(stub.Classify, classification(FIRST, "classify", data, version_label="new")) == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: new",
    )


def test_the_light_client(daemon: Daemon) -> None:
    known = expected(FIRST)
    rows = [
        example(data).features.feature for data in known["examples"] if b"word" in data and b"ids" in data
    ]
    given = [
        {
            "x": list(row["x"].float_list.value),
            "word": row["word"].bytes_list.value[0],
            "ids": list(row["ids"].int64_list.value),
        }
        for row in rows
        if row["ids"].int64_list.value
    ]
    kept = [
        index
        for index, data in enumerate(known["examples"])
        if b"word" in data and example(data).features.feature["ids"].int64_list.value
    ]
    assert len(kept) == len(given) > 10
    with LightClient(daemon.ready["addresses"][0]) as client:
        values = client.regress(FIRST, given, signature="regress", timeout=30)
        np.testing.assert_allclose(values, known["regress/outputs"][kept], rtol=1e-5)
        classes = client.classify(FIRST, given, signature="classify", timeout=30)
        assert [label for label, _ in classes[0]] == [b.decode() for b in known["classify/classes"][0]]
        scores = [[score for _, score in row] for row in classes]
        np.testing.assert_allclose(scores, known["classify/scores"][kept], rtol=1e-5)
        context = {"word": b"context", "ids": [7, 8]}
        columns = {
            "x": [list(example(data).features.feature["x"].float_list.value) for data in known["examples"]]
        }
        values = client.regress(FIRST, columns, context=context, signature="regress", timeout=30)
        without = [
            i for i in range(len(values)) if i % 3 == 0 and i % 4 == 0
        ]  # which have no word and no ids
        np.testing.assert_allclose(
            np.asarray(values)[without], known["regress/outputs/context"][without], rtol=1e-5
        )


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Classify", "Regress"])
def test_what_is_refused_before_it_runs(stub: Any, kind: str) -> None:
    call = getattr(stub, kind)
    ask = classification if kind == "Classify" else regression
    good = input_of(expected(FIRST)["examples"][:1])
    signature, what = ("classify", "classification") if kind == "Classify" else ("regress", "regression")
    empty = type(ask(FIRST, signature, good))
    assert refused(call, empty(input=good)) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    assert refused(call, ask("", signature, good)) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert refused(call, ask("nope", signature, good)) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nope)",
    )
    assert refused(call, ask(FIRST, "zzz", good)) == (
        "INVALID_ARGUMENT",
        "No signature was found with the name: zzz",
    )
    code, text = refused(call, ask(FIRST, "", input_pb2.Input()))
    assert code == "INVALID_ARGUMENT" and text.startswith(f"No {what} inputs found in SignatureDef: ")
    for nothing in (input_pb2.Input(), input_of([]), input_of([], b"")):
        assert refused(call, ask(FIRST, signature, nothing)) == ("INVALID_ARGUMENT", "Input is empty.")


def test_outputs_that_are_no_answer(stub: Any) -> None:
    good = input_of(expected(FIRST)["examples"][:2])
    assert refused(stub.Regress, regression(FIRST, "wide", good)) == (
        "INVALID_ARGUMENT",
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,3]",
    )
    assert refused(stub.Classify, classification(FIRST, "flat", good)) == (
        "INVALID_ARGUMENT",
        "Expected Tensor shape: [batch_size num_classes] but got [2]",
    )
    assert refused(stub.Classify, classification(FIRST, "whole", good)) == (
        "INVALID_ARGUMENT",
        "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
    )
    assert refused(stub.Regress, regression(FIRST, "total", good)) == (
        "INVALID_ARGUMENT",
        "Input batch size did not match output batch size: 2 vs. 3",
    )
    code, text = refused(stub.Regress, regression(FIRST, "scores", good))
    assert code == "INVALID_ARGUMENT" and text.startswith("No regression outputs found in SignatureDef: ")
    assert refused(stub.Regress, regression(FIRST, "classify", good)) == (
        "INVALID_ARGUMENT",
        "Expected one output Tensor.",
    )


def test_an_example_that_the_graph_refuses(stub: Any) -> None:
    known = expected(FIRST)
    code, text = refused(stub.Regress, regression(FIRST, "regress", input_of([*known["examples"][:2], b""])))
    assert code == "INVALID_ARGUMENT"
    assert "Feature: x (data type: float) is required but could not be found." in text


def test_bytes_that_are_no_request(channel: grpc.Channel) -> None:
    for method in ("Classify", "Regress", "MultiInference"):
        call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
        assert refused(call, b"\x12\x06\x0a\x04\x0a\x02\x0a\x05") == ("INTERNAL", "")
        assert refused(call, b"\x0a\x05") == ("INTERNAL", "")


def test_what_is_a_request_is_protobufs_to_say(channel: grpc.Channel) -> None:
    """INTERNAL without a text is gRPC's own answer to what protobuf does not parse, and to nothing else."""
    corpus = sorted((Path(__file__).parents[1] / "fuzz" / "corpus" / "infer_request").iterdir())
    assert corpus
    kinds = {
        "Classify": classification_pb2.ClassificationRequest,
        "MultiInference": inference_pb2.MultiInferenceRequest,
    }
    for file in corpus:
        data = file.read_bytes()
        for method, kind in kinds.items():
            call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
            try:
                kind.FromString(data)
                parsed = True
            except DecodeError:
                parsed = False
            assert (refused(call, data) != ("INTERNAL", "")) == parsed, (file.name, method)


def test_what_several_tasks_are_refused_for(stub: Any) -> None:
    good = input_of(expected(FIRST)["examples"][:1])
    task = ("regress", REGRESS)

    def code_and_text(message: Any) -> tuple[str, str]:
        return refused(stub.MultiInference, message)

    assert code_and_text(multi(FIRST, good)) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    assert code_and_text(multi("nope", good, task)) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nope)",
    )
    assert code_and_text(multi(FIRST, good, task, task)) == (
        "INVALID_ARGUMENT",
        "Duplicate evaluation of signature: regress",
    )
    assert code_and_text(multi(FIRST, good, ("zzz", REGRESS))) == (
        "INVALID_ARGUMENT",
        "Requested signature not found in model graph: zzz",
    )
    assert code_and_text(multi(FIRST, good, ("regress", "tensorflow/serving/predict"))) == (
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict",
    )
    assert code_and_text(multi(FIRST, good, task, ("unlike", REGRESS))) == (
        "INVALID_ARGUMENT",
        "Input tensor must be the same for all Signatures.",
    )
    assert code_and_text(multi(FIRST, input_of([]), task)) == ("INVALID_ARGUMENT", "Input is empty.")
    two = multi(FIRST, good, task, task)
    two.tasks[1].model_spec.name = SECOND
    assert code_and_text(two) == (
        "INVALID_ARGUMENT",
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    )
    two.tasks[1].model_spec.name = ""
    assert code_and_text(two) == ("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")


# ---- inputs with defaults, and method names ------------------------------------------------------


def test_inputs_that_a_request_leaves_out_have_their_defaults(channel: grpc.Channel) -> None:
    client = PredictClient(channel)
    x, factor, shift = [1.0, 2.0], np.float32(10.0), [0.5]
    assert client.outputs(predict_request("defaults", {"x": x}))["y"].tolist() == [3.25, 6.25]
    with_one = client.outputs(predict_request("defaults", {"x": x, "factor": factor}))["y"]
    assert with_one.tolist() == [10.25, 20.25]
    with_all = client.outputs(predict_request("defaults", {"x": x, "factor": factor, "shift": shift}))["y"]
    assert with_all.tolist() == [10.5, 20.5]
    assert client.refused(predict_request("defaults", {"factor": factor})) == (
        "INVALID_ARGUMENT",
        "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {factor}, or default input alias set: factor,shift",
    )
    assert client.refused(predict_request("defaults", {"x": x, "z": x})) == (
        "INVALID_ARGUMENT",
        "Inputs contains invalid name. Used request inputs: x, request input: x,z",
    )
    assert client.refused(predict_request("defaults", {"x": x, "factor": 1, "shift": x, "z": x})) == (
        "INVALID_ARGUMENT",
        "input size does not match signature: 4!=3 len({factor,shift,x,z}) != len({factor,shift,x}). "
        "Sent extra: {z}. Missing but required: {}.",
    )


def test_method_names_are_looked_at_when_asked(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, config("check_method_names = true"))
    try:
        daemon.wait_ready()
        known = expected(FIRST)
        good = input_of(known["examples"][:2])
        with daemon.channel() as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            reply = stub.Regress(regression(FIRST, "regress", good), timeout=30)
            check_values(reply.result, known["regress/outputs"][:2])
            assert refused(stub.Regress, regression(FIRST, "total", good)) == (
                "INVALID_ARGUMENT",
                f"Expected regression signature method_name to be {REGRESS}. Was: odd",
            )
            assert refused(stub.Classify, classification(SECOND, "", good)) == (
                "INVALID_ARGUMENT",
                f"Expected classification signature method_name to be {CLASSIFY}. Was: "
                "tensorflow/serving/predict",
            )
            client = PredictClient(channel)
            assert client.outputs(predict_request(FIRST, {"x": [2.0]}))["y"].tolist() == [3.0]
            assert client.refused(predict_request(FIRST, {"inputs": [2.0]}, signature="total")) == (
                "INTERNAL",
                "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
                "tensorflow/serving/classify, tensorflow/serving/regress}. Was: odd",
            )
    finally:
        daemon.end()
