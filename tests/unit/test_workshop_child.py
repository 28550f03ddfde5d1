"""Children of the workshop's commands: what they answer, how they end, and with whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastserve.bench.processes import tree
from fastserve.interrupt import termination_as_interrupt
from fastserve.workshop import child
from fastserve.workshop.child import ChildDied, ask

SERVES = "from fastserve.workshop.child import serve\n"


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A child that runs `code`."""
    monkeypatch.setattr(child, "child_argv", lambda module: [sys.executable, "-c", code])


def died(monkeypatch: pytest.MonkeyPatch, code: str, limit_s: float = 60.0) -> ChildDied:
    fake(monkeypatch, code)
    with pytest.raises(ChildDied) as caught:
        ask("fake", os.environ, b"?" * 200_000, limit_s)
    return caught.value


def test_an_answer_is_what_is_answered_and_nothing_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        monkeypatch,
        SERVES
        + "import os\ndef answer(asked):\n print('noise')\n os.write(1, b'noise')\n return asked[::-1]\n"
        "serve(answer)\nprint('never')",
    )
    assert ask("fake", os.environ, b"\xff\0a" * 100_000) == b"a\0\xff" * 100_000


def test_how_a_child_died_and_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    last = r"import os, sys; os.write(2, b'first\nlast \xff\n'); "
    crashed = died(monkeypatch, last + "os.kill(os.getpid(), 11)")
    assert (crashed.how, crashed.said) == ("ended with signal SIGSEGV", "first\nlast \ufffd")
    assert str(crashed) == "ended with signal SIGSEGV: last \ufffd"
    assert str(died(monkeypatch, last + "sys.exit(3)")) == "ended with exit code 3: last \ufffd"
    assert str(died(monkeypatch, "pass")) == "ended with exit code 0"
    raised = died(monkeypatch, SERVES + "serve(lambda asked: 1 // 0)")
    assert str(raised) == "ended with exit code 1: ZeroDivisionError: integer division or modulo by zero"


def test_a_child_that_hangs_is_ended_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, subprocess, sys, time\ninner = subprocess.Popen([sys.executable, '-c', 'import time; "
        "time.sleep(60)'])\nprint(os.getpid(), inner.pid, file=sys.stderr, flush=True)\ntime.sleep(60)"
    )
    begin = time.monotonic()
    hung = died(monkeypatch, code, 3.0)
    assert hung.how == "gave no answer within 3 s" and time.monotonic() - begin < 30
    outer, inner = map(int, hung.said.split())
    assert not Path(f"/proc/{outer}").exists()
    assert_ends(inner)


def test_an_interrupted_parent_ends_its_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    fake(
        monkeypatch,
        f"import os, signal, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)",
    )
    with termination_as_interrupt(), pytest.raises(KeyboardInterrupt):
        ask("fake", os.environ, b"")
    assert not Path(f"/proc/{told.read_text()}").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, asked: bool) -> None:
    """Before it has been asked, too, when it has not yet told the kernel to see to it."""
    told, there = tmp_path / "told", f"open({str(tmp_path / 'told')!r}, 'w')"
    serves = f"{SERVES}import time\ndef answer(asked):\n {there}\n time.sleep(60)\nserve(answer)"
    inner = serves if asked else f"{there}\nimport time\ntime.sleep(1)\n{serves}"
    code = (
        "import os, sys\nfrom fastserve.workshop import child\n"
        f"child.child_argv = lambda module: [sys.executable, '-c', {inner!r}]\n"
        "child.ask('fake', os.environ, b'')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    (pid,) = tree(parent.pid).keys() - {parent.pid}
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert_ends(pid)


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while tree(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not tree(pid)
