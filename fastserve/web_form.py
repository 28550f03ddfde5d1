"""Multipart forms: a body's bytes to fields and files. Used by fastserve.web alone; any thread."""

from __future__ import annotations

from collections.abc import Iterator

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from fastserve.web import BadRequest, Upload

MAX_PARTS = 1000
# RFC 2046.
_MAX_BOUNDARY_BYTES = 70


def parse_multipart(content_type: str, body: bytes) -> list[tuple[str, str | Upload]]:
    """The fields in their order: text, or an Upload for each part that has a filename. BadRequest."""
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary or len(boundary) > _MAX_BOUNDARY_BYTES or not boundary.isascii():
        raise BadRequest("multipart/form-data without a usable boundary")
    try:
        return [(segment.name, _value(segment, data)) for segment, data in _parts(boundary, body)]
    except ParserLimitReached as error:
        raise BadRequest(f"the form is too large: {error}", 413) from None
    except MultipartError as error:
        raise BadRequest(f"the form is malformed: {error}") from None


def _parts(boundary: str, body: bytes) -> Iterator[tuple[MultipartSegment, bytes]]:
    with PushMultipartParser(boundary, max_segment_count=MAX_PARTS, strict=True) as parser:
        segment: MultipartSegment | None = None
        data = bytearray()
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                segment, data = event, bytearray()
            elif event is not None:
                data += event
            elif segment is not None:
                yield segment, bytes(data)


def _value(segment: MultipartSegment, data: bytes) -> str | Upload:
    if segment.filename is not None:
        kind = segment.content_type or "application/octet-stream"
        return Upload(segment.name, segment.filename, kind, data)
    try:
        return data.decode(segment.charset or "utf-8")
    except (UnicodeDecodeError, LookupError, ValueError):
        raise BadRequest(f"the field {segment.name!r} is not {segment.charset or 'UTF-8'}") from None
