"""Inputs with one row for all of a request's, with TensorFlow behind them: the answers are those of the same
request with its rows in full, bit for bit, in whichever way it runs.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from conformance.rest.rest_case import address_of
from daemon_process import Daemon
from exported_models import SERVED, exported_models
from predict_client import Client, content, request, typed

from fastserve.client import Client as FastServe

# Room for all that a test sends at once, however slow the machine.
KEY = 'broadcast = ["user", "ids", "word"], max_enqueued_batches = 200'
TIMEOUT = "batch_timeout_us = 2000"
# Named for how their requests run.
MODES = {
    "batched": f"batching = {{ {KEY} }}",
    "pieces": f"batching = {{ {KEY}, max_batch_size = 16, pad_variable_length_inputs = true }}",
    "whole": f"batching = {{ {KEY}, max_batch_size = 16, split_large_batches = false, {TIMEOUT} }}",
    "alone": f"row_wise = false\nbatching = {{ {KEY} }}",
    "compiled": f'xla = "full"\nbatching = {{ {KEY}, max_batch_size = 64, allowed_batch_sizes = [8, 64] }}',
    "without": "",
}
ROWS = (0, 1, 2, 7, 40)
CONFIG = """
[server]
listen = ["127.0.0.1:0"]
state_dir = "state"
[executor]
threads = 2
[gateway]
listen = ["127.0.0.1:0"]
"""

Rows = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = exported_models(SERVED) / "ranking"
    models = "".join(
        f'[[models]]\nname = "{mode}"\nbase_path = "{base}"\n{keys}\n' for mode, keys in MODES.items()
    )
    daemon = Daemon(tmp_path_factory.mktemp("broadcast"), CONFIG + models)
    try:
        yield daemon.wait_ready()
    finally:
        daemon.end()


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[Client]:
    with daemon.channel() as channel:
        yield Client(channel)


def rows_of(signature: str, rows: int, seed: int = 1) -> tuple[Rows, Rows]:
    """What all rows share, one row each, and what is of each."""
    rng = np.random.default_rng([seed, rows])
    user: Rows = {"user": rng.standard_normal((1, 6)).astype(np.float32)}
    cand = rng.standard_normal((rows, 4)).astype(np.float32)
    if signature == "serving_default":
        user["ids"] = rng.integers(-(2**40), 2**40, (1, 3))
    elif signature == "words":
        user["word"] = np.array(
            [b"a word of more than twenty-two bytes, which has memory of its own"], object
        )
    elif signature == "lengths":
        cand = cand[:, 0]
    return user, {"cand": cand}


def in_full(user: Rows, rows: int) -> Rows:
    return {name: np.repeat(values, rows, axis=0) for name, values in user.items()}


def asked(model: str, signature: str, inputs: Rows, encode: Any) -> Any:
    tensors = {
        name: tf.make_tensor_proto(values, tf.string, values.shape)
        if values.dtype == object
        else encode(values, tf.as_dtype(values.dtype))
        for name, values in inputs.items()
    }
    return request(model, tensors, signature=signature)


def same(found: Rows, wanted: Rows) -> None:
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name].shape == values.shape and found[name].dtype == values.dtype, name
        if values.dtype == object:
            assert found[name].tolist() == values.tolist(), name
        else:
            assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("encode", [typed, content])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "without"])
def test_answers_are_those_of_the_rows_in_full(client: Client, mode: str, encode: Any) -> None:
    for signature in ("serving_default", "words", "lengths", "centred"):
        for rows in ROWS:
            user, others = rows_of(signature, rows)
            full = client.outputs(asked(mode, signature, in_full(user, rows) | others, encode))
            once = client.outputs(asked(mode, signature, user | others, encode))
            assert all(len(values) == rows for values in once.values())
            same(once, full)
            if rows and mode in ("batched", "alone"):  # of the same batch, so of the same kernels
                without = client.outputs(asked("without", signature, in_full(user, rows) | others, encode))
                same(once, without)


def test_every_way_was_gone(daemon: Daemon, client: Client) -> None:
    for mode in MODES:
        user, others = rows_of("serving_default", 40)
        before = daemon.counters(mode)
        client.outputs(asked(mode, "", in_full(user, 40) | others, content))
        after = daemon.counters(mode)
        ran = {
            key: after[key] - before[key]
            for key in ("batches", "rows", "unbatched", "compiled", "padded_rows")
        }
        pieces = 3 if mode == "pieces" else 1
        compiled = mode == "compiled"
        assert ran == {
            "batches": pieces,
            "rows": 40,
            "unbatched": mode in ("whole", "alone"),
            "compiled": compiled,
            "padded_rows": 24 if compiled else 0,
        }, mode
        if mode != "without":
            client.outputs(asked(mode, "", user | others, content))
            once = daemon.counters(mode)
            assert {key: once[key] - after[key] for key in ran} == ran, mode


def test_some_of_the_inputs_once(client: Client) -> None:
    user, others = rows_of("serving_default", 9)
    full = in_full(user, 9)
    wanted = client.outputs(asked("batched", "", full | others, typed))
    for name in user:
        same(client.outputs(asked("batched", "", {**full, name: user[name]} | others, typed)), wanted)


def test_requests_at_once_keep_their_users(client: Client) -> None:
    calls = []
    for seed in range(60):
        rows = 1 + seed * 7 % 30
        user, others = rows_of("serving_default", rows, seed)
        sent = user if seed % 3 else in_full(user, rows)
        wanted = np.concatenate([in_full(user, rows)["user"], others["cand"]], axis=1)
        for mode in ("batched", "pieces", "compiled"):
            call = client.stub.Predict.future(asked(mode, "", sent | others, typed), timeout=60)
            calls.append((call, wanted))
    for call, wanted in calls:
        assert tf.make_ndarray(call.result().outputs["row"]).tobytes() == wanted.tobytes()


def test_what_is_wrong_stays_wrong(client: Client) -> None:
    user, others = rows_of("centred", 5)
    one_candidate = {"user": in_full(user, 5)["user"], "cand": others["cand"][:1]}
    three_users = {"user": in_full(user, 3)["user"], "cand": others["cand"]}
    for inputs in (one_candidate, three_users):
        wanted = client.refused(asked("without", "centred", inputs, content))
        assert wanted[0] == "INVALID_ARGUMENT"
        assert client.refused(asked("batched", "centred", inputs, content)) == wanted
    assert client.refused(asked("without", "centred", user | others, content))[0] == "INVALID_ARGUMENT"


def test_the_clients_predict_sends_what_it_is_given(daemon: Daemon, client: Client) -> None:
    user, others = rows_of("words", 6)
    wanted = client.outputs(asked("batched", "words", in_full(user, 6) | others, content))
    with FastServe(daemon.ready["addresses"][0]) as fast:
        same(dict(fast.predict("batched", user | others, signature="words")), wanted)


def test_rest_in_columns(daemon: Daemon, client: Client) -> None:
    user, others = rows_of("words", 6)
    wanted = client.outputs(asked("batched", "words", in_full(user, 6) | others, content))
    inputs = {name: values.tolist() for name, values in (user | others).items()}
    inputs["word"] = [inputs["word"][0].decode()]
    host, number = address_of(daemon.ready)
    connection = http.client.HTTPConnection(host, number, timeout=60)
    connection.request(
        "POST", "/v1/models/batched:predict", json.dumps({"signature_name": "words", "inputs": inputs})
    )
    answer = json.loads(connection.getresponse().read())["outputs"]
    connection.close()
    assert answer["word"] == [word.decode() for word in wanted["word"]]
    assert np.array(answer["score"], np.float32).tobytes() == wanted["score"].tobytes()


def test_a_name_that_is_no_input_is_refused_with_those_there_are(tmp_path: Path) -> None:
    base = exported_models(SERVED) / "half"
    text = f'[[models]]\nname = "half"\nbase_path = "{base}"\nbatching = {{ broadcast = ["usr"] }}\n'
    daemon = Daemon(tmp_path, CONFIG + text, "--strict")
    try:
        assert daemon.process.wait(60) != 0
        assert (
            "model 'half', batching.broadcast: 'usr' is no input of it; there are serving_default: x"
            in daemon.log
        )
    finally:
        daemon.end()
