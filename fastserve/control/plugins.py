"""Which source, loader and policy a model's configuration names: built in, or a plug-in's.

Called by the manager and by whoever checks a configuration before it is used.
"""

from __future__ import annotations

from collections.abc import Callable

from fastserve.config import Config, Model
from fastserve.control.policy import POLICIES
from fastserve.control.source_files import FileSource
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
    factory: Callable[[SourceContext], Source] = find_plugin(
        "fastserve.sources", model.source or "files", {"files": FileSource}, where
    )
    return factory
