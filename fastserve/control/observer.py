"""Who is told of what happens to models, versions and processes.

Streams, the work on versions, the manager, the reloader and the supervisors call it, on the event loop, and
go on: nothing here may wait or raise. What each method does here is nothing; telemetry does something with
it. `seconds` are how long it took that has just ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Observer:
    """Takes no notice."""

    def adopted(self, model: str, version: int) -> None:
        """It is served already, by a core that another control process has filled."""

    def load_begins(self, model: str, version: int, attempt: int) -> None:
        """An attempt: its trial, then the core."""

    def load_failed(
        self, model: str, version: int, path: str, error: str, seconds: float, attempts_left: int
    ) -> None:
        """An attempt has come to nothing."""

    def trial_passed(self, model: str, version: int, path: str, report: Mapping[str, Any]) -> None:
        """`report`: the trial's own (see trial.py), with its measurements."""

    def opened(self, model: str, version: int, path: str, seconds: float) -> None:
        """The core has opened and warmed it."""

    def published(self, model: str, version: int, *, replacement: bool) -> None:
        """It gets requests from now on. `replacement`: in the place of the same version."""

    def available(self, model: str, version: int, path: str, seconds: float, *, renewed: bool) -> None:
        """`seconds`: of the attempt that has succeeded. `renewed`: it was served before, with other settings
        or from other files."""

    def unload_begins(self, model: str, version: int) -> None:
        """It gets no new requests."""

    def ended(self, model: str, version: int, error: str, seconds: float) -> None:
        """Closed. `error`: why it is not served; "": it is not wanted any more."""

    def rollout(self, model: str, version: int, text: str, seconds: float | None) -> None:
        """A new version begins to prove itself, or has its verdict."""

    def labels(self, model: str, labels: Mapping[str, int]) -> None:
        """What the model's labels are from now on."""

    def reloaded(self, changed: Sequence[str]) -> None:
        """A configuration has been taken."""

    def process(self, kind: str, text: str, seconds: float | None = None) -> None:
        """Of the process "core" or "gateway": it started, died, is back."""
