"""SIGTERM and Ctrl-C as one wish."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fastserve import interrupt
from fastserve.interrupt import termination_as_interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_twice_at_once_interrupts_once(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        before = signal.getsignal(number)
        with termination_as_interrupt():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
            signal.raise_signal(number)  # the same wish: the work that is left goes on
            monkeypatch.setattr(interrupt, "_ONE_WISH_S", 0.0)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is before
    finally:
        signal.signal(signal.SIGINT, outer)


def test_it_costs_a_command_nothing_to_import() -> None:
    code = (
        "import sys, fastserve\nbefore = set(sys.modules)\nimport fastserve.interrupt\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before - {'fastserve.interrupt'}}\n"
        "print(new - sys.stdlib_module_names)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "set()\n"
