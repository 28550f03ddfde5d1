"""Which handler a request goes to, by its path, and what becomes of what it raises.

The handler of aiohttp's low-level server: there is no router and no middleware in the way. A path is compared
as it came, before any decoding. Runs on the loop.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from fastserve.client.errors import RpcError
from fastserve.gateway.refusal import Refusal, refusal_of

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Dispatcher:
    """`exact`: handlers by whole path, without the query. Paths below /v1/ are REST's otherwise. `cors`: web
    pages of any origin may read the answers. `server`: how the client of the core names it in errors."""

    def __init__(
        self,
        rest: Handler,
        exact: Mapping[str, Handler],
        *,
        cors: bool,
        server: str,
        log: Callable[..., None],
    ) -> None:
        self._server = server
        self._rest = rest
        self._exact = exact
        self._cors = cors
        self._log = log
        # Requests that are being answered.
        self.active = 0
        # Those that have ever come.
        self.begun = 0
        # Each answer says that it is its connection's last.
        self.leaving = False

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._answer(request)
        if self._cors and not response.prepared:
            for name, value in _CORS.items():
                response.headers.setdefault(name, value)
        if self.leaving and not response.prepared:
            response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.active += 1
        self.begun += 1
        try:
            return await self._handler(request.raw_path)(request)
        except Refusal as refusal:
            return refusal.response()
        except RpcError as error:
            return refusal_of(error, self._server).response()
        except ConnectionResetError:
            raise  # by the client
        except Exception as error:
            # A defect of ours: its caller must hear of it, and so must whoever reads the log.
            last = "".join(traceback.format_exception(error)[-2:])
            self._log("error", "a request failed", path=request.raw_path[:200], error=last)
            return Refusal(500, f"{type(error).__name__}: {error}").response()
        finally:
            self.active -= 1

    def _handler(self, raw_path: str) -> Handler:
        path = raw_path.partition("?")[0]
        if (handler := self._exact.get(path)) is not None:
            return handler
        if path[:4].lower() == "/v1/":
            return self._rest
        raise Refusal(404, f"Not found: {path}")
