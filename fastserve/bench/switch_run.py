"""One switch run: a daemon, load on both its models, versions that appear one after the other.

The generators are native threads; this thread publishes versions, looks at the core a few times a second and
sleeps. Ctrl-C keeps what there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastserve._native.load import LoadResult
from fastserve.bench.child import Child
from fastserve.bench.processes import busy_fraction, stolen_s
from fastserve.bench.switch_load import Say, Start, SwitchError, TargetLoad, rates_of
from fastserve.bench.switch_plan import BESIDE, MODEL, Plan, Timing
from fastserve.bench.switch_server import Admin, serving
from fastserve.bench.switch_trace import RECORD, Recording, Switch, Trace
from fastserve.bench.switch_versions import Asked, Contents, Publisher
from fastserve.errors import FastServeError

LOOK_S = 0.05
_NAP_S = 0.25
_BUSY_LOOK_S = 1.0
_NEVER = 2**62


@dataclass(frozen=True)
class Clock:
    """CLOCK_MONOTONIC, which is the generators' too, and what of the machine went to others; or a test's."""

    now_ns: Callable[[], int] = time.monotonic_ns
    sleep: Callable[[float], None] = time.sleep
    stolen_s: Callable[[], float] = stolen_s


@dataclass(frozen=True)
class Served:
    """A model of a run: its contents, and the requests that are sent to it."""

    contents: Contents
    asked: Asked


def run_plan(plan: Plan, model: Served, beside: Served, start: Start, say: Say) -> Recording:
    """Starts what is to be started, measures, ends it. Raises FastServeError when nothing was measured."""
    timing = plan.timing
    with Child(plan.name) as child:
        say("preparing the versions")
        publisher = Publisher(child.folder / MODEL, model.contents, timing.switches + 1)
        publisher.publish(1)
        still = Publisher(child.folder / BESIDE, beside.contents, 1)
        still.publish(1)
        base_paths: dict[str, Path] = {MODEL: publisher.base_path, BESIDE: still.base_path}
        busy = busy_fraction(_BUSY_LOOK_S)
        say("starting the server")
        variant = plan.variant
        with serving(child, base_paths, plan.xla, variant.options, variant.environment()) as server:
            loads = {
                MODEL: TargetLoad(server.target, MODEL, model.asked, plan.load, start),
                BESIDE: TargetLoad(server.target, BESIDE, beside.asked, plan.load, start),
            }
            saturation, rates = rates_of(plan.load, loads, timing, say)
            run = SwitchRun(timing, server.admin, server.child, publisher, say)
            return replace(run.measure(loads, rates, saturation), busy_before=busy)


def trace_of(name: str, rate: float, saturation: float, result: LoadResult) -> Trace:
    return Trace(
        target=name,
        rate=rate,
        saturation=saturation,
        records=np.frombuffer(result.records, RECORD),
        sent=result.sent,
        failed=dict(result.failed),
        unanswered=result.unanswered,
        unrecorded=result.unrecorded,
        first_error=result.first_error,
        behind_p999_ns=result.behind_ns.value_at(0.999),
        cpu_s=result.cpu_s,
    )


class SwitchRun:
    """The open loop and its switches."""

    def __init__(
        self,
        timing: Timing,
        admin: Admin,
        child: Child,
        publisher: Publisher,
        say: Say,
        clock: Clock | None = None,
    ) -> None:
        self._timing = timing
        self._admin = admin
        self._child = child
        self._publisher = publisher
        self._say = say
        self._clock = clock or Clock()
        self._running: dict[str, Any] = {}
        self._switches: list[Switch] = []
        self._unfinished: Switch | None = None
        self._stolen: list[tuple[int, float]] = []

    def measure(
        self, loads: Mapping[str, TargetLoad], rates: Mapping[str, float], saturation: Mapping[str, float]
    ) -> Recording:
        """With Ctrl-C, or when the server does not do its part, what there is until then."""
        timing, ended = self._timing, ""
        pid = self._admin.core_pid()
        for name, load in loads.items():
            self._running[name] = load.open(rates[name], timing.warmup_s, timing.most_s)
        try:
            self._sleep("steady load", timing.warmup_s + timing.lead_s)
            for version in range(2, timing.switches + 2):
                switch = self._switch(version)
                window_s = (switch.until_ns - switch.appeared_ns) / 1e9
                self._sleep("steady load", window_s if timing.gap_s is None else timing.gap_s)
        except KeyboardInterrupt:
            ended = "interrupted"
        except FastServeError as error:
            ended = str(error)
        for one in self._running.values():
            one.finish()
        results = {name: one.wait() for name, one in self._running.items()}
        return Recording(
            traces=tuple(
                trace_of(name, rates[name], saturation[name], result) for name, result in results.items()
            ),
            switches=tuple(self._switches),
            unfinished=self._unfinished,
            ended=ended,
            core_restarts=0 if ended else int(self._admin.core_pid() != pid),
            stolen=tuple(self._stolen),
        )

    def _switch(self, version: int) -> Switch:
        """Publishes a version, waits until it is served alone, and then for its window's end."""
        timing = self._timing
        what = f"switch {version - 1} of {timing.switches}"
        self._say(f"{what}: waiting for version {version}")
        appeared_ns = self._publisher.publish(version)
        switch = Switch(version, appeared_ns, _NEVER, _NEVER, _NEVER)
        self._unfinished = switch
        deadline_ns = appeared_ns + int(timing.patience_s * 1e9)
        while switch.gone_ns == _NEVER:
            if self._clock.now_ns() > deadline_ns:
                raise SwitchError(
                    f"version {version} did not take the place of {version - 1} within "
                    f"{timing.patience_s:g} s; the server said:\n{self._child.said()}"
                )
            self._nap(LOOK_S)
            switch = seen(switch, self._admin.states(MODEL), self._clock.now_ns())
            self._unfinished = switch
        self._sleep(f"{what}: its window", timing.tail_s)
        until_ns = switch.gone_ns + int(timing.tail_s * 1e9)
        switch = replace(switch, until_ns=until_ns)
        self._switches.append(switch)
        self._unfinished = None
        return switch

    def _sleep(self, what: str, seconds: float) -> None:
        end_ns = self._clock.now_ns() + int(seconds * 1e9)
        self._say(what)
        while (left_ns := end_ns - self._clock.now_ns()) > 0:
            self._nap(min(left_ns / 1e9, _NAP_S))

    def _nap(self, seconds: float) -> None:
        """Raises when there is nothing left to wait for."""
        self._clock.sleep(seconds)
        self._stolen.append((self._clock.now_ns(), self._clock.stolen_s()))
        self._child.check()
        for name, one in self._running.items():
            if one.over():
                raise SwitchError(f"the load on {name} ended by itself")


def seen(switch: Switch, states: Mapping[int, str], now_ns: int) -> Switch:
    """`switch` with what the core has now, by version: each state is noted when it is first seen."""
    stages = dict(switch.stages)
    if switch.version in states:
        stages.setdefault(states[switch.version], now_ns)
    older = {state for version, state in states.items() if version < switch.version}
    for state in older - {"published"}:
        stages.setdefault(f"old {state}", now_ns)
    published_ns, gone_ns = switch.published_ns, switch.gone_ns
    if states.get(switch.version) == "published":
        published_ns = min(published_ns, now_ns)
        if not older:
            gone_ns = min(gone_ns, now_ns)
    return replace(switch, stages=stages, published_ns=published_ns, gone_ns=gone_ns)
