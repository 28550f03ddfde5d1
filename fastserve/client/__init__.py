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
    from fastserve.client.examples import Ragged
    from fastserve.client.messages import (
        ModelMetadata,
        SignatureInfo,
        TensorInfo,
        VersionState,
        VersionStatus,
    )

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
    "ModelMetadata",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "Prediction",
    "Ragged",
    "ResourceExhausted",
    "Retry",
    "RpcError",
    "SignatureInfo",
    "TensorInfo",
    "Tls",
    "TlsError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "VersionState",
    "VersionStatus",
]


# What is imported when it is asked for.
_LATER = {
    "AsyncClient": "aio",
    "Ragged": "examples",
    "ModelMetadata": "messages",
    "SignatureInfo": "messages",
    "TensorInfo": "messages",
    "VersionState": "messages",
    "VersionStatus": "messages",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
