"""The flags of the REST API: [gateway]."""

from __future__ import annotations

from fastserve.cgroup import available_cpus
from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags

# Of TensorFlow Serving's default, four for each processor, comes a process for each.
_THREADS_PER_PROCESS = 4
_MAX_PROCESSES = 64


def add_rest(draft: Draft, flags: Flags, every: str) -> None:
    """`every`: the host that is every interface."""
    port, timeout_ms = flags.number("rest_api_port"), flags.number("rest_api_timeout_in_ms")
    if not 0 <= port <= 65535:
        draft.problem(f"--rest_api_port={port}: expected 1 to 65535, or 0 for no REST API")
    if timeout_ms <= 0:
        draft.problem(f"--rest_api_timeout_in_ms={timeout_ms}: expected 1 or more")
    if not port:
        for name in ("rest_api_num_threads", "rest_api_timeout_in_ms", "rest_api_enable_cors_support"):
            if name in flags.given:
                draft.note(f"--{name} has no effect without --rest_api_port")
        return
    if port == flags.number("port"):
        draft.note(
            "--rest_api_port cannot be same as --port. Please use a different port for HTTP/REST API. "
            "Skipped starting HTTP/REST API server."
        )
        return
    draft.set("gateway", "listen", [f"{every}:{port}"], "--rest_api_port")
    if "rest_api_num_threads" in flags.given:
        most = min(available_cpus(), _MAX_PROCESSES)
        processes = max(1, min(flags.number("rest_api_num_threads") // _THREADS_PER_PROCESS, most))
        draft.set("gateway", "processes", processes, "--rest_api_num_threads")
    draft.set("gateway", "timeout_s", timeout_ms / 1000, "--rest_api_timeout_in_ms")
    if flags.is_on("rest_api_enable_cors_support"):
        draft.set("gateway", "cors", True, "--rest_api_enable_cors_support")
