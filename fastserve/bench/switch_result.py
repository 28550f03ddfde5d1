"""What switch runs found, as it is kept in JSON. Times are milliseconds, unless a name says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fastserve.bench.result import ResultError

SCHEMA = 2


class Stretch(Struct, frozen=True, kw_only=True):
    """Latencies of the requests that were due in some stretch of time and were answered well."""

    seconds: float
    done: int
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    # How much of the machine's processors its host gave to others meanwhile, 0 to 1: noise that is not ours.
    stolen: float


class Bars(Struct, frozen=True, kw_only=True):
    """What is to hold, and whether it does."""

    # p99.9: the median over the windows, as a multiple of the steady one.
    p999_ratio: float
    p999_ratio_most: float
    p999_passes: bool
    # Maxima: windows whose maximum is at most the steady one and so much more, and how many that must be.
    max_within: int
    max_within_least: int
    max_most: float
    max_passes: bool
    # No failed, lost, unrecorded or misversioned request.
    wrong: int
    wrong_passes: bool

    @property
    def passes(self) -> bool:
        return self.p999_passes and self.max_passes and self.wrong_passes


class TargetFound(Struct, frozen=True, kw_only=True):
    """One model of a run. Rates are requests per second."""

    target: str
    rate: float
    # 0 where it was not looked for.
    saturation: float
    sent: int
    done: int
    # By kind; of the whole run, windows and steady.
    failed: dict[str, int]
    unanswered: int
    unrecorded: int
    # Answers by the version that they name, good ones.
    by_version: dict[str, int]
    first_error: str
    steady: Stretch | None
    windows: list[Stretch]
    # Maxima grow with the length of what they are taken over: those of steady spans as long as a window.
    steady_span_s: float
    steady_span_max: list[float]
    # How late the generator itself was, and its CPU time.
    behind_p999: float
    generator_cpu_s: float
    bars: Bars | None


class SwitchFound(Struct, frozen=True, kw_only=True):
    """When what was seen, in seconds after the version's directory appeared."""

    version: int
    # Since the measurement began.
    at_s: float
    stages: dict[str, float]
    published_s: float
    # The first answer by the new version, the last one by the old one.
    first_answer_s: float | None
    last_old_answer_s: float | None
    gone_s: float
    window_s: float


class RunFound(Struct, frozen=True, kw_only=True):
    """One model, served in one way."""

    name: str
    model: str
    xla: str
    # What was off, "" for none; in words.
    without: str
    about: str
    options: dict[str, Any]
    rows: int
    seconds: float
    switches: list[SwitchFound]
    targets: list[TargetFound]
    core_restarts: int
    # How much of the machine was in use before the server was started, 0 to 1.
    busy_before: float
    # Why it ended early; "" when it did not.
    ended: str

    @property
    def passes(self) -> bool | None:
        """None when that cannot be said."""
        if self.ended or any(target.bars is None for target in self.targets):
            return None
        return self.core_restarts == 0 and all(target.bars.passes for target in self.targets if target.bars)


class SwitchResult(Struct, frozen=True, kw_only=True):
    """A whole file. runs: all as it should be; ablations: with something off."""

    schema: int
    started: str
    seconds: float
    command: str
    machine: dict[str, Any]
    versions: dict[str, str]
    revision: str
    timing: dict[str, Any]
    load: dict[str, Any]
    runs: list[RunFound]
    ablations: list[RunFound]


def write_switch_result(path: Path, result: SwitchResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")


def read_switch_result(path: Path) -> SwitchResult:
    """Raises ResultError."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=SwitchResult)
    except (OSError, msgspec.MsgspecError) as error:
        raise ResultError(f"{path}: cannot be read as a file of switches: {error}") from None
    if result.schema != SCHEMA:
        raise ResultError(f"{path}: has schema {result.schema}; this version reads {SCHEMA}")
    return result
