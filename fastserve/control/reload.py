"""A new configuration while the daemon runs: from its file, or from HandleReloadConfigRequest.

Either all of it is taken or none: what is wrong is said and the old one goes on. What only a new core could
take is named, and waits for a restart. Owned by the daemon, on the event loop; one reload at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from fastserve.config import Config, Model, Route
from fastserve.control.credential_watch import CredentialWatch
from fastserve.control.manager import Manager
from fastserve.control.observer import Observer
from fastserve.control.plugins import check_plugins
from fastserve.control.service_manager import ServiceManager
from fastserve.errors import ConfigError
from fastserve.log import Log

# What the control process alone goes by, and what is looked at in parts.
_AT_ONCE = {("server", "reload_roots"), ("server", "tls")}


class Reloader:
    """Brings new configurations into a manager."""

    def __init__(
        self,
        config: Config,
        manager: Manager,
        credentials: CredentialWatch,
        read: Callable[[], Config] | None,
        log: Log,
        observer: Observer | None = None,
        service: ServiceManager | None = None,
    ) -> None:
        """`read` reads the file again and raises ConfigError; None: there is no file. `service` is told when
        that happens."""
        self._config = config
        self._manager = manager
        self._credentials = credentials
        self._read = read
        self._log = log
        # Told of the models that are served from here on.
        self.on_models: Callable[[Sequence[Model]], None] = lambda models: None
        self._observer = observer or Observer()
        self._service = service or ServiceManager()
        # Told of the routes, when they have changed.
        self.on_routes: Callable[[Sequence[Route]], None] = lambda routes: None
        self._turn = asyncio.Lock()
        self._asked = asyncio.Event()

    @property
    def config(self) -> Config:
        return self._config

    def ask(self) -> None:
        """Reload soon: SIGHUP."""
        self._asked.set()

    async def run(self, path: str, poll_s: float) -> None:
        """Reloads when asked and, looking every `poll_s` seconds (0: never), when the file has changed. Until
        it is cancelled."""
        seen = await asyncio.to_thread(_mark, path)
        refused = None
        while True:
            try:
                async with asyncio.timeout(poll_s or None):
                    await self._asked.wait()
            except TimeoutError:
                pass
            now = await asyncio.to_thread(_mark, path)
            if not self._asked.is_set() and (now is None or now in (seen, refused)):
                continue
            self._asked.clear()
            try:
                await self.from_file()
                seen, refused = now, None
            except ConfigError as error:
                refused = now
                self._log.error("configuration refused", file=path, why=error)

    async def from_file(self) -> list[str]:
        """Reads the file again; what has changed, in words. ConfigError: nothing has."""
        if self._read is None:
            raise ConfigError(["there is no configuration file to read again"])
        async with self._turn:
            with self._service.reloading():
                return await self._take(await asyncio.to_thread(self._read))

    async def _take(self, config: Config) -> list[str]:
        check_plugins(config)
        # Tokens first: what is new must not be open for a moment.
        changed = await self._credentials.take(config)
        try:
            changed += await self._manager.apply(config.models)
        except ConfigError:
            await self._credentials.give_back()
            raise
        changed += [f"{key}: waits for a restart" for key in _fixed_differences(self._config, config)]
        if config.routes != self._config.routes:
            changed.append("[[routes]]")
            self.on_routes(config.routes)
        self._config = config
        self.on_models(config.models)
        self._log.info("configuration reloaded", changed=changed or "nothing")
        self._observer.reloaded(changed)
        return changed

    async def models(self, models: Sequence[Model]) -> list[str]:
        """Serves these models instead of the file's until it is read again. ConfigError: nothing has
        changed."""
        async with self._turn:
            check_plugins(Config(models=tuple(models)))
            changed = await self._manager.apply(models)
            self.on_models(models)
            self._log.info("models reloaded by request", changed=changed or "nothing")
            self._observer.reloaded(changed)
            return changed


def _mark(path: str) -> tuple[int, int, int] | None:
    """What changes when the file does; None while it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _fixed_differences(before: Config, after: Config) -> list[str]:
    """Keys of other tables than [[models]] that differ: the core was started with them."""
    tables = [field for field in before.__struct_fields__ if field not in ("models", "routes")]
    found = [
        f"[{table}] {key}"
        for table in tables
        for key in getattr(before, table).__struct_fields__
        if (table, key) not in _AT_ONCE
        and getattr(getattr(before, table), key) != getattr(getattr(after, table), key)
    ]
    old, new = before.server.tls, after.server.tls
    if bool(old.certificate) != bool(new.certificate):
        return [*found, "[server.tls]"]
    # Other files take effect at once.
    return found + [
        f"[server.tls] {key}"
        for key in ("unix_sockets", "handshake_timeout_s")
        if getattr(old, key) != getattr(new, key)
    ]
