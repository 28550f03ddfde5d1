"""A trial: one version of a model is opened, compiled, probed and measured before the core is told of it.

Run as `python -m fastserve.control.trial` by trial_runner, in a process of its own that may crash, hang or be
killed without harm. Reads one JSON request (trial_request) from stdin and writes JSON lines to stdout:
{"stage": ...} as it goes, {"cached": {...}} for entries of the compile cache, and at last {"ok": true,
"servable": {...}, "report": {...}} or {"ok": false, "error": "..."}, with "cache_failed" when it is the cache
that failed and not the version. The servable is what the core loads. Never imports TensorFlow: the model runs
through the same native runtime as in the core.
"""

from __future__ import annotations

import base64
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import msgspec

from fastserve import tflite
from fastserve._native.breaks import Breaks
from fastserve._native.model_spec import ModelSpec
from fastserve._native.runtime import Runtime, RuntimeFailure
from fastserve.control.process_memory import peak_bytes, settled_bytes
from fastserve.control.trial_cache import CacheFailed, CacheWatch
from fastserve.control.trial_choice import OFF, choice_includes, write_choice
from fastserve.control.trial_request import TrialRequest
from fastserve.control.trial_verdict import Verdict
from fastserve.environment import litert_dir, tensorflow_dir
from fastserve.errors import FastServeError, ModelError
from fastserve.offline.broadcast import check_broadcast
from fastserve.offline.model import OpenModel
from fastserve.offline.records import (
    WarmupError,
    WarmupRequest,
    made_up,
    read_requests,
    sample_rows,
    write_requests,
)
from fastserve.offline.row_wise import first_line, why_not_batched
from fastserve.offline.session import may_use_gpu, refuses_one_thread, session_config
from fastserve.offline.spec import servable_spec
from fastserve.offline.tensors import Style, Tensor
from fastserve.offline.xla import Findings, compiled_pays, examine, why_not_compilable
from fastserve.savedmodel import SavedModel, Signature, map_of_signatures, prepare, read
from fastserve.savedmodel.overrides import disables_meta_optimizer

# Runtimes whose models say what they offer, and may bring requests along.
_SELF_DESCRIBED = ("tensorflow", "litert")

# Samples of a batch size beyond this are not made for the sake of a measurement alone.
_SAMPLE_MAX_BYTES = 256 << 20

# At most so often it is told how far a long stage is.
_TELL_S = 0.2

# Takes a line that is not the last.
OnStage = Callable[[dict[str, Any]], None]


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
        self._cache: CacheWatch | None = None
        # What the version's saved_model_config.pb asks for, and what of it has no effect.
        self._no_meta_optimizer = False
        self._ignored: list[str] = []
        # What the version brought along to be run, and rows of it.
        self._requests: list[WarmupRequest] = []
        # By name, signatures as the model's file has them, where they are tried with more rows than it says.
        self._as_written: dict[str, Signature] = {}
        self._recorded: dict[str, tuple[Tensor, ...]] = {}

    def run(self) -> dict[str, Any]:
        """The answer. ModelError or RuntimeFailure when the version cannot be served, CacheFailed when it can
        perhaps with another cache or none."""
        asked = self._request.model
        with self._stage("read"):
            self._saved_model = self._read()
            check_broadcast(asked.name, self._request.batching.broadcast, self._saved_model.signatures)
            if asked.runtime == "tensorflow":
                self._no_meta_optimizer, self._ignored = disables_meta_optimizer(asked.path)
            if self._request.warmup_records and asked.runtime in _SELF_DESCRIBED:
                broadcast = self._request.batching.broadcast
                self._requests = read_requests(asked.path, self._saved_model, broadcast)
                self._recorded = sample_rows([one for one in self._requests if not one.made_up])
        if self._wants_twins:
            with self._stage("prepare"):
                prepared = prepare(asked.path, asked.tags, self._request.prepared_dir)
            self._path, self._twins, self._no_twin = (
                prepared.path,
                prepared.compiled_outputs,
                prepared.refused,
            )

        if self._request.xla_cache and (self._wants_twins or self._cluster):
            self._cache = _watch(self._request.xla_cache)
        with self._stage("library"):
            runtime = self._runtime()
        before = settled_bytes()
        model, styles = self._open(runtime)
        if self._requests:
            with self._stage("warmup"):
                self._run_requests(model)
        opened = settled_bytes()
        verdicts = [self._examine(model, signature, styles) for signature in self._saved_model.signatures]
        compiled = settled_bytes()
        samples = self._made_up_requests(model, verdicts)
        model.close()

        choice = self._choice(verdicts)
        any_compiled = any(verdict.compiled for verdict in verdicts)
        if self._wants_twins and not any_compiled:
            self._path = asked.path
            self._twins = {}
            shutil.rmtree(self._request.prepared_dir, ignore_errors=True)
        servable = self._servable(verdicts)
        warmup = self._keep_requests(servable, samples)
        return {
            "ok": True,
            "servable": servable,
            "report": {
                "tensorflow_version": runtime.version,
                "xla_choice": choice,
                # What XLA took is no part of it when the core will not compile.
                "memory_bytes": max(0, (compiled if any_compiled else opened) - before),
                "peak_bytes": peak_bytes(),
                "single_threaded_executor": self._single_threaded,
                "seconds": {stage: round(seconds, 4) for stage, seconds in self._seconds.items()},
                "cache": {
                    "hits": self._cache.hits if self._cache else 0,
                    "compiled": self._cache.compiled if self._cache else 0,
                },
                "warmup": warmup,
                "ignored": self._ignored,
                "signatures": [verdict.report() for verdict in verdicts],
            },
        }

    # ---- opening -------------------------------------------------------------------------

    def _read(self) -> SavedModel:
        """What the version offers: what stands in it, or what its loader said."""
        asked = self._request.model
        if asked.signatures is not None:
            described = map_of_signatures(asked.signatures)
            return SavedModel(asked.path, asked.tags, "", asked.signatures, described)
        if asked.runtime == "litert":
            found = tflite.read(asked.path, asked.tflite_aliases)
            self._as_written = {signature.name: signature for signature in found.signatures}
            rows = tuple(tflite.with_rows(signature) or signature for signature in found.signatures)
            return replace(found, signatures=rows)
        if asked.runtime != "tensorflow":
            raise ModelError(f"its loader names the runtime '{asked.runtime}' and gives no signatures")
        return read(asked.path, asked.tags)

    def _runtime(self) -> Runtime:
        asked = self._request.model
        if asked.runtime == "tensorflow":
            tensorflow = self._request.tensorflow
            return Runtime(
                "tensorflow",
                library_dir=tensorflow_dir(tensorflow),
                op_libraries=tensorflow.op_libraries,
            )
        if asked.runtime == "litert":
            settings = self._request.litert
            return Runtime(
                "litert",
                library_dir=litert_dir(settings),
                threads=settings.run_threads,
                interpreters=settings.interpreters or 1,
            )
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

    def _open(self, runtime: Runtime) -> tuple[OpenModel, dict[str, Style | RuntimeFailure]]:
        """Opens the model and finds samples for every signature; with the executor for one thread, unless the
        graph cannot run on it."""
        while True:
            try:
                with self._stage("open"):
                    opened = runtime.open(ModelSpec(self._spec()))
                    model = OpenModel(opened, self._cache, self._recorded)
            except RuntimeFailure as error:
                # Graphs with TensorFlow 1's reference variables are refused when their values are restored.
                if not (self._single_threaded and refuses_one_thread(error)):
                    raise
                self._single_threaded = False
                continue
            with self._stage("run"):
                styles = self._find_styles(model)
            refused = any(
                isinstance(style, RuntimeFailure) and refuses_one_thread(style) for style in styles.values()
            )
            if not (self._single_threaded and refused):
                return model, styles
            model.close()
            self._single_threaded = False

    def _find_styles(self, model: OpenModel) -> dict[str, Style | RuntimeFailure]:
        """Samples for every signature. One that takes no more rows than it was written with has no others."""
        styles = {}
        signatures = []
        for signature in self._saved_model.signatures:
            if _is_run(signature):
                styles[signature.name] = _find_style(model, signature)
                written = self._as_written.get(signature.name, signature)
                if isinstance(styles[signature.name], RuntimeFailure) and written != signature:
                    signature = written
                    styles[signature.name] = _find_style(model, signature)
            signatures.append(signature)
        self._saved_model = replace(self._saved_model, signatures=tuple(signatures))
        return styles

    def _spec(self) -> dict[str, Any]:
        """The servable before anything is known about its signatures."""
        settings, as_it_is = self._request.tensorflow, self._no_meta_optimizer
        plain = session_config(
            settings, single_threaded=self._single_threaded, disable_meta_optimizer=as_it_is
        )
        # The clustered graph has switches that the executor for one thread does not know.
        cluster = session_config(
            settings, single_threaded=False, cluster=True, disable_meta_optimizer=as_it_is
        )
        asked = self._request.model
        if asked.runtime != "tensorflow":
            plain = cluster = b""
        spec = servable_spec(
            asked.name,
            asked.version,
            self._path,
            asked.tags,
            self._saved_model.signatures,
            cluster if self._cluster else plain,
            plain_config=plain if self._cluster else None,
            twins=self._twins,
            runtime=asked.runtime,
        )
        return spec | ({"runtime_library": asked.runtime_library} if asked.runtime_library else {})

    # ---- the version's own requests ------------------------------------------------------

    def _run_requests(self, model: OpenModel) -> None:
        told = -math.inf
        for number, request in enumerate(self._requests):
            now = time.monotonic()
            if now - told >= _TELL_S:
                told = now
                self._on_stage({"stage": "warmup", "done": number, "total": len(self._requests)})
            try:
                model.run(request.signature, request.inputs)
            except RuntimeFailure as error:
                raise WarmupError(error.code, error.message) from None

    def _made_up_requests(self, model: OpenModel, verdicts: list[Verdict]) -> list[WarmupRequest]:
        """One for each signature that takes tf.Examples and has no recorded one: the core warms up with
        zeros, and an empty string is seldom an example that a graph takes."""
        recorded = {request.signature.name for request in self._requests}
        requests = []
        for verdict in verdicts:
            signature, style = verdict.signature, verdict.style
            if style is None or not style.examples or signature.name in recorded:
                continue
            inputs = model.sample(signature, 1, style)
            try:
                model.run(signature, inputs)
            except RuntimeFailure:
                continue  # these values it does not take, after all
            requests.append(made_up(signature, inputs))
        return requests

    def _keep_requests(self, servable: dict[str, Any], samples: list[WarmupRequest]) -> dict[str, Any]:
        """Leaves the requests where the core finds them. What the report says of it."""
        if not self._requests and not samples:
            return {"requests": 0}
        asked = self._request.model
        path = Path(self._request.prepared_dir).absolute() / "warmup_requests"
        try:
            write_requests([*self._requests, *samples], path, asked.name, asked.version)
        except OSError as error:
            # They have been run here, and the core warms up without them as well.
            return {"requests": len(self._requests), "why": f"{path}: {error.strerror}"}
        servable["warmup"] = {"requests": str(path)}
        return {"requests": len(self._requests)}

    # ---- signatures ----------------------------------------------------------------------

    def _examine(
        self, model: OpenModel, signature: Signature, styles: dict[str, Style | RuntimeFailure]
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
        if signature.internal:
            return "TensorFlow's own"
        earlier = asked.previous_choice if asked.xla == "auto" else None
        if earlier is not None and not choice_includes(earlier, signature.name):
            return "an earlier version of this model was faster without XLA, and the choice is kept"
        if signature.name in self._no_twin:
            return self._no_twin[signature.name]
        if style is None:
            return "no sample that it accepts was found, so its answers under XLA cannot be compared"
        return why_not_compilable(signature, batched_why)

    def _examine_compiled(self, model: OpenModel, verdict: Verdict, style: Style) -> None:
        """Tries XLA and decides."""
        name, buckets = verdict.signature.name, verdict.buckets

        def on_bucket(bucket: int) -> None:
            self._keep_compiled()
            done = {"done": buckets.index(bucket), "total": len(buckets)}
            self._on_stage({"stage": "compile", "signature": name, "bucket": bucket, **done})

        with self._stage("compile", signature=name):
            verdict.findings = examine(model, verdict.signature, style, buckets, on_bucket, time.monotonic)
        self._keep_compiled()
        verdict.compiled_why = verdict.findings.why
        asked = self._request.model
        open_choice = asked.xla == "auto" and asked.previous_choice is None
        if not verdict.compiled_why and open_choice and not compiled_pays(verdict.findings):
            verdict.compiled_why = "it is not faster under XLA"
        verdict.compiled = not verdict.compiled_why

    def _keep_compiled(self) -> None:
        """Tells of what is new in the cache, so that it stays even if this trial comes to no end."""
        if self._cache is not None:
            fresh = self._cache.take()
            if fresh:
                self._on_stage({"cached": fresh})

    def _measure_plain(self, model: OpenModel, verdict: Verdict, style: Style) -> None:
        findings = verdict.findings
        for bucket in verdict.buckets or [1]:
            if bucket in findings.plain_us:
                continue
            if model.sample_bytes(verdict.signature, bucket, style) > _SAMPLE_MAX_BYTES:
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

    def _cost_plain(self, model: OpenModel, verdict: Verdict, rows: int, style: Style) -> float:
        inputs = model.sample(verdict.signature, rows, style)
        began = time.monotonic()
        model.run(verdict.signature, inputs)
        verdict.findings.warm_s.setdefault(rows, round(time.monotonic() - began, 4))
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
            entry |= verdict.servable()
        if self._cache is not None and self._cache.entries and any(verdict.compiled for verdict in verdicts):
            spec["xla_cache"] = self._cache.entries
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
                # Inputs that may come with one row for all of a request's.
                "broadcast": list(batching.broadcast),
            },
            "weight": asked.weight,
            "reserved_executors": asked.reserved_executors,
            "unknown_shapes": asked.unknown_shapes,
            "signature_def_map": base64.b64encode(self._saved_model.signature_def_map).decode(),
        }

    @contextmanager
    def _stage(self, stage: str, **more: str) -> Iterator[None]:
        self._on_stage({"stage": stage, **more})
        begin = time.monotonic()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - begin


def _is_run(signature: Signature) -> bool:
    return not signature.internal


def _find_style(model: OpenModel, signature: Signature) -> Style | RuntimeFailure:
    try:
        return model.find_style(signature)
    except RuntimeFailure as error:
        return error


def _watch(directory: str) -> CacheWatch:
    try:
        return CacheWatch(directory)
    except OSError as error:
        # Nobody could say which entries are this version's.
        raise CacheFailed(f"{directory} cannot be watched: {error.strerror}", []) from None


def answer(data: bytes, on_stage: OnStage) -> dict[str, Any]:
    """The last line for request `data`. Raises only what is a bug."""
    try:
        request = msgspec.json.decode(data, type=TrialRequest)
    except msgspec.MsgspecError as error:
        return {"ok": False, "error": f"the request cannot be read: {error}"}
    runtime = request.model.runtime
    who = {"tensorflow": "TensorFlow", "litert": "LiteRT"}.get(runtime, f"the runtime '{runtime}'")
    breaks = Breaks(os.getpriority(os.PRIO_PROCESS, os.getppid())) if request.breaks else nullcontext()
    try:
        with breaks:
            return TrialRun(request, on_stage).run()
    except CacheFailed as error:
        failed = {"why": error.why, "entries": error.entries}
        return {"ok": False, "error": f"the compile cache failed: {error.why}", "cache_failed": failed}
    except WarmupError as error:
        return {"ok": False, "error": str(error), "code": error.code}
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
