"""Which plug-ins a configuration names: source, loader, policy, and native runtimes and batchers.

Called by the manager, by whoever checks a configuration before it is used, and when a loader has prepared a
version. Opens a batcher to see that it is one; a runtime is opened by the trial, which may crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec

from fastserve._native.runtime import RuntimeFailure
from fastserve._native.scheduler import check_library
from fastserve.config import Config, Model
from fastserve.control.policy import POLICIES
from fastserve.control.remote_store import protocol_of, require_packages
from fastserve.control.source_files import FileSource
from fastserve.control.source_remote import remote_source
from fastserve.control.version_format import BUILT_IN_PLATFORMS
from fastserve.errors import ConfigError, ModelError
from fastserve.extensions import Loader, Prepared, Source, SourceContext, VersionPolicy, find_plugin
from fastserve.savedmodel import Signature

# What needs no library of its own.
_RUNTIMES = {"tensorflow": None, "litert": None, "null": None}
# What reads the signatures of what it opens.
_SELF_DESCRIBED = ("tensorflow", "litert")
_BATCHERS = {"fair": None}


def check_plugins(config: Config) -> None:
    """ConfigError, with everything that is wrong, when the configuration names a plug-in that is not
    there."""
    problems = []
    for model in config.models:
        for find in (transition_policy, _source_factory, _loader_factory):
            try:
                find(model)
            except ConfigError as error:
                problems += error.problems
    try:
        batcher_library(config.executor.policy)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def transition_policy(model: Model) -> VersionPolicy:
    """ConfigError when there is none of that name."""
    where = f"[models.versions] of {model.name}, transition"
    policy: VersionPolicy = find_plugin("fastserve.policies", model.versions.transition, POLICIES, where)
    return policy


def make_source(context: SourceContext) -> Source:
    """ConfigError when there is none of that name."""
    source: Source = _source_factory(context.model)(context)
    return source


def _source_factory(model: Model) -> Callable[[SourceContext], Source]:
    where = f"[[models]] {model.name}, source"
    remote = bool(protocol_of(model.base_path))
    builtin = {"files": FileSource, "remote": remote_source}
    name = model.source or ("remote" if remote else "files")
    factory: Callable[[SourceContext], Source] = find_plugin("fastserve.sources", name, builtin, where)
    if factory is remote_source:
        require_packages(model.base_path, f"[[models]] {model.name}, base_path")
    return factory


def make_loader(model: Model) -> Loader | None:
    """None for SavedModels and TFLite models, which need no preparation. ConfigError when there is none of
    that name."""
    factory = _loader_factory(model)
    return None if factory is None else factory(model)


def has_loader(model: Model) -> bool:
    """Whether there is a loader of that name."""
    try:
        _loader_factory(model)
    except ConfigError:
        return False
    return True


def _loader_factory(model: Model) -> Callable[[Model], Loader] | None:
    where = f"[[models]] {model.name}, platform"
    factory: Callable[[Model], Loader] | None = find_plugin(
        "fastserve.loaders", model.platform, dict.fromkeys(BUILT_IN_PLATFORMS), where
    )
    return factory


# ---- native plug-ins ---------------------------------------------------------------------------


def runtime_library(name: str) -> str:
    """The path of the library of the runtime `name`; "" for our own. ConfigError says what there is."""
    return _library("fastserve.runtimes", name, _RUNTIMES, "the loader's runtime")


def batcher_library(name: str) -> str | None:
    """The path of the library of [executor] policy = `name`; None for our own. ConfigError when there is no
    such plug-in, or when it is none."""
    where = "[executor] policy"
    path = _library("fastserve.batchers", name, _BATCHERS, where)
    if not path:
        return None
    try:
        check_library(path)
    except RuntimeFailure as failure:
        raise ConfigError([f'{where} = "{name}": {failure.message}']) from None
    return path


def prepared_request(prepared: Prepared) -> dict[str, Any]:
    """What the "model" of a trial's request says of a version that its loader has prepared: path, runtime,
    runtime_library and signatures. ModelError when its runtime cannot be had."""
    try:
        library = runtime_library(prepared.runtime)
    except ConfigError as error:
        raise ModelError(str(error)) from None
    signatures = prepared.signatures
    if signatures is None and prepared.runtime not in _SELF_DESCRIBED:
        raise ModelError(
            f"its loader names the runtime '{prepared.runtime}' and gives no signatures: Prepared.signatures "
            "says what the version offers"
        )
    return {
        "path": prepared.path,
        "runtime": prepared.runtime,
        "runtime_library": library,
        "signatures": None if signatures is None else msgspec.to_builtins(_in_order(signatures)),
    }


def _library(group: str, name: str, ours: dict[str, None], where: str) -> str:
    """The absolute path that the plug-in's function gives; "" for one of `ours`."""
    function: Callable[[], str | os.PathLike[str]] | None = find_plugin(group, name, ours, where)
    if function is None:
        return ""
    try:
        path = os.path.abspath(os.fspath(function()))
    except Exception as error:  # whatever a stranger's function does
        raise ConfigError(
            [f'{where} = "{name}": the plug-in names no library: {type(error).__name__}: {error}']
        ) from error
    if not os.path.isfile(path):
        raise ConfigError(
            [f'{where} = "{name}": there is no file {path}: build the plug-in, or install it again']
        )
    return path


def _in_order(signatures: tuple[Signature, ...]) -> list[Signature]:
    """As a SavedModel has them: signatures by name, and their inputs and outputs by alias."""
    return [
        Signature(
            name=signature.name,
            method_name=signature.method_name,
            inputs=tuple(sorted(signature.inputs, key=lambda port: port.alias)),
            outputs=tuple(sorted(signature.outputs, key=lambda port: port.alias)),
        )
        for signature in sorted(signatures, key=lambda signature: signature.name)
    ]
