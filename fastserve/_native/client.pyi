import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastserve.errors import FastServeError

class ChannelFailure(Exception):
    code: int
    details: str

class TlsFailure(ChannelFailure): ...
class ClosedError(FastServeError, RuntimeError): ...

def check_metadata(metadata: Any) -> tuple[tuple[bytes, bytes], ...]: ...

_Answer = tuple[str, int | None, str]
_Chooser = Callable[[int], tuple[list[int], int]]
_Metadata = Iterable[tuple[str, str | bytes]]

class Channel:
    def __init__(
        self, endpoints: Sequence[Any], settings: dict[str, Any], failure: Callable[[int, str], Exception]
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def endpoints(self) -> list[str]: ...
    def unary(
        self, path: bytes, message: bytes, timeout: float | None, metadata: _Metadata, again: bool = True
    ) -> bytes: ...
    def predict(
        self,
        spec: tuple[Any, ...],
        inputs: Mapping[str, Any],
        timeout: float | None,
        metadata: _Metadata,
        into: dict[str, Any],
    ) -> _Answer: ...
    def predict_many(
        self,
        spec: tuple[Any, ...],
        inputs: Mapping[str, Any],
        choose: _Chooser,
        timeout: float | None,
        metadata: _Metadata,
        into: dict[str, Any],
    ) -> _Answer: ...
    def attach(self, loop: asyncio.AbstractEventLoop) -> None: ...
    async def unary_async(
        self, path: bytes, message: bytes, timeout: float | None, metadata: _Metadata, again: bool = True
    ) -> bytes: ...
    async def predict_async(
        self,
        spec: tuple[Any, ...],
        inputs: Mapping[str, Any],
        timeout: float | None,
        metadata: _Metadata,
        into: dict[str, Any],
    ) -> _Answer: ...
    async def predict_many_async(
        self,
        spec: tuple[Any, ...],
        inputs: Mapping[str, Any],
        choose: _Chooser,
        timeout: float | None,
        metadata: _Metadata,
        into: dict[str, Any],
    ) -> _Answer: ...
    def update(self, endpoints: Sequence[Any]) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...
