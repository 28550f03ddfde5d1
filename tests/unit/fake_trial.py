"""A trial that does what the version's directory says: it holds trial.json with one key.

{"report": {...}}: success, also with "signatures". {"error": "..."}: a verdict. {"exit": 3}, {"signal": 11},
{"hang": true}, {"garbage": true}: what children do instead. {"stderr": "..."} goes with any of them.
{"wait": path} waits until somebody writes to that pipe, {"hog": bytes} takes memory and hangs.
{"tell": true} tells of the process itself, {"cached": {...}} of entries of the compile cache.
{"cache_fails": [[entries], ...]} fails because of it, a list at a time, as long as there is one, and
{"cache_crashes": true} crashes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def fail_because_of_the_cache(orders: dict[str, Any], directory: Path) -> None:
    if "cache_crashes" in orders:
        print(json.dumps({"stage": "compile"}), flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    failures = orders.get("cache_fails", [])
    if failures:
        orders["cache_fails"] = failures[1:]
        (directory / "trial.json").write_text(json.dumps(orders))
        failed = {"why": "Read less bytes than requested", "entries": failures[0]}
        print(json.dumps({"ok": False, "error": "the cache", "cache_failed": failed}), flush=True)
        sys.exit(1)


def about_itself() -> dict[str, Any]:
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the listing's own
            fds[name] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
    return {
        "stage": "tell",
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "threads": len(os.listdir("/proc/self/task")),
        "fds": fds,
        "command": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"),
        "environment": dict(os.environ),
        "policy": os.sched_getscheduler(0),
    }


def main() -> None:
    request = json.load(sys.stdin)
    model = request["model"]
    orders = json.loads(Path(model["path"], "trial.json").read_text())
    print(orders.get("stderr", ""), file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "stage": "open",
                "nice": os.getpriority(os.PRIO_PROCESS, 0),
                "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
                "cache": request["xla_cache"],
                "breaks": request["breaks"],
                "flags": os.environ.get("TF_XLA_FLAGS", ""),
            }
        ),
        flush=True,
    )
    if "tell" in orders:
        print(json.dumps(about_itself()), flush=True)
    if "cached" in orders:
        print(json.dumps({"cached": orders["cached"]}), flush=True)
    if request["xla_cache"]:
        fail_because_of_the_cache(orders, Path(model["path"]))
    if "hog" in orders:
        held = bytearray(orders["hog"])
        held[::4096] = b"x" * len(held[::4096])
        signal.pause()
    if "wait" in orders:
        Path(orders["wait"]).read_text()
    if "exit" in orders:
        sys.exit(orders["exit"])
    if "signal" in orders:
        os.kill(os.getpid(), orders["signal"])
    if "hang" in orders:
        # A child of its own that must die too.
        if os.fork() == 0:
            Path(model["path"], "grandchild").write_text(str(os.getpid()))
        signal.pause()
    if "garbage" in orders:
        print("this is not JSON", flush=True)
    if "error" in orders:
        print(json.dumps({"ok": False, "error": orders["error"]}), flush=True)
        return
    servable = {
        "model": model["name"],
        "version": model["version"],
        "path": model["path"],
        "signatures": orders.get("signatures")
        or [{"name": "serving_default", "batched": True, "compiled": True, "buckets": [1, 2, 4]}],
        "request": request,
    }
    print(json.dumps({"ok": True, "servable": servable, "report": orders.get("report", {})}), flush=True)


if __name__ == "__main__":
    main()
