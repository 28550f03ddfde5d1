"""HandleReloadConfigRequest: the models that a client of TensorFlow Serving's API wants served.

Called by the core through its control connection, on the event loop. Knows the messages and TensorFlow
Serving's words for what is wrong with them; the reload itself is the Reloader's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec.structs import replace

from fastserve.config import Model, Versions
from fastserve.config_read import powers_of_two
from fastserve.control import labels
from fastserve.control.manager import Manager
from fastserve.control.plugins import has_loader
from fastserve.control.reload import Reloader
from fastserve.control.reload_roots import OutsideRoots, check_log_places, check_roots
from fastserve.control.request_log import NoCollector, logging_of
from fastserve.errors import ConfigError
from fastserve.protos import message

OK, UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 0, 2, 3, 5, 7
FAILED_PRECONDITION, UNIMPLEMENTED, INTERNAL = 9, 12, 13
# ModelConfig.model_type, which model_platform has replaced.
_TYPES = {1: "tensorflow"}


class Refused(Exception):
    """Ends a request with this gRPC code and message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ReloadRequests:
    """Answers the requests that the core passes on: (gRPC code, message, reply).

    One at a time; what is refused leaves everything as it was."""

    def __init__(self, reloader: Reloader, manager: Manager, like: Model | None = None) -> None:
        """`like`: a model whose settings those get that are new; None: defaults."""
        self._reloader = reloader
        self._manager = manager
        self._like = like
        self._turn = asyncio.Lock()

    async def answer(self, method: str, request: bytes) -> tuple[int, str, bytes]:
        """The hook of core_process.OnRequest."""
        if method != "HandleReloadConfigRequest":
            return UNIMPLEMENTED, f"{method} is not served", b""
        try:
            await self._reload(request)
        except Refused as refused:
            return refused.code, str(refused), b""
        except OutsideRoots as refused:
            return PERMISSION_DENIED, str(refused), b""
        except ConfigError as error:
            return INVALID_ARGUMENT, str(error), b""
        reply = message("tensorflow.serving.ReloadConfigResponse")()
        reply.status.SetInParent()
        return OK, "", reply.SerializeToString()

    async def _reload(self, request: bytes) -> None:
        try:
            config = message("tensorflow.serving.ReloadConfigRequest").FromString(request).config
        except DecodeError:
            raise Refused(INTERNAL, "") from None  # gRPC's own answer to what is no such message
        if config.WhichOneof("config") != "model_config_list":
            raise Refused(
                INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        async with self._turn:
            await self._replace(config.model_config_list.config)

    async def _replace(self, configs: Sequence[Any]) -> None:
        before = {served.model.name: served.model for served in self._manager.models}
        server = self._reloader.config.server
        logs = f"{server.state_dir}/logs"
        models = models_of(configs, before, logs, self._like)
        check_roots(models, before, server.reload_roots)
        check_log_places(models, before, server.reload_roots, logs)
        # Labels wait for their versions, and what leaves for what comes: until then all can be taken back.
        given = {model.name: dict(model.labels) for model in models}
        wanted = [replace(m, labels=before[m.name].labels if m.name in before else {}) for m in models]
        leaving = [model for name, model in before.items() if name not in given]
        await self._reloader.models([*wanted, *leaving])
        await self._manager.settled(list(given))
        try:
            self._check_available([name for name in given if name not in before])
            self._check_labels(given)
        except Refused:
            await self._reloader.models(list(before.values()))
            raise
        for name, versions in given.items():
            removed = [label for label in self._manager.named(name).labels if label not in versions]
            await self._manager.set_labels(name, versions, removed)
        if leaving:
            await self._reloader.models(wanted)

    def _check_available(self, new: Sequence[str]) -> None:
        failed = {name: why for name, why in self._manager.failed.items() if name.partition(":")[0] in new}
        if failed:
            each = "".join(f"{{{_servable(name)} due to error: {why}}}, " for name, why in failed.items())
            raise Refused(UNKNOWN, f"{len(failed)} model(s) did not become available: {{{each}}}")

    def _check_labels(self, given: Mapping[str, Mapping[str, int]]) -> None:
        for name, wanted in given.items():
            served = self._manager.named(name)
            there = {harness.version for harness in served.stream.available}
            why = labels.why_not(
                name,
                served.labels,
                wanted,
                there,
                unavailable_allowed=self._reloader.config.loading.labels_for_unavailable,
            )
            if why:
                raise Refused(FAILED_PRECONDITION, why)


def _servable(name: str) -> str:
    """The name m:3 as TensorFlow Serving writes it; m alone is a model without a version."""
    model, _, version = name.partition(":")
    return f"{{name: {model} version: {version}}}" if version else f"{{name: {model}}}"


def models_of(
    configs: Sequence[Any], before: Mapping[str, Model], logs: str, like: Model | None = None
) -> list[Model]:
    """The models that a ModelConfigList names. What it cannot say is as `before`, or for new ones as in
    `like`, or default; request logs whose prefix is relative go below the directory `logs`. Refused in
    TensorFlow Serving's words."""
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise Refused(INVALID_ARGUMENT, f"Illegal to list model {name} multiple times in config list")
    for config in configs:
        if not os.path.isabs(config.base_path) and "://" not in config.base_path:
            raise Refused(
                INVALID_ARGUMENT,
                f"Expected model {config.name} to have an absolute path or URI; "
                f"got base_path()={config.base_path}",
            )
    models = [_model(config, before.get(config.name), logs, like) for config in configs]
    prefixes = [model.logging.filename_prefix for model in models if model.logging.sampling_rate]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise Refused(INVALID_ARGUMENT, f"Illegal to log several models to {prefix}: a prefix for each")
    return models


def _model(config: Any, before: Model | None, logs: str, like: Model | None) -> Model:
    if config.model_type and config.model_platform:
        raise Refused(
            INVALID_ARGUMENT,
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {config.name}",
        )
    if config.model_type and config.model_type not in _TYPES:
        raise Refused(
            INVALID_ARGUMENT, f"ModelServerConfig::model_type choice {config.model_type} not supported."
        )
    platform = config.model_platform or _TYPES.get(config.model_type, "")
    if not platform:
        raise Refused(
            INVALID_ARGUMENT,
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {config.name}",
        )
    if before is not None and before.platform != platform:
        raise Refused(
            INVALID_ARGUMENT,
            f"Illegal to change a model's platform. For model {config.name} platform was "
            f"{before.platform} and new platform requested is {platform}",
        )
    if not config.name or any(char in "/:" or not char.isprintable() for char in config.name):
        raise Refused(INVALID_ARGUMENT, f'Illegal model name "{config.name}": no "/" and no ":"')
    model = replace(before or new_model(config.name, config.base_path, like), platform=platform)
    if not has_loader(model):
        raise Refused(INVALID_ARGUMENT, f"Model {config.name} requests unsupported platform {platform}")
    try:
        logging = logging_of(config, model.logging, logs)
    except NoCollector as error:
        raise Refused(NOT_FOUND, str(error)) from None
    except ValueError as error:
        raise Refused(INVALID_ARGUMENT, str(error)) from None
    return replace(
        model,
        logging=logging,
        base_path=os.path.normpath(config.base_path) if "://" not in config.base_path else config.base_path,
        versions=_versions(config.model_version_policy, model.versions),
        labels=dict(config.version_labels),
    )


def new_model(name: str, base_path: str, like: Model | None = None) -> Model:
    """A model with the settings of another, or with the defaults."""
    if like is not None:
        return replace(like, name=name, base_path=base_path)
    model = Model(name=name, base_path=base_path)
    sizes = powers_of_two(model.batching.largest_batch)
    return replace(model, batching=replace(model.batching, allowed_batch_sizes=sizes))


def _versions(policy: Any, before: Versions) -> Versions:
    kind = policy.WhichOneof("policy_choice") or "latest"
    return replace(
        before,
        policy=kind,
        num_versions=(policy.latest.num_versions or 1) if kind == "latest" else 1,
        specific=tuple(sorted(set(policy.specific.versions))) if kind == "specific" else (),
    )
