"""What a call can end with: one class for each gRPC status that is an error."""

from __future__ import annotations

from fastserve._native.client import ClosedError
from fastserve.call_names import CODES as STATUS_NAMES
from fastserve.errors import FastServeError

__all__ = ["STATUS_NAMES", "ClosedError", "RpcError", "TlsError", "status_code"]


class RpcError(FastServeError):
    """A call that failed. `code` is the name of its gRPC status, `details` the server's text, or ours, which
    then names the server."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}" if details else code)
        self.code = code
        self.details = details


class Cancelled(RpcError):
    """The call was cancelled, or the client closed."""


class Unknown(RpcError):
    """The server failed without saying how."""


class InvalidArgument(RpcError):
    """The inputs do not fit the model's signature."""


class DeadlineExceeded(RpcError):
    """No answer within `timeout`."""


class NotFound(RpcError):
    """No such model, version, label or signature."""


class AlreadyExists(RpcError):
    """ALREADY_EXISTS."""


class PermissionDenied(RpcError):
    """PERMISSION_DENIED."""


class ResourceExhausted(RpcError):
    """A message beyond a limit, or a server out of memory."""


class FailedPrecondition(RpcError):
    """The model is there but cannot serve this."""


class Aborted(RpcError):
    """ABORTED."""


class OutOfRange(RpcError):
    """OUT_OF_RANGE."""


class Unimplemented(RpcError):
    """The server does not have this method."""


class Internal(RpcError):
    """The server failed, or its answer cannot be read."""


class Unavailable(RpcError):
    """No server to answer: overloaded, starting or stopping, or the connection was lost."""


class DataLoss(RpcError):
    """DATA_LOSS."""


class Unauthenticated(RpcError):
    """The server wants credentials: see `metadata` and `Tls`."""


class ConnectError(Unavailable):
    """No connection to any server: a name that does not resolve, an address that refuses or is silent."""


class TlsError(Unavailable):
    """TLS did not come about: a certificate that does not verify, files that cannot be read, no OpenSSL."""


_CLASSES: dict[str, type[RpcError]] = {
    "CANCELLED": Cancelled, "UNKNOWN": Unknown, "INVALID_ARGUMENT": InvalidArgument,
    "DEADLINE_EXCEEDED": DeadlineExceeded, "NOT_FOUND": NotFound, "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied, "RESOURCE_EXHAUSTED": ResourceExhausted,
    "FAILED_PRECONDITION": FailedPrecondition, "ABORTED": Aborted, "OUT_OF_RANGE": OutOfRange,
    "UNIMPLEMENTED": Unimplemented, "INTERNAL": Internal, "UNAVAILABLE": Unavailable, "DATA_LOSS": DataLoss,
    "UNAUTHENTICATED": Unauthenticated,
}  # fmt: skip


def rpc_error(code: int, details: str) -> RpcError:
    """The exception for gRPC's number of a status. Numbers that gRPC does not define are UNKNOWN."""
    name = STATUS_NAMES[code] if 0 < code < len(STATUS_NAMES) else "UNKNOWN"
    kind = _CLASSES[name]
    if name == "UNAVAILABLE":
        if "TLS: " in details:
            kind = TlsError
        elif "connect: " in details:
            kind = ConnectError
    return kind(name, details)


def status_code(name: str) -> int:
    """gRPC's number of a status. ValueError for a name that is none."""
    if name not in _CLASSES:
        raise ValueError(f"{name!r} is no gRPC status of an error; UNAVAILABLE, RESOURCE_EXHAUSTED, ... are")
    return STATUS_NAMES.index(name)
