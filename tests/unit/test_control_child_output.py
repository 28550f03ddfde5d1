"""What children write: TensorFlow's notes are dropped, everything else is for the user."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from fastserve.control.child_output import Output, child_spawner, output_pipe, pipe_reader, severity
from fastserve.log import Log

CHECK = "F0000 00:00:1795390961.076535   24499 tensor.cc:9] Check failed: dtype() == DT_FLOAT"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("I0000 00:00:1795390961.076535   24499 port.cc:153] oneDNN custom operations are on.", "I"),
        ("2026-01-02 03:04:05.678901: I tensorflow/core/util/port.cc:153] oneDNN is on", "I"),
        ("2026-01-02 03:04:05.678901: W external/local_xla/xla/x.cc:1] slow", "W"),
        ("E0000 00:00:1795390961.1  1 cuda.cc:3] failed call to cuInit", "E"),
        (CHECK, "F"),
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR", "I"),
        ("To enable the following instructions: AVX2 AVX512F, rebuild TensorFlow", "I"),
        ("INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", "I"),
        ("INFO: a user's own", None),
        ("Traceback (most recent call last):", None),
        ("Fatal Python error: Segmentation fault", None),
        ("I am no note of TensorFlow's", None),
        ("terminate called after throwing an instance of 'std::bad_alloc'", None),
    ],
)
def test_severity(line: str, kind: str | None) -> None:
    assert severity(line) == kind


async def follow(
    tmp_path: Path, data: bytes, level: str = "3", show: bool = True
) -> tuple[list[Any], Output]:
    """What is logged of `data`."""
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    output = Output(Log(fd, json_lines=True, level="debug"), "core", {"TF_CPP_MIN_LOG_LEVEL": level})
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    await output.follow(reader, show=show)
    os.close(fd)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all(line["event"] == "core output" for line in lines)
    return [(line["level"], line["line"]) for line in lines], output


NOISE = b"I0000 00:00:1.1 1 port.cc:153] on\nW0000 00:00:1.1 1 x.cc:1] w\nE0000 00:00:1.1 1 x.cc:1] e\n"


async def test_a_failed_check_is_shown_whatever_the_level(tmp_path: Path) -> None:
    shown, output = await follow(tmp_path, NOISE + CHECK.encode() + b"\n\nAborted")
    assert shown == [("error", CHECK), ("warning", "Aborted")]
    # The error that went before it is no noise in the text of a failure.
    assert output.last_words.splitlines()[1:] == [CHECK, "Aborted"]


@pytest.mark.parametrize(
    ("level", "levels"),
    [
        ("0", ["info", "warning", "error"]),
        ("1", ["warning", "error"]),
        ("2", ["error"]),
        ("9", []),
        ("x", None),
    ],
)
async def test_the_level_asked_for(tmp_path: Path, level: str, levels: list[str] | None) -> None:
    shown, _ = await follow(tmp_path, NOISE, level)
    assert [kind for kind, _ in shown] == (levels if levels is not None else ["info", "warning", "error"])


async def test_output_that_never_ends_a_line_is_bounded(tmp_path: Path) -> None:
    shown, output = await follow(tmp_path, b"x" * 3_000_000 + b"\n\xff\n")
    assert [len(line) for _, line in shown] == [2000, 1]
    assert len(output.last_words) < 3000


async def test_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    _, output = await follow(tmp_path, b"".join(b"%d\n" % i for i in range(100)), show=False)
    assert output.last_words.split() == [str(i) for i in range(80, 100)]


async def test_a_pipe_that_nobody_reads_stops_no_writer(tmp_path: Path) -> None:
    ours, theirs = output_pipe()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(theirs, b"x" * 1023 + b"\n")
    os.close(theirs)
    reader = await pipe_reader(ours)
    assert (await reader.read()).startswith(b"xxx")


async def test_a_childs_end_is_seen_though_it_leaves_somebody_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    monkeypatch.setattr(
        "fastserve.control.child_output.child_argv", lambda module: (sys.executable, "-c", code)
    )
    log = Log(os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), json_lines=True, level="debug")
    before = len(os.listdir("/proc/self/fd"))
    child = await child_spawner("m", "gateway", os.environ, log)({}, [])
    try:
        async with asyncio.timeout(30):
            assert await child.wait() == 0
        await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) == before  # our end of the pipe is closed
    finally:
        (line,) = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        os.kill(int(line["line"]), signal.SIGKILL)
