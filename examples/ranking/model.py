"""DCN-v2, a click-through ranker, trained on a generated click log and exported as a SavedModel.

    python examples/ranking/model.py            trains and exports to examples/ranking/models/ranker/1
    python examples/ranking/model.py --force    even when that export is current

Used by demo.py and bench/ through `ensure_export`. One embedding table serves all fields (each has its
own range of rows), so that a prediction costs one gather instead of 26; three cross layers of low rank
and a deep tower of 256-128-64 follow. Ids are reduced modulo the field's rows inside the graph: any
int64 is a valid id, and plain TensorFlow and XLA agree on it.

Knows TensorFlow, nothing of FastServe.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools

import click_log
import numpy as np
import numpy.typing as npt

HERE = Path(__file__).resolve().parent
EXPORT_DIR = HERE / "models" / "ranker" / "1"
LOG_DIR = HERE / "log"
STAMP_NAME = "export.json"

SEED = 2026
TRAINING_DAYS = 4
ROWS_PER_DAY = 60_000
HELD_OUT_ROWS = 10_000
BATCH_ROWS = 512
LEARNING_RATE = 2e-3
EMBEDDING_LEARNING_RATE = 0.03

EMBEDDING_WIDTH = 16
MAX_FIELD_ROWS = 58_000
CROSS_LAYERS = 3
CROSS_RANK = 64
DEEP_WIDTHS = (256, 128, 64)

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True)
class Export:
    """What `ensure_export` found or made. auc: on the held-out day."""

    path: Path
    held_out: Path
    auc: float
    seconds: float
    reused: bool


def ensure_export(progress: Progress = lambda stage, done, total: None, *, force: bool = False) -> Export:
    """Returns the export, training it first when there is none or when this code has changed since."""
    stamp_path = EXPORT_DIR.parent.parent / STAMP_NAME
    held_out = LOG_DIR / f"day_{TRAINING_DAYS}.tsv"
    fingerprint = _fingerprint()
    if not force and stamp_path.exists() and held_out.exists() and (EXPORT_DIR / "saved_model.pb").exists():
        stamp = json.loads(stamp_path.read_text())
        if stamp["fingerprint"] == fingerprint:
            return Export(EXPORT_DIR, held_out, stamp["auc"], stamp["seconds"], reused=True)

    started = time.monotonic()
    stamp_path.unlink(missing_ok=True)
    train_log, test_log = _make_log(progress)
    auc = _train_and_export(train_log, test_log, progress)
    seconds = time.monotonic() - started
    stamp_path.write_text(json.dumps({"fingerprint": fingerprint, "auc": auc, "seconds": seconds}) + "\n")
    return Export(EXPORT_DIR, held_out, auc, seconds, reused=False)


def _fingerprint() -> str:
    """Changes whenever an export made now could differ from the one that is there."""
    digest = hashlib.sha256()
    for source in (HERE / "model.py", HERE / "click_log.py"):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _make_log(progress: Progress) -> tuple[click_log.ClickLog, click_log.ClickLog]:
    """Writes the days to LOG_DIR and reads them back, as a trainer would find them."""
    LOG_DIR.mkdir(parents=True, exist_ok=True)
    world = click_log.Generator(SEED)
    rows = [ROWS_PER_DAY] * TRAINING_DAYS + [HELD_OUT_ROWS]
    total, done = 2 * sum(rows), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress("click log", done, total)

    days = []
    for number, count in enumerate(rows):
        path = LOG_DIR / f"day_{number}.tsv"
        click_log.write(world.day(number, count), path, advance)
        days.append(click_log.read(path, advance))
    train = click_log.ClickLog(
        np.concatenate([day.label for day in days[:-1]]),
        np.concatenate([day.dense for day in days[:-1]]),
        np.concatenate([day.sparse for day in days[:-1]]),
    )
    return train, days[-1]


def _train_and_export(train: click_log.ClickLog, test: click_log.ClickLog, progress: Progress) -> float:
    progress("TensorFlow", 0, 1)
    with quiet_stderr():
        import tensorflow as tf
    progress("TensorFlow", 1, 1)

    tf.keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = build(tf, train)
    step = _make_step(tf, model)
    order = np.random.default_rng(SEED).permutation(len(train))
    starts = range(0, len(train) - BATCH_ROWS + 1, BATCH_ROWS)
    for number, start in enumerate(starts, 1):
        rows = order[start : start + BATCH_ROWS]
        rate = 1.0 if number <= 0.7 * len(starts) else 0.2
        step(
            tf.constant(train.dense[rows]),
            tf.constant(train.sparse[rows]),
            tf.constant(train.label[rows].astype(np.float32)),
            tf.constant(rate, tf.float32),
        )
        if number % 10 == 0 or number == len(starts):
            progress("training", number, len(starts))

    scores = model.predict(tf.constant(test.dense), tf.constant(test.sparse))["score"].numpy()[:, 0]
    progress("export", 0, 1)
    shutil.rmtree(EXPORT_DIR, ignore_errors=True)
    tf.saved_model.save(model, str(EXPORT_DIR), signatures={"serving_default": model.predict})
    progress("export", 1, 1)
    return auc_of(test.label, scores)


def build(tf, train: click_log.ClickLog, max_field_rows: int = MAX_FIELD_ROWS):  # type: ignore[no-untyped-def]
    """The model before any training, a tf.Module. train: what its dense features are scaled by."""
    field_rows = [min(rows, max_field_rows) for rows in click_log.CARDINALITIES]
    offsets = np.concatenate([[0], np.cumsum(field_rows)[:-1]])
    logged = np.log1p(np.maximum(train.dense, 0.0))
    width = click_log.N_DENSE + click_log.N_SPARSE * EMBEDDING_WIDTH
    glorot = tf.keras.initializers.GlorotUniform(seed=SEED)

    class DcnV2(tf.Module):
        """cross(x) and deep(x) side by side, one logit on top (the paper's parallel form)."""

        def __init__(self) -> None:
            super().__init__(name="dcn_v2")
            self.embedding = tf.Variable(
                tf.random.normal([sum(field_rows), EMBEDDING_WIDTH], stddev=0.02, seed=SEED), name="embedding"
            )
            self.field_rows = tf.constant(field_rows, tf.int64)
            self.offsets = tf.constant(offsets, tf.int64)
            self.dense_mean = tf.constant(logged.mean(axis=0), tf.float32)
            self.dense_scale = tf.constant(1.0 / (logged.std(axis=0) + 1e-6), tf.float32)
            self.cross = [
                (
                    tf.Variable(glorot([width, CROSS_RANK]), name=f"cross_{layer}_down"),
                    tf.Variable(glorot([CROSS_RANK, width]), name=f"cross_{layer}_up"),
                    tf.Variable(tf.zeros([width]), name=f"cross_{layer}_bias"),
                )
                for layer in range(CROSS_LAYERS)
            ]
            widths = (width, *DEEP_WIDTHS)
            self.deep = [
                (
                    tf.Variable(glorot([inputs, outputs]), name=f"deep_{layer}_kernel"),
                    tf.Variable(tf.zeros([outputs]), name=f"deep_{layer}_bias"),
                )
                for layer, (inputs, outputs) in enumerate(itertools.pairwise(widths))
            ]
            self.head_cross = tf.Variable(glorot([width, 1]), name="head_cross")
            self.head_deep = tf.Variable(glorot([DEEP_WIDTHS[-1], 1]), name="head_deep")
            self.head_bias = tf.Variable([-1.0], name="head_bias")

        def rows_of(self, sparse):  # type: ignore[no-untyped-def]
            return tf.math.floormod(sparse, self.field_rows) + self.offsets

        def gather(self, sparse):  # type: ignore[no-untyped-def]
            return tf.gather(self.embedding, self.rows_of(sparse))

        def logits(self, dense, embedded):  # type: ignore[no-untyped-def]
            counts = (tf.math.log1p(tf.maximum(dense, 0.0)) - self.dense_mean) * self.dense_scale
            flat = tf.reshape(embedded, [-1, click_log.N_SPARSE * EMBEDDING_WIDTH])
            x0 = tf.concat([counts, flat], axis=1)
            crossed = x0
            for down, up, bias in self.cross:
                crossed = x0 * tf.nn.bias_add(tf.matmul(tf.matmul(crossed, down), up), bias) + crossed
            hidden = x0
            for kernel, bias in self.deep:
                hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(hidden, kernel), bias))
            top = tf.matmul(crossed, self.head_cross) + tf.matmul(hidden, self.head_deep)
            return tf.nn.bias_add(top, self.head_bias)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, click_log.N_DENSE], tf.float32, name="dense"),
                tf.TensorSpec([None, click_log.N_SPARSE], tf.int64, name="sparse"),
            ]
        )
        def predict(self, dense, sparse):  # type: ignore[no-untyped-def]
            return {"score": tf.sigmoid(self.logits(dense, self.gather(sparse)))}

    return DcnV2()


def _make_step(tf, model):  # type: ignore[no-untyped-def]
    """Adam for the small kernels, Adagrad on the touched rows only for the table."""
    weights = [variable for variable in model.trainable_variables if variable is not model.embedding]
    moments = [(tf.Variable(tf.zeros_like(w)), tf.Variable(tf.zeros_like(w))) for w in weights]
    squares = tf.Variable(tf.fill(model.embedding.shape, 0.1))
    count = tf.Variable(0.0)

    @tf.function(jit_compile=False)
    def step(dense, sparse, label, rate):  # type: ignore[no-untyped-def]
        embedded = model.gather(sparse)
        with tf.GradientTape() as tape:
            tape.watch(embedded)
            logits = model.logits(dense, embedded)[:, 0]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=label, logits=logits))
        gradients = tape.gradient(loss, [embedded, *weights])
        # A row may occur more than once: its gradients are added first, in a fixed order.
        rows, place = tf.unique(tf.reshape(model.rows_of(sparse), [-1]))
        flat = tf.reshape(gradients[0], [-1, EMBEDDING_WIDTH]) * tf.cast(tf.shape(label)[0], tf.float32)
        tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=model.embedding.handle,
            accum=squares.handle,
            lr=EMBEDDING_LEARNING_RATE * rate,
            epsilon=1e-7,
            grad=tf.math.unsorted_segment_sum(flat, place, tf.size(rows)),
            indices=rows,
        )
        count.assign_add(1.0)
        for weight, gradient, (first, second) in zip(weights, gradients[1:], moments, strict=True):
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=tf.pow(0.9, count),
                beta2_power=tf.pow(0.999, count),
                lr=LEARNING_RATE * rate,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-7,
                grad=gradient,
            )
        return loss

    return step


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps TensorFlow's greetings from the terminal; when the block fails they are shown after all."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(saved, kept.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def auc_of(label: npt.NDArray[np.int8], score: npt.NDArray[np.float32]) -> float:
    """Area under the ROC curve: the chance that a click outranks a non-click; ties count half."""
    _values, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2.0
    ranks = mean_rank[inverse]
    positives = int(label.sum())
    negatives = len(label) - positives
    return float((ranks[label == 1].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def main(argv: list[str] | None = None) -> int:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="train even when the export is current")
    arguments = parser.parse_args(argv)
    columns = (TextColumn("{task.description:10}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn()) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        export = ensure_export(show, force=arguments.force)
    verb = "is current" if export.reused else f"made in {export.seconds:.0f} s"
    print(f"{export.path} {verb}; AUC on the held-out day {export.auc:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
