"""Small parts of the gateway: paths, lines for the log, what hooks raise, answers that cannot be written."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import numpy as np
import pytest

from fastserve.client import errors
from fastserve.client.messages import ModelMetadata, ModelVersion, SignatureInfo, TensorInfo
from fastserve.gateway.body import Budget
from fastserve.gateway.control_link import ControlLink
from fastserve.gateway.paths import place_of
from fastserve.gateway.refusal import InvalidArgument
from fastserve.gateway.rest import Rest
from fastserve.gateway.settings import Settings
from fastserve.gateway.worker_hooks import explain


@pytest.mark.parametrize(
    ("digits", "version"),
    [("0", 0), ("7", 7), ("0" * 5000 + "7", 7), (str(2**63 - 1), 2**63 - 1)],
    ids=["zero", "seven", "zeros", "most"],
)
def test_versions_of_a_path(digits: str, version: int) -> None:
    assert place_of("GET", f"/v1/models/m/versions/{digits}").version == version


@pytest.mark.parametrize("digits", [str(2**63), "9" * 20, "1" * 5000], ids=["more", "twenty", "many"])
def test_versions_that_are_too_large(digits: str) -> None:
    with pytest.raises(InvalidArgument, match="Failed to convert version: "):
        place_of("GET", f"/v1/models/m/versions/{digits}")


async def test_a_line_of_the_log_is_cut_to_what_the_other_side_reads() -> None:
    ours, theirs = socket.socketpair()
    link = ControlLink()
    await link.open(theirs)
    reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
    link.log("info", "short", n=1)
    link.log(
        "error", "m" * 10_000_000, why="\U0001f600" * 3_000_000, **{f"f{i}": "x" * 90_000 for i in range(99)}
    )
    assert json.loads(await reader.readline())["fields"] == {"n": 1}
    cut = json.loads(await reader.readline())
    assert cut["message"] == "m" * 2000 and cut["fields"]["why"] == "\U0001f600" * 2000
    assert (cut["event"], cut["level"]) == ("log", "error")
    writer.close()
    await link.lost.wait()


def test_long_words_are_cut_and_failing_ones_replaced() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error in (OSError("x" * 5_000_000), SyntaxError("x" * 5_000_000, ("f", 1, 1, ""))):
        text, details = explain(error, "/hooks.py")
        assert "xxx" in text and len(text) < 3000 and len(details) < 3000
    assert explain(Mute(), "/hooks.py")[0] == "/hooks.py: Mute: it has no text, as its __str__ failed"


class Told(dict[str, Any]):
    """Outputs."""

    version = 1


class FakeClient:
    """A core whose model takes x. Its answer has rows of different numbers, which nobody can write."""

    def __init__(self) -> None:
        self.asked = 0
        self.ran = 0

    async def metadata(self, model: str, **_: Any) -> ModelMetadata:
        self.asked += 1
        signature = SignatureInfo({"x": TensorInfo("x:0", "float32", None)}, {}, "")
        return ModelMetadata(ModelVersion(model, 1, ""), {"serving_default": signature})

    async def predict(self, *_: Any, **__: Any) -> Told:
        self.ran += 1
        return Told(a=np.zeros(1), b=np.zeros(2))


def rest_of(client: object) -> Rest:
    settings = Settings(
        listeners=(),
        rest_socket="",
        web_socket="",
        monitor_socket="",
        metrics_path="",
        nice=0,
        timeout_s=1.0,
        drain_timeout_s=1.0,
        max_connections=100,
        max_body_bytes=1000,
        max_total_bytes=1000,
        cors=False,
        forward=(),
    )
    return Rest(client, settings, Budget(1000))  # type: ignore[arg-type]


PLACE = place_of("POST", "/v1/models/m:predict")


async def test_an_answer_that_cannot_be_written_asks_nothing_again() -> None:
    client = FakeClient()
    rest = rest_of(client)
    for ran in (1, 2):  # by way of the parser, and straight to tensors
        with pytest.raises(InvalidArgument, match="inconsistent batch size"):
            await rest._predict(PLACE, b'{"instances": [1.0]}', [])
        assert (client.asked, client.ran) == (1, ran)


class ChangingClient(FakeClient):
    """A core whose model takes float32 first and int64 from then on."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = "float32"

    async def metadata(self, model: str, **_: Any) -> ModelMetadata:
        found = await super().metadata(model)
        info = TensorInfo("x:0", self.dtype, None)
        found.signatures["serving_default"] = SignatureInfo({"x": info}, {}, "")
        return found

    async def predict(self, model: str, tensors: dict[str, Any], **_: Any) -> Told:
        self.ran += 1
        if tensors["x"].dtype != self.dtype:
            raise errors.InvalidArgument("INVALID_ARGUMENT", "of the wrong type")
        return Told(a=tensors["x"])


async def test_a_request_for_a_signature_that_has_just_changed_is_read_again() -> None:
    client = ChangingClient()
    rest = rest_of(client)
    body = b'{"instances": [1, 2]}'
    assert json.loads(await rest._predict(PLACE, body, [])) == {"predictions": [1.0, 2.0]}
    client.dtype = "int64"
    assert await rest._predict(PLACE, body, []) == b'{"predictions":[1,2]}'
    assert (client.asked, client.ran) == (2, 3)
    assert await rest._predict(PLACE, body, []) == b'{"predictions":[1,2]}'
    assert (client.asked, client.ran) == (2, 4)
    with pytest.raises(InvalidArgument, match="JSON Parse error"):
        await rest._predict(PLACE, b'{"instances": [1, 2}', [])
