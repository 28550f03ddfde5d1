"""Image classification over HTTP: a JPEG (or PNG, WebP, GIF, ...) in, the likeliest classes out.

    pip install 'fastserve[tensorflow,image]'
    python examples/web_image/model.py
    fastserve serve examples/web_image/config.toml
    curl --data-binary @photo.jpg 'http://127.0.0.1:8501/classify?top=2'
    curl -F first=@a.jpg -F second=@b.png http://127.0.0.1:8501/classify

A body is one picture, a multipart form as many as it has files: they are rows of one request to the model.
The answer has for each the name that it came under and its classes, the likeliest first. Pictures are decoded
and scaled here, in a worker process; what cannot be decoded is answered with 400, 413 or 415.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL.Image import Image

from fastserve.web import BadRequest, Request, Upload

SIZE = 32
MAX_PICTURES = 64
CLASSES: list[str] = []


def setup() -> None:
    """Once in each worker. The classes' names come with the model."""
    file = Path(__file__).parent / "models/shapes/1/assets.extra/classes.txt"
    CLASSES.extend(file.read_text().split())


def preprocess(request: Request) -> dict[str, np.ndarray]:
    request.state["top"] = top_of(request)
    if request.content_type == "multipart/form-data":
        uploads = [value for _, value in request.form().pairs() if isinstance(value, Upload)]
        if not 1 <= len(uploads) <= MAX_PICTURES:
            raise BadRequest(f"1 to {MAX_PICTURES} files are expected, not {len(uploads)}")
        request.state["names"] = [upload.name for upload in uploads]
        # One after the other: a picture as it was sent may have 150 MB, scaled it has 12 kB.
        images = [scaled(upload.image()) for upload in uploads]
    else:
        request.state["names"] = [""]
        images = [scaled(request.image())]
    return {"image": np.stack(images)}


def postprocess(outputs: dict[str, np.ndarray], request: Request) -> dict[str, object]:
    pictures = []
    for name, probability in zip(request.state["names"], outputs["probability"], strict=True):
        best = np.argsort(-probability)[: request.state["top"]]
        classes = [{"class": CLASSES[i], "probability": probability[i]} for i in best]
        pictures.append({**({"name": name} if name else {}), "classes": classes})
    return {"pictures": pictures}


def top_of(request: Request) -> int:
    text = request.query.get("top", "1")
    if not text.isdecimal() or not 1 <= int(text) <= len(CLASSES):
        raise BadRequest(f"top is a number from 1 to {len(CLASSES)}, not {text!r}")
    return int(text)


def scaled(image: Image) -> np.ndarray:
    return np.asarray(image.resize((SIZE, SIZE)), np.float32) / 255.0
