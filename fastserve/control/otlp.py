"""Spans for OpenTelemetry: from the events of sampled calls to the message that OTLP wants.

A call is a span of kind SERVER, with a child for each stage that it came to: queue, batch, compute, encode.
Pure functions of the control process; otlp_export sends what they give.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from fastserve.call_names import METHODS, TRANSPORTS
from fastserve.protos import message
from fastserve.trace_events import PARENT, Event, name_of
from fastserve.version import __version__

_SERVICE = "tensorflow.serving.PredictionService"
_SESSION_SERVICE = "tensorflow.serving.SessionService"
_INTERNAL, _SERVER = 1, 2  # SpanKind
_ERROR = 2  # StatusCode
# Codes that are the server's failure, by OpenTelemetry's conventions; the others leave the status unset.
_ERRORS = frozenset({2, 4, 12, 13, 14, 15})
_SAMPLED = 1
_STAGES = ("queue", "batch", "compute", "encode")

NewId = Callable[[int], bytes]


def export_request(
    calls: Iterable[Event], service_name: str, offset_ns: int, new_id: NewId = os.urandom
) -> bytes:
    """An ExportTraceServiceRequest with the spans of `calls`.

    `offset_ns` is what CLOCK_MONOTONIC is behind the time of day; `new_id` makes ids of so many bytes.
    """
    request = message("opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest")()
    spans = request.resource_spans.add()
    _put(spans.resource.attributes, "service.name", service_name)
    _put(spans.resource.attributes, "service.version", __version__)
    scope = spans.scope_spans.add()
    scope.scope.name = "fastserve"
    scope.scope.version = __version__
    for call in calls:
        _add_call(scope.spans, call, offset_ns, new_id)
    serialized: bytes = request.SerializeToString()
    return serialized


def _add_call(spans: Any, call: Event, offset_ns: int, new_id: NewId) -> None:
    parent = bool(call.flags & PARENT)
    trace_id = call.trace_id if parent else new_id(16)
    method = name_of(METHODS, call.method)
    service = _SESSION_SERVICE if method == "SessionRun" else _SERVICE
    server = _add_span(spans, trace_id, f"{service}/{method}", call.begin_us, call.end_us, offset_ns, new_id)
    server.kind = _SERVER
    if parent:
        server.parent_span_id = call.parent_id
    if call.code in _ERRORS:
        server.status.code = _ERROR
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "rpc.grpc.status_code": call.code,
        "fastserve.transport": name_of(TRANSPORTS, call.transport),
        "fastserve.model": call.model,
        "fastserve.version": call.version,
        "fastserve.signature": call.signature,
        "fastserve.rows": call.rows,
        "fastserve.batch.rows": call.amount,
        "fastserve.batch.padded_rows": call.run_rows,
    }
    for key, value in attributes.items():
        if value or key == "rpc.grpc.status_code":
            _put(server.attributes, key, value)
    began_us = call.begin_us
    for stage, ended_us in zip(_STAGES, call.at_us, strict=True):
        if not ended_us:
            break
        child = _add_span(spans, trace_id, stage, began_us, ended_us, offset_ns, new_id)
        child.kind = _INTERNAL
        child.parent_span_id = server.span_id
        began_us = ended_us


def _add_span(
    spans: Any, trace_id: bytes, name: str, begin_us: int, end_us: int, offset_ns: int, new_id: NewId
) -> Any:
    span = spans.add()
    span.trace_id = trace_id
    span.span_id = new_id(8)
    span.name = name
    span.flags = _SAMPLED
    span.start_time_unix_nano = begin_us * 1000 + offset_ns
    span.end_time_unix_nano = end_us * 1000 + offset_ns
    return span


def _put(attributes: Any, key: str, value: str | int) -> None:
    attribute = attributes.add(key=key)
    if isinstance(value, str):
        attribute.value.string_value = value
    else:
        attribute.value.int_value = value


def rejected_by(response: bytes) -> tuple[int, str]:
    """What a collector's answer to a request that it took says of spans that it did not, and why. It may be
    anything: then it says nothing."""
    from google.protobuf.message import DecodeError

    try:
        answer = message("opentelemetry.proto.collector.trace.v1.ExportTraceServiceResponse").FromString(
            response
        )
    except DecodeError:
        return 0, ""
    return max(answer.partial_success.rejected_spans, 0), answer.partial_success.error_message
