"""A trial: one version of a model is opened, compiled, probed and measured before the core is told of it.

Run as `python -m fastserve.control.trial` by trial_runner, in a process of its own that may crash, hang or be
killed without harm. Reads one JSON request (trial_request) from stdin and writes JSON lines to stdout:
{"stage": ...} as it goes, and at last {"ok": true, "servable": {...}, "report": {...}} or {"ok": false,
"error": "..."}. The servable is what the core loads. Never imports TensorFlow: the model runs through the
same native runtime as in the core.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime, RuntimeFailure
from fastserve.control.environment import tensorflow_dir
from fastserve.control.trial_choice import OFF, choice_includes, write_choice
from fastserve.control.trial_model import TrialModel
from fastserve.control.trial_request import TrialRequest
from fastserve.control.trial_rows import first_line, why_not_batched
from fastserve.control.trial_session import may_use_gpu, session_config
from fastserve.control.trial_tensors import Style
from fastserve.control.trial_xla import Findings, compiled_pays, examine, why_not_compilable
from fastserve.errors import FastServeError, ModelError
from fastserve.savedmodel import Port, SavedModel, Signature, prepare, read

# Signatures that TensorFlow itself puts into a SavedModel; running them would initialize the model again.
_INTERNAL = "__saved_model_"

# Samples of a batch size beyond this are not made for the sake of a measurement alone.
_SAMPLE_MAX_BYTES = 256 << 20

# What TensorFlow's executor for one thread says of graphs that it cannot run.
_EXECUTOR_REFUSED = "ingle-threaded executor"

OnStage = Callable[[dict[str, Any]], None]


@dataclass
class Verdict:
    """What the trial found out about one signature."""

    signature: Signature
    style: Style | None
    batched_why: str
    compiled: bool
    compiled_why: str
    findings: Findings
    buckets: list[int]

    @property
    def costs_us(self) -> dict[int, float]:
        return self.findings.compiled_us if self.compiled else self.findings.plain_us


class TrialRun:
    """One trial, from the request to the answer."""

    def __init__(self, request: TrialRequest, on_stage: OnStage) -> None:
        self._request = request
        self._on_stage = on_stage
        self._seconds: dict[str, float] = {}
        self._saved_model: SavedModel
        # Where the session is opened: the version's own directory, or the prepared one.
        self._path = request.model.path
        # By signature: the twin's tensors, and why there is no twin.
        self._twins: dict[str, tuple[str, ...]] = {}
        self._no_twin: dict[str, str] = {}
        self._single_threaded = request.model.runtime == "tensorflow" and not may_use_gpu(request.tensorflow)

    def run(self) -> dict[str, Any]:
        """The answer. ModelError or RuntimeFailure when the version cannot be served."""
        asked = self._request.model
        with self._stage("read"):
            self._saved_model = self._read()
        if self._wants_twins:
            with self._stage("prepare"):
                prepared = prepare(asked.path, asked.tags, self._request.prepared_dir)
            self._path, self._twins, self._no_twin = (
                prepared.path,
                prepared.compiled_outputs,
                prepared.refused,
            )

        with self._stage("library"):
            runtime = self._runtime()
        before = _resident_bytes()
        model, styles = self._open(runtime)
        opened = _resident_bytes()
        verdicts = [self._examine(model, signature, styles) for signature in self._saved_model.signatures]
        compiled = _resident_bytes()
        model.close()

        choice = self._choice(verdicts)
        if self._wants_twins and not any(verdict.compiled for verdict in verdicts):
            self._path = asked.path
            self._twins = {}
            shutil.rmtree(self._request.prepared_dir, ignore_errors=True)
        return {
            "ok": True,
            "servable": self._servable(verdicts),
            "report": {
                "tensorflow_version": runtime.version,
                "xla_choice": choice,
                # What XLA took is no part of it when the core will not compile.
                "memory_bytes": max(0, (compiled if any(v.compiled for v in verdicts) else opened) - before),
                "single_threaded_executor": self._single_threaded,
                "seconds": {stage: round(seconds, 4) for stage, seconds in self._seconds.items()},
                "signatures": [_report(verdict) for verdict in verdicts],
            },
        }

    # ---- opening -------------------------------------------------------------------------

    def _read(self) -> SavedModel:
        """What the version offers: what stands in it, or what its loader said."""
        asked = self._request.model
        if asked.signatures is not None:
            return SavedModel(asked.path, asked.tags, "", asked.signatures)
        if asked.runtime != "tensorflow":
            raise ModelError(f"its loader names the runtime '{asked.runtime}' and gives no signatures")
        return read(asked.path, asked.tags)

    def _runtime(self) -> Runtime:
        asked = self._request.model
        if asked.runtime == "tensorflow":
            return Runtime("tensorflow", library_dir=tensorflow_dir(self._request.tensorflow))
        return Runtime(asked.runtime, library=asked.runtime_library)

    @property
    def _xla(self) -> str:
        """What is asked of XLA, which compiles SavedModels only."""
        asked = self._request.model
        return asked.xla if asked.runtime == "tensorflow" and asked.signatures is None else "off"

    @property
    def _wants_twins(self) -> bool:
        return self._xla == "full" or (self._xla == "auto" and self._request.model.previous_choice != OFF)

    @property
    def _cluster(self) -> bool:
        return self._xla == "cluster"

    def _open(self, runtime: Runtime) -> tuple[TrialModel, dict[str, Style | RuntimeFailure]]:
        """Opens the model and finds samples for every signature; with the executor for one thread, unless the
        graph cannot run on it."""
        while True:
            try:
                with self._stage("open"):
                    model = TrialModel(runtime.open(ModelSpec(self._spec())))
            except RuntimeFailure as error:
                # Graphs with TensorFlow 1's reference variables are refused when their values are restored.
                if not (self._single_threaded and _EXECUTOR_REFUSED in error.message):
                    raise
                self._single_threaded = False
                continue
            with self._stage("run"):
                styles = {
                    signature.name: _find_style(model, signature)
                    for signature in self._saved_model.signatures
                    if _is_run(signature)
                }
            refused = any(
                isinstance(style, RuntimeFailure) and _EXECUTOR_REFUSED in style.message
                for style in styles.values()
            )
            if not (self._single_threaded and refused):
                return model, styles
            model.close()
            self._single_threaded = False

    def _spec(self) -> dict[str, Any]:
        """The servable before anything is known about its signatures."""
        plain = session_config(self._request.tensorflow, single_threaded=self._single_threaded)
        # The clustered graph has switches that the executor for one thread does not know.
        cluster = session_config(self._request.tensorflow, single_threaded=False, cluster=True)
        asked = self._request.model
        if asked.runtime != "tensorflow":
            plain = cluster = b""
        return {
            "model": asked.name,
            "version": asked.version,
            "path": str(Path(self._path).absolute()),
            "runtime": asked.runtime,
            **({"runtime_library": asked.runtime_library} if asked.runtime_library else {}),
            "tags": list(asked.tags),
            "session_config": base64.b64encode(cluster if self._cluster else plain).decode(),
            "plain_config": base64.b64encode(plain).decode() if self._cluster else None,
            "signatures": [
                {
                    "name": signature.name,
                    "inputs": [_port(port) for port in signature.inputs],
                    "outputs": [_port(port) for port in signature.outputs],
                    "compiled_outputs": self._twin(signature.name),
                }
                for signature in self._saved_model.signatures
            ],
        }

    def _twin(self, name: str) -> list[str] | None:
        twin = self._twins.get(name)
        return None if twin is None else list(twin)

    # ---- signatures ----------------------------------------------------------------------

    def _examine(
        self, model: TrialModel, signature: Signature, styles: dict[str, Style | RuntimeFailure]
    ) -> Verdict:
        asked = self._request.model
        found = styles.get(signature.name)
        style = found if isinstance(found, Style) else None
        with self._stage("probe", signature=signature.name):
            batched_why = why_not_batched(model, signature, style, asked.row_wise)
            if isinstance(found, RuntimeFailure) and batched_why and signature.inputs:
                batched_why += f" (a sample run failed: {first_line(found.message)})"
        verdict = Verdict(
            signature=signature,
            style=style,
            batched_why=batched_why,
            compiled=False,
            compiled_why=self._why_plain(signature, style, batched_why),
            findings=Findings(why=""),
            buckets=[] if batched_why else self._request.buckets,
        )
        if not verdict.compiled_why and style is not None:
            self._examine_compiled(model, verdict, style)
        if style is not None and not verdict.costs_us:
            with self._stage("measure", signature=signature.name):
                self._measure_plain(model, verdict, style)
        return verdict

    def _why_plain(self, signature: Signature, style: Style | None, batched_why: str) -> str:
        """Why the signature is not even tried with XLA; empty when it is."""
        asked = self._request.model
        if asked.xla == "off":
            return 'xla = "off"'
        if self._xla == "off":
            return "XLA compiles SavedModels only"
        if signature.name.startswith(_INTERNAL):
            return "TensorFlow's own"
        earlier = asked.previous_choice if asked.xla == "auto" else None
        if earlier is not None and not choice_includes(earlier, signature.name):
            return "an earlier version of this model was faster without XLA, and the choice is kept"
        if signature.name in self._no_twin:
            return self._no_twin[signature.name]
        if style is None:
            return "no sample that it accepts was found, so its answers under XLA cannot be compared"
        return why_not_compilable(signature, batched_why)

    def _examine_compiled(self, model: TrialModel, verdict: Verdict, style: Style) -> None:
        """Tries XLA and decides."""
        name = verdict.signature.name
        with self._stage("compile", signature=name):
            verdict.findings = examine(
                model,
                verdict.signature,
                style,
                verdict.buckets,
                lambda bucket: self._on_stage({"stage": "compile", "signature": name, "bucket": bucket}),
                time.monotonic,
            )
        verdict.compiled_why = verdict.findings.why
        asked = self._request.model
        open_choice = asked.xla == "auto" and asked.previous_choice is None
        if not verdict.compiled_why and open_choice and not compiled_pays(verdict.findings):
            verdict.compiled_why = "it is not faster under XLA"
        verdict.compiled = not verdict.compiled_why

    def _measure_plain(self, model: TrialModel, verdict: Verdict, style: Style) -> None:
        findings = verdict.findings
        for bucket in verdict.buckets or [1]:
            if bucket in findings.plain_us:
                continue
            if _sample_bytes(verdict.signature, bucket, style) > _SAMPLE_MAX_BYTES:
                return
            try:
                try:
                    cost_us = self._cost_plain(model, verdict, bucket, style)
                except RuntimeFailure:
                    # More rows than were tried before: a value that it refuses may be among them.
                    style = model.find_style(verdict.signature, (bucket,))
                    cost_us = self._cost_plain(model, verdict, bucket, style)
            except RuntimeFailure as error:
                raise ModelError(
                    f"signature '{verdict.signature.name}' fails with {bucket} rows at once: "
                    f"{first_line(error.message)}; set batching.max_batch_size below that"
                ) from None
            findings.plain_us[bucket] = cost_us

    def _cost_plain(self, model: TrialModel, verdict: Verdict, rows: int, style: Style) -> float:
        inputs = model.sample(verdict.signature, rows, style)
        (cost_us,) = model.cost_us(verdict.signature, inputs, (False,))
        return cost_us

    # ---- the answer ----------------------------------------------------------------------

    def _choice(self, verdicts: list[Verdict]) -> str:
        asked = self._request.model
        if asked.xla == "auto" and asked.previous_choice is not None:
            return asked.previous_choice
        return write_choice({v.signature.name: v.compiled for v in verdicts if v.findings.compiled_us})

    def _servable(self, verdicts: list[Verdict]) -> dict[str, Any]:
        spec = self._spec()
        if self._cluster and not any(verdict.compiled for verdict in verdicts):
            spec["session_config"], spec["plain_config"] = spec["plain_config"], None
        for entry, verdict in zip(spec["signatures"], verdicts, strict=True):
            if not verdict.compiled:
                entry["compiled_outputs"] = None
            entry |= {
                "batched": not verdict.batched_why,
                "why": verdict.batched_why,
                "compiled": verdict.compiled,
                "compiled_why": verdict.compiled_why,
                "buckets": verdict.buckets,
                "costs_us": {str(rows): round(cost, 1) for rows, cost in verdict.costs_us.items()},
            }
        asked, batching = self._request.model, self._request.batching
        return spec | {
            "batching": {
                # What runs at once; requests may be larger when they are split.
                "max_batch_size": batching.largest_batch,
                "batch_timeout_us": batching.batch_timeout_us,
                "max_enqueued_batches": batching.max_enqueued_batches,
                "num_batch_threads": batching.num_batch_threads,
                "split_large_batches": batching.split_large_batches,
                # Requests of more rows than this are refused; 0: none is.
                "refuse_larger": batching.max_batch_size if batching.refuse_larger else 0,
                "pad_variable_length_inputs": batching.pad_variable_length_inputs,
            },
            "weight": asked.weight,
            "reserved_executors": asked.reserved_executors,
            "unknown_shapes": asked.unknown_shapes,
        }

    @contextmanager
    def _stage(self, stage: str, **more: str) -> Iterator[None]:
        self._on_stage({"stage": stage, **more})
        begin = time.monotonic()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - begin


def _is_run(signature: Signature) -> bool:
    return not signature.name.startswith(_INTERNAL)


def _find_style(model: TrialModel, signature: Signature) -> Style | RuntimeFailure:
    try:
        return model.find_style(signature)
    except RuntimeFailure as error:
        return error


def _port(port: Port) -> dict[str, Any]:
    dims = None if port.dims is None else list(port.dims)
    spec: dict[str, Any] = {"alias": port.alias, "tensor": port.tensor, "dtype": port.dtype, "dims": dims}
    if port.default is not None:
        spec["default"] = base64.b64encode(port.default).decode()
    return spec


def _sample_bytes(signature: Signature, rows: int, style: Style) -> int:
    total = 0
    for port in signature.inputs:
        size = 16
        for axis, dim in enumerate(port.dims or ()):
            size *= dim if dim >= 0 else rows if axis == 0 else style.inner
        total += size
    return total


def _report(verdict: Verdict) -> dict[str, Any]:
    findings = verdict.findings
    return {
        "name": verdict.signature.name,
        "plain_us": {str(rows): round(cost, 1) for rows, cost in findings.plain_us.items()},
        "compiled_us": {str(rows): round(cost, 1) for rows, cost in findings.compiled_us.items()},
        "compile_s": {str(rows): seconds for rows, seconds in findings.compile_s.items()},
    }


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def answer(data: bytes, on_stage: OnStage) -> dict[str, Any]:
    """The last line for request `data`. Raises only what is a bug."""
    try:
        request = msgspec.json.decode(data, type=TrialRequest)
    except msgspec.MsgspecError as error:
        return {"ok": False, "error": f"the request cannot be read: {error}"}
    runtime = request.model.runtime
    who = "TensorFlow" if runtime == "tensorflow" else f"the runtime '{runtime}'"
    try:
        return TrialRun(request, on_stage).run()
    except FastServeError as error:
        return {"ok": False, "error": str(error)}
    except RuntimeFailure as error:
        return {
            "ok": False,
            "error": f"{who} cannot open the model: {error.message}",
            "code": error.code,
        }


def main() -> None:
    # Lines go to a descriptor that nobody else knows: what libraries print to theirs ends up on stderr.
    lines: IO[bytes] = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def write(line: dict[str, Any]) -> None:
        lines.write(msgspec.json.encode(line) + b"\n")

    result = answer(sys.stdin.buffer.read(), write)
    write(result)
    # TensorFlow's threads and static destructors have nothing left to do for us.
    sys.stderr.flush()
    os._exit(0 if result["ok"] else 1)


if __name__ == "__main__":
    main()
