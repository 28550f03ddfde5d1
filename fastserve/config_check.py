"""What must hold between the values of a configuration, beyond the type of each.

A pure function from a Config to problems; the last step of config_read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

from fastserve.config import Batching, Config, Model, Route
from fastserve.config_address import Address, check_unix_path, parse_address
from fastserve.errors import ConfigError
from fastserve.http_paths import MONITOR_PATHS
from fastserve.toml_tables import Problem, Where

# As in csrc/policy.h.
MAX_BUCKETS = 32
# What a log adds to it still makes a name that Linux takes.
MAX_PREFIX_BYTES = 3900
# As it stands in a request: no query, nothing that would have to be quoted.
_ROUTE_PATH = re.compile(r"(?:/[A-Za-z0-9_.~!$&'()*+,;=:@-]*)+")
# Of those that the processes have among themselves in the state directory.
_LONGEST_SOCKET = "monitor.sock"
_NO_MODEL = Problem(
    (), "there is no model to serve: expected at least one [[models]] with name and base_path"
)


def check(config: Config, tables: dict[str, Any], *, may_be_empty: bool = False) -> list[Problem]:
    """Everything that is wrong with `config`, whose file held `tables`. `may_be_empty`: models may come
    later."""
    empty = not config.models and not may_be_empty
    return [
        *([_NO_MODEL] if empty else []),
        *_server(config),
        *_server_tls(config),
        *_gateway(config),
        *_reload_rpc(config),
        *_limits(config),
        *_executor(config),
        *_monitoring(config),
        *_tensorflow(config),
        *_tracing(config),
        *_models(config, tables),
        *_routes(config),
    ]


def _server(config: Config) -> Iterator[Problem]:
    server = config.server
    if not server.listen:
        yield Problem(("server", "listen"), 'expected at least one address, such as "127.0.0.1:8500"')
    yield from _listen("server", server.listen, (), "this address is there twice")
    try:
        check_unix_path(server.admin_socket)
    except ValueError as error:
        yield Problem(
            ("server", "admin_socket"), f"{error}; set admin_socket to a shorter one", show_value=False
        )


def _server_tls(config: Config) -> Iterator[Problem]:
    tls = config.server.tls
    where = ("server", "tls")
    for key, other in (("certificate", "key"), ("key", "certificate")):
        if getattr(tls, other) and not getattr(tls, key):
            yield Problem((*where, key), f"is missing, and {other} is there: they go together")
    if not tls.certificate and not tls.key:
        for key in ("client_ca", "unix_sockets"):
            if getattr(tls, key):
                yield Problem((*where, key), "means nothing without certificate and key")


def _gateway(config: Config) -> Iterator[Problem]:
    gateway, server = config.gateway, config.server
    yield from _listen(
        "gateway",
        gateway.listen,
        (*server.listen, server.admin_listen),
        "this address is there twice, here or in [server]: expected one of its own",
    )
    if gateway.listen:
        try:
            check_unix_path(f"{server.state_dir}/{_LONGEST_SOCKET}")
        except ValueError as error:
            yield Problem(
                ("server", "state_dir"),
                f"{error}; with [gateway] listen, set state_dir to a shorter one",
                show_value=False,
            )


def _listen(table: str, listen: Iterable[str], taken: Iterable[str], twice: str) -> Iterator[Problem]:
    """Of [TABLE] listen, whose addresses must be others than `taken`."""
    seen = set(map(_address_of, taken))
    for i, text in enumerate(listen):
        try:
            address = parse_address(text)
        except ValueError as error:
            yield Problem((table, "listen", i), str(error))
            continue
        if address in seen and not text.endswith(":0"):
            yield Problem((table, "listen", i), twice)
        seen.add(address)


def _address_of(text: str) -> Address | None:
    try:
        return parse_address(text)
    except ValueError:
        return None  # a problem of its own


def _reload_rpc(config: Config) -> Iterator[Problem]:
    server = config.server
    if not server.admin_listen:
        return
    where = ("server", "admin_listen")
    try:
        address = parse_address(server.admin_listen)
    except ValueError as error:
        yield Problem(where, str(error))
        return
    if not server.reload_rpc:
        yield Problem(where, "means nothing with reload_rpc = false; remove one of the two")
    if server.admin_listen in server.listen and not str(address).endswith(":0"):
        yield Problem(where, "is in listen, too: expected an address of its own")


def _monitoring(config: Config) -> Iterator[Problem]:
    monitoring = config.monitoring
    yield from _listen(
        "monitoring",
        monitoring.listen,
        (*config.server.listen, config.server.admin_listen, *config.gateway.listen),
        "this address is there twice, here, in [server] or in [gateway]: expected one of its own",
    )
    path, where = monitoring.metrics_path, ("monitoring", "metrics_path")
    if not re.fullmatch(r"(/[\w.~-]+)+", path, re.ASCII) or "/." in path:
        yield Problem(
            where, 'expected a path of letters, digits and "-._~", such as "/monitoring/prometheus/metrics"'
        )
    elif path in MONITOR_PATHS or path.startswith("/v1/"):
        yield Problem(where, "something else is there: expected a path of its own")


def _limits(config: Config) -> Iterator[Problem]:
    limits = config.limits
    bounds = [
        ("max_connection_bytes", limits.max_connection_bytes, "max_message_bytes", limits.max_message_bytes),
        ("max_total_bytes", limits.max_total_bytes, "max_message_bytes", limits.max_message_bytes),
    ]
    for key, value, other, least in bounds:
        if value < least:
            yield Problem(
                ("limits", key),
                f"is {value} bytes, less than {other} ({least}): a message of that size could never be "
                f"served; raise {key} or lower {other}",
                show_value=False,
            )


def _executor(config: Config) -> Iterator[Problem]:
    reserved = sum(model.reserved_executors for model in config.models)
    threads = config.executor.threads
    if reserved and reserved >= threads:
        yield Problem(
            ("executor", "threads"),
            f"is {threads}, but the models reserve {reserved} executors together and at least one must stay "
            f"free for the others: expected {reserved + 1} or more",
            show_value=False,
        )


def _tensorflow(config: Config) -> Iterator[Problem]:
    tensorflow = config.tensorflow
    if tensorflow.device == "cpu" and tensorflow.visible_devices:
        yield Problem(
            ("tensorflow", "visible_devices"), 'means nothing with device = "cpu"; remove one of the two'
        )
    if not tensorflow.session_config:
        return
    # protobuf is not loaded for files that do not need it.
    from fastserve.session_config import parse_session_config

    try:
        parse_session_config(tensorflow.session_config)
    except ConfigError as error:
        for text in error.problems:
            yield Problem(("tensorflow", "session_config"), text, show_value=False)


def _tracing(config: Config) -> Iterator[Problem]:
    tracing = config.tracing
    where = ("tracing", "otlp_endpoint")
    if tracing.otlp_endpoint:
        try:
            url = urlsplit(tracing.otlp_endpoint)
            usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            usable = False
        if not usable:
            yield Problem(
                where, 'expected a URL of OTLP over HTTP, such as "http://collector:4318/v1/traces"'
            )
    elif tracing.sample_ratio:
        yield Problem(("tracing", "sample_ratio"), "means nothing without otlp_endpoint")


def _models(config: Config, tables: dict[str, Any]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    prefixes: dict[str, str] = {}
    for i, model in enumerate(config.models):
        where: Where = ("models", i)
        if model.name in first:
            yield Problem(
                (*where, "name"),
                f"model number {first[model.name] + 1} has this name too; each needs its own",
            )
        first.setdefault(model.name, i)
        yield from _model(model, where)
        given = tables["models"][i].get("batching", {})
        yield from _batching(model.batching, given, (*where, "batching"))
        if model.logging.sampling_rate:
            yield from _logging(model, prefixes, (*where, "logging", "filename_prefix"))
            prefixes.setdefault(model.logging.filename_prefix, model.name)


def _model(model: Model, where: Where) -> Iterator[Problem]:
    # The REST API's paths end a name at "/" and ":".
    if any(char in "/:" or not char.isprintable() for char in model.name):
        yield Problem((*where, "name"), 'a name has no "/", no ":" and no control characters')
    yield from _versions(model, where)
    if len(set(model.tags)) != len(model.tags):
        yield Problem((*where, "tags"), "a tag is there twice")
    if not model.tags:
        yield Problem((*where, "tags"), 'expected at least one tag, usually "serve"')


def _versions(model: Model, where: Where) -> Iterator[Problem]:
    versions = model.versions
    if versions.policy == "specific" and not versions.specific:
        yield Problem((*where, "versions", "specific"), 'policy = "specific" needs at least one version here')
    if versions.policy != "specific" and versions.specific:
        yield Problem((*where, "versions", "specific"), f'means nothing with policy = "{versions.policy}"')
    if len(set(versions.specific)) != len(versions.specific):
        yield Problem((*where, "versions", "specific"), "a version is there twice")
    if "/" in versions.complete_marker:
        yield Problem((*where, "versions", "complete_marker"), "expected the name of a file, without a path")
    for label in model.labels:
        if not re.fullmatch(r"\w+", label, re.ASCII):
            yield Problem(
                (*where, "labels", label), "a label has letters, digits and _ only", show_value=False
            )
    if model.rollout.mode != "off" and versions.transition == "resource":
        yield Problem(
            (*where, "versions", "transition"),
            'unloads the old version first, so nothing is left to compare with: expected "availability", '
            'or rollout.mode = "off"',
        )
    if model.rollout.mode != "off" and versions.policy != "latest":
        yield Problem((*where, "rollout", "mode"), 'needs [models.versions] policy = "latest"')


def _logging(model: Model, prefixes: dict[str, str], where: Where) -> Iterator[Problem]:
    """`prefixes`: those of the models before, by prefix."""
    prefix = model.logging.filename_prefix
    if "://" in prefix:
        yield Problem(where, "is a URL: expected files of this machine, such as logs/NAME")
    elif prefix in prefixes:
        yield Problem(where, f"is {prefixes[prefix]}'s, too: give each model its own", show_value=False)
    elif len(prefix.encode()) > MAX_PREFIX_BYTES:
        yield Problem(where, f"is longer than {MAX_PREFIX_BYTES} bytes", show_value=False)


def _batching(batching: Batching, given: dict[str, Any], where: Where) -> Iterator[Problem]:
    if "/" in batching.version_file:
        yield Problem((*where, "version_file"), "expected the name of a file, without a path")
    for i, name in enumerate(batching.broadcast):
        if name in batching.broadcast[:i]:
            yield Problem((*where, "broadcast", i), "this input is there twice")
    execution = batching.max_execution_batch_size
    if execution is not None and not batching.split_large_batches:
        yield Problem(
            (*where, "max_execution_batch_size"), "means nothing without split_large_batches = true"
        )
    elif execution is not None and execution > batching.max_batch_size:
        yield Problem(
            (*where, "max_execution_batch_size"),
            f"is larger than max_batch_size: expected 1 to {batching.max_batch_size}",
        )
    elif "allowed_batch_sizes" in given:
        sizes = batching.allowed_batch_sizes
        if any(a >= b for a, b in pairwise(sizes)):
            yield Problem((*where, "allowed_batch_sizes"), "expected sizes that increase")
        elif len(sizes) > MAX_BUCKETS:
            yield Problem(
                (*where, "allowed_batch_sizes"), f"has {len(sizes)} sizes; expected at most {MAX_BUCKETS}"
            )
        elif sizes[-1] != batching.largest_batch:
            last = "max_batch_size" if execution is None else "max_execution_batch_size"
            yield Problem(
                (*where, "allowed_batch_sizes"),
                f"the last size must be {last}, which is {batching.largest_batch}",
            )


def _routes(config: Config) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for i, route in enumerate(config.routes):
        where: Where = ("routes", i)
        if not _ROUTE_PATH.fullmatch(route.path):
            yield Problem(
                (*where, "path"), 'expected a path such as "/rank": "/" first, no query, nothing quoted'
            )
        elif route.path.lower().startswith("/v1/"):
            yield Problem((*where, "path"), "what is below /v1/ is the REST API's: expected another path")
        elif route.path in (*MONITOR_PATHS, config.monitoring.metrics_path):
            yield Problem((*where, "path"), "is taken by health, metrics or the page: expected another path")
        elif route.path in first:
            yield Problem((*where, "path"), f"route number {first[route.path] + 1} has this path, too")
        first.setdefault(route.path, i)
        yield from _route(config, route, where)
    if config.routes and not config.gateway.listen:
        yield Problem(
            ("routes", 0, "path"),
            'nothing listens for it: expected an address in [gateway] listen, such as "127.0.0.1:8501"',
        )


def _route(config: Config, route: Route, where: Where) -> Iterator[Problem]:
    names = [model.name for model in config.models]
    if route.model and route.model not in names:
        yield Problem((*where, "model"), f"there is no such model; there are: {', '.join(names)}")
    if route.version is not None and route.label:
        yield Problem((*where, "label"), "means nothing with version: remove one of the two")
    for key in ("version", "label", "signature"):
        if not route.model and getattr(route, key) not in (None, ""):
            yield Problem((*where, key), "means nothing without model")
    if not route.methods:
        yield Problem((*where, "methods"), 'expected at least one, usually "POST"')
    if len(set(route.methods)) != len(route.methods):
        yield Problem((*where, "methods"), "a method is there twice")
