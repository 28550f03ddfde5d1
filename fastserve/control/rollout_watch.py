"""A rollout from the new version's first request to its verdict: sets the route, asks for figures, decides.

The manager calls it between "the new version is loaded" and "the old one is unloaded". While it goes on,
requests that name no version go where the route says. Uses nothing but a way to call the core, a clock and a
sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastserve.config import Model
from fastserve.control.rollout import Decision, Figures, Verdict, decide, read_figures
from fastserve.errors import CoreError, CoreLost

# Sends the core a command by its name and fields, and gives its answer. Raises CoreError and CoreLost.
Call = Callable[..., Awaitable[dict[str, Any]]]
# Is told how it goes, about once a second.
Progress = Callable[[str, Figures], None]


class RolloutWatch:
    """Watches any number of models at once; of one model, one new version at a time."""

    def __init__(
        self,
        call: Call,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        poll_s: float = 1.0,
    ) -> None:
        self._call = call
        self._clock = clock
        self._sleep = sleep
        self._poll_s = poll_s
        self._routes: dict[str, dict[str, Any]] = {}

    def routes(self) -> dict[str, dict[str, Any]]:
        """The routes that a core must have: who starts another sets them before it publishes a version."""
        return dict(self._routes)

    async def prepare(self, model: Model, stable: int, new: int) -> None:
        """Sets the route. To be done before the new version is published, which would otherwise be what
        requests get until `watch` sets it."""
        rollout = model.rollout
        if rollout.mode == "off":
            return
        await self._set(
            model.name,
            {
                "mode": rollout.mode,
                "stable": stable,
                "new": new,
                "share": rollout.share,
                "sticky_header": rollout.sticky_header,
                "max_difference": rollout.max_difference,
            },
        )

    async def watch(self, model: Model, stable: int, new: int, on_progress: Progress) -> Verdict:
        """PROMOTE or ROLLBACK, when it is time.

        Both versions are published. After PROMOTE the route is cleared, and the new version is what requests
        get. After ROLLBACK all of them get the old one: once the new version is unloaded, `clear` is due. A
        core that is lost meanwhile starts the time again; cancelling leaves the route as it is.
        """
        if model.rollout.mode == "off":
            return Verdict(Decision.PROMOTE, "there is no rollout")
        await self.prepare(model, stable, new)
        began = self._clock()
        while True:
            await self._sleep(self._poll_s)
            try:
                answer = await self._call("rollout_stats", model=model.name)
            except (CoreLost, CoreError):  # perhaps there is another core, which knows nothing of it
                await self.prepare(model, stable, new)
                began = self._clock()
                continue
            figures = read_figures(answer, stable, new)
            verdict = decide(model.rollout, self._clock() - began, figures)
            on_progress(progress_text(model, stable, new, verdict), figures)
            if verdict.decision is Decision.PROMOTE:
                await self.clear(model.name)
                return verdict
            if verdict.decision is Decision.ROLLBACK:
                await self._set(model.name, {"mode": "canary", "stable": stable, "new": new, "share": 0.0})
                return verdict

    async def clear(self, model: str) -> None:
        """Requests get the newest version again."""
        self._routes.pop(model, None)
        with contextlib.suppress(CoreLost):  # and its routes with it
            await self._call("route", model=model, route=None)

    async def _set(self, model: str, route: dict[str, Any]) -> None:
        self._routes[model] = route
        with contextlib.suppress(CoreLost):  # who starts the next one sets it there
            await self._call("route", model=model, route=route)


def progress_text(model: Model, stable: int, new: int, verdict: Verdict) -> str:
    """One line for `fastserve status`."""
    share = f"{model.rollout.share * 100:g} %"
    who = (
        f"version {new} gets copies of {share} of version {stable}'s requests"
        if model.rollout.mode == "shadow"
        else f"version {new} answers {share}, version {stable} the rest"
    )
    return f"{model.rollout.mode}: {who}; {verdict.decision.value}: {verdict.reason}"
