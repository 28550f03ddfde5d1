"""What a plug-in implements: Source, Loader and VersionPolicy, as TensorFlow Serving names them.

A plug-in is found by an entry point; its name is what the configuration says. All three run in the control
process, never in the one that serves: they may be slow, and what they raise concerns one model.

  group                 the object is                                   named by
  fastserve.sources     (SourceContext) -> Source                       [[models]] source
  fastserve.loaders     (Model) -> Loader                               [[models]] platform
  fastserve.policies    VersionPolicy                                   [models.versions] transition
  fastserve.runtimes    () -> path of a shared library                  Prepared.runtime
  fastserve.batchers    () -> path of a shared library                  [executor] policy

The last two are native: fastserve/plugin.h, in the directory that `include_dir` gives, says what they are.
examples/plugins has one of each. Values and protocols only; this module knows nobody who uses them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from fastserve.config import Model
from fastserve.errors import ConfigError
from fastserve.log import Log
from fastserve.savedmodel.signature import Signature

# ---- Source: which versions there are --------------------------------------------------------


@dataclass(frozen=True, order=True)
class VersionPath:
    """A version that is there, whole, and the local directory that holds it.

    fingerprint: any text that changes when the version's content does. A version that has failed is tried
    again when it changes.
    """

    version: int
    path: str
    fingerprint: str = field(default="", compare=False)


@dataclass(frozen=True)
class Aspired:
    """What a source wants served of its model: exactly these versions.

    problem: what keeps it from knowing better, or "": a base path that is gone, a store that does not
    answer, a version half copied. spares: whole versions that are there and not wanted, the newest last. When
    all that is wanted has failed and nothing is served, the newest of them is.
    """

    versions: tuple[VersionPath, ...]
    problem: str = ""
    spares: tuple[VersionPath, ...] = ()


# Called by a source with what is aspired, whenever that changes.
Aspire = Callable[[Aspired], None]


@dataclass(frozen=True)
class SourceContext:
    """What a source may know. `choose` picks the versions to serve from all that there are, after
    [models.versions]: the newest last."""

    model: Model
    choose: Callable[[Iterable[int]], Sequence[int]]
    poll_s: float
    cache_dir: str
    log: Log


class Source(Protocol):
    """Finds the versions of one model.

    What it is doing, for `fastserve status`, may be in an attribute `progress`: a text, empty for nothing.
    """

    async def run(self, aspire: Aspire) -> None:
        """Looks for versions and says what is aspired, at least once, until it is cancelled.

        A source that cannot look says so in `Aspired.problem`, with the versions it knew last: what is
        served stays served. Blocking work belongs into threads. Raising ends the source: the error is shown,
        and it is started again after a while.
        """
        ...


# ---- Loader: how a version becomes a servable -------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What the runtime is to open.

    path: a local file or directory. runtime: "tensorflow", "litert" (a directory with model.tflite), or a
    plug-in of fastserve.runtimes.
    signatures: None for a SavedModel or a TFLite model, which have their own.
    resident_bytes: what it will take in memory where the loader knows; 0: found out by the trial.
    """

    path: str
    runtime: str = "tensorflow"
    signatures: tuple[Signature, ...] | None = None
    resident_bytes: int = 0


class Loader(Protocol):
    """Prepares the versions of one model for a runtime."""

    def prepare(self, version: VersionPath, work_dir: str) -> Prepared:
        """Makes `version` ready to be opened: unpacks, converts, checks. Blocks; runs in a thread.

        `work_dir` is an empty directory of this version's own, removed when the version is unloaded. Raises
        ModelError with what is wrong and what would be right.
        """
        ...


# ---- VersionPolicy: what happens next ---------------------------------------------------------


class State(enum.IntEnum):
    """Of a version, with the numbers of TensorFlow Serving's ModelVersionStatus."""

    START = 10  # aspired, nothing done yet
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50  # unloaded, or failed for good


@dataclass(frozen=True)
class Snapshot:
    """One version of a model at one moment. `failed`: at its END because it could not be loaded."""

    version: int
    state: State
    aspired: bool
    failed: bool = False


class Step(enum.Enum):
    LOAD = "load"
    UNLOAD = "unload"


@dataclass(frozen=True)
class Action:
    step: Step
    version: int


# From all versions of one model to what is to be done next, or None: wait. A pure function; asked again after
# every change. LOAD only what is aspired and at START, UNLOAD only what is AVAILABLE and not aspired.
VersionPolicy = Callable[[Sequence[Snapshot]], Action | None]


# ---- native plug-ins --------------------------------------------------------------------------


def include_dir() -> str:
    """The directory for the C compiler's -I, so that `#include <fastserve/plugin.h>` works."""
    return str(Path(__file__).parent / "include")


# ---- finding plug-ins -------------------------------------------------------------------------


def find_plugin(group: str, name: str, builtin: Mapping[str, Any], where: str) -> Any:
    """The object that `name` means: one of `builtin`, or an entry point of `group`.

    `where` is the key that names it. Raises ConfigError, which lists the names there are.
    """
    if name in builtin:
        return builtin[name]
    found = [point for point in entry_points(group=group) if point.name == name]
    if not found:
        names = sorted({*builtin, *(point.name for point in entry_points(group=group))})
        raise ConfigError(
            [f'{where} = "{name}": no such plug-in in {group}; there are {", ".join(names) or "none"}']
        )
    try:
        return found[0].load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise ConfigError(
            [f'{where} = "{name}": the plug-in cannot be imported: {type(error).__name__}: {error}']
        ) from error
