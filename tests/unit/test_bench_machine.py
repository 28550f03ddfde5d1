"""What a result says of where and how it came about."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.bench.machine import command_line


def test_a_command_is_written_as_seen_from_where_it_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fastserve", "bench", f"{tmp_path}/w.toml", "--out", "/elsewhere/r.json", "--start", "a b"]
    assert command_line(words) == "fastserve bench w.toml --out /elsewhere/r.json --start 'a b'"
