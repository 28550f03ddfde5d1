"""AsyncClient: calls by an asyncio event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastserve._native.client import Channel, ClosedError
from fastserve.client import methods
from fastserve.client.addresses import Endpoint, Target, endpoints_of, unresolved
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


class AsyncClient:
    """As Client, for asyncio, on its own loop or uvloop: the same arguments and methods, these as coroutines.

    Belongs to the loop of its first call. Cancelling a task cancels its call at the server. `await close()`,
    or `async with`.
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
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Channel | None = None
        self._resolving: asyncio.Task[None] | None = None
        self._connections = 1
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def predict(
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
        """See Client.predict."""
        answer = Prediction()
        asked = spec(model, version, label, signature, outputs)
        channel = await self._ready()
        try:
            answer.model, answer.version, answer.signature = await channel.predict_async(
                asked, inputs, self._plan.timeout(timeout), metadata, answer
            )
        except RpcError as error:
            self._failed(error)
            raise
        return answer

    async def predict_many(
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
        """See Client.predict_many."""
        answer = Prediction()
        asked = spec(model, version, label, signature, outputs)
        channel = await self._ready()
        choose = chooser(chunk_rows, parallel, self._connections)
        try:
            answer.model, answer.version, answer.signature = await channel.predict_many_async(
                asked, inputs, choose, self._plan.timeout(timeout), metadata, answer
            )
        except RpcError as error:
            self._failed(error)
            raise
        return answer

    async def classify(
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
        """See Client.classify."""
        message = methods.examples_request(model, examples, context, version, label, signature)
        reply = await self.call(methods.CLASSIFY, message, timeout=timeout, metadata=metadata)
        return methods.classifications(reply)

    async def regress(
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
        """See Client.regress."""
        message = methods.examples_request(model, examples, context, version, label, signature)
        reply = await self.call(methods.REGRESS, message, timeout=timeout, metadata=metadata)
        return methods.regressions(reply)

    async def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> ModelMetadata:
        """See Client.metadata."""
        message = methods.metadata_request(model, version, label)
        reply = await self.call(methods.METADATA, message, timeout=timeout, metadata=metadata)
        return methods.model_metadata(reply)

    async def status(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> list[VersionStatus]:
        """See Client.status."""
        message = methods.status_request(model, version, label)
        reply = await self.call(methods.STATUS, message, timeout=timeout, metadata=metadata)
        return methods.statuses(reply)

    async def call(
        self,
        path: str,
        message: bytes,
        *,
        idempotent: bool = True,
        timeout: float | None = None,
        metadata: Metadata = (),
    ) -> bytes:
        """See Client.call."""
        channel = await self._ready()
        try:
            reply: bytes = await channel.unary_async(
                path.encode(), message, self._plan.timeout(timeout), metadata, idempotent
            )
        except RpcError as error:
            self._failed(error)
            raise
        return reply

    async def stats(self) -> dict[str, Any]:
        """See Client.stats."""
        return (await self._ready()).stats()

    async def close(self) -> None:
        """Ends calls that are under way with CANCELLED, and the connections."""
        self._closed = True
        if self._resolving is not None:
            self._resolving.cancel()
            self._resolving = None
        if self._channel is not None:
            self._channel.close()

    async def _ready(self) -> Channel:
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            return self._channel
        return await self._open()

    async def _open(self) -> Channel:
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise ClosedError("this AsyncClient belongs to another event loop: make one for each")
        self._loop = loop
        async with self._lock:
            if self._closed:
                raise ClosedError("this client is closed: make another")
            if self._channel is None:
                channel = self._plan.open(await self._resolve())
                if self._closed:
                    raise ClosedError("this client is closed: make another")
                channel.attach(loop)
                self._channel = channel
                self._connections = self._count(channel)
            return self._channel

    def _count(self, channel: Channel) -> int:
        return max(1, len(channel.endpoints)) * int(self._plan.options.connections)

    async def _resolve(self) -> dict[Target, list[Endpoint]]:
        """What the names resolve to; ConnectError when there is no address at all."""
        found: dict[Target, list[Endpoint]] = {}
        failure: ConnectError | None = None
        loop = asyncio.get_running_loop()
        for target in self._plan.directory.names:
            try:
                addresses = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                failure = unresolved(target, error)
            else:
                found[target] = endpoints_of(target, addresses)
        if failure is not None and not self._plan.directory.endpoints(found):
            raise failure
        return found

    def _failed(self, error: RpcError) -> None:
        """The servers may have moved: their names are resolved again, beside the caller."""
        if self._plan.should_resolve(error) and self._loop is not None:
            self._resolving = self._loop.create_task(self._resolve_again(), name="fastserve-resolve")

    async def _resolve_again(self) -> None:
        try:
            found = await self._resolve()
            if self._channel is not None and not self._closed:
                self._channel.update(self._plan.directory.endpoints(found))
                self._connections = self._count(self._channel)
        except (ConnectError, ClosedError):
            return  # the addresses of before stand
