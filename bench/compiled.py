"""The C programs of the benchmarks, each of one source file, compiled when it has changed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"


class CompileError(RuntimeError):
    """There is no compiler, or it failed."""


def compiled(name: str, *libraries: str) -> Path:
    """bench/.cache/NAME, made from bench/NAME.c when there is none or an older one. Raises CompileError."""
    source, program = HERE / f"{name}.c", CACHE / name
    if program.exists() and program.stat().st_mtime >= source.stat().st_mtime:
        return program
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise CompileError("no C compiler: install gcc, or set CC")
    CACHE.mkdir(exist_ok=True)
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += ["-o", str(program), str(source), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{' '.join(command)} failed:\n{done.stderr}")
    return program
