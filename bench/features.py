"""Packing features, against TensorFlow's eager ops, numpy and Python.

    python bench/features.py [--seconds 60] [--out bench/results/features.json]

500 rows (a ranking request) and 100,000 rows of Criteo's shape: 26 columns of strings hashed into 100,000
buckets, or looked up in vocabularies of 10,000 terms; 13 columns of floats bucketised by 20 boundaries, or
made into one matrix with NaNs filled, log1p taken and normalised; and 39 features encoded as tf.Examples. In
turn, in one process, each round every contender once; times are the medians of the rounds, with half of them
between "low" and "high". All contenders begin with numpy arrays and end with one numpy matrix, and the
results are compared before anything is measured. Strings are numpy arrays of str objects (as pandas has them)
and of fixed width (S). Python hashes with zlib.crc32, for want of a farmhash: a lower bound.

Also says what another Python thread got done while features were packed, of what it gets done alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from fastserve.client.examples import serialize
from fastserve.client.features import Bucketize, Dense, Hash, Lookup, Packer, Vocabulary

ROWS = (500, 100_000)
SPARSE, DENSE = 26, 13
BUCKETS, TERMS = 100_000, 10_000
EXAMPLE_ROWS_MOST = 5_000  # TensorFlow takes 100 us for one
OUT = Path(__file__).parent / "results" / "features.json"

Call = Callable[[], Any]


class Data:
    """One request's raw columns, and what they are packed with."""

    def __init__(self, rows: int, fixed: bool) -> None:
        random = np.random.default_rng(1)
        drawn = random.zipf(1.3, (SPARSE, rows)) % (2 * TERMS)
        self.strings = [np.array([f"{number * 2654435761 % 2**32:08x}" for number in row]) for row in drawn]
        self.strings = [column.astype("S" if fixed else object) for column in self.strings]
        self.floats = [random.lognormal(2, 2, rows).astype(np.float32) for _ in range(DENSE)]
        for column in self.floats:
            column[random.random(rows) < 0.1] = np.nan
        self.raw = {f"s{i}": column for i, column in enumerate(self.strings)}
        self.raw |= {f"d{i}": column for i, column in enumerate(self.floats)}
        self.terms = [f"{number * 2654435761 % 2**32:08x}" for number in range(TERMS)]
        self.boundaries = [float(edge) for edge in np.geomspace(0.1, 1000, 20)]
        self.mean, self.scale = random.random(DENSE), random.random(DENSE)


def ours(data: Data, spec: Any, threads: int | None) -> Call:
    packer = Packer({"x": spec})
    return lambda: packer(data.raw, threads=threads)["x"]


def hashes(data: Data) -> dict[str, Call]:
    spec = [Hash(f"s{i}", BUCKETS) for i in range(SPARSE)]

    def eager() -> Any:
        return tf.stack([tf.strings.to_hash_bucket_fast(x, BUCKETS) for x in data.strings], 1).numpy()

    def python() -> Any:
        rows = [[zlib.crc32(_bytes(text)) % BUCKETS for text in column] for column in data.strings]
        return np.array(rows).T

    return {"fastserve": ours(data, spec, None), "one thread": ours(data, spec, 1)} | {
        "tensorflow": eager,
        "python": python,
    }


def lookups(data: Data) -> dict[str, Call]:
    vocabulary = Vocabulary(data.terms)
    layer = tf.keras.layers.StringLookup(vocabulary=data.terms)
    places = {_bytes(term): i + 1 for i, term in enumerate(data.terms)}
    spec = [Lookup(f"s{i}", vocabulary) for i in range(SPARSE)]

    def eager() -> Any:
        return tf.stack([layer.lookup_table.lookup(tf.constant(x)) for x in data.strings], 1).numpy()

    def python() -> Any:
        return np.array([[places.get(_bytes(text), 0) for text in column] for column in data.strings]).T

    return {"fastserve": ours(data, spec, None), "one thread": ours(data, spec, 1)} | {
        "tensorflow": eager,
        "python": python,
    }


def buckets(data: Data) -> dict[str, Call]:
    spec = [Bucketize(f"d{i}", data.boundaries) for i in range(DENSE)]

    def eager() -> Any:
        bins = [tf.raw_ops.Bucketize(input=x, boundaries=data.boundaries) for x in data.floats]
        return tf.cast(tf.stack(bins, 1), tf.int64).numpy()

    edges = np.array(data.boundaries, np.float32)

    def with_numpy() -> Any:
        return np.stack([np.digitize(column, edges) for column in data.floats], 1)

    return {"fastserve": ours(data, spec, None), "one thread": ours(data, spec, 1)} | {
        "tensorflow": eager,
        "numpy": with_numpy,
    }


def dense(data: Data) -> dict[str, Call]:
    names = [f"d{i}" for i in range(DENSE)]
    spec = Dense(names, log1p=True, mean=data.mean, scale=data.scale)
    mean, scale = data.mean.astype(np.float32), data.scale.astype(np.float32)

    def eager() -> Any:
        x = tf.stack(data.floats, 1)
        x = tf.where(tf.math.is_nan(x), 0.0, x)
        return ((tf.math.log1p(x) - mean) * scale).numpy()

    def with_numpy() -> Any:
        x = np.stack(data.floats, 1)
        x[np.isnan(x)] = 0
        return (np.log1p(x) - mean) * scale

    return {"fastserve": ours(data, spec, None), "one thread": ours(data, spec, 1)} | {
        "tensorflow": eager,
        "numpy": with_numpy,
    }


def examples(data: Data) -> dict[str, Call]:
    raw = {name: column[:EXAMPLE_ROWS_MOST] for name, column in data.raw.items()}

    def messages() -> Any:
        lists = {name: column.tolist() for name, column in raw.items()}
        made = []
        for row in range(len(lists["s0"])):
            example = tf.train.Example()
            feature = example.features.feature
            for name, column in lists.items():
                if name[0] == "s":
                    feature[name].bytes_list.value.append(_bytes(column[row]))
                else:
                    feature[name].float_list.value.append(column[row])
            made.append(example.SerializeToString())
        return made

    return {"fastserve": lambda: serialize(raw), "tensorflow": messages}


CASES = {"hash": hashes, "lookup": lookups, "bucketize": buckets, "dense": dense, "tf.Example": examples}


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def agree(case: str, contenders: dict[str, Call]) -> None:
    """Ends the program where they do not give the same."""
    expected = contenders["tensorflow"]()
    for name, call in contenders.items():
        found = call()
        if case == "tf.Example":
            pairs = zip(found[:100], expected[:100], strict=True)
            parse = tf.train.Example.FromString
            same = all(repr(parse(a)) == repr(parse(b)) for a, b in pairs)
        elif case == "dense":
            same = np.allclose(found, expected, rtol=1e-5, atol=1e-5)
        else:
            same = np.array_equal(found, expected) or (case == "hash" and name == "python")
        if not same:
            raise SystemExit(f"{case}: {name} and tensorflow do not agree: nothing to compare")


def measure(contenders: dict[str, Call], seconds: float) -> dict[str, list[float]]:
    """Microseconds, round by round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["fastserve"]) < 5:
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e6)
    return times


def summary(times: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"us": round(middle, 1), "low": round(low, 1), "high": round(high, 1)}


def meanwhile(data: Data, seconds: float) -> dict[str, float]:
    """What a Python thread that counts gets done: alone, and while another packs on one thread."""
    work = ours(data, [Hash(f"s{i}", BUCKETS, kind="strong", key=1) for i in range(SPARSE)], 1)
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            for _ in range(1000):
                counted[0] += 1

    other = threading.Thread(target=count)
    other.start()
    try:
        rates = []
        for packing in (False, True):
            before, start = counted[0], time.perf_counter()
            while time.perf_counter() < start + seconds:
                if packing:
                    work()
                else:
                    time.sleep(0.01)
            rates.append((counted[0] - before) / (time.perf_counter() - start))
    finally:
        stop.set()
        other.join()
    return {"alone_per_s": round(rates[0]), "while_packing_per_s": round(rates[1])}


def run(seconds: float) -> dict[str, Any]:
    results = []
    for rows in ROWS:
        for fixed in (False, True):
            data = Data(rows, fixed)
            for case, make in CASES.items():
                if fixed and case in ("bucketize", "dense"):
                    continue  # no strings in them
                contenders = make(data)
                agree(case, contenders)
                times = measure(contenders, seconds / 16)
                fast = statistics.median(times["fastserve"])
                row = {
                    "case": case,
                    "rows": min(rows, EXAMPLE_ROWS_MOST) if case == "tf.Example" else rows,
                    "strings": "S" if fixed else "objects",
                    "rounds": len(times["fastserve"]),
                    "times": {name: summary(all_of) for name, all_of in times.items()},
                    "times_faster": {
                        name: round(statistics.median(all_of) / fast, 1)
                        for name, all_of in times.items()
                        if name != "fastserve"
                    },
                }
                results.append(row)
                show(row)
    return {
        "what": f"{SPARSE} columns of strings and {DENSE} of floats, packed for a model",
        "command": "python bench/features.py",
        "machine": {"cpus": len(os.sched_getaffinity(0)), "cpu": _cpu(), "python": platform.python_version()},
        "numpy": np.__version__,
        "tensorflow": tf.__version__,
        "results": results,
        "another_python_thread": meanwhile(Data(ROWS[1], True), seconds / 16),
    }


def show(row: dict[str, Any]) -> None:
    times = "  ".join(f"{name} {at['us']:10.1f} us" for name, at in row["times"].items())
    faster = ", ".join(f"{ratio} x {name}" for name, ratio in row["times_faster"].items())
    print(f"{row['case']:>10} {row['rows']:7} {row['strings']:8} {times}  ({faster})", flush=True)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring, in all (default 60)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default {OUT.relative_to(OUT.parents[2])}")
    args = parser.parse_args()
    report = run(args.seconds)
    print("another Python thread:", report["another_python_thread"])
    args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
