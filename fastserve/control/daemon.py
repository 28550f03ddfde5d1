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
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from fastserve.config import Config, Model, Route, Server, Tracing
from fastserve.config_address import UnixAddress
from fastserve.control.admin import AdminSocket
from fastserve.control.admin_verbs import AdminVerbs
from fastserve.control.allocator import allocator_environment
from fastserve.control.child_output import child_spawner
from fastserve.control.core_process import Spawn
from fastserve.control.credential_watch import CredentialWatch
from fastserve.control.first_core import FirstCore
from fastserve.control.gateway_orphans import GatewayOrphans
from fastserve.control.gateway_process import SpawnGateway
from fastserve.control.gateway_settings import (
    forwarded_headers,
    gateway_settings,
    internal_sockets,
    route_settings,
)
from fastserve.control.gateway_supervisor import GatewaySupervisor
from fastserve.control.listeners import Listeners, bind_unix
from fastserve.control.manager import Manager, summary
from fastserve.control.memory import MemoryBudget
from fastserve.control.metric_totals import MetricTotals
from fastserve.control.otlp_export import Exporter, headers_of
from fastserve.control.plugins import batcher_library, check_plugins
from fastserve.control.reload import Reloader
from fastserve.control.reload_request import ReloadRequests
from fastserve.control.service_manager import ServiceManager
from fastserve.control.shared_memory import SharedMemory
from fastserve.control.state import StateDir
from fastserve.control.supervisor import CoreSupervisor
from fastserve.control.telemetry import Telemetry
from fastserve.control.telemetry_events import Chronicle
from fastserve.control.traces import Traces
from fastserve.control.trial_forks import TrialForks
from fastserve.control.trial_runner import TrialRunner
from fastserve.control.work import VersionWork
from fastserve.control.xla_cache import open_cache
from fastserve.environment import (
    LITERT_LIBRARY,
    TENSOR_POOL_OFF,
    check_op_libraries,
    child_argv,
    child_environment,
    library_version,
    needs_tensorflow,
    optional_litert_dir,
    tensorflow_dir,
    with_preloaded,
    with_xla_cache,
)
from fastserve.errors import FastServeError, StartError
from fastserve.log import Log
from fastserve.monitor.server import MonitorServer
from fastserve.offline.session import may_use_gpu

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
    spawn_gateway: SpawnGateway | None = None,
    trial_argv: Sequence[str] | None = None,
) -> int:
    """As serve. Tests bring a core and a trial of their own."""
    began = time.monotonic()
    service = ServiceManager.of(
        lambda: "serves " + (", ".join(map(summary, manager.available)) or "no model yet")
    )
    check_plugins(config)
    credentials = CredentialWatch(config, lambda *args, **told: core.call(*args, **told), log)
    stop = StopSignals()
    server = config.server
    installed = tensorflow_dir(config.tensorflow) if needs_tensorflow(config.models) else ""
    check_op_libraries(config.tensorflow)
    exporter = _exporter(config.tracing, log)
    tensorflow = replace(
        config.tensorflow, library_dir=installed, xla_cache=config.tensorflow.xla_cache and bool(installed)
    )
    env = child_environment(tensorflow)
    cache = open_cache(server.state_dir, tensorflow, env, log)
    without = ablated()
    if "tensor-pool" in without:
        env[TENSOR_POOL_OFF] = "false"
    models_env = env if "slices" in without else with_preloaded(env)
    allocator = "system" if "allocator" in without else server.allocator
    core_env = {**models_env, **allocator_environment(allocator, models_env)}
    if cache is not None and "cache" not in without:
        core_env = with_xla_cache(core_env, cache.directory, read_only=True)

    async with AsyncExitStack() as stack:
        stop.install()
        stack.callback(stop.remove)
        stack.callback(log.flush)
        state = stack.enter_context(StateDir(server.state_dir, log))
        first = await FirstCore.find(state, log, env)
        stack.push_async_callback(first.leave)
        old_gateway = GatewayOrphans.find(state, log)
        stack.callback(old_gateway.leave)
        if not first.listeners:
            # There is no core that it could ask, and it would keep the addresses.
            await old_gateway.end(server.drain_timeout_s)
        listeners = stack.enter_context(_bind(config, state, first))
        configure = configure_command(config, listeners, installed)
        library = f"{installed} {library_version(installed)}" if installed else ""
        if lite := configure["litert"]["library_dir"]:
            library += f" {lite} {library_version(lite, LITERT_LIBRARY)}"
        stack.callback(first.choose(configure, core_env, library, listeners).close)
        chronicle = Chronicle()
        shared = SharedMemory()
        stack.callback(shared.close)
        core = CoreSupervisor(
            spawn_core or child_spawner("fastserve.core", "core", core_env, log),
            {**configure, "digest": first.digest, "control_listener": first.control.fd},
            [*listeners.fds, first.control.fd],
            log,
            on_launch=state.remember_core,
            on_request=lambda method, message: requests.answer(method, message),
            prepare=credentials.prepare,
            observer=chronicle,
            shared=shared,
        )
        stack.push_async_callback(core.kill)
        gateway = None
        if config.gateway.listen:
            gateway = GatewaySupervisor(
                spawn_gateway or child_spawner("fastserve.gateway", "gateway", env, log),
                gateway_settings(config, listeners),
                [listener.socket.fileno() for listener in listeners.gateway],
                config.gateway.processes,
                log,
                remember=state.remember_gateways,
                observer=chronicle,
            )
            stack.push_async_callback(gateway.kill)
        forks = None
        # What a GPU's drivers set up is not for forks; and tests bring a trial of their own.
        if installed and not (may_use_gpu(tensorflow) or trial_argv or "fork-server" in without):
            forks = TrialForks(installed, models_env, log)
            stack.push_async_callback(forks.close)
        trials = TrialRunner(
            trial_argv or child_argv("fastserve.control.trial"),
            models_env,
            log,
            nice=0 if "trial-nice" in without else config.loading.nice,
            hurry_after_s=config.loading.hurry_after_s,
            cache=cache,
            forks=forks,
            breaks="breaks" not in without,
        )
        trials.give_way = bool(first.listeners)
        memory = MemoryBudget(config.loading.memory_limit_bytes, lambda: core.pid)
        work = VersionWork(
            tensorflow, config.loading, core, trials, state, memory, cache, log, config.litert, chronicle
        )
        manager = Manager(config.loading, core, work, log, chronicle)
        reloader = Reloader(config, manager, credentials, options.read, log, chronicle, service)
        if gateway is not None:
            reloader.on_models = partial(_forward, gateway)
            reloader.on_routes = partial(_routes, gateway)
        requests = ReloadRequests(reloader, manager, options.new_model)
        share = config.tracing.sample_ratio
        traces = Traces(shared, lambda: core.pid, server.state_dir, log, exporter=exporter, share=share)
        await stack.enter_async_context(_tracing(traces))
        verbs = AdminVerbs(core, manager, memory, reloader, traces)
        telemetry = Telemetry(
            manager,
            core,
            memory,
            chronicle,
            log,
            counters=MetricTotals(shared),
            gateway=partial(_gateway_figures, gateway),
            logs=verbs.logs,
            library=library_version(installed) if installed else "",
        )
        monitored = await stack.enter_async_context(_monitored(config, state, telemetry))
        admin = AdminSocket(server.admin_socket, verbs.table())
        await admin.open()
        stack.push_async_callback(admin.close)
        stack.push_async_callback(manager.close)

        starting = _start(config, core, first, manager, listeners, options, requests, credentials, gateway)
        started = await unless(stop.first, starting)
        if started is None and not first.adopted:
            telemetry.phase = "draining"
            # One after the other: for a gateway of before, and for a core.
            service.stopping(2 * server.drain_timeout_s)
            log.info("stopped before it was ready", signal=stop.name)
            listeners.close()
            listeners.close_gateway()
            await unless(stop.second, old_gateway.end(server.drain_timeout_s))
            await unless(stop.second, first.replaced(server.drain_timeout_s))
            return 0
        old_gateway.begin_end(server.drain_timeout_s, gateway.all_up() if gateway is not None else None)

        traces.look()  # so that what comes from now on has its spans
        telemetry.phase = "serving"
        _announce(config, options, listeners, monitored, manager, core, log, time.monotonic() - began)
        if options.ready_file:
            stack.callback(_remove, options.ready_file)
        trials.give_way = True
        verbs.ready = True
        async with (
            _reloading(reloader, options.file, server.config_poll_s),
            _watching(credentials, server.config_poll_s),
        ):
            service.ready()
            await stop.first.wait()
            # Before a reload is cut short, which would end in the word that the daemon is ready.
            service.stopping(_longest_drain_s(server, gateway))
            telemetry.phase = "draining"
        await manager.close()

        log.info(
            "draining", signal=stop.name, lame_duck_s=server.lame_duck_s, timeout_s=server.drain_timeout_s
        )
        # The core has copies. When it closes them, connections must be refused, not wait for nobody.
        listeners.close()
        drained = await unless(stop.second, _drain(server, core, gateway, listeners))
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
    gateway: GatewaySupervisor | None,
) -> bool:
    """Comes to a core, new or adopted, while the trials run; loads what passes them, and begins to serve;
    then the gateway does."""
    if first.adopted:
        prepare = partial(credentials.prepare, adopted=True)
        await first.adopt(core, config.models, manager, requests.answer, prepare)
        listeners.listen()
        await core.serve()
        if gateway is not None:
            # What is adopted serves already: a gateway that does not start is no reason to end it.
            await gateway.start(must=False)
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
    if gateway is not None:
        await gateway.start()
    await first.replaced(config.server.drain_timeout_s)
    return True


def _forward(gateway: GatewaySupervisor, models: Sequence[Model]) -> None:
    gateway.forward(forwarded_headers(models))


def _routes(gateway: GatewaySupervisor, routes: Sequence[Route]) -> None:
    gateway.routes(route_settings(routes))


async def _drain(
    server: Server, core: CoreSupervisor, gateway: GatewaySupervisor | None, listeners: Listeners
) -> bool:
    """Answers what there is: first the gateway, whose requests the core is to answer, then the core."""
    if gateway is None:
        return await core.drain(server.lame_duck_s, server.drain_timeout_s)
    await core.lame_duck()
    gateway.lame_duck()
    await asyncio.sleep(server.lame_duck_s)
    await listeners.shut_gateway()
    answered = await gateway.drain(server.drain_timeout_s)
    return await core.drain(0.0, server.drain_timeout_s) and answered


def _longest_drain_s(server: Server, gateway: GatewaySupervisor | None) -> float:
    return server.lame_duck_s + server.drain_timeout_s * (1 if gateway is None else 2)


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


@asynccontextmanager
async def _monitored(config: Config, state: StateDir, telemetry: Telemetry) -> AsyncIterator[list[str]]:
    """Meanwhile health, metrics and status are there; their addresses but the own socket. StartError."""
    monitoring = config.monitoring
    with ExitStack() as stack:
        listeners = stack.enter_context(Listeners(monitoring.listen, socket_mode=config.server.socket_mode))
        own = stack.enter_context(bind_unix(state.monitor_socket, 0o600))
        stack.callback(_remove, state.monitor_socket)
        stack.callback(telemetry.close)
        monitor = MonitorServer(telemetry, metrics_path=monitoring.metrics_path, page=monitoring.page)
        looking = asyncio.create_task(telemetry.run(), name="telemetry")
        try:
            await monitor.open([own, *(listener.socket for listener in listeners.all)])
            yield listeners.addresses
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await monitor.close()


def _exporter(tracing: Tracing, log: Log) -> Exporter | None:
    """None: spans are not sent anywhere. ConfigError."""
    if not tracing.otlp_endpoint:
        return None
    return Exporter(tracing.otlp_endpoint, tracing.service_name, log, headers=headers_of(os.environ))


@asynccontextmanager
async def _tracing(traces: Traces) -> AsyncIterator[None]:
    """Meanwhile the core's traces are read; at the end, what the last calls have left."""
    task = asyncio.create_task(traces.run(), name="traces")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await traces.close()


def _gateway_figures(gateway: GatewaySupervisor | None) -> dict[str, Any] | None:
    if gateway is None:
        return None
    return {"pids": gateway.pids, "restarts": gateway.restarts, "up": gateway.up}


def _bind(config: Config, state: StateDir, first: FirstCore) -> Listeners:
    server = config.server
    try:
        return Listeners(
            server.listen,
            first.listeners,
            socket_mode=server.socket_mode,
            admin=server.admin_listen,
            internal=internal_sockets(config),
            gateway=config.gateway.listen,
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
                and listener.transport == "grpc"
                and not listener.held
                and (tls.unix_sockets or not isinstance(listener.address, UnixAddress)),
                "admin": listener.admin,
                "transport": listener.transport,
                "held": listener.held,
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


def _announce(
    config: Config,
    options: ServeOptions,
    listeners: Listeners,
    monitored: Sequence[str],
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
    rest = [str(listener.address) for listener in listeners.gateway]
    if options.ready_file:
        content = {
            "pid": os.getpid(),
            "core_pid": core.pid,
            "admin_socket": config.server.admin_socket,
            **({"admin_address": listeners.admin_address} if listeners.admin_address else {}),
            **({"gateway_addresses": rest} if rest else {}),
            **({"monitoring": list(monitored)} if monitored else {}),
            **fields,
            "seconds": seconds,
        }
        _write_whole(options.ready_file, json.dumps(content) + "\n")
    if options.announce:
        without = f", without {', '.join(missing)}" if missing else ""
        http = f", http://{', http://'.join(rest)}" if rest else ""
        places = ", ".join(addresses)
        line = f"fastserve ready: {', '.join(models)}{without} on {places}{http} in {seconds:.1f} s"
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
