"""A small image classifier for the web service: is a picture of a circle, a square or a triangle?

    python examples/web_image/model.py [DIRECTORY]

trains it for some seconds on shapes that it draws, and exports it to DIRECTORY/shapes/1 (default:
examples/web_image/models), with the names of the classes beside it in assets.extra/classes.txt. Input:
`image`, float [n, 32, 32, 3], 0 to 1. Output: `probability`, float [n, 3].

Knows TensorFlow and Pillow, nothing of FastServe.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")
SIZE = 32
SEED = 7
STEPS = 400
BATCH_ROWS = 64


def draw(rng: np.random.Generator, shape: str, size: int = SIZE) -> Image.Image:
    """A picture of one shape: its place, size and colours by chance."""
    colors = rng.integers(0, 256, (2, 3))
    while abs(int(colors[0].sum()) - int(colors[1].sum())) < 150:  # to be seen
        colors = rng.integers(0, 256, (2, 3))
    background, ink = (tuple(map(int, color)) for color in colors)
    image = Image.new("RGB", (size, size), background)
    radius = rng.uniform(0.22, 0.4) * size
    x, y = rng.uniform(radius, size - radius, 2)
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        case "square":
            half = radius * 0.85
            pen.rectangle((x - half, y - half, x + half, y + half), fill=ink)
        case _:
            pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=ink)
    return image


def batch(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.integers(0, len(CLASSES), rows)
    images = np.stack([np.asarray(draw(rng, CLASSES[label])) for label in labels])
    return (images / 255.0).astype(np.float32), labels.astype(np.int64)


def export(directory: Path) -> float:
    """Trains and exports. The share of unseen pictures that it gets right."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(SEED)
    rng = np.random.default_rng(SEED)
    image = tf.keras.Input((SIZE, SIZE, 3), name="image")
    mean = tf.keras.ops.mean(image, axis=(1, 2, 3), keepdims=True)
    x = tf.keras.layers.Conv2D(16, 5, strides=2, activation="relu")(image - mean)
    x = tf.keras.layers.Conv2D(32, 3, strides=2, activation="relu")(x)
    x = tf.keras.layers.Dense(64, activation="relu")(tf.keras.layers.Flatten()(x))
    model = tf.keras.Model(image, tf.keras.layers.Dense(len(CLASSES))(x))
    optimizer = tf.keras.optimizers.Adam(2e-3)

    @tf.function
    def step(images, labels):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for _ in range(STEPS):
        step(*map(tf.constant, batch(rng, BATCH_ROWS)))
    images, labels = batch(rng, 500)
    right = float(np.mean(np.argmax(model(images).numpy(), axis=1) == labels))

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="image")])
    def classify(image):  # type: ignore[no-untyped-def]
        return {"probability": tf.nn.softmax(model(image, training=False))}

    version = directory / "shapes" / "1"
    saved = tf.Module(name="shapes")
    saved.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(saved, str(version), signatures={"serving_default": classify})
    (version / "assets.extra").mkdir()
    (version / "assets.extra" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return right


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "models"
    print(f"{target}/shapes/1: {export(target):.1%} of unseen pictures right")
