"""What has happened: the newest events, for people, and what loads and switches took, for Prometheus.

An Observer, called by whoever does something to models, versions and processes. On the event loop; a second
of clock and nothing else of the outside.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastserve.control.observer import Observer
from fastserve.monitor.tensorflow_names import LATENCY_US
from fastserve.monitor.values import Durations, PathFigures

# Events that are kept, and directories of one model whose loads are told of.
KEPT = 100
_PATHS_KEPT = 20

LOAD_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WARMUP_S = tuple(bound / 1e6 for bound in LATENCY_US.counted)
SWITCH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Event:
    """`kind`: load, available, unload, end, failed, label, reload, core, gateway, rollout."""

    time_s: float
    kind: str
    model: str = ""
    version: int | None = None
    text: str = ""
    seconds: float | None = None

    def told(self) -> dict[str, Any]:
        return {
            "time_s": round(self.time_s, 3),
            "kind": self.kind,
            "model": self.model,
            "version": self.version,
            "text": self.text,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


class Stopwatch:
    """Durations, counted."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def durations(self) -> Durations:
        up_to, total = [], 0
        for count in self._counts:
            total += count
            up_to.append(total)
        return Durations(self._bounds, tuple(up_to[:-1]), total, self._sum)


@dataclass
class VersionStory:
    """What is known of one version beside its state. `since_s`: when it came to its state, wall clock."""

    since_s: float
    open_s: float | None = None
    warmup_s: dict[tuple[str, str], float] = field(default_factory=dict)
    compile_s: dict[tuple[str, str], float] = field(default_factory=dict)


@dataclass
class ModelStory:
    """What has become of a model's loads. `leaving`: versions that a newer one has been published beside, and
    when."""

    succeeded: int = 0
    failed: int = 0
    load_s: Stopwatch = field(default_factory=lambda: Stopwatch(LOAD_S))
    switch_s: Stopwatch = field(default_factory=lambda: Stopwatch(SWITCH_S))
    serving: set[int] = field(default_factory=set)
    leaving: dict[int, float] = field(default_factory=dict)
    paths: dict[str, PathFigures] = field(default_factory=dict)
    warmups: dict[str, Stopwatch] = field(default_factory=dict)  # by path
    versions: dict[int, VersionStory] = field(default_factory=dict)


class Chronicle(Observer):
    """Writes it down."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._models: dict[str, ModelStory] = {}

    # ---- what others ask -----------------------------------------------------------------

    def events(self) -> list[Event]:
        """The oldest first."""
        return list(self._events)

    def model(self, name: str) -> ModelStory:
        """Of a model that is configured."""
        return self._models.setdefault(name, ModelStory())

    def version(self, model: str, version: int) -> VersionStory:
        """Also of one that was there before this process."""
        return self.model(model).versions.setdefault(version, VersionStory(self._wall_clock()))

    def keep(self, models: Mapping[str, Sequence[int]]) -> None:
        """Forgets what is not among these versions, by model."""
        for name in [name for name in self._models if name not in models]:
            del self._models[name]
        for name, there in models.items():
            story = self.model(name)
            for version in [version for version in story.versions if version not in there]:
                del story.versions[version]
            story.serving.intersection_update(there)
            for path in list(story.paths)[:-_PATHS_KEPT]:
                del story.paths[path]
                story.warmups.pop(path, None)

    # ---- what happens --------------------------------------------------------------------

    def adopted(self, model: str, version: int) -> None:
        self.model(model).serving.add(version)
        self._since(model, version)

    def load_begins(self, model: str, version: int, attempt: int) -> None:
        self._since(model, version)
        self._event("load", model, version, "" if attempt == 1 else f"attempt {attempt}")

    def load_failed(
        self, model: str, version: int, path: str, error: str, seconds: float, attempts_left: int
    ) -> None:
        story = self.model(model)
        story.failed += 1
        there = self._path(story, path)
        story.paths[path] = replace(there, failed=there.failed + 1)
        self._since(model, version)
        self._event("failed", model, version, error, seconds)

    def trial_passed(self, model: str, version: int, path: str, report: Mapping[str, Any]) -> None:
        about = self.version(model, version)
        about.warmup_s, about.compile_s = {}, {}
        for signature in report.get("signatures") or ():
            for rows, seconds in (signature.get("warm_s") or {}).items():
                about.warmup_s[signature["name"], rows] = seconds
            for rows, seconds in (signature.get("compile_s") or {}).items():
                about.compile_s[signature["name"], rows] = seconds
        ran = (report.get("seconds") or {}).get("warmup")
        if ran is not None:
            story = self.model(model)
            there = self._path(story, path)
            watch = story.warmups.setdefault(path, Stopwatch(WARMUP_S))
            watch.add(float(ran))
            records = there.warmup_records + int((report.get("warmup") or {}).get("requests") or 0)
            story.paths[path] = replace(there, warmup_records=records, warmup_s=watch.durations())

    def opened(self, model: str, version: int, path: str, seconds: float) -> None:
        self.version(model, version).open_s = seconds

    def published(self, model: str, version: int, *, replacement: bool) -> None:
        story, now = self.model(model), self._clock()
        story.serving.add(version)
        if not replacement:  # which takes the place of no other
            story.leaving = {old: now for old in story.serving if old != version}

    def available(self, model: str, version: int, path: str, seconds: float, *, renewed: bool) -> None:
        story = self.model(model)
        story.succeeded += 1
        story.load_s.add(seconds)
        there = self._path(story, path)
        story.paths[path] = replace(there, succeeded=there.succeeded + 1, load_s=there.load_s + seconds)
        self._since(model, version)
        self._event("available", model, version, "loaded anew" if renewed else "", seconds)

    def unload_begins(self, model: str, version: int) -> None:
        self._since(model, version)
        self._event("unload", model, version)

    def ended(self, model: str, version: int, error: str, seconds: float) -> None:
        story = self.model(model)
        story.serving.discard(version)
        published = story.leaving.pop(version, None)
        text = error
        if published is not None and not error:
            switch_s = self._clock() - published
            story.switch_s.add(switch_s)
            text = f"{switch_s:.3g} s after a newer version was published"
        self._since(model, version)
        self._event("end", model, version, text, seconds)

    def rollout(self, model: str, version: int, text: str, seconds: float | None) -> None:
        self._event("rollout", model, version, text, seconds)

    def labels(self, model: str, labels: Mapping[str, int]) -> None:
        words = ", ".join(f"{label} = {version}" for label, version in labels.items())
        self._event("label", model, None, words or "none")

    def reloaded(self, changed: Sequence[str]) -> None:
        self._event("reload", text="; ".join(changed) or "nothing has changed")

    def process(self, kind: str, text: str, seconds: float | None = None) -> None:
        self._event(kind, text=text, seconds=seconds)

    def _event(
        self,
        kind: str,
        model: str = "",
        version: int | None = None,
        text: str = "",
        seconds: float | None = None,
    ) -> None:
        self._events.append(Event(self._wall_clock(), kind, model, version, text[:1000], seconds))

    def _since(self, model: str, version: int) -> None:
        self.version(model, version).since_s = self._wall_clock()

    @staticmethod
    def _path(story: ModelStory, path: str) -> PathFigures:
        """Taken out, so that it comes back as the newest."""
        return story.paths.pop(path, PathFigures(path))
