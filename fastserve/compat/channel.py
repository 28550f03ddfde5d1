"""--grpc_channel_arguments: what of gRPC's own settings has a place in [limits]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastserve.compat.draft import Draft
from fastserve.compat.flags import Flags

MAX_MESSAGE_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class _Argument:
    """`value`: what the key is for a number given; None: it is as if it was not given."""

    key: str
    value: Callable[[int], int | float | None]


def _seconds(milliseconds: int) -> float | None:
    # gRPC has the largest int for "never".
    return 0.0 if milliseconds == MAX_MESSAGE_BYTES else milliseconds / 1000


def _bytes(number: int) -> int | None:
    return None if number < 0 else max(number, 1024)


_ARGUMENTS = {
    "grpc.max_concurrent_streams": _Argument(
        "max_concurrent_streams", lambda n: max(1, min(n, 1_000_000_000))
    ),
    "grpc.max_receive_message_length": _Argument("max_message_bytes", _bytes),
    "grpc.max_message_length": _Argument("max_message_bytes", _bytes),
    "grpc.max_metadata_size": _Argument("max_header_bytes", _bytes),
    "grpc.keepalive_time_ms": _Argument("keepalive_s", _seconds),
    "grpc.keepalive_timeout_ms": _Argument("keepalive_timeout_s", lambda n: n / 1000 or None),
}


def add_limits(draft: Draft, flags: Flags) -> None:
    """[limits]: messages as large as TensorFlow Serving takes, and what the arguments say."""
    largest = MAX_MESSAGE_BYTES
    for argument in filter(None, flags.text("grpc_channel_arguments").split(",")):
        name, equals, text = argument.partition("=")
        why = f"--grpc_channel_arguments: {argument}"
        known = _ARGUMENTS.get(name.strip())
        if not equals:
            draft.problem(f"{why}: expected NAME=VALUE, several with commas between them")
        elif known is None:
            draft.note(f"{why} has no effect: this server is not gRPC's own; see [limits]")
        elif not text.strip().lstrip("-").isdecimal():
            draft.problem(f"{why}: expected a whole number")
        else:
            value = known.value(int(text))
            if known.key == "max_message_bytes":
                largest = MAX_MESSAGE_BYTES if value is None else min(int(value), MAX_MESSAGE_BYTES)
            elif value is not None:
                draft.set("limits", known.key, value, why)
    draft.set(
        "limits", "max_message_bytes", largest, "as TensorFlow Serving: 2 GiB less one byte, or its argument"
    )
    draft.set("limits", "max_compressed_bytes", largest)
    draft.set("limits", "max_connection_bytes", max(2 * largest, 512 << 20), "and there may be two at once")
