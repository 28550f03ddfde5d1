"""TensorFlow Serving's BatchingParameters as [models.batching] has them.

For --batching_parameters_file, --platform_config_file and for batching_params.pbtxt in a version's directory.
Pure functions, but for the file that is read.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from fastserve.config import Batching
from fastserve.config_read import powers_of_two
from fastserve.errors import ConfigError
from fastserve.text_proto import TextProto, read_text_proto

NAME = "tensorflow.serving.BatchingParameters"
# TensorFlow Serving's own, where the message says nothing.
DEFAULTS: dict[str, Any] = {"max_batch_size": 1000, "split_large_batches": False, "refuse_larger": True}

# Of the message, of the table, and what the table's key can hold.
_NUMBERS = (
    ("max_batch_size", "max_batch_size", 1, 1_000_000),
    ("batch_timeout_micros", "batch_timeout_us", 0, 1_000_000_000),
    ("max_enqueued_batches", "max_enqueued_batches", 1, 100_000),
    ("num_batch_threads", "num_batch_threads", 1, 1_000_000),
    ("max_execution_batch_size", "max_execution_batch_size", 1, 1_000_000),
)
_CAPPED = {"max_enqueued_batches"}  # "as many as you like" is common there


def read_batching(file: str) -> tuple[dict[str, Any], list[str]]:
    """As batching_table, from a file."""
    return batching_table(read_text_proto(file, NAME))


def version_batching(batching: Batching, file: str) -> tuple[Batching, list[str]]:
    """What a version's own file says, with what is not for it to say as in `batching`; what is ignored."""
    table, notes = read_batching(file)
    if "num_batch_threads" in table:
        notes.append("num_batch_threads has no effect: a version's threads are those of its model")
    given = msgspec.convert(table, Batching)
    sizes = given.allowed_batch_sizes or powers_of_two(given.largest_batch)
    batching = msgspec.structs.replace(
        given,
        allowed_batch_sizes=sizes,
        num_batch_threads=batching.num_batch_threads,
        broadcast=batching.broadcast,
        version_file=batching.version_file,
    )
    return batching, notes


def batching_table(source: TextProto, path: tuple[str | int, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """The keys of [models.batching] for the BatchingParameters at `path` in `source`, and what has no
    effect here. ConfigError lists all that is wrong."""
    parameters = source.message
    for step in path:
        parameters = parameters[step] if isinstance(step, int) else getattr(parameters, step)
    problems: list[str] = []
    notes: list[str] = []
    table = dict(DEFAULTS)
    for field, key, least, most in _NUMBERS:
        if not parameters.HasField(field):
            continue
        value = getattr(parameters, field).value
        where = source.at(*path, field)
        if value > most and field in _CAPPED:
            notes.append(f"{where}: {field} = {value}: {key} is at most {most}")
            value = most
        if not least <= value <= most:
            problems.append(f"{where}: {field} = {value}: expected {least} to {most}")
        table[key] = value
    if parameters.HasField("enable_large_batch_splitting"):
        table["split_large_batches"] = parameters.enable_large_batch_splitting.value
    if parameters.allowed_batch_sizes:
        table["allowed_batch_sizes"] = list(parameters.allowed_batch_sizes)
    if parameters.pad_variable_length_inputs:
        table["pad_variable_length_inputs"] = True
    if parameters.HasField("thread_pool_name"):
        notes.append(
            f"{source.at(*path, 'thread_pool_name')}: thread_pool_name has no effect: executors run batches"
        )
    if not table["split_large_batches"] and table.pop("max_execution_batch_size", None) is not None:
        where = source.at(*path, "max_execution_batch_size")
        notes.append(f"{where}: max_execution_batch_size has no effect without enable_large_batch_splitting")
    if not problems:
        problems += _unfit(table, source, path)
    if problems:
        raise ConfigError(problems)
    return table, notes


def _unfit(table: dict[str, Any], source: TextProto, path: tuple[str | int, ...]) -> list[str]:
    """Values that do not go together."""
    largest, execution = table["max_batch_size"], table.get("max_execution_batch_size")
    sizes = table.get("allowed_batch_sizes") or []
    if execution is not None and execution > largest:
        where = source.at(*path, "max_execution_batch_size")
        return [
            f"{where}: max_execution_batch_size = {execution}: expected 1 to max_batch_size, which is "
            f"{largest}"
        ]
    where = source.at(*path, "allowed_batch_sizes")
    if any(a >= b for a, b in pairwise(sizes)) or any(size < 1 for size in sizes):
        return [f"{where}: allowed_batch_sizes = {sizes}: expected sizes that increase"]
    last = "max_batch_size" if execution is None else "max_execution_batch_size"
    if sizes and sizes[-1] != (execution or largest):
        return [
            f"{where}: Last entry in allowed_batch_sizes must match {last}; last entry was {sizes[-1]}; "
            f"expected {execution or largest}"
        ]
    return []
