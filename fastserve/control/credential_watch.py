"""Credentials while the daemon runs: told to every core, and again when their files have changed.

New connections get the new certificate, those that are there go on with theirs. What is wrong with new files
is said, and the old credentials go on. Owned by the daemon, on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastserve.config import Config
from fastserve.control.core_process import CoreProcess
from fastserve.control.credentials import Credentials, Marks, files_of, marks, read_credentials
from fastserve.errors import ConfigError, CoreError, CoreLost
from fastserve.log import Log

_SOON = timedelta(days=14)


class CredentialWatch:
    """What the credentials are, and who was told. Made at the start; ConfigError when they are no good."""

    def __init__(self, config: Config, call: Callable[..., Awaitable[Any]], log: Log) -> None:
        """`call` sends a command to the core of the moment."""
        self._config = config
        self._call = call
        self._log = log
        self._seen, self._now = _look(config)
        self._before = config, self._now
        # One change at a time, or an older one might come last.
        self._turn = asyncio.Lock()
        self._say_certificate()

    async def prepare(self, core: CoreProcess, *, adopted: bool = False) -> None:
        """Tells a core that is new, before it serves, if there is anything to tell; one that is adopted,
        before it gets new models, in any case: it has what another process said. CoreError, CoreLost."""
        if adopted or self._now.tls is not None or self._now.tokens:
            await core.call("credentials", **self._now.command())

    async def tell(self) -> None:
        """Tells the core of the moment. CoreError; when it is lost, its successor is told."""
        try:
            await self._call("credentials", **self._now.command())
        except CoreLost:
            return

    async def take(self, config: Config) -> list[str]:
        """Reads the files that `config` names and goes over to them; what has changed, in words. ConfigError:
        nothing has."""
        async with self._turn:
            seen, new = await asyncio.to_thread(_look, config)
            if new.tls is None:
                new = replace(new, tls=self._now.tls)  # whoever listens with TLS does so until a restart
            before = self._now
            # What leaves is served until its calls are answered, and asks for tokens until the next time.
            names = {model.name for model in config.models}
            leaving = {model.name for model in self._config.models} - names
            kept = {name: tokens for name, tokens in before.tokens.items() if name in leaving}
            new = replace(new, tokens={**kept, **new.tokens})
            changed = _differences(before, new)
            if changed:
                self._now = new  # for a core that starts meanwhile
                try:
                    await self.tell()
                except CoreError as error:
                    self._now = before
                    raise ConfigError([f"the core refuses the new credentials: {error}"]) from None
            self._config, self._before, self._seen = config, (self._config, before), seen
            if new.tls != before.tls:
                self._say_certificate()
            return changed

    async def give_back(self) -> None:
        """Takes the last `take` back: what else its configuration says cannot be done. CoreError."""
        async with self._turn:
            self._config, self._now = self._before
            await self.tell()

    async def run(self, poll_s: float) -> None:
        """Takes what has changed in the files, looking every `poll_s` seconds, until it is cancelled. Changes
        count once they are at rest: a certificate and its key are rarely written at the same moment."""
        last: Marks | None = None
        while True:
            await asyncio.sleep(poll_s)
            now = await asyncio.to_thread(marks, files_of(self._config))
            at_rest, last = now == last, now
            if now == self._seen or not at_rest:
                continue
            self._seen = now
            try:
                if changed := await self.take(self._config):
                    self._log.info("credentials reloaded", changed=changed)
            except ConfigError as error:
                self._log.error("credentials refused: those of before go on", why=error)

    def _say_certificate(self) -> None:
        tls = self._now.tls
        if tls is None:
            return
        soon = tls.until - datetime.now(UTC) < _SOON
        self._log.event(
            "warning" if soon else "info",
            "certificate expires soon" if soon else "certificate",
            file=self._config.server.tls.certificate,
            until=tls.until.strftime("%Y-%m-%dT%H:%M:%SZ"),
            clients="must show one" if tls.client_ca else "need none",
        )


def _look(config: Config) -> tuple[Marks, Credentials]:
    """What the files hold, and how they were before they were read: what comes meanwhile is found later."""
    return marks(files_of(config)), read_credentials(config)


def _differences(before: Credentials, after: Credentials) -> list[str]:
    found = []
    if before.tls != after.tls:
        found.append("[server.tls]: new connections get the new certificate")
    for model in sorted({*before.tokens, *after.tokens}):
        if before.tokens.get(model) != after.tokens.get(model):
            found.append(f"[[models]] {model}: {'new tokens' if model in after.tokens else 'open to all'}")
    return found
