"""The Dockerfiles: that they have what they copy, and that CPU and GPU differ in what they must."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def instructions(name: str) -> list[str]:
    lines = (REPO / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_only_tensorflow_and_the_driver_make_the_difference() -> None:
    changes = difflib.ndiff(instructions("Dockerfile"), instructions("Dockerfile.gpu"))
    assert [line for line in changes if line[0] in "+-"] == [
        "- COPY tools/system_packages tools/tensorflow_package tools/",
        "+ COPY tools/system_packages tools/",
        "- ARG TENSORFLOW=",
        "+ ARG TENSORFLOW=tensorflow[and-cuda]>=2.16",
        '- RUN deploy/image/tensorflow_libraries /opt/fastserve "${TENSORFLOW:-$(tools/tensorflow_package)}"',
        '+ RUN deploy/image/tensorflow_libraries /opt/fastserve "$TENSORFLOW"',
        "-     MODEL_NAME=model",
        "+     MODEL_NAME=model \\",
        "+     NVIDIA_VISIBLE_DEVICES=all \\",
        "+     NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]


def test_the_context_has_what_is_copied_and_built() -> None:
    ignored = [
        line for line in (REPO / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert ignored[0] == "*"
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert all((REPO / path).exists() for path in kept)
    copied = [
        word
        for line in instructions("Dockerfile")
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
        if word != "."
    ]
    needed = [*copied, "csrc", "fastserve", "setup.py", "pyproject.toml", "README.md", "LICENSE", "licenses"]
    assert not [path for path in needed if not any(path == k or path.startswith(k + "/") for k in kept)]


def test_scripts_can_be_run() -> None:
    for script in (REPO / "deploy" / "image").iterdir():
        assert os.access(script, os.X_OK) and script.read_text().startswith("#!/bin/sh\n"), script


def test_the_user_is_the_one_that_is_made() -> None:
    packages = (REPO / "deploy" / "image" / "runtime_packages").read_text()
    (user,) = (line.split()[1] for line in instructions("Dockerfile") if line.startswith("USER "))
    made = re.search(r"useradd --uid (\d+) --gid (\d+)", packages)
    assert made is not None and user == f"{made[1]}:{made[2]}"
