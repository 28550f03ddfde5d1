"""bench/drive.py: a run in which anything went wrong gives no figures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from program_file import program_file

from fastserve._native.load import Histogram, LoadResult

GOOD: dict[str, Any] = {
    "sent": 3,
    "done": 3,
    "failed": {},
    "unanswered": 0,
    "per_body_done": [3],
    "seconds": 1.0,
    "rate": 3.0,
    "intervals": [],
    "cpu_s": 0.1,
    "bytes_in": 30,
    "bytes_out": 30,
    "reconnects": 0,
    "first_error": "",
}


@pytest.fixture(scope="module")
def drive() -> ModuleType:
    return program_file("bench/drive.py")


@pytest.fixture
def body(drive: ModuleType, tmp_path: Path) -> Any:
    (tmp_path / "body").write_bytes(b"request")
    return drive.Body(tmp_path / "body", 1, 25)


def result(**differs: Any) -> LoadResult:
    latency = Histogram()
    for value in (1_000_000, 2_000_000, 9_000_000):
        latency.record(value)
    return LoadResult(**{**GOOD, "latency": latency, "behind_ns": Histogram(), **differs})


def test_a_good_run_gives_its_rate_and_quantiles(
    drive: ModuleType, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def generate(address: Any, bodies: list[bytes], **options: Any) -> LoadResult:
        asked.update(options, address=address, bodies=bodies)
        return result()

    monkeypatch.setattr(drive, "generate", generate)
    got = drive.drive(8500, [body], connections=2, in_flight=4, seconds=1.0)
    assert (got.done, got.per_s) == (3, 3.0)
    assert got.quantile_us(0.5) == pytest.approx(2000.0, rel=1e-3)
    assert asked["address"] == ("127.0.0.1", 8500) and asked["bodies"] == [b"request"]
    assert asked["reply_bytes"] == [25]
    drive.drive(8500, [body], connections=2, in_flight=4, seconds=1.0, echo=True)
    assert asked["reply_bytes"] == [7]


@pytest.mark.parametrize(
    ("differs", "said"),
    [
        ({"failed": {"reply size": 1}, "done": 2}, "1 reply size"),
        ({"unanswered": 1, "done": 2}, "1 not at all"),
        ({"first_error": "UNAVAILABLE: full"}, "UNAVAILABLE: full"),
        ({"done": 0, "sent": 0}, "0 of 0"),
    ],
)
def test_a_run_with_anything_else_gives_none(
    drive: ModuleType, body: Any, monkeypatch: pytest.MonkeyPatch, differs: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(drive, "generate", lambda *_, **__: result(**differs))
    with pytest.raises(drive.DriveError, match=said):
        drive.drive(8500, [body], connections=1, in_flight=1, seconds=1.0)
