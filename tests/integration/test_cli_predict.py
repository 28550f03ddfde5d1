"""`fastserve predict` against a server of grpcio's, and what it makes of files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner, Result
from stock_server import StockServer
from tensorflow_serving.apis import classification_pb2, get_model_metadata_pb2, regression_pb2

from fastserve.cli import main
from fastserve.input_file import InputError, parse_dtypes, read_inputs, to_arrays

CERTIFICATES = Path(__file__).resolve().parents[1] / "certificates"


def metadata(data: bytes, context: grpc.ServicerContext) -> bytes:
    """Of a model "echo" with an input x and of "pair" with two."""
    name = get_model_metadata_pb2.GetModelMetadataRequest.FromString(data).model_spec.name
    if name not in ("echo", "sum"):
        context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    signature = signatures.signature_def["serving_default"]
    signature.inputs["x"].dtype = tf.int32.as_datatype_enum
    if name == "sum":
        signature.inputs["x"].dtype = tf.float64.as_datatype_enum
        signature.inputs["z"].dtype = tf.string.as_datatype_enum
    reply = get_model_metadata_pb2.GetModelMetadataResponse()
    reply.metadata["signature_def"].Pack(signatures)
    return bytes(reply.SerializeToString())


@pytest.fixture(scope="module")
def told() -> Iterator[StockServer]:
    """Tells its signatures."""
    with StockServer(methods={"/tensorflow.serving.PredictionService/GetModelMetadata": metadata}) as one:
        yield one


@pytest.fixture(scope="module")
def silent() -> Iterator[StockServer]:
    """Has Predict alone."""
    with StockServer() as one:
        yield one


def run(server: StockServer, *args: str, stdin: Any = None) -> Result:
    text = json.dumps(stdin) if stdin is not None else None
    return CliRunner().invoke(main, ["predict", *args, "--address", server.address], input=text)


def printed(server: StockServer, *args: str, stdin: Any = None) -> dict[str, Any]:
    result = run(server, *args, stdin=stdin)
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.output)
    return answer


def test_json_goes_in_and_comes_out(silent: StockServer) -> None:
    inputs = {"x": [[1.5, 2], [3, 4]], "n": [1, 2], "s": ["é", {"b64": "/w=="}], "b": [True, False]}
    answer = printed(silent, "echo", "--input", "-", stdin={"inputs": inputs})
    assert answer == {"model": "echo", "version": 1, "signature": "serving_default", "outputs": inputs}
    sent = silent.requests[-1].inputs
    assert {name: tf.as_dtype(sent[name].dtype).name for name in sent} == {
        "x": "float32", "n": "int64", "s": "string", "b": "bool",
    }  # fmt: skip


def test_instances_are_rows(silent: StockServer, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"instances": [{"x": [1, 2], "s": "a"}, {"x": [3, 4], "s": "b"}]}))
    answer = printed(silent, "echo", "--input", str(file))
    assert answer["outputs"] == {"x": [[1, 2], [3, 4]], "s": ["a", "b"]}


def test_the_servers_signature_gives_dtypes_and_the_only_name(told: StockServer) -> None:
    answer = printed(told, "echo", "--input", "-", stdin={"instances": [[1, 2], [3, 4]]})
    assert answer["outputs"] == {"x": [[1, 2], [3, 4]]}
    assert told.requests[-1].inputs["x"].dtype == tf.int32.as_datatype_enum
    printed(told, "sum", "--input", "-", stdin={"inputs": {"x": [[1, 2]]}})
    assert told.requests[-1].inputs["x"].dtype == tf.float64.as_datatype_enum
    result = run(told, "sum", "--input", "-", stdin={"inputs": [[1, 2]]})
    assert result.exit_code == 2
    assert "name the inputs" in result.output and "x, z" in result.output


def test_dtypes_rule_over_the_signature(told: StockServer) -> None:
    stdin = {"inputs": {"x": [1, 2]}}
    printed(told, "echo", "--input", "-", "--dtype", "x=bfloat16", stdin=stdin)
    assert told.requests[-1].inputs["x"].dtype == tf.bfloat16.as_datatype_enum
    printed(told, "echo", "--input", "-", "--dtype", "=uint8", stdin=stdin)
    assert told.requests[-1].inputs["x"].dtype == tf.uint8.as_datatype_enum


def test_npz_goes_in_and_comes_out(silent: StockServer, tmp_path: Path) -> None:
    given = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "words": np.array([b"a", b"bcd"])}
    np.savez(tmp_path / "in.npz", **given)
    result = run(silent, "echo", "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz"))
    assert (result.exit_code, result.output) == (0, "")
    with np.load(tmp_path / "out.npz") as file:
        assert set(file.files) == set(given)
        for name, array in given.items():
            assert file[name].dtype == array.dtype
            assert file[name].tolist() == array.tolist()


def test_options_reach_the_server(silent: StockServer) -> None:
    answer = printed(
        silent, "echo", "--input", "-", "--version", "7", "--signature", "other", "--only", "b",
        "--compression", "gzip", stdin={"inputs": {"a": [1], "b": [0] * 2000}},
    )  # fmt: skip
    assert (answer["version"], answer["signature"], list(answer["outputs"])) == (7, "other", ["b"])
    printed(silent, "echo", "--input", "-", "--label", "stable", stdin={"inputs": {"a": [1]}})
    assert silent.requests[-1].model_spec.version_label == "stable"
    answer = printed(silent, "metadata", "--input", "-", "--header", "team=ads", stdin={"inputs": {}})
    assert answer["outputs"]["team"] == "ads"


def test_examples_are_classified(tmp_path: Path) -> None:
    def classify(data: bytes, _: Any) -> bytes:
        request = classification_pb2.ClassificationRequest.FromString(data)
        answer = classification_pb2.ClassificationResponse()
        for example in request.input.example_list.examples:
            row = answer.result.classifications.add()
            row.classes.add(label=example.features.feature["city"].bytes_list.value[0].decode(), score=0.5)
        return bytes(answer.SerializeToString())

    def regress(data: bytes, _: Any) -> bytes:
        request = regression_pb2.RegressionRequest.FromString(data)
        answer = regression_pb2.RegressionResponse()
        for example in request.input.example_list_with_context.examples:
            answer.result.regressions.add(value=example.features.feature["age"].int64_list.value[0])
        return bytes(answer.SerializeToString())

    methods = {"Classify": classify, "Regress": regress}
    service = "/tensorflow.serving.PredictionService/"
    with StockServer(methods={service + name: method for name, method in methods.items()}) as server:
        stdin: dict[str, Any] = {"examples": [{"city": "Oslo"}, {"city": {"b64": "Um9tZQ=="}}]}
        answer = printed(server, "m", "--method", "classify", "--input", "-", stdin=stdin)
        assert answer == {"results": [[["Oslo", 0.5]], [["Rome", 0.5]]]}
        columns = {"inputs": {"city": ["Oslo", "Rome"]}}
        assert printed(server, "m", "--method", "classify", "--input", "-", stdin=columns) == answer
        stdin = {"examples": [{"age": 3}, {"age": 4}], "context": {"country": "no"}}
        assert printed(server, "m", "--method", "regress", "--input", "-", stdin=stdin) == {"results": [3, 4]}
        for args, given, says in (
            (["--method", "predict"], stdin, "--method classify or regress"),
            (["--method", "regress", "--only", "y"], stdin, "for --method predict"),
            (["--method", "regress"], {"examples": 3}, "examples is a list"),
            (["--method", "classify"], {"inputs": {"a": [1], "b": [1, 2]}}, "b"),
        ):
            result = run(server, "m", *args, "--input", "-", stdin=given)
            assert (result.exit_code, says in result.output) == (2, True), result.output


def test_tls(tmp_path: Path) -> None:
    pair = ((CERTIFICATES / "server.key").read_bytes(), (CERTIFICATES / "server.pem").read_bytes())
    ca = (CERTIFICATES / "ca.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)
    files = [
        "--tls-ca", str(CERTIFICATES / "ca.pem"), "--tls-cert", str(CERTIFICATES / "client.pem"),
        "--tls-key", str(CERTIFICATES / "client.key"),
    ]  # fmt: skip
    stdin = {"inputs": {"x": [1]}}
    with StockServer(credentials=credentials) as server:
        assert printed(server, "echo", "--input", "-", *files, stdin=stdin)["outputs"] == {"x": [1]}
        result = run(server, "echo", "--input", "-", "--tls", stdin=stdin)
        assert result.exit_code == 1
        assert "verify failed" in result.output
        result = run(server, "echo", "--input", "-", *files[:4], stdin=stdin)
        assert result.exit_code == 2
        assert "--tls-cert and --tls-key go together" in result.output
        result = run(server, "echo", "--input", "-", "--tls-ca", str(tmp_path / "absent"), stdin=stdin)
        assert result.exit_code == 1
        assert "No such file" in result.output


@pytest.mark.parametrize(
    ("args", "stdin", "code", "says"),
    [
        (["nope"], {"inputs": {"x": [1]}}, 1, "NOT_FOUND: 127.0.0.1:"),
        (["slow-5000", "--timeout", "0.05"], {"inputs": {"x": [1]}}, 1, "DEADLINE_EXCEEDED"),
        (["echo"], {"inputs": {"x": [[1], [2, 3]]}}, 2, "input 'x'"),
        (["echo"], {"inputs": {"x": [1, "a"]}}, 2, "input 'x'"),
        (["echo"], {"inputs": {"x": {"y": 1}}}, 2, "input 'x' is not of numbers"),
        (["echo", "--dtype", "x=int8"], {"inputs": {"x": [1.5]}}, 2, "values that int8 cannot hold"),
        (["echo", "--dtype", "x=int8"], {"inputs": {"x": [300]}}, 2, "values that int8 cannot hold"),
        (["echo", "--dtype", "x=int9"], {"inputs": {"x": [1]}}, 2, "'int9' is no dtype"),
        (["echo", "--dtype", "x="], {"inputs": {"x": [1]}}, 2, "expected NAME=DTYPE"),
        (["echo", "--header", "x"], {"inputs": {"x": [1]}}, 2, "expected NAME=VALUE"),
        (["echo", "--header", "a b=c"], {"inputs": {"x": [1]}}, 2, "the name 'a b'"),
        (["echo", "--label", "a", "--version", "1"], {"inputs": {"x": [1]}}, 2, "not both"),
        (["echo"], {"inputs": [1]}, 2, "the server does not say"),
        (["echo"], {"rows": [1]}, 2, 'expected {"inputs"'),
        (["echo"], [1], 2, 'expected {"inputs"'),
        (["echo"], {"instances": []}, 2, "at least one row"),
        (["echo"], {"instances": [{"a": 1}, {"b": 1}]}, 2, "instance 1"),
        (["echo"], {"inputs": {}, "signature_name": 3}, 2, "signature_name is text"),
    ],
)
def test_what_is_wrong_is_said(
    silent: StockServer, args: list[str], stdin: Any, code: int, says: str
) -> None:
    result = run(silent, *args, "--input", "-", stdin=stdin)
    assert result.exit_code == code, result.output
    assert "error:" in result.output
    assert says in result.output
    assert "Traceback" not in result.output


def test_addresses_and_files_that_are_none(silent: StockServer, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["predict", "m", "--input", "-", "--address", "localhost"], input="{}")
    assert (result.exit_code, "expected" in result.output) == (2, True)
    result = run(silent, "echo", "--input", str(tmp_path / "absent.json"))
    assert (result.exit_code, "No such file" in result.output) == (2, True)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04nothing")
    result = run(silent, "echo", "--input", str(tmp_path / "bad.npz"))
    assert (result.exit_code, "bad.npz" in result.output) == (2, True)
    (tmp_path / "bad.json").write_text("{")
    result = run(silent, "echo", "--input", str(tmp_path / "bad.json"))
    assert (result.exit_code, "neither .npz nor JSON" in result.output) == (2, True)
    np.savez(tmp_path / "in.npz", x=np.zeros(2))
    result = run(
        silent, "echo", "--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "no" / "out.npz")
    )
    assert (result.exit_code, "No such file" in result.output) == (2, True)


def test_object_arrays_are_not_unpickled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "in.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"in\.npz"):
        read_inputs(str(tmp_path / "in.npz"))


def test_arrays_of_json() -> None:
    arrays = to_arrays(
        {"f": [1, 2.5], "deep": [[["a"]]], "none": []}, parse_dtypes(("none=int32",)), {"f": "half"}
    )
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "f": ("float16", (2,)), "deep": ("object", (1, 1, 1)), "none": ("int32", (0,)),
    }  # fmt: skip
    assert to_arrays({"": [1]}, {"x": "int8"}, {})["x"].dtype == np.int8
