"""A light client for TensorFlow Serving's gRPC API: numpy in, numpy out, without TensorFlow and grpcio.

    from fastserve.client import Client

    with Client("localhost:8500") as client:
        scores = client.predict("ranker", {"dense": dense, "sparse": sparse})["score"]

`Client` is for threads, `AsyncClient` for asyncio; their methods and arguments are the same. Importing this
loads neither numpy nor asyncio; both come with first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastserve.client.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ClosedError,
    ConnectError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    RpcError,
    TlsError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from fastserve.client.options import Eject, Hedge, Keepalive, Retry, Tls
from fastserve.client.prediction import Prediction
from fastserve.client.sync import Client

if TYPE_CHECKING:
    from fastserve.client.aio import AsyncClient

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClosedError",
    "ConnectError",
    "DataLoss",
    "DeadlineExceeded",
    "Eject",
    "FailedPrecondition",
    "Hedge",
    "Internal",
    "InvalidArgument",
    "Keepalive",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Prediction",
    "ResourceExhausted",
    "Retry",
    "RpcError",
    "Tls",
    "TlsError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncClient":
        from fastserve.client.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
