"""The web service's examples, as their head comments say to run them; TensorFlow is the oracle."""

from __future__ import annotations

import http.client
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from daemon_process import Daemon
from exported_models import exported_models
from PIL import Image, ImageDraw

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def launch(example: str, directory: Path) -> Daemon:
    """The example's own files and configuration, on free ports, with its models exported once."""
    for file in (EXAMPLES / example).iterdir():
        if file.is_file():
            shutil.copy(file, directory)
    (directory / "models").symlink_to(exported_models(EXAMPLES / example / "model.py"))
    config = (directory / "config.toml").read_text()
    for port in ("8500", "8501"):
        assert f'"127.0.0.1:{port}"' in config
        config = config.replace(f"127.0.0.1:{port}", "127.0.0.1:0")
    return Daemon(directory, config).wait_ready()


def post(daemon: Daemon, path: str, body: bytes, kind: str = "application/octet-stream") -> tuple[int, Any]:
    host, _, port = daemon.ready["gateway_addresses"][0].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


# ---- web_image ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = launch("web_image", tmp_path_factory.mktemp("web_image"))
    yield daemon
    daemon.end()


def picture(shape: str, kind: str = "JPEG") -> bytes:
    image = Image.new("RGB", (200, 180), (250, 240, 230))
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((40, 30, 160, 150), fill=(20, 40, 120))
        case "square":
            pen.rectangle((50, 40, 150, 140), fill=(20, 40, 120))
        case _:
            pen.polygon([(100, 30), (40, 150), (160, 150)], fill=(20, 40, 120))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_a_jpeg_as_the_body_is_classified(images: Daemon, shape: str) -> None:
    status, said = post(images, "/classify?top=3", picture(shape), "image/jpeg")
    assert status == 200
    classes = said["pictures"][0]["classes"]
    assert classes[0]["class"] == shape
    assert sum(one["probability"] for one in classes) == pytest.approx(1, abs=1e-5)


def test_the_probabilities_are_tensorflows_own(images: Daemon) -> None:
    data = picture("circle", "PNG")
    said = post(images, "/classify?top=3", data)[1]["pictures"][0]["classes"]
    small = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32)), np.float32) / 255.0
    model = tf.saved_model.load(str(exported_models(EXAMPLES / "web_image/model.py") / "shapes/1"))
    oracle = model.signatures["serving_default"](image=small[None])["probability"].numpy()[0]
    names = ("circle", "square", "triangle")
    assert {one["class"]: one["probability"] for one in said} == pytest.approx(
        dict(zip(names, oracle, strict=True)), abs=1e-5
    )


def test_a_form_may_bring_several_pictures(images: Daemon) -> None:
    parts = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
        f"Content-Type: image/x\r\n\r\n".encode()
        + picture(shape, kind)
        + b"\r\n"
        for name, shape, kind in (("one", "square", "PNG"), ("two", "triangle", "WEBP"))
    )
    status, said = post(images, "/classify", parts + b"--b--\r\n", "multipart/form-data; boundary=b")
    assert status == 200
    assert [(one["name"], one["classes"][0]["class"]) for one in said["pictures"]] == [
        ("one", "square"),
        ("two", "triangle"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/classify", b"not a picture", 415, "not an image"),
        ("/classify", picture("circle")[:300], 400, "cannot be decoded"),
        ("/classify", b"", 400, "the body is empty"),
        ("/classify?top=9", b"", 400, "top is a number from 1 to 3"),
    ],
)
def test_what_is_no_picture_is_refused(
    images: Daemon, path: str, body: bytes, status: int, error: str
) -> None:
    got, said = post(images, path, body)
    assert got == status and error in said["error"]


# ---- web_ranking -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = launch("web_ranking", tmp_path_factory.mktemp("web_ranking"))
    yield daemon
    daemon.end()


USER = {"id": "u17", "country": "DE", "age": 31}
ADS = [
    {"id": f"a{i}", "category": ("books", "garden", "music")[i % 3], "price": 1.5 * i, "shown": i % 7}
    for i in range(30)
]


def oracle(user: dict[str, Any], ads: list[dict[str, Any]]) -> np.ndarray:
    """The features by TensorFlow's and Keras's own ops, the scores by the model."""
    n = len(ads)
    lookup = tf.keras.layers.StringLookup(vocabulary=["AT", "DE", "FR", "GB", "IT", "US"])
    categories = tf.sparse.from_dense(tf.constant([[ad["category"]] for ad in ads]))
    countries = tf.sparse.from_dense(tf.constant([[user["country"]]] * n))
    cross = tf.sparse.to_dense(tf.sparse.cross_hashed([countries, categories], 500))[:, 0]
    ids = tf.stack(
        [
            tf.strings.to_hash_bucket_fast([user["id"]] * n, 10_000),
            tf.strings.to_hash_bucket_fast([ad["id"] for ad in ads], 2_000),
            tf.cast(lookup([user["country"]] * n), tf.int64),
            cross,
        ],
        axis=1,
    )
    counts = tf.math.log1p(tf.constant([[user["age"], ad["price"], ad["shown"]] for ad in ads], tf.float32))
    model = tf.saved_model.load(str(exported_models(EXAMPLES / "web_ranking/model.py") / "ads/1"))
    scores: np.ndarray = model.signatures["serving_default"](ids=ids, counts=counts)["score"].numpy()
    return scores


@pytest.mark.parametrize("user", [USER, {**USER, "country": "nowhere"}, {**USER, "id": "new"}])
def test_ads_are_ranked_as_tensorflow_would(ranking: Daemon, user: dict[str, Any]) -> None:
    status, said = post(ranking, "/rank", json.dumps({"user": user, "ads": ADS}).encode())
    scores = oracle(user, ADS)
    best = np.argsort(-scores, kind="stable")[:10]
    assert (status, said.get("of")) == (200, 30), said
    assert [one["score"] for one in said["ads"]] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert {one["id"] for one in said["ads"]} == {ADS[i]["id"] for i in best}


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"user": USER, "ads": []}, "1 to 1000 ads"),
        ([], "1 to 1000 ads"),
        ({"ads": ADS}, "user is missing"),
        ({"user": {"id": "u", "age": 3}, "ads": ADS}, "country is missing"),
        ({"user": USER, "ads": [{"id": "a"}]}, "category is missing"),
        ({"user": {**USER, "age": "old"}, "ads": ADS}, "a feature is not what it should be"),
        ({"user": {**USER, "id": 1.5}, "ads": ADS}, "a feature is not what it should be"),
    ],
)
def test_a_request_without_its_features_is_told_which(ranking: Daemon, body: Any, error: str) -> None:
    status, said = post(ranking, "/rank", json.dumps(body).encode())
    assert (status, error in said["error"]) == (400, True), said
