"""Options and environment that all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Processes that tests start run this checkout, whatever is installed, wherever they run; what was on the path
# before, such as modules built for a sanitizer, comes first.
REPO = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), REPO]))

# TensorFlow, where a test imports it, must not fill the report with notes about the CPU, and must leave
# room on a GPU for the server under test.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# A run in the background of a script starts with SIGINT ignored, and so would every process that it starts:
# tests of Ctrl-C need it as a terminal has it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


IMAGE_TESTS = Path(__file__).resolve().parent / "image"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--image",
        action="store_true",
        help="collect tests/image, too: builds the images and runs them, as root, in minutes",
    )
    parser.addoption(
        "--variant",
        action="append",
        choices=["plain", "asan", "tsan"],
        help="build the C programs of the tests this way; may be repeated (default: plain, corpora asan)",
    )
    parser.addoption(
        "--stress-items",
        type=int,
        default=20000,
        help="how much each thread of a stress program does (default: 20000)",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make image-test` asks for the images' tests; None: whatever else there is to say."""
    return True if collection_path == IMAGE_TESTS and not config.getoption("--image") else None
