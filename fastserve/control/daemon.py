"""The daemon: what `fastserve serve` does, from top to bottom.

The composition root of the control process. Everything is made here and handed to whoever needs it;
nothing else knows the whole.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from fastserve.config import Config, Model, Server
from fastserve.config_address import UnixAddress
from fastserve.control.admin import AdminSocket
from fastserve.control.admin_verbs import AdminVerbs
from fastserve.control.allocator import allocator_environment
from fastserve.control.child_output import CoreChild, Output, output_pipe, pipe_reader
from fastserve.control.core_process import Process, Spawn
from fastserve.control.credential_watch import CredentialWatch
from fastserve.control.environment import (
    LITERT_LIBRARY,
    check_op_libraries,
    child_argv,
    child_environment,
    library_version,
    needs_tensorflow,
    optional_litert_dir,
    tensorflow_dir,
    with_xla_cache,
)
from fastserve.control.first_core import FirstCore
from fastserve.control.listeners import Listeners
from fastserve.control.manager import Manager, summary
from fastserve.control.memory import MemoryBudget
from fastserve.control.plugins import batcher_library, check_plugins
from fastserve.control.reload import Reloader
from fastserve.control.reload_request import ReloadRequests
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.trial_runner import TrialRunner
from fastserve.control.work import VersionWork
from fastserve.control.xla_cache import open_cache
from fastserve.errors import FastServeError, StartError
from fastserve.log import Log

T = TypeVar("T")


@dataclass(frozen=True)
class ServeOptions:
    """What the command line adds to the configuration."""

    strict: bool = False  # any model that fails ends the start
    ready_file: str | None = None
    announce: bool = True  # the ready line goes to stdout; otherwise it is in the log only
    # Where the configuration comes from, and how it is read again.
    file: str | None = None
    read: Callable[[], Config] | None = None
    # A start waits for models that have no version yet, instead of failing.
    wait: bool = False
    # Written to stderr, too, when it is ready.
    ready_words: str = ""
    # What HandleReloadConfigRequest adds has this model's settings; None: defaults.
    new_model: Model | None = None


def serve(config: Config, options: ServeOptions, log: Log) -> int:
    """Serves until a signal. The exit code: 0 after a drain, 1 when it was cut short."""
    return asyncio.run(run(config, options, log))


async def run(
    config: Config,
    options: ServeOptions,
    log: Log,
    *,
    spawn_core: Spawn | None = None,
    trial_argv: Sequence[str] | None = None,
) -> int:
    """As serve. Tests bring a core and a trial of their own."""
    began = time.monotonic()
    check_plugins(config)
    credentials = CredentialWatch(config, lambda *args, **told: core.call(*args, **told), log)
    stop = StopSignals()
    server = config.server
    installed = tensorflow_dir(config.tensorflow) if needs_tensorflow(config.models) else ""
    check_op_libraries(config.tensorflow)
    tensorflow = replace(
        config.tensorflow, library_dir=installed, xla_cache=config.tensorflow.xla_cache and bool(installed)
    )
    env = child_environment(tensorflow)
    cache = open_cache(server.state_dir, tensorflow, env, log)
    without = ablated()
    allocator = "system" if "allocator" in without else server.allocator
    core_env = {**env, **allocator_environment(allocator, env)}
    if cache is not None and "cache" not in without:
        core_env = with_xla_cache(core_env, cache.directory, read_only=True)

    async with AsyncExitStack() as stack:
        stop.install()
        stack.callback(stop.remove)
        stack.callback(log.flush)
        state = stack.enter_context(StateDir(server.state_dir, log))
        first = await FirstCore.find(state, log, env)
        stack.push_async_callback(first.leave)
        listeners = stack.enter_context(_bind(server, state, first))
        configure = configure_command(config, listeners, installed)
        library = f"{installed} {library_version(installed)}" if installed else ""
        if lite := configure["litert"]["library_dir"]:
            library += f" {lite} {library_version(lite, LITERT_LIBRARY)}"
        stack.callback(first.choose(configure, core_env, library, listeners).close)
        core = CoreSupervisor(
            spawn_core or core_spawner(core_env, log),
            {**configure, "digest": first.digest, "control_listener": first.control.fd},
            [*listeners.fds, first.control.fd],
            log,
            on_launch=state.remember_core,
            on_request=lambda method, message: requests.answer(method, message),
            prepare=credentials.prepare,
        )
        stack.push_async_callback(core.kill)
        trials = TrialRunner(
            trial_argv or child_argv("fastserve.control.trial"),
            env,
            log,
            nice=0 if "trial-nice" in without else config.loading.nice,
            hurry_after_s=config.loading.hurry_after_s,
            cache=cache,
        )
        trials.give_way = bool(first.listeners)
        memory = MemoryBudget(config.loading.memory_limit_bytes, lambda: core.pid)
        work = VersionWork(tensorflow, config.loading, core, trials, state, memory, cache, log, config.litert)
        manager = Manager(config.loading, core, work, log)
        reloader = Reloader(config, manager, credentials, options.read, log)
        requests = ReloadRequests(reloader, manager, options.new_model)
        verbs = AdminVerbs(core, manager, memory, reloader)
        admin = AdminSocket(server.admin_socket, verbs.table())
        await admin.open()
        stack.push_async_callback(admin.close)
        stack.push_async_callback(manager.close)

        starting = _start(config, core, first, manager, listeners, options, requests, credentials)
        started = await unless(stop.first, starting)
        if started is None and not first.adopted:
            log.info("stopped before it was ready", signal=stop.name)
            listeners.close()
            await unless(stop.second, first.replaced(server.drain_timeout_s))
            return 0

        _announce(config, options, listeners, manager, core, log, time.monotonic() - began)
        if options.ready_file:
            stack.callback(_remove, options.ready_file)
        trials.give_way = True
        verbs.ready = True
        async with (
            _reloading(reloader, options.file, server.config_poll_s),
            _watching(credentials, server.config_poll_s),
        ):
            await stop.first.wait()
        await manager.close()

        log.info(
            "draining", signal=stop.name, lame_duck_s=server.lame_duck_s, timeout_s=server.drain_timeout_s
        )
        # The core has copies. When it closes them, connections must be refused, not wait for nobody.
        listeners.close()
        drained = await unless(stop.second, core.drain(server.lame_duck_s, server.drain_timeout_s))
        if drained is None:
            log.warning("ended at once by a second signal", signal=stop.name)
        else:
            log.info("stopped", drained=drained)
        return 0 if drained else 1


async def _start(
    config: Config,
    core: CoreSupervisor,
    first: FirstCore,
    manager: Manager,
    listeners: Listeners,
    options: ServeOptions,
    requests: ReloadRequests,
    credentials: CredentialWatch,
) -> bool:
    """Comes to a core, new or adopted, while the trials run; loads what passes them, and begins to serve."""
    if first.adopted:
        prepare = partial(credentials.prepare, adopted=True)
        await first.adopt(core, config.models, manager, requests.answer, prepare)
        listeners.listen()
        await core.serve()
        await manager.settled()
        return True
    manager.start(config.models)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(core.start(manager.recover), name="core-start")
            group.create_task(manager.settled(), name="first-versions")
    except BaseExceptionGroup as group:
        raise next((e for e in group.exceptions if isinstance(e, FastServeError)), group) from None
    if options.wait:
        await manager.populated()
    if options.strict and manager.failed:
        raise StartError("not every model can be served, and --strict was given: " + _failures(manager))
    if config.models and not manager.available:
        raise StartError("no model can be served: " + _failures(manager))
    listeners.listen()
    await core.serve()
    await first.replaced(config.server.drain_timeout_s)
    return True


def _failures(manager: Manager) -> str:
    return "; ".join(f"{name}: {why}" for name, why in manager.failed.items())


@asynccontextmanager
async def _reloading(reloader: Reloader, file: str | None, poll_s: float) -> AsyncIterator[None]:
    """Meanwhile SIGHUP and changes of the file lead to a reload."""
    if file is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    task = asyncio.create_task(reloader.run(file, poll_s), name="reloader")
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _watching(credentials: CredentialWatch, poll_s: float) -> AsyncIterator[None]:
    """Meanwhile changes of the credential files are taken; 0: SIGHUP and `fastserve reload` alone do that."""
    if not poll_s:
        yield
        return
    task = asyncio.create_task(credentials.run(poll_s), name="credentials")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _bind(server: Server, state: StateDir, first: FirstCore) -> Listeners:
    try:
        return Listeners(
            server.listen, first.listeners, socket_mode=server.socket_mode, admin=server.admin_listen
        )
    except StartError as error:
        orphan = state.orphaned_core()
        if orphan is None:
            raise
        raise StartError(
            f"{error}; the core of an earlier fastserve that died (process {orphan}) still serves: "
            f"end it with kill {orphan}"
        ) from None


def configure_command(config: Config, listeners: Listeners, library_dir: str) -> dict[str, Any]:
    """The parameters of the core's `configure` command."""
    server, tls = config.server, config.server.tls
    return {
        "listeners": [
            {
                "fd": listener.socket.fileno(),
                "address": str(listener.address),
                "tls": bool(tls.certificate)
                and (tls.unix_sockets or not isinstance(listener.address, UnixAddress)),
                "admin": listener.admin,
            }
            for listener in listeners.all
        ],
        "server": {
            "io_threads": server.io_threads,
            # For a SIGTERM that reaches the core after this process has gone.
            "lame_duck_s": server.lame_duck_s,
            "drain_timeout_s": server.drain_timeout_s,
            "reply_compression": server.reply_compression,
            "tensor_content_replies": server.tensor_content_replies,
            "reflection": server.reflection,
            "session_run": server.session_run,
            "check_method_names": server.check_method_names,
            # Of addresses with TLS; the certificate comes by `credentials`.
            "tls": (
                {"handshake_timeout_s": tls.handshake_timeout_s, "unix_sockets": tls.unix_sockets}
                if tls.certificate
                else None
            ),
            # Where HandleReloadConfigRequest is answered.
            "reload": "nowhere"
            if not server.reload_rpc
            else "admin"
            if server.admin_listen
            else "everywhere",
            "admin_listen": server.admin_listen,
        },
        "limits": msgspec.to_builtins(config.limits),
        "executor": msgspec.to_builtins(config.executor),
        "policy_library": batcher_library(config.executor.policy),
        "loading": {"nice": config.loading.nice},
        "ablate": ablated(),
        "tensorflow": {**msgspec.to_builtins(config.tensorflow), "library_dir": library_dir},
        # Only models that need it say that it is missing.
        "litert": {
            **msgspec.to_builtins(config.litert),
            "library_dir": optional_litert_dir(config.litert),
        },
    }


def ablated(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What is left out on purpose, for `fastserve bench switch` to measure what it is good for."""
    return [name for name in environment.get("FASTSERVE_ABLATE", "").split(",") if name]


def core_spawner(env: Mapping[str, str], log: Log) -> Spawn:
    """Starts the data plane as a process of its own group: Ctrl-C and the end of a terminal reach the
    control process, which drains it. It goes on serving when the control process dies."""

    async def spawn(extra: Mapping[str, str], fds: Sequence[int]) -> Process:
        ours, theirs = output_pipe()
        following = asyncio.create_task(
            Output(log, "core", env).follow(await pipe_reader(ours)), name="core-output"
        )
        try:
            process = await asyncio.create_subprocess_exec(
                *child_argv("fastserve.core"),
                env={**env, **extra},
                pass_fds=fds,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                process_group=0,
            )
        finally:
            # Without a child this was the last one: the follower ends.
            os.close(theirs)
        return CoreChild(process, following)

    return spawn


def _announce(
    config: Config,
    options: ServeOptions,
    listeners: Listeners,
    manager: Manager,
    core: CoreSupervisor,
    log: Log,
    seconds: float,
) -> None:
    """Says once, in one line, that everything is ready."""
    addresses = listeners.addresses
    models = [summary(version) for version in manager.available]
    missing = list(manager.failed)
    fields: dict[str, Any] = {"addresses": addresses, "models": models}
    if missing:
        fields["missing"] = missing
    if options.ready_file:
        content = {
            "pid": os.getpid(),
            "core_pid": core.pid,
            "admin_socket": config.server.admin_socket,
            **({"admin_address": listeners.admin_address} if listeners.admin_address else {}),
            **fields,
            "seconds": seconds,
        }
        _write_whole(options.ready_file, json.dumps(content) + "\n")
    if options.announce:
        without = f", without {', '.join(missing)}" if missing else ""
        line = f"fastserve ready: {', '.join(models)}{without} on {', '.join(addresses)} in {seconds:.1f} s"
        with suppress(OSError):
            print(line, flush=True)
    else:
        log.info("ready", **fields, seconds=round(seconds, 3), pid=os.getpid(), core_pid=core.pid)
    if options.ready_words:
        with suppress(OSError):
            print(options.ready_words, file=sys.stderr, flush=True)


def _write_whole(path: str, text: str) -> None:
    """Whoever sees the file sees all of it."""
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".new", path)
    except OSError as error:
        raise StartError(f"the ready file {path} cannot be written: {error.strerror}") from None


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


class StopSignals:
    """SIGTERM and SIGINT: the first asks for an orderly end, the second for one at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.name = ""

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.receive, number)

    def remove(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    def receive(self, number: int) -> None:
        self.name = signal.Signals(number).name
        (self.second if self.first.is_set() else self.first).set()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the event came first; then `work` has been cancelled and is over."""
    task = asyncio.create_task(work, name="work")
    waiting = asyncio.create_task(event.wait(), name="stop-signal")
    try:
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
    return None if task.cancelled() else task.result()
