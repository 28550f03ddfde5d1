"""What the control process knows and counts, as values: for health probes, Prometheus, the page and `top`.

Looks at the core's counters once a second, in a thread, and keeps ten minutes of points; the rest is made
when it is asked for, at most once a second. It is the View of the monitor. Owned by the daemon, on the event
loop; knows no HTTP, and asks the core for nothing but the figures of request logs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from fastserve.control.telemetry_events import Chronicle
from fastserve.control.telemetry_status import Processes, point, status
from fastserve.control.telemetry_window import Key, Snapshot, Window, live_series, window
from fastserve.log import Log
from fastserve.monitor.values import Figures, Health, ModelFigures, ProcessFigures, VersionFigures
from fastserve.version import __version__

# Percentiles and rates are of so many seconds, the history of so many points, one a second.
WINDOW_S = 5
POINTS = 600
STEP_S = 1.0
# Series of a version that has closed are shown for so long, so that a scrape sees their last values.
LINGER_S = 120.0
# Looks between two times that what is known of models that are no more is forgotten, though nobody asks.
_KEEP_EVERY = 60
# Looks for which somebody who has asked for the status is expected to ask again.
_WATCHED = 3


class Models(Protocol):
    """The manager, as far as it is asked."""

    @property
    def missing(self) -> Mapping[str, str]: ...

    def status(self) -> list[dict[str, Any]]: ...


class Core(Protocol):
    """The supervisor of the core."""

    restarts: int

    @property
    def pid(self) -> int | None: ...

    @property
    def up(self) -> bool: ...


class Counters(Protocol):
    """What cores count."""

    def follow(self) -> None:
        """Turns to the core of now. On the event loop."""

    def keep(self, models: Collection[str]) -> None:
        """Forgets what others than these had counted."""

    def look(self) -> Snapshot:
        """In a thread, one at a time."""


class Memory(Protocol):
    limit_bytes: int

    def core_bytes(self) -> int: ...


@dataclass(frozen=True)
class _Moment:
    at_s: float
    snapshot: Snapshot


def _between(first: _Moment, last: _Moment) -> Window:
    """In a thread: many models take it some milliseconds."""
    return window(last.snapshot, first.snapshot, last.at_s - first.at_s)


class Telemetry:
    """`gateway`: pids, restarts and up of its processes; None when there is none. `logs`: rows of figures of
    request logs."""

    def __init__(
        self,
        models: Models,
        core: Core,
        memory: Memory,
        chronicle: Chronicle,
        log: Log,
        *,
        counters: Counters,
        logs: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]],
        gateway: Callable[[], Mapping[str, Any] | None] = lambda: None,
        library: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._models = models
        self._core = core
        self._memory = memory
        self._chronicle = chronicle
        self._log = log
        self._counters = counters
        self._logs = logs
        self._gateway = gateway
        self._library = library
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._began = clock()
        # "starting", "serving", "draining"; the daemon's.
        self.phase = "starting"
        # Its own: what downloads models may take all that others share.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="telemetry")
        self._reading = asyncio.Lock()
        self._unreadable = False
        self._looks = 0
        self._moments: deque[_Moment] = deque(maxlen=WINDOW_S + 1)
        self._points: deque[dict[str, Any]] = deque(maxlen=POINTS)
        self._gone: dict[Key, tuple[Any, float]] = {}
        # The look at which the status was last asked for, and the window of a moment.
        self._asked = -_WATCHED
        self._window: tuple[_Moment, Window] | None = None
        # Made for this look and phase.
        self._status: tuple[int, str, bytes] | None = None

    # ---- second by second ----------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        due = self._clock()
        while True:
            await self.look()
            due = max(due + STEP_S, self._clock())
            await self._sleep(due - self._clock())

    def close(self) -> None:
        """Nothing is read any more."""
        self._thread.shutdown(wait=False)

    async def look(self) -> None:
        """One second's look."""
        snapshot, last = await self._snapshot(), self._moments[-1] if self._moments else None
        self._looks += 1
        if snapshot is not None:
            moment = _Moment(self._clock(), snapshot)
            self._note_gone(live_series(snapshot), live_series(last.snapshot if last else None), moment.at_s)
            self._moments.append(moment)
            watched = self._looks - self._asked < _WATCHED
            first = self._moments[0] if watched else moment
            second, some = await asyncio.get_running_loop().run_in_executor(
                self._thread, lambda: (_between(last or moment, moment), _between(first, moment))
            )
            self._window = (moment, some) if watched else None
        else:
            # Nothing is known of this second, and what was a moment ago is not what is.
            self._moments.clear()
            self._window = None
            second = window(None, None, 0.0)
        self._points.append(point(second.total, self._wall_clock()))
        if self._looks % _KEEP_EVERY == 0:
            self._keep(self._models.status())

    async def _snapshot(self) -> Snapshot | None:
        async with self._reading:
            try:
                loop = asyncio.get_running_loop()
                self._counters.follow()
                snapshot = await loop.run_in_executor(self._thread, self._counters.look)
            except (OSError, ValueError, RuntimeError) as error:
                if not self._unreadable:
                    self._log.warning("the core's counters cannot be read", why=error)
                self._unreadable = True
                return None
        self._unreadable = False
        return snapshot

    def _note_gone(self, now: Mapping[Key, Any], before: Mapping[Key, Any], at_s: float) -> None:
        for key, series in before.items():
            if key not in now:
                self._gone[key] = series, at_s + LINGER_S
        self._gone = {
            key: (series, until)
            for key, (series, until) in self._gone.items()
            if key not in now and until > at_s
        }

    # ---- what the monitor shows ----------------------------------------------------------

    def health(self) -> Health:
        if self.phase == "starting" or self._core.up:
            return Health(True)
        return Health(False, "the core has died and is not back yet")

    def readiness(self) -> Health:
        missing = dict(self._models.missing)
        why = ""
        if self.phase != "serving":
            why = f"it is {self.phase}"
        elif not self._core.up:
            why = "the core has died and is not back yet"
        return Health(not why and not missing, why, missing)

    def status(self) -> bytes:
        self._asked = self._looks
        if self._status is None or self._status[:2] != (self._looks, self.phase):
            self._status = self._looks, self.phase, msgspec.json.encode(self._made_status())
        return self._status[2]

    def history(self) -> bytes:
        return msgspec.json.encode({"step_s": int(STEP_S), "points": list(self._points)})

    async def figures(self) -> Figures:
        snapshot = await self._snapshot()
        logs = {str(row["model"]): row for row in await self._logs()}
        live = live_series(snapshot)
        gone = [series for key, (series, _) in self._gone.items() if key not in live]
        rows = self._models.status()
        self._keep(rows)
        gateway = self._gateway()
        return Figures(
            version=__version__,
            library=self._library,
            uptime_s=self._clock() - self._began,
            ready=self.readiness().ok,
            live=[*live.values(), *gone],
            all=list(snapshot.series) if snapshot is not None else [],
            unresolved=snapshot.unresolved if snapshot is not None else {},
            core=ProcessFigures(self._core.up, self._core.restarts, 1 if self._core.pid else 0),
            core_bytes=self._memory.core_bytes(),
            memory_limit_bytes=self._memory.limit_bytes,
            gateway=None
            if gateway is None
            else ProcessFigures(bool(gateway["up"]), int(gateway["restarts"]), len(gateway["pids"])),
            models=[self._model(row, logs.get(row["name"])) for row in rows],
            versions=[
                self._version(row["name"], version)
                for row in rows
                for version in row["versions"]
                if version["state"] != "END"
            ],
            paths=[path for row in rows for path in self._chronicle.model(row["name"]).paths.values()],
        )

    def _made_status(self) -> dict[str, Any]:
        rows = self._models.status()
        self._keep(rows)
        return status(
            rows,
            self._some_seconds(),
            self._chronicle,
            Processes(
                core_pid=self._core.pid,
                core_up=self._core.up,
                core_restarts=self._core.restarts,
                core_bytes=self._memory.core_bytes(),
                memory_limit_bytes=self._memory.limit_bytes,
                gateway=self._gateway(),
            ),
            time_s=self._wall_clock(),
            uptime_s=self._clock() - self._began,
            ready=self.readiness().ok,
        )

    def _some_seconds(self) -> Window:
        """Made with the last look while somebody watches, and otherwise here."""
        if not self._moments:
            return window(None, None, 0.0)
        first, last = self._moments[0], self._moments[-1]
        if self._window is not None and self._window[0] is last:
            return self._window[1]
        return _between(first, last)

    def _keep(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._chronicle.keep({str(row["name"]): [v["version"] for v in row["versions"]] for row in rows})
        self._counters.keep({str(row["name"]) for row in rows})

    def _model(self, row: Mapping[str, Any], log: Mapping[str, Any] | None) -> ModelFigures:
        story, rollout = self._chronicle.model(row["name"]), row["rollout"]
        return ModelFigures(
            name=row["name"],
            available_versions=sum(version["state"] == "AVAILABLE" for version in row["versions"]),
            loads={"success": story.succeeded, "failure": story.failed},
            load_s=story.load_s.durations(),
            switch_s=story.switch_s.durations(),
            rollout={"kind": rollout["mode"], **rollout} if rollout else None,
            log=log,
        )

    def _version(self, model: str, version: Mapping[str, Any]) -> VersionFigures:
        about = self._chronicle.version(model, version["version"])
        return VersionFigures(
            model=model,
            version=version["version"],
            state=version["state"],
            memory_bytes=version["memory_bytes"],
            open_s=about.open_s,
            warmup_s=dict(about.warmup_s),
            compile_s=dict(about.compile_s),
        )
