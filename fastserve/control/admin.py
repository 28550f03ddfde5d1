"""The admin socket: a unix socket for the user who runs the daemon, one JSON object a line.

{"verb": "status", ...} is answered with {"ok": true, ...} or {"ok": false, "code": ..., "error": ...}. What
verbs there are and do is not known here. Owned by the daemon, on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastserve.control.listeners import bind_unix
from fastserve.errors import ConfigError, CoreError, CoreLost

_REQUEST_MAX_BYTES = 64 * 1024


class AdminSocket:
    """Serves the admin socket from `open` to `close`."""

    def __init__(
        self, path: str, verbs: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]]
    ) -> None:
        self._path = path
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """StartError when the path cannot be had."""
        sock = bind_unix(self._path, mode=0o600)
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=_REQUEST_MAX_BYTES)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        os.unlink(self._path)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(self._converse(reader, writer), name="admin-client")
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            # Gone, or a line beyond the limit: there is nothing to answer.
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = request.get("verb")
        except (ValueError, AttributeError):
            return _refusal("INVALID_ARGUMENT", 'expected a JSON object such as {"verb": "stats"}')
        if verb not in self._verbs:
            return _refusal("UNIMPLEMENTED", f"no such verb; there are {', '.join(self._verbs)}")
        try:
            answer = await self._verbs[verb](request)
        except CoreError as error:
            return _refusal(error.code, str(error))
        except ConfigError as error:
            return _refusal("INVALID_ARGUMENT", str(error))
        except CoreLost as error:
            return _refusal("UNAVAILABLE", str(error))
        return {"ok": True, **{key: value for key, value in answer.items() if key != "id"}}


def _refusal(code: str, error: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "error": error}
