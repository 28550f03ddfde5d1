"""HandleReloadConfigRequest: the models that a client of TensorFlow Serving's API wants served.

Called by the core through its control connection, on the event loop. Knows the messages and TensorFlow
Serving's words for what is wrong with them; the reload itself is the Reloader's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from msgspec.structs import replace

from fastserve.config import Model, Versions
from fastserve.config_read import powers_of_two
from fastserve.control import labels
from fastserve.control.manager import Manager
from fastserve.control.reload import Reloader
from fastserve.control.request_log import NoCollector, logging_of
from fastserve.errors import ConfigError
from fastserve.protos import message

OK, UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED = 0, 2, 3, 5, 7
FAILED_PRECONDITION, UNIMPLEMENTED = 9, 12
# ModelConfig.model_type, which model_platform has replaced.
_TYPES = {1: "tensorflow"}


class Refused(Exception):
    """Ends a request with this gRPC code and message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class ReloadRequests:
    """Answers the requests that the core passes on: (gRPC code, message, reply)."""

    def __init__(self, reloader: Reloader, manager: Manager, like: Model | None = None) -> None:
        """`like`: a model whose settings those get that are new; None: defaults."""
        self._reloader = reloader
        self._manager = manager
        self._like = like

    async def answer(self, method: str, request: bytes) -> tuple[int, str, bytes]:
        """The hook of core_process.OnRequest."""
        if method != "HandleReloadConfigRequest":
            return UNIMPLEMENTED, f"{method} is not served", b""
        try:
            await self._reload(request)
        except Refused as refused:
            return refused.code, str(refused), b""
        except ConfigError as error:
            return INVALID_ARGUMENT, str(error), b""
        reply = message("tensorflow.serving.ReloadConfigResponse")()
        reply.status.SetInParent()
        return OK, "", reply.SerializeToString()

    async def _reload(self, request: bytes) -> None:
        try:
            config = message("tensorflow.serving.ReloadConfigRequest").FromString(request).config
        except DecodeError:
            raise Refused(INVALID_ARGUMENT, "not a ReloadConfigRequest") from None
        if config.WhichOneof("config") != "model_config_list":
            raise Refused(
                INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        before = {served.model.name: served.model for served in self._manager.models}
        logs = f"{self._reloader.config.server.state_dir}/logs"
        models = models_of(config.model_config_list.config, before, logs, self._like)
        roots = self._reloader.config.server.reload_roots
        check_roots(models, before, roots)
        check_log_places(models, before, roots, logs)
        # Labels wait for their versions; the others first.
        given = {model.name: dict(model.labels) for model in models}
        await self._reloader.models(
            [replace(m, labels=before[m.name].labels if m.name in before else {}) for m in models]
        )
        new = [model.name for model in models if model.name not in before]
        await self._manager.settled([model.name for model in models])
        self._say_failures(new)
        await self._label(given)

    def _say_failures(self, new: Sequence[str]) -> None:
        failed = {name: why for name, why in self._manager.failed.items() if name.partition(":")[0] in new}
        if failed:
            each = "".join(f"{{{name}}} due to error: {why}, " for name, why in failed.items())
            raise Refused(UNKNOWN, f"{len(failed)} model(s) did not become available: {{{each}}}")

    async def _label(self, given: Mapping[str, Mapping[str, int]]) -> None:
        """All models' labels, or none and why not."""
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
        for name, wanted in given.items():
            removed = [label for label in self._manager.named(name).labels if label not in wanted]
            await self._manager.set_labels(name, wanted, removed)


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
    models = [_model(config, before.get(config.name), logs, like) for config in configs]
    prefixes = [model.logging.filename_prefix for model in models if model.logging.sampling_rate]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise Refused(INVALID_ARGUMENT, f"Illegal to log several models to {prefix}: a prefix for each")
    return models


def check_roots(models: Sequence[Model], before: Mapping[str, Model], roots: Sequence[str]) -> None:
    """Refused when a model's base_path is not below one of `roots`, if there are any, with links followed.
    What is served already stays allowed."""
    for model in models:
        served = before.get(model.name)
        if not roots or (served is not None and served.base_path == model.base_path):
            continue
        if not any(_is_below(model.base_path, root) for root in roots):
            raise Refused(
                PERMISSION_DENIED,
                f"the base_path of model {model.name}, {model.base_path}, is not below one of the "
                "[server] reload_roots",
            )


def check_log_places(
    models: Sequence[Model], before: Mapping[str, Model], roots: Sequence[str], logs: str
) -> None:
    """Refused when requests of a model would be logged neither below `logs` nor below one of `roots`, if there
    are any. Where they are logged already stays allowed."""
    for model in models:
        prefix = model.logging.filename_prefix
        served = before.get(model.name)
        if not roots or not model.logging.sampling_rate:
            continue
        if served is not None and served.logging.filename_prefix == prefix:
            continue
        # A prefix ends in a part of the files' names.
        if not any(_is_below(os.path.dirname(prefix), root) for root in (logs, *roots)):
            raise Refused(
                PERMISSION_DENIED,
                f"the filename_prefix of model {model.name}, {prefix}, is neither below {logs} nor below one of "
                "the [server] reload_roots",
            )


def _is_below(path: str, root: str) -> bool:
    if ("://" in path) != ("://" in root):
        return False
    if "://" in path:
        # Whether a store would make something of "..", or of an escaped one, is not for us to find out.
        parts = path.partition("://")[2].split("/")
        plain = not any(part in (".", "..") or re.search(r"[%?#\\]|::", part) for part in parts)
        return plain and f"{path}/".startswith(f"{root.rstrip('/')}/")
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, real_root]) == real_root


def _model(config: Any, before: Model | None, logs: str, like: Model | None) -> Model:
    if config.model_type and config.model_platform:
        raise Refused(
            INVALID_ARGUMENT,
            "Illegal setting both ModelServerConfig::model_type (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {config.name}",
        )
    platform = config.model_platform or _TYPES.get(config.model_type, "")
    if not platform:
        raise Refused(
            INVALID_ARGUMENT,
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {config.name}",
        )
    if not os.path.isabs(config.base_path) and "://" not in config.base_path:
        raise Refused(
            INVALID_ARGUMENT,
            f"Expected model {config.name} to have an absolute path or URI; "
            f"got base_path()={config.base_path}",
        )
    if before is not None and before.platform != platform:
        raise Refused(
            INVALID_ARGUMENT,
            f"Illegal to change a model's platform. For model {config.name} platform was "
            f"{before.platform} and new platform requested is {platform}",
        )
    if not config.name or any(char in "/:" or not char.isprintable() for char in config.name):
        raise Refused(INVALID_ARGUMENT, f'Illegal model name "{config.name}": no "/" and no ":"')
    model = before or new_model(config.name, config.base_path, like)
    try:
        logging = logging_of(config, model.logging, logs)
    except NoCollector as error:
        raise Refused(NOT_FOUND, str(error)) from None
    except ValueError as error:
        raise Refused(INVALID_ARGUMENT, str(error)) from None
    return replace(
        model,
        logging=logging,
        platform=platform,
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
