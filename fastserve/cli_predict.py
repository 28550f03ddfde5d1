"""`fastserve predict`: one call from the shell, JSON or .npz in, JSON or .npz out.

JSON is TensorFlow Serving's REST form: {"inputs": {name: values}} by columns, {"instances": [...]} by rows,
and {"examples": [...]} for Classify and Regress; {"b64": "..."} is a string of bytes. Dtypes come from
--dtype, else from the server's metadata, else from the JSON: numbers with a point are float32, others int64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastserve.client import Client, Prediction, RpcError, Tls, Unavailable
from fastserve.input_file import Content, InputError, cast, decoded, parse_dtypes, read_inputs, to_arrays

if TYPE_CHECKING:
    import numpy

    Array = numpy.ndarray[Any, Any]

DEFAULT_SIGNATURE = "serving_default"
PREDICT = "predict"


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
        inputs = {name: cast(name, array, dtypes.get(name)) for name, array in content.arrays.items()}
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
        examples = content.arrays or {name: decoded(value) for name, value in content.columns.items()}
    context = content.context
    spec: dict[str, Any] = {
        "version": ask.version,
        "label": ask.label,
        "signature": ask.signature or content.signature,
    }
    if ask.method == "classify":
        return json.dumps({"results": client.classify(ask.model, examples, context=context, **spec)})
    return json.dumps({"results": client.regress(ask.model, examples, context=context, **spec).tolist()})


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
