"""The requests that a version brings along for its warm-up, as TensorFlow Serving has them.

assets.extra/tf_serving_warmup_requests is a TFRecord file of PredictionLogs. Here each becomes a Predict
request, checked as the core would, with TensorFlow Serving's words where it is refused: the inputs for runs
here, and the message for the core's. What the records hold is also the best sample there is, save where they
say themselves that it was made up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from fastserve._native.codec import CodecError, decode_tensor, encode_tensor, parse_predict, view_tensor
from fastserve.errors import ModelError
from fastserve.offline.broadcast import spread
from fastserve.offline.tensors import STRING, Tensor, from_native
from fastserve.protos import message
from fastserve.savedmodel import Port, SavedModel, Signature
from fastserve.savedmodel.signature import dtype_name
from fastserve.savedmodel.tfrecord import TFRecordError, read_records

REQUESTS_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_RECORDS = 1000
# Rows that are kept as samples.
_POOL_ROWS = 1024
_DEFAULT_SIGNATURE = "serving_default"
_CLASSIFY, _REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_INPUTS = "inputs"
# Among the tags in the metadata of a record whose values are nobody's own. Servers do not look there.
_MADE_UP = "fastserve:made-up"


class WarmupError(ModelError):
    """The records cannot be run. `code`: a gRPC status name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class WarmupRequest:
    """One Predict request: its inputs in the order of the signature's, and its message. What it left out has
    its default in both. `made_up`: its record says that nobody has sent it."""

    signature: Signature
    inputs: tuple[Tensor, ...]
    request: Any
    made_up: bool = False


def read_requests(
    path: str | Path, saved_model: SavedModel, broadcast: Sequence[str] = ()
) -> list[WarmupRequest]:
    """The requests of the version in directory `path`; none where it has no such file. WarmupError.

    Inputs named in `broadcast` that came with one row have the request's rows; the message is as it came."""
    file = Path(path) / REQUESTS_FILE
    requests: list[WarmupRequest] = []
    count = 0
    try:
        for record in read_records(file):
            count += 1
            if count > MAX_RECORDS:
                raise WarmupError(
                    "INVALID_ARGUMENT",
                    f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {file}",
                )
            requests.extend(
                replace(warmup, inputs=spread(warmup.signature, broadcast, warmup.inputs))
                for warmup in requests_of(record, file, saved_model)
            )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WarmupError("FAILED_PRECONDITION", f"{file}: cannot be read: {error.strerror}") from None
    except TFRecordError as error:
        raise WarmupError(
            "DATA_LOSS", f"{error}. Please verify your warmup data is in TFRecord format."
        ) from None
    return requests


def made_up(signature: Signature, inputs: Sequence[Tensor]) -> WarmupRequest:
    """A request of our own, with these inputs in the order of the signature's."""
    request = message("tensorflow.serving.PredictRequest")()
    for port, tensor in zip(signature.inputs, inputs, strict=True):
        request.inputs[port.alias].ParseFromString(encode_tensor(tensor.native()))
    return WarmupRequest(signature, tuple(inputs), request)


def predict_record(signature: Signature, inputs: Mapping[str, Tensor], *, made_up: bool) -> bytes:
    """A record for a version to bring along: a PredictionLog of one Predict request with these inputs, by
    alias. `made_up`: it says so, and is taken for warm-up alone.
    CodecError: beyond what a request may be."""
    log = message("tensorflow.serving.PredictionLog")()
    if made_up:
        log.log_metadata.saved_model_tags.append(_MADE_UP)
    request = log.predict_log.request
    request.model_spec.signature_name = signature.name
    for alias, tensor in inputs.items():
        request.inputs[alias].ParseFromString(
            encode_tensor(tensor.native(), as_content=tensor.dtype != STRING)
        )
    parse_predict(request.SerializeToString())
    data: bytes = log.SerializeToString(deterministic=True)
    return data


def write_requests(requests: Iterable[WarmupRequest], path: str | Path, model: str, version: int) -> None:
    """The requests as the core reads them: each its length, as 4 bytes little-endian, and a PredictRequest
    for this version. OSError."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for warmup in requests:
            addressed = type(warmup.request).FromString(warmup.request.SerializeToString())
            spec = addressed.model_spec
            spec.Clear()
            spec.name, spec.signature_name = model, warmup.signature.name
            spec.version.value = version
            data = addressed.SerializeToString()
            file.write(struct.pack("<I", len(data)) + data)


def sample_rows(requests: Iterable[WarmupRequest]) -> dict[str, tuple[Tensor, ...]]:
    """By signature, rows of its requests that differ, as one tensor for each input; only where there are two
    of them at least, and inputs have rows."""
    pools: dict[str, tuple[Tensor, ...]] = {}
    taken: dict[str, list[tuple[Tensor, ...]]] = {}
    for warmup in requests:
        if all(port.dims and port.dims[0] < 0 for port in warmup.signature.inputs) and _rows(warmup.inputs):
            taken.setdefault(warmup.signature.name, []).append(warmup.inputs)
    for name, inputs in taken.items():
        alike = [tensors for tensors in inputs if _row_shapes(tensors) == _row_shapes(inputs[0])]
        joined = [
            Tensor(first.dtype, np.concatenate([tensors[i].array for tensors in alike])[:_POOL_ROWS])
            for i, first in enumerate(inputs[0])
        ]
        distinct = {_row_key(joined, row): row for row in range(len(joined[0].array))}
        if len(distinct) >= 2:
            kept = sorted(distinct.values())
            pools[name] = tuple(Tensor(tensor.dtype, tensor.array[kept]) for tensor in joined)
    return pools


def _rows(tensors: Sequence[Tensor]) -> int:
    """How many rows all of them have; 0 when they do not agree."""
    counts = {tensor.array.shape[0] if tensor.array.ndim else 0 for tensor in tensors}
    return counts.pop() if len(counts) == 1 else 0


def _row_shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tensor.array.shape[1:] for tensor in tensors]


def _row_key(tensors: Sequence[Tensor], row: int) -> tuple[Any, ...]:
    return tuple(
        tuple(tensor.array[row : row + 1].flat)
        if tensor.dtype == STRING
        else tensor.array[row : row + 1].tobytes()
        for tensor in tensors
    )


# ---- from a record to requests -----------------------------------------------------------------


def requests_of(record: bytes, file: Path, saved_model: SavedModel) -> list[WarmupRequest]:
    """The requests of one record. WarmupError, CodecError."""
    try:
        log = message("tensorflow.serving.PredictionLog").FromString(record)
    except DecodeError:
        shown = record[:200].decode("utf-8", "replace")
        raise WarmupError("INVALID_ARGUMENT", f"Failed to parse warmup record: {shown} from {file}") from None
    requests = _requests(log, saved_model)
    made_up = _MADE_UP in log.log_metadata.saved_model_tags
    return [replace(warmup, made_up=True) for warmup in requests] if made_up else requests


def _requests(log: Any, saved_model: SavedModel) -> list[WarmupRequest]:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        return [_predict(log.predict_log.request, saved_model)]
    if kind == "classify_log":
        request = log.classify_log.request
        return [_examples(request.model_spec, request.input, saved_model, _CLASSIFY)]
    if kind == "regress_log":
        request = log.regress_log.request
        return [_examples(request.model_spec, request.input, saved_model, _REGRESS)]
    if kind == "multi_inference_log":
        return _multi_inference(log.multi_inference_log.request, saved_model)
    if kind is None:
        return []
    number = log.DESCRIPTOR.fields_by_name[kind].number
    raise WarmupError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {number}")


def _predict(request: Any, saved_model: SavedModel) -> WarmupRequest:
    name = request.model_spec.signature_name or _DEFAULT_SIGNATURE
    signature = saved_model.signature(name)
    if signature is None:
        raise WarmupError("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
    given = parse_predict(request.SerializeToString()).inputs
    _check_aliases(signature, given)
    for alias in request.output_filter:
        if all(port.alias != alias for port in signature.outputs):
            expected = _aliases(port.alias for port in signature.outputs)
            raise WarmupError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{expected}.",
            )
    for port in signature.inputs:
        if port.alias not in given and port.default is not None:
            given[port.alias] = port.default
            request.inputs[port.alias].ParseFromString(port.default)
    inputs = tuple(
        _tensor(position, port, given[port.alias]) for position, port in enumerate(signature.inputs)
    )
    return WarmupRequest(signature, inputs, request)


def _check_aliases(signature: Signature, given: dict[str, bytes]) -> None:
    known = {port.alias for port in signature.inputs}
    missing = {port.alias for port in signature.inputs if port.alias not in given}
    defaults = {port.alias for port in signature.inputs if port.has_default}
    if len(given) > len(known) or (len(given) < len(known) and not defaults):
        raise WarmupError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(given)}!={len(known)} len({_aliases(given)}) != "
            f"len({_aliases(known)}). Sent extra: {_aliases(given.keys() - known)}. Missing but required: "
            f"{_aliases(missing)}.",
        )
    for port in signature.inputs:
        if port.alias in missing - defaults:
            raise WarmupError(
                "INVALID_ARGUMENT",
                f"Signature input alias: {port.alias}(feed name: {port.tensor}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_aliases(given)}, or default "
                f"input alias set: {','.join(sorted(defaults))}",
            )
    if given.keys() - known:
        raise WarmupError(
            "INVALID_ARGUMENT",
            f"Inputs contains invalid name. Used request inputs: {','.join(sorted(given.keys() & known))}, "
            f"request input: {','.join(sorted(given))}",
        )


def _aliases(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _tensor(position: int, port: Port, proto: bytes) -> Tensor:
    try:
        view = view_tensor(proto)
        if view.dtype != port.dtype:
            raise WarmupError(
                "INVALID_ARGUMENT",
                f"Expects arg[{position}] to be {dtype_name(port.dtype)} but {dtype_name(view.dtype)} is "
                "provided",
            )
        return from_native((view.dtype, view.dims, decode_tensor(proto)))
    except CodecError:
        raise WarmupError("INVALID_ARGUMENT", f"tensor parsing error: {port.alias}") from None
    except ValueError as error:
        raise WarmupError("INVALID_ARGUMENT", f"tensor parsing error: {port.alias}: {error}") from None


def _examples(spec: Any, given: Any, saved_model: SavedModel, method: str) -> WarmupRequest:
    """Classify or Regress: the same signature's Predict, with the serialized Examples as its one input."""
    name = spec.signature_name or _DEFAULT_SIGNATURE
    signature = saved_model.signature(name)
    if signature is None:
        raise WarmupError("INVALID_ARGUMENT", f"No signature was found with the name: {name}")
    if len(signature.inputs) != 1:
        raise WarmupError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if signature.inputs[0].alias != _INPUTS:
        what = "classification" if method == _CLASSIFY else "regression"
        raise WarmupError("INVALID_ARGUMENT", f"No {what} inputs found in SignatureDef: {signature.name}")
    examples = [example.SerializeToString(deterministic=True) for example in given.example_list.examples]
    if given.WhichOneof("kind") == "example_list_with_context":
        shared = given.example_list_with_context
        # Messages one after the other are one message, in which the later one's fields count.
        context = shared.context.SerializeToString(deterministic=True)
        examples = [context + example.SerializeToString(deterministic=True) for example in shared.examples]
    if not examples:
        raise WarmupError("INVALID_ARGUMENT", "Input is empty.")
    request = message("tensorflow.serving.PredictRequest")()
    request.model_spec.signature_name = name
    tensor = request.inputs[_INPUTS]
    tensor.dtype = STRING
    tensor.tensor_shape.dim.add().size = len(examples)
    tensor.string_val.extend(examples)
    return _predict(request, saved_model)


def _multi_inference(request: Any, saved_model: SavedModel) -> list[WarmupRequest]:
    names: set[str] = set()
    requests = []
    for task in request.tasks:
        name = task.model_spec.signature_name or _DEFAULT_SIGNATURE
        if name in names:
            raise WarmupError("INVALID_ARGUMENT", f"Duplicate evaluation of signature: {name}")
        names.add(name)
        if saved_model.signature(name) is None:
            raise WarmupError("INVALID_ARGUMENT", f"Requested signature not found in model graph: {name}")
        if task.method_name not in (_CLASSIFY, _REGRESS):
            raise WarmupError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        requests.append(_examples(task.model_spec, request.input, saved_model, task.method_name))
    return requests
