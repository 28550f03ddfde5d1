"""tensorflow.ProfilerService, which TensorFlow Serving registers for TensorBoard: refused here, with what to do
instead. TensorFlow's C API has no profiler, and one that ran beside requests would be in their way.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastserve.core.service import UNIMPLEMENTED, Call, Method, Status

_INSTEAD = (
    "the profiler is not served here: `perf record -g -p` with the core's process id shows where its time goes, the "
    "admin socket's stats have the runs and the time of every signature, and tf.profiler in a process of its own "
    "profiles the model's ops"
)


class Profiler:
    """The methods that TensorBoard calls."""

    def methods(self) -> Iterator[Method]:
        for method in ("Profile", "Monitor", "Terminate"):
            yield Method(f"/tensorflow.ProfilerService/{method}", self._refuse)

    async def _refuse(self, request: bytes, call: Call) -> bytes:
        raise Status(UNIMPLEMENTED, _INSTEAD)
