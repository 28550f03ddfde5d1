"""Versions as the native runtime opens them: a ServableSpec, which is JSON. Values only."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastserve.savedmodel import Port, Signature


def servable_spec(
    model: str,
    version: int,
    path: str | Path,
    tags: Sequence[str],
    signatures: Iterable[Signature],
    config: bytes,
    *,
    plain_config: bytes | None = None,
    twins: Mapping[str, tuple[str, ...]] | None = None,
    runtime: str = "tensorflow",
) -> dict[str, Any]:
    """A version in the directory `path`. `config`: its session's, `plain_config`: that of one that does not
    cluster, where it does. `twins`: by signature, the outputs of its compiled form."""
    twins = twins or {}
    return {
        "model": model,
        "version": version,
        "path": str(Path(path).absolute()),
        "runtime": runtime,
        "tags": list(tags),
        "session_config": base64.b64encode(config).decode(),
        "plain_config": None if plain_config is None else base64.b64encode(plain_config).decode(),
        "signatures": [signature_spec(signature, twins.get(signature.name)) for signature in signatures],
    }


def signature_spec(signature: Signature, twin: tuple[str, ...] | None) -> dict[str, Any]:
    """`twin`: the outputs of its compiled form, if it has one."""
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
