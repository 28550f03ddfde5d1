"""`fastserve predict`: one call from the shell, JSON or .npz in, JSON or .npz out.

JSON is TensorFlow Serving's REST form: {"inputs": {name: values}} by columns, {"instances": [...]} by rows,
and {"examples": [...]} for Classify and Regress; {"b64": "..."} is a string of bytes. Dtypes come from
--dtype, else from the server's metadata, else from the JSON: numbers with a point are float32, others int64.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from fastserve.client import Client, Prediction, RpcError, Tls, Unavailable
from fastserve.errors import FastServeError

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

STDIN = "-"
DEFAULT_SIGNATURE = "serving_default"
PREDICT = "predict"


class InputError(FastServeError):
    """The file of inputs, or an argument, is wrong."""

    exit_code = 2


@dataclass(frozen=True)
class Ask:
    """The command's arguments."""

    model: str
    source: str
    addresses: tuple[str, ...]
    signature: str | None = None
    version: int | None = None
    label: str | None = None
    outputs: tuple[str, ...] = ()
    output: str | None = None
    timeout: float = 60.0
    dtypes: tuple[str, ...] = ()
    tls: Tls | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    compression: str | None = None
    method: str = PREDICT


def run(ask: Ask) -> str:
    """Makes the call; the text to print, "" when a file was written. FastServeError."""
    try:
        client = Client(
            ask.addresses,
            tls=ask.tls,
            timeout=ask.timeout,
            metadata=ask.metadata,
            compression=ask.compression,
        )
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    with client:
        content = read_inputs(ask.source)
        try:
            if ask.method != PREDICT:
                return _score(client, ask, content)
            answer = _predict(client, ask, content)
        except (TypeError, ValueError) as error:
            raise InputError(str(error)) from None
    if ask.output is not None:
        _write_npz(ask.output, answer)
        return ""
    return to_json(answer)


def _predict(client: Client, ask: Ask, content: Content) -> Prediction:
    if content.examples is not None:
        raise InputError(f"{ask.source} has examples: say --method classify or regress")
    dtypes = parse_dtypes(ask.dtypes)
    signature = ask.signature or content.signature
    if content.arrays is None:
        inputs = to_arrays(content.columns, dtypes, _signature_inputs(client, ask, signature))
    else:
        inputs = {name: _cast(name, array, dtypes.get(name)) for name, array in content.arrays.items()}
    return client.predict(
        ask.model,
        inputs,
        version=ask.version,
        label=ask.label,
        signature=signature,
        outputs=ask.outputs or None,
    )


def _score(client: Client, ask: Ask, content: Content) -> str:
    """Classify or Regress; examples may be given by columns, too."""
    if ask.output is not None or ask.outputs or ask.dtypes:
        raise InputError("--output, --only and --dtype are for --method predict")
    examples: Any = content.examples
    if examples is None:
        examples = content.arrays or {name: _decoded(value) for name, value in content.columns.items()}
    context = content.context
    spec: dict[str, Any] = {
        "version": ask.version,
        "label": ask.label,
        "signature": ask.signature or content.signature,
    }
    if ask.method == "classify":
        return json.dumps({"results": client.classify(ask.model, examples, context=context, **spec)})
    return json.dumps({"results": client.regress(ask.model, examples, context=context, **spec).tolist()})


# ---- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Content:
    """What a file of inputs has: arrays, or JSON's values by input. The name "" is that of the only input."""

    arrays: dict[str, Array] | None
    columns: dict[str, Any]
    signature: str | None = None
    examples: list[dict[str, Any]] | None = None
    context: dict[str, Any] | None = None


def read_inputs(source: str) -> Content:
    """Reads an .npz or JSON file, "-" for JSON on the standard input. InputError."""
    try:
        data = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    if data.startswith(b"PK\x03\x04"):
        return Content(_read_npz(source), {})
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise InputError(f"{source} is neither .npz nor JSON: {error}") from None
    kinds = [key for key in ("inputs", "instances", "examples") if isinstance(parsed, dict) and key in parsed]
    if len(kinds) != 1:
        raise InputError(
            f'{source}: expected {{"inputs": {{NAME: VALUES}}}}, {{"instances": [...]}} '
            f'or {{"examples": [...]}}'
        )
    signature = parsed.get("signature_name")
    if signature is not None and not isinstance(signature, str):
        raise InputError(f"{source}: signature_name is text, not {json.dumps(signature)}")
    if "examples" in parsed:
        examples, context = _decoded(parsed["examples"]), _decoded(parsed.get("context"))
        if not isinstance(examples, list) or not isinstance(context, (dict, NoneType)):
            raise InputError(f"{source}: examples is a list of {{FEATURE: VALUE}}, context one of them")
        return Content(None, {}, signature, examples, context)
    if "instances" in parsed:
        return Content(None, _columns_of(source, parsed["instances"]), signature)
    inputs = parsed["inputs"]
    if isinstance(inputs, dict) and not _is_bytes(inputs):
        return Content(None, inputs, signature)
    return Content(None, {"": inputs}, signature)


def _read_npz(source: str) -> dict[str, Array]:
    import zipfile

    import numpy as np

    try:
        with np.load(source, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {error}") from None


def _columns_of(source: str, instances: Any) -> dict[str, Any]:
    """Rows to columns."""
    if not isinstance(instances, list) or not instances:
        raise InputError(f"{source}: instances is a list of at least one row")
    first = instances[0]
    if not isinstance(first, dict) or _is_bytes(first):
        return {"": instances}
    for i, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != set(first):
            raise InputError(
                f"{source}: instance {i} does not have the inputs of the first: {', '.join(first)}"
            )
    return {name: [row[name] for row in instances] for name in first}


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


# ---- dtypes ------------------------------------------------------------------------------------------------


def parse_dtypes(pairs: tuple[str, ...]) -> dict[str, str]:
    """--dtype NAME=DTYPE by name; without NAME for the only input."""
    dtypes = {}
    for pair in pairs:
        name, _, dtype = pair.rpartition("=")
        if not dtype:
            raise InputError(f"--dtype {pair}: expected NAME=DTYPE, such as user_id=int64")
        dtypes[name] = dtype
    return dtypes


def _signature_inputs(client: Client, ask: Ask, signature: str | None) -> dict[str, str]:
    """The dtypes of the signature's inputs, as far as the server tells; {}: it does not."""
    try:
        found = client.metadata(ask.model, version=ask.version, label=ask.label)
    except Unavailable:
        raise
    except RpcError:
        return {}  # a server without this method; and what else is wrong, predict will say
    known = found.signatures.get(signature or DEFAULT_SIGNATURE)
    return {name: info.dtype for name, info in known.inputs.items()} if known is not None else {}


def to_arrays(
    columns: Mapping[str, Any], dtypes: Mapping[str, str], known: Mapping[str, str]
) -> dict[str, Array]:
    """Arrays from JSON's values. `dtypes` rule over `known`, the signature's own; InputError names the
    input."""
    arrays = {}
    for given, value in columns.items():
        name = given
        if not name:
            candidates = set(known) or {key for key in dtypes if key}
            if len(candidates) != 1:
                says = ", ".join(sorted(known)) or "the server does not say which there are"
                raise InputError(f'name the inputs, {{"inputs": {{NAME: VALUES}}}}: {says}')
            name = next(iter(candidates))
        arrays[name] = _array(name, value, dtypes.get(name) or dtypes.get("") or known.get(name))
    return arrays


def _array(name: str, value: Any, dtype: str | None) -> Array:
    import numpy as np

    leaf = value
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if dtype is None:
        if isinstance(leaf, str) or _is_bytes(leaf):
            dtype = "string"
        elif isinstance(leaf, float) or _has_float(value):
            dtype = "float32"
    try:
        if dtype in ("string", "object", "bytes"):
            return np.array(_decoded(value), dtype=object)
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"input {name!r}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"input {name!r} is not of numbers, or its rows are not of one length")
    return _cast(name, array, dtype)


def _has_float(value: Any) -> bool:
    return any(map(_has_float, value)) if isinstance(value, list) else isinstance(value, float)


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if _is_bytes(value):
        return base64.b64decode(value["b64"])
    return {key: _decoded(item) for key, item in value.items()} if isinstance(value, dict) else value


def _cast(name: str, array: Array, dtype: str | None) -> Array:
    """The array in another dtype, by its name, if no value is lost but digits of a float."""
    import numpy as np

    if dtype is None or dtype in ("string", "object", "bytes"):
        return array
    try:
        kind = np.dtype(_ml_dtype(dtype) or dtype)
    except TypeError:
        raise InputError(f"input {name!r}: {dtype!r} is no dtype") from None
    with np.errstate(all="ignore"):
        made = array.astype(kind)
        if kind.kind in "iub" and array.size and not np.array_equal(made.astype(array.dtype), array):
            raise InputError(f"input {name!r} has values that {dtype} cannot hold")
    return made


def _ml_dtype(name: str) -> Any:
    """A dtype of ml_dtypes, None for what is none or where that is not installed."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return getattr(ml_dtypes, name, None)


# ---- writing -----------------------------------------------------------------------------------------------


def to_json(answer: Prediction) -> str:
    """One JSON object: model, version, signature, outputs."""
    outputs = {name: _plain(array) for name, array in answer.items()}
    spec = {"model": answer.model, "version": answer.version, "signature": answer.signature}
    return json.dumps({**spec, "outputs": outputs}, ensure_ascii=False)


def _plain(array: Array) -> Any:
    import numpy as np

    if array.dtype == object:
        return _texts(array.tolist())
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], axis=-1).tolist()
    if array.dtype.kind not in "biuf":
        array = array.astype(np.float64)
    return array.tolist()


def _texts(value: Any) -> Any:
    if isinstance(value, list):
        return [_texts(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _write_npz(path: str, answer: Prediction) -> None:
    import numpy as np

    arrays: dict[str, Any] = {}
    for name, array in answer.items():
        # .npz keeps bytes of one width; an object array would be a pickle.
        arrays[name] = array.astype(bytes) if array.dtype == object else array
    try:
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def read_token(path: str) -> str:
    """The first line of a token file that is neither empty nor a comment. InputError; it shows no token."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise InputError(f"--token-file {path}: {reason}") from None
    for line in map(str.strip, lines):
        if line.startswith("sha256:"):
            raise InputError(
                f"--token-file {path}: has a token's digest, which servers take; a call needs the token"
            )
        if line and not line.startswith("#"):
            return line
    raise InputError(f"--token-file {path}: has no token")


# ---- the command line --------------------------------------------------------------------------------------


def ask_of(model: str, options: Mapping[str, Any]) -> Ask:
    """From the options of the command. InputError."""
    if options["label"] is not None and options["version_number"] is not None:
        raise InputError("--version or --label, not both")
    headers = []
    for pair in options["headers"]:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--header {pair}: expected NAME=VALUE")
        headers.append((name, value))
    if options["token_file"] is not None:
        headers.append(("authorization", f"Bearer {read_token(options['token_file'])}"))
    files = {key: options[f"tls_{key}"] for key in ("ca", "cert", "key", "server_name")}
    tls = None
    if options["tls"] or any(files.values()):
        try:
            tls = Tls(files["ca"], files["cert"], files["key"], files["server_name"])
        except ValueError:
            raise InputError("--tls-cert and --tls-key go together") from None
    return Ask(
        model=model,
        source=options["source"],
        addresses=options["addresses"],
        signature=options["signature"],
        version=options["version_number"],
        label=options["label"],
        outputs=options["outputs"],
        output=options["output"],
        timeout=options["timeout"],
        dtypes=options["dtypes"],
        tls=tls,
        metadata=tuple(headers),
        compression=options["compression"],
        method=options["method"],
    )
