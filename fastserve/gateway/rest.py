"""TensorFlow Serving's REST API: one method for each verb. Runs on the loop."""

from __future__ import annotations

from aiohttp import web

from fastserve.client import errors, methods
from fastserve.client.aio import AsyncClient
from fastserve.client.messages import classification_request
from fastserve.client.prediction import Prediction
from fastserve.gateway import json_out
from fastserve.gateway.body import Body, Budget
from fastserve.gateway.json_examples import input_of
from fastserve.gateway.json_tensors import Tensors, inputs_of, signature_name, tensors_of
from fastserve.gateway.json_text import parse
from fastserve.gateway.paths import Place, place_of
from fastserve.gateway.refusal import HTTP_STATUS, InvalidArgument, Refusal, json_response
from fastserve.gateway.rest_metadata import metadata_json, status_json
from fastserve.gateway.settings import Settings
from fastserve.gateway.signatures import Metadata, Signatures

# Request headers that the core looks at whatever is configured.
FORWARDED = ("authorization", "traceparent", "tracestate")


def passed_on(forward: tuple[str, ...]) -> tuple[str, ...]:
    """The request headers that go on to the core: those that always do, and `forward`."""
    return (*FORWARDED, *(name for name in forward if name not in FORWARDED))


def metadata_of(request: web.BaseRequest, names: tuple[str, ...]) -> Metadata:
    """Those of a request's headers, as gRPC has them. Refusal."""
    headers = request.headers
    found = [(name, headers[name]) for name in names if name in headers]
    for name, value in found:
        if not value.isascii() or not value.isprintable():
            raise Refusal(400, f"the header {name} has characters that are not printable ASCII")
    return found


class Rest:
    """Answers what is below /v1/ with a client of the core. `forward`: further request headers to pass on."""

    def __init__(self, client: AsyncClient, settings: Settings, budget: Budget) -> None:
        self._client = client
        self._timeout_s = settings.timeout_s
        self._max_bytes = settings.max_body_bytes
        self._budget = budget
        self._signatures = Signatures(client, settings.timeout_s)
        self._cors = settings.cors
        self._forward: tuple[str, ...] = ()
        self.forward(settings.forward)
        self._verbs = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    def forward(self, headers: tuple[str, ...]) -> None:
        """The request headers that are passed on, beside those that always are."""
        self._forward = passed_on(headers)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._cors and request.method == "OPTIONS":
            return preflight(request)
        place = place_of(request.method, request.raw_path)
        metadata = metadata_of(request, self._forward)
        if request.method == "GET":
            look = self._metadata_of if place.verb == "metadata" else self._status
            return json_response(await look(place, metadata))
        with Body(self._max_bytes, self._timeout_s, self._budget) as body:
            answer = await self._verbs[place.verb](place, await body.read(request), metadata)
        return json_response(answer)

    async def _predict(self, place: Place, body: bytes, metadata: Metadata) -> bytes:
        known = self._signatures.remembered(place, metadata)
        found = known.readers.read(body) if known is not None else None
        if known is not None and found is not None:
            name, tensors, in_rows = found
        else:
            doc = parse(body)
            name = signature_name(doc)
            known = await self._signatures.get(place, metadata)
        try:
            if found is None:
                tensors, in_rows = tensors_of(doc, inputs_of(known.signatures, name), len(body))
            outputs = await self._predict_with(place, tensors, name, metadata)
        except (InvalidArgument, errors.InvalidArgument):
            # Perhaps another version has come, whose signature is another.
            now = await self._signatures.again(place, metadata)
            if now.signatures.get(name or "serving_default") == known.signatures.get(
                name or "serving_default"
            ):
                raise
            tensors, in_rows = tensors_of(parse(body), inputs_of(now.signatures, name), len(body))
            outputs = await self._predict_with(place, tensors, name, metadata)
        return json_out.predictions(outputs) if in_rows else json_out.columns(outputs)

    async def _predict_with(
        self, place: Place, tensors: Tensors, name: str, metadata: Metadata
    ) -> Prediction:
        try:
            outputs = await self._client.predict(
                place.model,
                tensors,
                version=place.version,
                label=place.label,
                signature=name or None,
                timeout=self._timeout_s,
                metadata=metadata,
            )
        except ValueError as error:  # what cannot be sent at all
            raise InvalidArgument(str(error)) from None
        self._signatures.answered(place, metadata, outputs.version)
        return outputs

    async def _classify(self, place: Place, body: bytes, metadata: Metadata) -> bytes:
        reply = await self._infer(methods.CLASSIFY, place, body, metadata)
        try:
            rows = methods.classifications(reply)
        except UnicodeDecodeError:
            raise Refusal(HTTP_STATUS["INTERNAL"], "Failed to write class label: it is not UTF-8") from None
        if not rows:
            raise InvalidArgument("Cannot convert empty ClassificationResults to JSON")
        return json_out.classes(rows)

    async def _regress(self, place: Place, body: bytes, metadata: Metadata) -> bytes:
        values = methods.regressions(await self._infer(methods.REGRESS, place, body, metadata))
        if not len(values):
            raise InvalidArgument("Cannot convert empty RegressionResults to JSON")
        return b'{"results":' + json_out.numbers(values) + b"}"

    async def _infer(self, path: str, place: Place, body: bytes, metadata: Metadata) -> bytes:
        doc = parse(body)
        name = signature_name(doc)
        try:
            message = classification_request(
                place.model, input_of(doc), signature=name, version=place.version, label=place.label
            )
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        return await self._client.call(path, message, timeout=self._timeout_s, metadata=metadata)

    async def _status(self, place: Place, metadata: Metadata) -> bytes:
        return status_json(
            await self._client.status(
                place.model,
                version=place.version,
                label=place.label,
                timeout=self._timeout_s,
                metadata=metadata,
            )
        )

    async def _metadata_of(self, place: Place, metadata: Metadata) -> bytes:
        message = methods.metadata_request(place.model, place.version, place.label)
        return metadata_json(
            await self._client.call(methods.METADATA, message, timeout=self._timeout_s, metadata=metadata)
        )


def preflight(request: web.BaseRequest) -> web.Response:
    """A browser asks whether a page of another origin may."""
    origin = request.headers.get("Origin", "")
    if "http://" not in origin and "https://" not in origin:
        raise Refusal(HTTP_STATUS["FAILED_PRECONDITION"], "Origin header is missing in CORS preflight")
    return json_response(b"")
