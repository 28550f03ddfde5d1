"""Requests from signatures, rows and files; bodies; answers compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fastserve.bench.requests import (
    Log,
    Request,
    RequestError,
    make_requests,
    read_log,
    read_requests,
    write_log,
)
from fastserve.bench.verify import Disagreement, compare_answers
from fastserve.bench.wire import AnswerError, grpc_body, read_rest_answer, rest_body
from fastserve.bench.workload import Input, Requests
from fastserve.savedmodel import Port, Signature

FLOAT, INT64, STRING, BOOL = 1, 9, 7, 10


def signature(*inputs: tuple[str, int, tuple[int, ...]]) -> Signature:
    ports = tuple(Port(alias, f"{alias}:0", dtype, dims) for alias, dtype, dims in inputs)
    return Signature("serving_default", "predict", ports, ())


DIN = signature(("item", INT64, (-1,)), ("history", INT64, (-1, -1)), ("times", FLOAT, (-1, -1, 3)))


def test_random_requests_fit_the_signature_and_share_named_dims() -> None:
    spec = Requests(
        rows=(2, 5),
        count=40,
        dims={"length": (3, 9)},
        inputs={"history": Input(dims=("length",), low=1, high=50), "times": Input(dims=("length",))},
    )
    made = make_requests(spec, DIN)
    assert {request.rows for request in made} == {2, 3, 4, 5}
    lengths = set()
    for request in made:
        assert request.inputs["item"].shape == (request.rows,)
        rows, length = request.inputs["history"].shape
        assert request.inputs["times"].shape == (rows, length, 3)
        lengths.add(length)
        assert request.inputs["history"].min() >= 1 and request.inputs["history"].max() <= 50
        assert request.inputs["times"].dtype == np.float32
    assert lengths == set(range(3, 10))
    again = make_requests(spec, DIN)
    assert all((a.inputs["times"] == b.inputs["times"]).all() for a, b in zip(made, again, strict=True))


def test_zipf_prefers_small_values_and_normal_stays_within_bounds() -> None:
    sig = signature(("id", INT64, (-1,)), ("x", FLOAT, (-1,)), ("s", STRING, (-1,)), ("b", BOOL, (-1,)))
    inputs = {
        "id": Input(low=1, high=1000, distribution="zipf"),
        "x": Input(low=-3, high=3, distribution="normal"),
    }
    (made,) = make_requests(Requests(rows=20_000, count=1, inputs=inputs), sig)
    ids = made.inputs["id"]
    assert ids.min() == 1 and 500 < ids.max() <= 1000
    assert (ids == 1).mean() > 5 * (ids == 10).mean() > 0
    assert abs(made.inputs["x"].std() - 1.0) < 0.05 and abs(made.inputs["x"]).max() <= 3
    assert isinstance(made.inputs["s"][0], bytes) and made.inputs["b"].dtype == np.bool_


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (Requests(), "input history has shape [?, ?]: dim 1 is unknown; give its size, or a range, in "),
        (Requests(inputs={"nope": Input()}), "[requests.inputs] names nope, which signature serving_default"),
        (
            Requests(inputs={"item": Input(dims=(3,)), "history": Input(dims=(2,))}),
            "[requests.inputs.item] dims has 1 sizes, more than the unknown inner dims of item",
        ),
        (Requests(source="rows"), "requests.npz: no such file"),
    ],
)
def test_what_cannot_be_made_is_explained(spec: Requests, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_requests(spec, DIN)
    assert told in str(caught.value)


def test_rows_are_drawn_in_runs_and_trimmed_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    users, candidates, longest = 20, 10, 8
    history = np.zeros((users, longest), np.int64)
    lengths = rng.integers(2, longest + 1, users)
    for user, length in enumerate(lengths):
        history[user, :length] = 1 + rng.integers(0, 9, length)
    repeated = np.repeat(history, candidates, axis=0)
    path = tmp_path / "rows.npz"
    np.savez(path, item=np.arange(200), history=repeated, kinds=repeated * 2)
    inputs = {"history": Input(dims=("n",), trim=0), "kinds": Input(dims=("n",), trim=0)}
    spec = Requests(source="rows", rows=10, run=10, count=30, dims={"n": (2, 8)}, inputs=inputs)
    for request in make_requests(spec, None, path):
        items = request.inputs["item"]
        assert items[0] % candidates == 0 and (np.diff(items) == 1).all()
        user = int(items[0]) // candidates
        assert request.inputs["history"].shape == (10, lengths[user])
        assert (request.inputs["kinds"] == 2 * request.inputs["history"]).all()


def test_rows_that_do_not_fit_the_signature_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, item=np.arange(4), other=np.arange(4))
    with pytest.raises(
        RequestError, match=r"has item, other, but signature serving_default takes item, hist"
    ):
        make_requests(Requests(source="rows"), DIN, path)
    np.savez(path, item=np.arange(4), other=np.arange(3))
    with pytest.raises(RequestError, match="different numbers of rows"):
        make_requests(Requests(source="rows"), None, path)


def test_a_log_comes_back_from_npz_as_it_was_written(tmp_path: Path) -> None:
    requests = [Request({"x": np.arange(n, dtype=np.float32)}, n) for n in (1, 3, 2)]
    path = tmp_path / "log.npz"
    write_log(path, Log(requests, np.array([10, 500, 700], np.int64)))
    log = read_log(path, None)
    assert [request.rows for request in log.requests] == [1, 3, 2]
    assert log.requests[1].inputs["x"].tolist() == [0, 1, 2]
    assert log.at_us.tolist() == [0, 490, 690]
    assert log.faster(2.0).at_us.tolist() == [0, 245, 345]


def test_jsonl_takes_its_dtypes_from_the_signature(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(
        json.dumps({"at_us": 5, "inputs": {"x": [[1, 2]], "s": ["a", {"b64": "/w=="}]}}) + "\n\n"
        + json.dumps({"at_us": 9, "inputs": {"x": [[3, 4]], "s": ["b", "c"]}}) + "\n"
    )  # fmt: skip
    sig = signature(("x", FLOAT, (-1, 2)), ("s", STRING, (-1,)))
    first, second = read_requests(path, sig)
    assert first.inputs["x"].dtype == np.float32 and first.inputs["s"].tolist() == [b"a", b"\xff"]
    assert second.rows == 1
    assert read_log(path, sig).at_us.tolist() == [0, 4]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "r.jsonl:1: not JSON"),
        ("[1]", "r.jsonl:1: expected a JSON object"),
        ('{"at_us": 1}', 'r.jsonl:1: expected {"inputs"'),
        ('{"inputs": {"x": [1]}}', 'r.jsonl:1: has no "at_us"'),
        ('{"at_us": 1, "inputs": {"y": [1]}}', "r.jsonl:1: there is no input y; there are x"),
        ('{"at_us": 1, "inputs": {"x": [[1], [1, 2]]}}', "r.jsonl:1: input x: "),
        ("", "holds no request"),
    ],
)
def test_a_damaged_log_is_told_where(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RequestError) as caught:
        read_log(path, signature(("x", FLOAT, (-1,))))
    assert told in str(caught.value)


def test_a_log_out_of_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"at_us": 9, "inputs": {"x": [1]}}\n{"at_us": 5, "inputs": {"x": [1]}}\n')
    with pytest.raises(RequestError, match="request 2 was sent before the one above it"):
        read_log(path, None)


def test_bodies_hold_the_arrays() -> None:
    request = Request({"x": np.array([1.5, 2.0], np.float32), "s": np.array([b"a", b"\xff"], object)}, 2)
    body = json.loads(rest_body("serving_default", request))
    assert body == {
        "signature_name": "serving_default",
        "inputs": {"x": [1.5, 2.0], "s": [{"b64": "YQ=="}, {"b64": "/w=="}]},
    }
    assert np.array([1.5, 2.0], np.float32).tobytes() in grpc_body("m", "serving_default", request)


def test_rest_answers_are_read() -> None:
    assert read_rest_answer(b'{"outputs": [1, 2]}')[""].tolist() == [1, 2]
    assert read_rest_answer(b'{"outputs": {"a": [1], "b": [2]}}')["b"].tolist() == [2]
    for body, told in ((b"<html>", "not JSON"), (b'{"error": "no"}', "no"), (b"{}", 'no "outputs"')):
        with pytest.raises(AnswerError, match=told):
            read_rest_answer(body)


def test_answers_that_agree_pass_and_others_are_told_where() -> None:
    ours = {"y": np.array([[1.0, 2.0]], np.float32)}
    compare_answers([("a", ours), ("b", {"": np.array([[1.0, 2.0001]])})], 1e-3, 1e-4, 0)
    with pytest.raises(
        Disagreement, match=r"request 3: a and b give different y: 1 of 2 values; at \[0, 1\] 2"
    ):
        compare_answers([("a", ours), ("b", {"y": np.array([[1.0, 2.1]])})], 1e-3, 1e-4, 2)
    with pytest.raises(Disagreement, match=r"shapes \[1, 2\] and \[2\]"):
        compare_answers([("a", ours), ("b", {"y": np.array([1.0, 2.0])})], 1e-3, 1e-4, 0)
    with pytest.raises(Disagreement, match="different outputs: y and y, z"):
        compare_answers([("a", ours), ("b", {**ours, "z": ours["y"]})], 1e-3, 1e-4, 0)
    nan = {"y": np.array([np.nan])}
    compare_answers([("a", nan), ("b", nan)], 1e-3, 1e-4, 0)
    with pytest.raises(Disagreement, match="the strings differ"):
        compare_answers([("a", {"s": np.array([b"x"], object)}), ("b", {"s": np.array(["y"])})], 0, 0, 0)
