"""Protobuf messages, by full name, as Python classes.

Used by the control process and its children (SavedModels, session settings), never by the core. The classes
are made at run time in a pool of their own from protos.binpb, which protos/generate.py writes: generated code
would pin a protobuf version, and the same messages twice in protobuf's default pool crash a process that
imports TensorFlow too. Extends nothing: what is not in protos/*.proto survives as unknown fields.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@cache
def pool() -> Any:
    """The pool itself, for texts that name messages: `[type.googleapis.com/NAME] { ... }`."""
    pool = descriptor_pool.DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(Path(__file__).with_suffix(".binpb").read_bytes())
    for file in files.file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of message `name`, "tensorflow.SavedModel" say. KeyError when protos/ does not define it."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(name))
