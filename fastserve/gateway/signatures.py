"""What models' signatures are, for a moment remembered: JSON cannot be read without them.

Asked of the core with the caller's own credentials, and remembered by what was asked and by whom, so that
nobody is told what is another's. An entry goes when it is old, or when an answer comes from a version that it
does not know. Used on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastserve.client.aio import AsyncClient
from fastserve.client.messages import SignatureInfo
from fastserve.gateway.json_readers import Readers
from fastserve.gateway.paths import Place

_FRESH_S = 1.0
# While a canary answers some requests, every other answer is of another version, and somebody may send one
# invalid request after the other: not sooner again.
_AGAIN_S = 0.1
_MOST = 1000

Metadata = list[tuple[str, str]]
_Key = tuple[str, int | None, str | None, str]


@dataclass(frozen=True)
class Known:
    """What was answered, and when."""

    version: int | None
    signatures: Mapping[str, SignatureInfo]
    readers: Readers
    at_s: float
    # It was asked for because what was remembered did not do.
    again: bool = False


class Signatures:
    """Asks `client` for them, each question once at a time."""

    def __init__(
        self, client: AsyncClient, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._clock = clock
        self._known: dict[_Key, Known] = {}
        self._asking: dict[_Key, asyncio.Task[Known]] = {}

    async def get(self, place: Place, metadata: Metadata) -> Known:
        """RpcError as the core has it."""
        return self.remembered(place, metadata) or await self._ask(_key(place, metadata), place, metadata)

    def remembered(self, place: Place, metadata: Metadata) -> Known | None:
        """What is remembered and still fresh."""
        known = self._known.get(_key(place, metadata))
        return known if known is not None and self._clock() - known.at_s < _FRESH_S else None

    async def again(self, place: Place, metadata: Metadata) -> Known:
        """As of now, or of the last time that it was asked for again, if that is a moment ago. RpcError."""
        key = _key(place, metadata)
        known = self._known.get(key)
        if known is not None and known.again and self._clock() - known.at_s < _AGAIN_S:
            return known
        return await self._ask(key, place, metadata, again=True)

    def answered(self, place: Place, metadata: Metadata, version: int | None) -> None:
        """An answer came from `version`."""
        key = _key(place, metadata)
        known = self._known.get(key)
        if known is not None and known.version != version and self._clock() - known.at_s >= _AGAIN_S:
            del self._known[key]

    async def _ask(self, key: _Key, place: Place, metadata: Metadata, again: bool = False) -> Known:
        asking = self._asking.get(key)
        if asking is None:
            asking = asyncio.create_task(self._fetch(key, place, metadata, again), name="signatures")
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        # Others may wait for it, too.
        return await asyncio.shield(asking)

    async def _fetch(self, key: _Key, place: Place, metadata: Metadata, again: bool) -> Known:
        found = await self._client.metadata(
            place.model,
            version=place.version,
            label=place.label,
            timeout=self._timeout_s,
            metadata=metadata,
        )
        known = Known(found.model.version, found.signatures, Readers(found.signatures), self._clock(), again)
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[key] = known
        return known


def _key(place: Place, metadata: Metadata) -> _Key:
    token = next((value for name, value in metadata if name == "authorization"), "")
    return place.model, place.version, place.label, token
