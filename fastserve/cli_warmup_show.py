"""`fastserve warmup show`: what is in a file of PredictionLogs, record by record, as a table or as JSON
lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastserve.errors import FastServeError
from fastserve.offline.records import MAX_RECORDS
from fastserve.protos import message
from fastserve.savedmodel.signature import dtype_name
from fastserve.savedmodel.tfrecord import TFRecordError, read_records

_KINDS = {
    "predict_log": "predict",
    "classify_log": "classify",
    "regress_log": "regress",
    "multi_inference_log": "multi_inference",
    "session_run_log": "session_run",
    "predict_streamed_log": "predict_streamed",
}
# These fail a version that brings them along.
_NOT_RUN = ("session_run_log", "predict_streamed_log")

Row = dict[str, Any]


class Damaged(FastServeError):
    """A record cannot be read. The text names file, record and remedy."""


def show_file(path: Path, *, as_json: bool, limit: int | None = None) -> None:
    """Prints the records, those before a damaged one, too. FastServeError."""
    rows: list[Row] = []
    try:
        for row in islice(rows_of(path), limit):
            if as_json:
                click.echo(json.dumps(row))
            else:
                rows.append(row)
    finally:
        if rows:
            Console(highlight=False).print(_table(path, rows))
    count = len(rows)
    if not as_json:
        click.echo(f"{count} record{'' if count == 1 else 's'}{_remark(rows, limit)}")


def rows_of(path: Path) -> Iterator[Row]:
    """A row for each record. Damaged at the first that cannot be read."""
    number = 0
    try:
        for record in read_records(path):
            number += 1
            yield _row(path, number, record)
    except FileNotFoundError:
        raise FastServeError(
            f"{path}: no such file; `fastserve warmup make` and `fastserve warmup record` write one"
        ) from None
    except OSError as error:
        raise FastServeError(f"{path}: cannot be read: {error.strerror}") from None
    except TFRecordError as error:
        where = f"{path}: record {number + 1}"
        if "truncated" in str(error):
            raise Damaged(
                f"{where} is cut off: the file was not written to its end; the {number} before it are whole"
            ) from None
        if number == 0:
            raise Damaged(f"{where}: its length has a wrong checksum: this is no TFRecord file") from None
        raise Damaged(
            f"{where} has a wrong checksum: the file is damaged from there on ({error}); write it again"
        ) from None


def _row(path: Path, number: int, record: bytes) -> Row:
    try:
        log = message("tensorflow.serving.PredictionLog").FromString(record)
    except DecodeError:
        raise Damaged(
            f"{path}: record {number} is no PredictionLog ({len(record)} bytes); a warm-up file has nothing "
            "else"
        ) from None
    field = log.WhichOneof("log_type")
    row: Row = {"record": number, "kind": _KINDS.get(field, "empty"), "bytes": len(record)}
    if field is None or field in _NOT_RUN:
        return {**row, "model": "", "version": None, "signature": "", "inputs": {}, "problem": "is not run"}
    inner = getattr(log, field)
    request = inner.request
    tasks = [task.model_spec for task in request.tasks] if field == "multi_inference_log" else []
    spec = tasks[0] if tasks else getattr(request, "model_spec", None)
    answered = log.log_metadata.model_spec
    row["model"] = spec.name if spec is not None else ""
    row["version"] = answered.version.value if answered.HasField("version") else _version(spec)
    row["signature"] = ", ".join(task.signature_name or "serving_default" for task in tasks) or (
        (spec.signature_name if spec is not None else "") or "serving_default"
    )
    row["inputs"] = _inputs(request) if field == "predict_log" else _examples(request.input)
    return row


def _version(spec: Any) -> int | None:
    return spec.version.value if spec is not None and spec.HasField("version") else None


def _inputs(request: Any) -> Row:
    return {
        alias: {
            "dtype": dtype_name(tensor.dtype),
            "shape": [dim.size for dim in tensor.tensor_shape.dim],
        }
        for alias, tensor in sorted(request.inputs.items())
    }


def _examples(given: Any) -> Row:
    kind = given.WhichOneof("kind")
    count = len(getattr(given, kind).examples) if kind else 0
    return {"examples": {"dtype": "string", "shape": [count]}}


def _table(path: Path, rows: list[Row]) -> Table:
    table = Table(title=escape(str(path)), title_justify="left", title_style="bold", header_style="bold")
    for column in ("record", "kind", "model", "version", "signature", "inputs"):
        table.add_column(
            column, overflow="fold", justify="right" if column in ("record", "version") else "left"
        )
    for row in rows:
        inputs = ", ".join(f"{alias} {port['dtype']}{port['shape']}" for alias, port in row["inputs"].items())
        table.add_row(
            str(row["record"]),
            row["kind"],
            escape(row["model"]),
            "" if row["version"] is None else str(row["version"]),
            escape(row["signature"]),
            escape(inputs) if "problem" not in row else f"[yellow]{row['problem']}[/yellow]",
        )
    return table


def _remark(rows: list[Row], limit: int | None) -> str:
    if limit is not None and len(rows) == limit:
        return " shown"
    if len(rows) > MAX_RECORDS:
        return f"; a version takes {MAX_RECORDS} at most, and fails with more: split the file, or sample it"
    return ""
