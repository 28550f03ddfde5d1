"""A thousand version switches in one core, under traffic: memory, descriptors, threads and mappings.

    python bench/switch_soak.py [--cycles 1000] [--mode plain] [--mode full] [--nice 19] [--out FILE]

The core alone, driven over its control protocol. The DCN ranker is exported, and tried once for each mode;
then two copies of it take turns: load one, publish it, retire the other, close it, beside requests at a
steady rate, every one of which must be answered well. "full" runs under XLA with two buckets, and the core
takes the executables from the compile cache that the trial has filled, as in the daemon.

Every 50 cycles the process is looked at, with one version loaded. Exit code 0 when the bars hold: after the
last cycle at most 5 % more memory than after the 50th, and no more descriptors, threads or, but for 2 %,
mappings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import process
import report
from drive import Body, DriveError, drive
from rich.console import Console
from rich.table import Table

from fastserve.config import TensorFlow
from fastserve.environment import child_argv, child_environment, tensorflow_dir
from fastserve.protos import message

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from core_driver import EXECUTOR, Core

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache" / "switch_soak"
OUT = report.RESULTS / "switch_soak.json"
EVERY = 50
BUCKETS = [1, 8]
RATE = 400.0  # requests a second, so that the processors are not all busy
ROWS = (1, 3, 8)
MEMORY_BAR = 1.05
MAPS_BAR = 1.02
COUNTS = ("descriptors", "threads")


# ---- what is served ---------------------------------------------------------------------------------


def exported() -> Path:
    """The ranker, with versions 1 and 2, which are the same."""
    folder = CACHE / "dcn"
    if not (folder / "2").exists():
        folder.mkdir(parents=True, exist_ok=True)
        exporter = [sys.executable, str(HERE / "models" / "dcn.py"), str(folder)]
        subprocess.run(exporter, check=True, capture_output=True, timeout=600)
        (folder / "2").symlink_to("1")
    return folder


def environment(mode: str, *, trial: bool) -> dict[str, str]:
    """Of a trial, which fills the compile cache, or of the core, which only reads it."""
    env = child_environment(TensorFlow(), ())
    env["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if mode == "full":
        flags = [f"--tf_xla_persistent_cache_directory={CACHE / 'xla'}"]
        flags += [] if trial else ["--tf_xla_persistent_cache_read_only"]
        env["TF_XLA_FLAGS"] = " ".join([env.get("TF_XLA_FLAGS", ""), *flags]).strip()
    return env


def tried(folder: Path, mode: str, version: int) -> dict[str, Any]:
    """The servable of a version, as a trial finds it."""
    (CACHE / "xla").mkdir(parents=True, exist_ok=True)
    request = {
        "model": {
            "name": "dcn",
            "version": version,
            "path": str(folder / str(version)),
            "xla": "off" if mode == "plain" else mode,
        },
        # Room for what comes while the machine is busy elsewhere: nothing may be refused.
        "batching": {
            "max_batch_size": BUCKETS[-1],
            "allowed_batch_sizes": BUCKETS,
            "max_enqueued_batches": 10_000,
        },
        "tensorflow": {},
        "prepared_dir": str(CACHE / f"prepared-{mode}-{version}"),
    }
    done = subprocess.run(
        child_argv("fastserve.control.trial"),
        input=json.dumps(request).encode(),
        capture_output=True,
        env=environment(mode, trial=True),
        timeout=600,
        check=False,
    )
    answer = json.loads((done.stdout.splitlines() or [b"{}"])[-1])
    if not answer.get("ok"):
        raise RuntimeError(f"the trial of {mode} failed: {answer.get('error', done.stderr[-2000:])}")
    servable: dict[str, Any] = answer["servable"]
    if servable["signatures"][-1]["compiled"] != (mode != "plain"):
        raise RuntimeError(f"{mode}: {servable['signatures'][-1]}")
    return servable


def recorded(folder: Path) -> list[Body]:
    """Requests of 1, 3 and 8 rows, in files. A score is five bytes of a reply with typed fields."""
    rows = np.load(folder / "requests.npz")
    bodies = []
    for count in ROWS:
        request: Any = message("tensorflow.serving.PredictRequest")()
        request.model_spec.name = "dcn"
        for alias, dtype in (("dense", 1), ("sparse", 9)):
            values = rows[alias][:count]
            tensor = request.inputs[alias]
            tensor.dtype = dtype
            for dim in values.shape:
                tensor.tensor_shape.dim.add(size=dim)
            tensor.tensor_content = values.tobytes()
        path = CACHE / f"request-{count}"
        path.write_bytes(request.SerializeToString())
        bodies.append(Body(path, count, reply_bytes(count)))
    return bodies


def reply_bytes(rows: int) -> int:
    """The length of a PredictResponse of the ranker."""
    reply: Any = message("tensorflow.serving.PredictResponse")()
    reply.model_spec.name = "dcn"
    reply.model_spec.version.value = 1
    reply.model_spec.signature_name = "serving_default"
    score = reply.outputs["score"]
    score.dtype = 1
    score.tensor_shape.dim.add(size=rows)
    score.tensor_shape.dim.add(size=1)
    score.float_val.extend([1.0] * rows)
    size: int = reply.ByteSize()
    return size


# ---- the soak ---------------------------------------------------------------------------------------


class Traffic:
    """Requests at a steady rate, from a thread, until the block is left; then how many were answered."""

    def __init__(self, port: int, bodies: list[Body]) -> None:
        self._port = port
        self._bodies = bodies
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")
        self.answered = 0
        self.failure: DriveError | None = None

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                got = drive(self._port, self._bodies, connections=2, rate=RATE, seconds=2.0, warmup_s=0.0)
            except DriveError as failure:
                self.failure = failure
                return
            self.answered += got.done


def look(pid: int) -> dict[str, int]:
    proc = Path(f"/proc/{pid}")
    return {
        "rss_bytes": process.rss_bytes(pid),
        "descriptors": len(list((proc / "fd").iterdir())),
        "threads": len(list((proc / "task").iterdir())),
        "maps": (proc / "maps").read_text().count("\n"),
    }


def soak(mode: str, cycles: int, nice: int, console: Console) -> dict[str, Any]:
    """One core from its first version to the last."""
    folder = exported()
    servables = [tried(folder, mode, version) for version in (1, 2)]
    bodies = recorded(folder)
    samples: list[dict[str, Any]] = []
    load_s: list[float] = []
    began = time.monotonic()
    with Core(
        executor={**EXECUTOR, "threads": 2},
        loading={"nice": nice},
        tensorflow={"library_dir": tensorflow_dir(TensorFlow())},
        environment=environment(mode, trial=False),
    ) as core:
        pid = core.process.pid
        core.serve(servables[0])
        with Traffic(core.port, bodies) as traffic:
            for cycle in range(1, cycles + 1):
                new, old = servables[cycle % 2], servables[(cycle + 1) % 2]
                load_s.append(core.call("load", servable=new)["seconds"])
                core.call("publish", model="dcn", version=new["version"])
                core.call("retire", model="dcn", version=old["version"])
                core.call("close", model="dcn", version=old["version"])
                traffic.check()
                if cycle % EVERY == 0 or cycle in (1, 10):
                    seen = {"cycle": cycle, "seconds": round(time.monotonic() - began, 1), **look(pid)}
                    samples.append(seen)
                    console.print(mode, seen, f"load {np.mean(load_s[-EVERY:]):.3f} s")
    return {
        "mode": mode,
        "cycles": cycles,
        "answered": traffic.answered,
        "load_s": {"first": load_s[0], "median": float(np.median(load_s)), "largest": max(load_s)},
        "samples": samples,
        **verdict(samples),
    }


def verdict(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The last sample against the one after 50 cycles."""
    first = next((sample for sample in samples if sample["cycle"] == EVERY), samples[0])
    last = samples[-1]
    ratio = last["rss_bytes"] / first["rss_bytes"]
    maps = last["maps"] / first["maps"]
    grown = {name: last[name] - first[name] for name in COUNTS}
    held = ratio <= MEMORY_BAR and maps <= MAPS_BAR and all(more <= 0 for more in grown.values())
    return {"rss_ratio": ratio, "maps_ratio": maps, "grown": grown, "passed": held}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--mode", action="append", choices=["plain", "full"], help="default: both, in turn")
    parser.add_argument("--nice", type=int, default=19, help="how much loads give way; 0 on a busy machine")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    console = Console(highlight=False, width=160)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    results = [
        soak(mode, arguments.cycles, arguments.nice, console) for mode in arguments.mode or ["plain", "full"]
    ]
    table = Table()
    for name in ("mode", "cycles", "answered", "load", "RSS", "ratio", "maps", "fds, threads", ""):
        table.add_column(name)
    for result in results:
        first, last = result["samples"][0], result["samples"][-1]
        table.add_row(
            result["mode"],
            f"{result['cycles']:,}",
            f"{result['answered']:,}",
            f"{result['load_s']['median']:.3f} s",
            f"{first['rss_bytes'] / 2**20:.0f} -> {last['rss_bytes'] / 2**20:.0f} MiB",
            f"{result['rss_ratio']:.3f}",
            f"{result['maps_ratio']:.3f}",
            ", ".join(f"{more:+d}" for more in result["grown"].values()),
            "pass" if result["passed"] else "FAIL",
        )
    console.print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": report.machine(), "rate": RATE, "buckets": BUCKETS, "results": results}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
