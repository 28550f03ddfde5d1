"""What the cases serve and send: SavedModels, recorded requests, rows for the bare loop.

    python bench/cache.py [--force]         makes bench/.cache, or says that it is current

run.py calls it as a child process, because making them takes TensorFlow and the harness had better stay
small beside what it measures. Models: the trained ranker of examples/ranking; half_plus_two, once as
TensorFlow 2 exports it (models/half_plus_two.py) and once as a plain graph; slow, whose every batch keeps one
thread busy for about 50 ms; wide, one row of any width, for large messages. Requests are encoded as the stock
client encodes them (tf.make_tensor_proto). `index.json` lists it all. The workloads' models are not here:
`fastserve bench` exports those itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import bare
import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
RANKING = HERE.parent / "examples" / "ranking"
CACHE = HERE / ".cache"
INDEX = CACHE / "index.json"

BODIES = 16
ROWS_PER_LARGE_BODY = 100
BARE_ROWS = 10_000
SLOW_BATCH_S = 0.050
CALIBRATION_STEPS = 200
CALIBRATION_S = 4.0


def fingerprint() -> str:
    """Changes whenever what is in the cache could differ from what would be made now."""
    digest = hashlib.sha256()
    sources = [Path(__file__), MODELS / "exporting.py", MODELS / "half_plus_two.py"]
    for source in [*sources, RANKING / "model.py", RANKING / "click_log.py"]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    try:
        return bool(json.loads(INDEX.read_text())["fingerprint"] == fingerprint())
    except (OSError, ValueError, KeyError):
        return False


def make() -> None:
    """Makes the cache from nothing. Writes the index last, so that an interrupted run is seen."""
    import tensorflow as tf

    sys.path[:0] = [str(RANKING), str(MODELS)]
    import click_log
    import exporting
    import half_plus_two as plain
    import model as ranking

    tf.get_logger().setLevel("ERROR")
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir()
    export = ranking.ensure_export()
    exporting.save(plain.make(exporting.Size(BARE_ROWS)), CACHE / "models" / "half_plus_two")
    halves = np.load(CACHE / "models" / "half_plus_two" / "requests.npz")["x"]
    models = {
        "ranker": _describe(tf, export.path),
        "half_plus_two": _describe(tf, CACHE / "models" / "half_plus_two" / "1"),
        "half_plus_two_simple": _describe(tf, _export_half_plus_two_simple(tf)),
        "slow": _describe(tf, _export_slow(tf)),
        "wide": _describe(tf, _export_wide(tf)),
    }
    log = click_log.read(export.held_out)
    _write_rows(models["ranker"], {"dense": log.dense, "sparse": log.sparse})
    for name in ("half_plus_two", "half_plus_two_simple", "slow"):
        _write_rows(models[name], {"x": halves})

    bodies: dict[str, list[dict[str, Any]]] = {}
    ranker = tf.saved_model.load(str(export.path)).signatures["serving_default"]
    for key, rows in (("ranker", 1), ("ranker_100", ROWS_PER_LARGE_BODY)):
        bodies[key] = []
        for number in range(BODIES):
            chosen = slice(number * rows, (number + 1) * rows)
            inputs = {"dense": log.dense[chosen], "sparse": log.sparse[chosen]}
            scores = ranker(**{name: tf.constant(value) for name, value in inputs.items()})["score"]
            bodies[key].append(
                _write_body(tf, f"{key}_{number:02}", "ranker", inputs, "score", scores.numpy())
            )
    for name in ("half_plus_two", "half_plus_two_simple", "slow"):
        bodies[name] = []
        for number in range(BODIES):
            x = halves[number : number + 1]
            bodies[name].append(_write_body(tf, f"{name}_{number:02}", name, {"x": x}, "y", x * 0.5 + 2.0))
    INDEX.write_text(
        json.dumps({"fingerprint": fingerprint(), "models": models, "bodies": bodies}, indent=1) + "\n"
    )


def _export_half_plus_two_simple(tf: Any) -> Path:
    """A graph of two ops and two constants, no function and no variable, as TensorFlow 1 exported them."""
    path = CACHE / "models" / "half_plus_two_simple" / "1"
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        y = tf.add(tf.multiply(x, 0.5), 2.0, name="y")
        v1.saved_model.simple_save(session, str(path), inputs={"x": x}, outputs={"y": y})
    return path


def _export_slow(tf: Any) -> Path:
    """x / 2 + 2 after a chain of small matrix products, as many as fill SLOW_BATCH_S on this machine.

    The chain starts from a variable and ends in the answer (scaled to less than one bit of it), so that no
    optimizer can drop or fold it; it does not depend on the rows, so a batch costs the same at any size.
    """
    size = 128

    class Slow(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            start = tf.random.stateless_normal([size, size], [3, 4])
            self.turn = tf.Variable(tf.linalg.qr(start)[0])
            self.steps = tf.Variable(100, dtype=tf.int32)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def predict(self, x):  # type: ignore[no-untyped-def]
            def more(step, state):  # type: ignore[no-untyped-def]
                return step < self.steps

            def turn(step, state):  # type: ignore[no-untyped-def]
                return step + 1, tf.matmul(state, self.turn)

            _, state = tf.while_loop(more, turn, [tf.constant(0), self.turn.read_value()])
            return {"y": x * 0.5 + 2.0 + 1e-12 * tf.reduce_mean(state)}

    slow = Slow()
    slow.steps.assign(CALIBRATION_STEPS)
    path = _save(tf, slow, "slow")
    took = _seconds_a_run(tf, path)
    slow.steps.assign(max(1, round(CALIBRATION_STEPS * SLOW_BATCH_S / took)))
    return _save(tf, slow, "slow")


def _seconds_a_run(tf: Any, path: Path) -> float:
    """The fastest run of one row in the bare loop: the machine's speed varies, its best less so."""
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    config.experimental.executor_type = "SINGLE_THREADED_EXECUTOR"
    model = _describe(tf, path)
    _write_rows(model, {"x": np.ones(1, np.float32)})
    return bare.loop(model, 1, CALIBRATION_S, config.SerializeToString()).run_us_min / 1e6


def _export_wide(tf: Any) -> Path:
    class Wide(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="x")])
        def predict(self, x):  # type: ignore[no-untyped-def]
            return {"y": x * 0.5 + 2.0}

    return _save(tf, Wide(), "wide")


def _save(tf: Any, module: Any, name: str) -> Path:
    path = CACHE / "models" / name / "1"
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.predict})
    return path


def _describe(tf: Any, path: Path) -> dict[str, Any]:
    """Where the model is and what the bare loop feeds and fetches, in the daemon's order: by alias."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    signature = proto.meta_graphs[0].signature_def["serving_default"]
    feeds = []
    for alias, info in sorted(signature.inputs.items()):
        row_dim = info.tensor_shape.dim[1].size if len(info.tensor_shape.dim) == 2 else 0
        row_bytes = tf.dtypes.as_dtype(info.dtype).size * max(row_dim, 1)
        feeds.append(
            {
                "alias": alias,
                "tensor": info.name,
                "dtype": info.dtype,
                "row_bytes": row_bytes,
                "row_dim": row_dim,
            }
        )
    fetches = [info.name for _, info in sorted(signature.outputs.items())]
    return {"path": str(path), "feeds": feeds, "fetches": fetches}


def _write_rows(model: dict[str, Any], columns: dict[str, Any]) -> None:
    folder = CACHE / "rows"
    folder.mkdir(exist_ok=True)
    for feed in model["feeds"]:
        file = folder / f"{Path(model['path']).parent.name}_{feed['alias']}.bin"
        columns[feed["alias"]][:BARE_ROWS].tofile(file)
        feed["file"] = str(file)


def _write_body(
    tf: Any, name: str, model: str, inputs: dict[str, Any], output: str, expected: Any
) -> dict[str, Any]:
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    for alias, value in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(value))
    reply = predict_pb2.PredictResponse()
    reply.model_spec.name = model
    reply.model_spec.version.value = 1
    reply.model_spec.signature_name = "serving_default"
    answer = reply.outputs[output]
    answer.dtype = 1
    for size in expected.shape:
        answer.tensor_shape.dim.add().size = size
    answer.float_val.extend(expected.ravel().tolist())

    folder = CACHE / "bodies"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.pb"
    path.write_bytes(request.SerializeToString())
    return {
        "path": str(path),
        "rows": len(next(iter(inputs.values()))),
        "reply_bytes": reply.ByteSize(),
        "output": output,
        "expected": expected.ravel().tolist(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="make it again even when it is current")
    arguments = parser.parse_args(argv)
    if is_current() and not arguments.force:
        print(f"{CACHE} is current")
        return 0
    started = time.monotonic()
    make()
    print(f"{CACHE} made in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
