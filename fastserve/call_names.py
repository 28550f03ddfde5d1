"""The names of what the native code numbers in calls: a number is a name's place."""

from __future__ import annotations

# gRPC's status codes, enum fs_code.
CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# enum fs_call_kind, and SessionRun.
METHODS = ("Predict", "Classify", "Regress", "MultiInference", "SessionRun")
# enum fs_transport: who calls. The gateway does for REST, and the web service's workers for their routes.
TRANSPORTS = ("grpc", "rest", "web")
