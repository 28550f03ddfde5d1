"""Signatures as the native runtime opens them: parts of a ServableSpec, which is JSON. Values only."""

from __future__ import annotations

import base64
from typing import Any

from fastserve.savedmodel import Port, Signature


def signature_spec(signature: Signature, twin: tuple[str, ...] | None) -> dict[str, Any]:
    """A signature as the runtime opens it. `twin`: the outputs of its compiled form, if it has one."""
    return {
        "name": signature.name,
        "method_name": signature.method_name,
        "inputs": [_port(port) for port in signature.inputs],
        "outputs": [_port(port) for port in signature.outputs],
        "compiled_outputs": None if twin is None else list(twin),
    }


def _port(port: Port) -> dict[str, Any]:
    dims = None if port.dims is None else list(port.dims)
    spec: dict[str, Any] = {"alias": port.alias, "tensor": port.tensor, "dtype": port.dtype, "dims": dims}
    if port.default is not None:
        spec["default"] = base64.b64encode(port.default).decode()
    return spec
