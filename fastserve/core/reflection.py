"""grpc.reflection.v1 and v1alpha: which services there are and what their messages look like, for clients that
know neither (grpcurl and its like).

Both versions have the same messages under different names. A request that cannot be answered is answered with an
error within the stream, which goes on. Used on the loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from fastserve.core import wire
from fastserve.core.descriptors import Descriptors
from fastserve.core.service import INTERNAL, INVALID_ARGUMENT, NOT_FOUND, Call, Method, Status

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

# ServerReflectionRequest's fields.
_HOST = 1
_FILE, _SYMBOL, _EXTENSION, _EXTENSION_NUMBERS, _SERVICES = range(3, 8)
# ServerReflectionResponse's.
_REQUEST, _FILES_ANSWER, _NUMBERS_ANSWER, _SERVICES_ANSWER, _ERROR_ANSWER = 2, 4, 5, 6, 7


class _Unanswerable(Exception):
    """One request of a stream gets an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Reflection:
    """Describes `services`, these methods' own among them; one that `descriptors` do not know is left out."""

    def __init__(self, descriptors: Descriptors, services: Iterable[str]) -> None:
        self._services = sorted({name for name in services if descriptors.kind(name) == "service"})
        self._descriptors = descriptors
        descriptors.keep(self._services)

    def methods(self) -> Iterator[Method]:
        for service in SERVICES:
            yield Method(f"/{service}/ServerReflectionInfo", self._info, streaming=True)

    async def _info(self, call: Call) -> None:
        told: set[str] = set()  # files that this stream has sent
        async for message in call:
            try:
                call.send(self._answer(message, told))
            except wire.Malformed:
                raise Status(INTERNAL) from None  # gRPC's own answer to what is no such message
            await asyncio.sleep(0)  # however many wait: others have their turn in between

    def _answer(self, message: bytes, told: set[str]) -> bytes:
        host, asked, name = _parse(message)
        try:
            number, answer = self._reply(asked, name, told)
        except _Unanswerable as error:
            number = _ERROR_ANSWER
            answer = wire.put_int(1, error.code) + wire.put_text(2, error.message)
        return wire.put_text(1, host) + wire.put_bytes(_REQUEST, message) + wire.put_bytes(number, answer)

    def _reply(self, asked: int, name: str, told: set[str]) -> tuple[int, bytes]:
        if asked == _FILE:
            return _FILES_ANSWER, self._files(name, "file", told)
        if asked == _SYMBOL:
            return _FILES_ANSWER, self._files(self._descriptors.home(name), "symbol", told)
        if asked == _EXTENSION:  # none of ours can be extended
            raise _Unanswerable(NOT_FOUND, "extension not found")
        if asked == _EXTENSION_NUMBERS:
            if self._descriptors.kind(name) != "message":
                raise _Unanswerable(NOT_FOUND, "type not found")
            return _NUMBERS_ANSWER, wire.put_text(1, name)
        if asked == _SERVICES:
            return _SERVICES_ANSWER, b"".join(
                wire.put_bytes(1, wire.put_text(1, name)) for name in self._services
            )
        raise _Unanswerable(INVALID_ARGUMENT, "the request asks for nothing that is known here")

    def _files(self, name: str | None, what: str, told: set[str]) -> bytes:
        """A FileDescriptorResponse: the file in any case, and what it needs if it was not sent before."""
        if name is None or self._descriptors.file(name) is None:
            raise _Unanswerable(NOT_FOUND, f"{what} not found")
        files = [file for file in self._descriptors.needed(name) if file == name or file not in told]
        told.update(files)
        return b"".join(wire.put_bytes(1, self._descriptors.file(file) or b"") for file in files)


def _parse(message: bytes) -> tuple[str, int, str]:
    """Host, which field asks, and what it says. Of several that ask the last one does. Malformed."""
    host, asked, name = "", 0, ""
    for (number, kind), value in wire.fields(message):
        if kind != wire.BYTES:
            continue
        if number == _HOST:
            host = wire.text(value)
        elif number == _EXTENSION:
            asked, name = number, _extended(value)
        elif _FILE <= number <= _SERVICES:
            asked, name = number, wire.text(value)
    return host, asked, name


def _extended(request: bytes) -> str:
    """The type that an ExtensionRequest names."""
    name = ""
    for field, value in wire.fields(request):
        if field == (1, wire.BYTES):
            name = wire.text(value)
    return name
