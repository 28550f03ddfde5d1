"""Client: calls by the threads that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastserve._native.client import Channel, ClosedError
from fastserve.client import methods
from fastserve.client.addresses import Endpoint, Target, resolve
from fastserve.client.base import (
    DEFAULT_EJECT,
    DEFAULT_KEEPALIVE,
    DEFAULT_RETRY,
    MAX_REPLY_BYTES,
    Addresses,
    Metadata,
    Plan,
    spec,
)
from fastserve.client.chunks import chooser
from fastserve.client.errors import ConnectError, RpcError
from fastserve.client.options import Eject, Hedge, Keepalive, Options, Retry, Tls
from fastserve.client.prediction import Prediction

if TYPE_CHECKING:
    from fastserve.client.examples import Examples
    from fastserve.client.messages import ModelMetadata, VersionStatus


class Client:
    """Calls a model server, or several that serve the same.

    addresses: "HOST:PORT", "[IPV6]:PORT" or "unix:PATH", one or several; a name stands for all its addresses.
    Connections are made by the calls that need them and kept. Any number of threads may share a client; a
    child process needs its own.

    tls: Tls(...), None for plain; balance: "round_robin" or "least_outstanding"; connections: to each server;
    timeout: seconds for a call that gives none (None: no limit); connect_timeout: seconds; retry, hedge,
    eject, keepalive: see there, None turns each off; max_reply_bytes: larger replies fail with
    RESOURCE_EXHAUSTED, and one that would take four times as much once decoded with INTERNAL; compression: of
    requests, "gzip" or "deflate" (what servers compress is always understood); metadata: (name, value) pairs
    sent with every call, values of names ending in "-bin" bytes; wait_for_ready: calls wait for a server
    until their timeout instead of failing with UNAVAILABLE when every address has refused.

    TypeError and ValueError for arguments that are wrong. Calls raise subclasses of RpcError.
    """

    def __init__(
        self,
        addresses: Addresses,
        *,
        tls: Tls | None = None,
        balance: str = "round_robin",
        connections: int = 1,
        timeout: float | None = None,
        connect_timeout: float = 1.0,
        retry: Retry | None = DEFAULT_RETRY,
        hedge: Hedge | None = None,
        eject: Eject | None = DEFAULT_EJECT,
        keepalive: Keepalive | None = DEFAULT_KEEPALIVE,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        compression: str | None = None,
        metadata: Metadata = (),
        wait_for_ready: bool = False,
    ) -> None:
        options = Options(
            tls, balance, connections, timeout, connect_timeout, retry, hedge, eject, keepalive,
            max_reply_bytes, compression, metadata, wait_for_ready,
        )  # fmt: skip
        self._plan = Plan(addresses, options)
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._connections = 1
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def predict(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        outputs: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> Prediction:
        """The outputs of `model` for `inputs`, arrays by name.

        inputs: arrays by name. Contiguous arrays are sent from where they lie and must not change meanwhile;
        lists and scalars become what numpy makes of them (int64, float64): give arrays where the model wants
        another dtype. Strings: str (as UTF-8) or bytes, in lists, 'S', 'U', object or StringDType arrays.
        dtypes of ml_dtypes (bfloat16, float8, int4) are sent as such. Inputs that the server's model has in
        `broadcast` may have one row, which it gives to all of the others' rows.
        version or label: of the model, default the server's newest; signature: default "serving_default";
        outputs: names of those wanted, default all; timeout: seconds; metadata: pairs for this call.

        Strings come back as arrays of bytes objects. TypeError and ValueError for arguments; RpcError.
        """
        answer = Prediction()
        asked = spec(model, version, label, signature, outputs)
        channel = self._ready()
        try:
            answer.model, answer.version, answer.signature = channel.predict(
                asked, inputs, self._plan.timeout(timeout), metadata, answer
            )
        except RpcError as error:
            self._failed(error)
            raise
        return answer

    def predict_many(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        chunk_rows: int | None = None,
        parallel: int | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        outputs: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> Prediction:
        """As predict, for many rows: they are cut into chunks that are sent at once, over different
        connections and to different servers, and the answers are joined in the rows' order.

        Every input has the same number of rows, its first dimension; every output must have a row for each.
        chunk_rows: rows in a chunk, default one chunk for each connection, of at least 32 rows; parallel:
        chunks under way at once, default all. timeout is for the whole. When a chunk fails, all do. If the
        chunks are answered by different versions of the model, the error is INTERNAL: give version or label
        where versions may change meanwhile.
        """
        answer = Prediction()
        asked = spec(model, version, label, signature, outputs)
        channel = self._ready()
        choose = chooser(chunk_rows, parallel, self._connections)
        try:
            answer.model, answer.version, answer.signature = channel.predict_many(
                asked, inputs, choose, self._plan.timeout(timeout), metadata, answer
            )
        except RpcError as error:
            self._failed(error)
            raise
        return answer

    def classify(
        self,
        model: str,
        examples: Examples,
        *,
        context: Mapping[str, Any] | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> list[list[tuple[str, float]]]:
        """Classify: for each example its classes, each a label and a score.

        examples: {feature: column} or a list of {feature: value}, see fastserve.client.examples; context: one
        example whose features all of them share. The rest as in predict. ValueError for what cannot be sent;
        RpcError.
        """
        message = methods.examples_request(model, examples, context, version, label, signature)
        reply = self.call(methods.CLASSIFY, message, timeout=timeout, metadata=metadata)
        return methods.classifications(reply)

    def regress(
        self,
        model: str,
        examples: Examples,
        *,
        context: Mapping[str, Any] | None = None,
        version: int | None = None,
        label: str | None = None,
        signature: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> methods.Values:
        """Regress: float32 [n], the value of each example. Arguments as in classify."""
        message = methods.examples_request(model, examples, context, version, label, signature)
        reply = self.call(methods.REGRESS, message, timeout=timeout, metadata=metadata)
        return methods.regressions(reply)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> ModelMetadata:
        """GetModelMetadata: the model's signatures with their inputs and outputs, and which version has
        them. RpcError, NOT_FOUND for a model that is not served."""
        message = methods.metadata_request(model, version, label)
        reply = self.call(methods.METADATA, message, timeout=timeout, metadata=metadata)
        return methods.model_metadata(reply)

    def status(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> list[VersionStatus]:
        """GetModelStatus: the state of each version of the model, or of the one asked for. RpcError,
        NOT_FOUND for a model that the server does not know."""
        message = methods.status_request(model, version, label)
        reply = self.call(methods.STATUS, message, timeout=timeout, metadata=metadata)
        return methods.statuses(reply)

    def call(
        self,
        path: str,
        message: bytes,
        *,
        idempotent: bool = True,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> bytes:
        """Any unary method, "/package.Service/Method", of which both messages are bytes. One that is not
        idempotent is made again only if no server has looked at it, and never hedged."""
        channel = self._ready()
        try:
            return channel.unary(path.encode(), message, self._plan.timeout(timeout), metadata, idempotent)
        except RpcError as error:
            self._failed(error)
            raise

    def stats(self) -> dict[str, Any]:
        """Counters since the first call: calls, retries, unprocessed (made again because no server had looked
        at them), hedges, hedge_wins, budget_refusals, bytes_in, bytes_out; endpoints: a list of address,
        attempts, failures, ejections, outstanding, connections, ejected."""
        return self._ready().stats()

    def close(self) -> None:
        """Ends calls that are under way with CANCELLED, and the connections."""
        with self._lock:
            self._closed = True
            channel = self._channel
        if channel is not None:
            channel.close()

    def _ready(self) -> Channel:
        return self._channel or self._open()

    def _open(self) -> Channel:
        with self._lock:
            if self._closed:
                raise ClosedError("this client is closed: make another")
            if self._channel is None:
                self._channel = self._plan.open(self._resolve())
                self._connections = self._count(self._channel)
            return self._channel

    def _count(self, channel: Channel) -> int:
        return max(1, len(channel.endpoints)) * int(self._plan.options.connections)

    def _resolve(self) -> dict[Target, list[Endpoint]]:
        """What the names resolve to; ConnectError when there is no address at all."""
        found: dict[Target, list[Endpoint]] = {}
        failure: ConnectError | None = None
        for target in self._plan.directory.names:
            try:
                found[target] = resolve(target)
            except ConnectError as error:
                failure = error
        if failure is not None and not self._plan.directory.endpoints(found):
            raise failure
        return found

    def _failed(self, error: RpcError) -> None:
        """The servers may have moved: their names are resolved again, beside the caller."""
        if self._plan.should_resolve(error):
            threading.Thread(target=self._resolve_again, name="fastserve-resolve", daemon=True).start()

    def _resolve_again(self) -> None:
        try:
            found = self._resolve()
            channel = self._channel
            if channel is not None:
                channel.update(self._plan.directory.endpoints(found))
                self._connections = self._count(channel)
        except (ConnectError, ClosedError):
            return  # the addresses of before stand
