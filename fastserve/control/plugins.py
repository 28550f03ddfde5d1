"""Which source, loader and policy a model's configuration names: built in, or a plug-in's.

Called by the manager and by whoever checks a configuration before it is used.
"""

from __future__ import annotations

from collections.abc import Callable

from fastserve.config import Config, Model
from fastserve.control.policy import POLICIES
from fastserve.control.remote_store import protocol_of, require_packages
from fastserve.control.source_files import FileSource
from fastserve.control.source_remote import remote_source
from fastserve.errors import ConfigError
from fastserve.extensions import Source, SourceContext, VersionPolicy, find_plugin


def check_plugins(config: Config) -> None:
    """ConfigError, with everything that is wrong, when a model names a plug-in that is not there."""
    problems = []
    for model in config.models:
        for find in (transition_policy, _source_factory):
            try:
                find(model)
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
