"""The rules of the house that a machine can check: who may know whom, and what no file may hold.

cli -> control -> core -> _native -> csrc: knowledge runs one way. The data plane imports nothing heavy.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "fastserve"
OUR_FOLDERS = ("csrc", "docs", "fastserve", "protos", "tests", "bench", "deploy", "examples", "tools", ".ci")
OUR_SUFFIXES = {
    ".py",
    ".pyx",
    ".pxd",
    ".pyi",
    ".c",
    ".h",
    ".proto",
    ".toml",
    ".md",
    ".sh",
    ".html",
    ".yaml",
    ".service",
    "",
}

PYTHON = sorted(PACKAGE.rglob("*.py"))
CYTHON = sorted([*PACKAGE.rglob("*.pyx"), *PACKAGE.rglob("*.pxd")])
CSRC = sorted((REPO / "csrc").glob("*.[ch]"))

# The rooms, and which others each may import. What is in none of them is a leaf, used from everywhere; ""
# stands for the leaves.
MAY_IMPORT = {
    "compat": {"config", "control"},
    "control": {"_native", "config", "monitor", "offline"},
    "core": {"_native"},
    "gateway": {"_native", "client"},
    "monitor": set(),
    "client": {"_native", "config"},
    "bench": {"_native", "client", "config"},
    "workshop": {"_native", "bench", "config", "offline"},
    "offline": {"_native", "config"},
    "_native": set(),
    "": {"config"},
}
ROOMS = {*MAY_IMPORT, "cli", "config"} - {""}
FRONT_DOORS = ("cli", "__main__")

# Slow to import, large, or a user of the GIL: nothing for the process that serves.
HEAVY = {
    "aiohttp",
    "click",
    "google",
    "grpc",
    "h2",
    "msgspec",
    "numpy",
    "orjson",
    "pydantic",
    "rich",
    "tensorflow",
    "tensorflow_serving",
}


def _relative(path: Path) -> str:
    return str(path.relative_to(REPO))


def _our_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *OUR_FOLDERS],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [REPO / line for line in listed.stdout.splitlines()]
    else:  # a source archive, without its history
        paths = [path for folder in OUR_FOLDERS for path in (REPO / folder).rglob("*")]
    corpora = REPO / "tests/fuzz/corpus"  # bytes, not text
    return sorted(
        path
        for path in paths
        if path.is_file() and path.suffix in OUR_SUFFIXES and not path.is_relative_to(corpora)
    )


def _module(path: Path) -> str:
    parts = path.relative_to(REPO).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Full names of the modules that `path` imports or cimports, inside functions too."""
    text = path.read_text()
    if path.suffix in {".pyx", ".pxd"}:
        named = re.findall(r"^\s*from\s+([\w.]+)\s+c?import\s+\(?\s*(\w+)", text, re.MULTILINE)
        plain = re.findall(r"^\s*c?import\s+([\w.]+)", text, re.MULTILINE)
        return {name for module, member in named for name in (module, f"{module}.{member}")} | set(plain)
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = _module(path).split(".")
            base = package[: len(package) - node.level + (path.stem == "__init__")] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return found


def _room(path: Path) -> str | None:
    """The room in MAY_IMPORT that `path` is in; None for the front doors, which may import all."""
    inside = path.relative_to(PACKAGE)
    if len(inside.parts) > 1:
        return inside.parts[0] if inside.parts[0] in MAY_IMPORT else ""
    return None if inside.stem.startswith(FRONT_DOORS) else ""


def _within(module: str, forbidden: str) -> bool:
    return module == forbidden or module.startswith((forbidden + ".", forbidden + "_"))


@pytest.mark.parametrize("path", [*PYTHON, *CYTHON], ids=_relative)
def test_knowledge_runs_one_way(path: Path) -> None:
    room = _room(path)
    closed = ROOMS - MAY_IMPORT[room] - {room} if room is not None else set()
    wrong = {module for module in _imports(path) for no in closed if _within(module, f"fastserve.{no}")}
    assert not wrong


# Processes of their own: servers that `fastserve bench` starts to compare with, and the workshop's commands.
WITH_TENSORFLOW = {*(PACKAGE / "bench").glob("reference_*.py"), *(PACKAGE / "workshop").rglob("*.py")}


@pytest.mark.parametrize("path", sorted({*PYTHON, *CYTHON} - WITH_TENSORFLOW), ids=_relative)
def test_nothing_imports_tensorflow(path: Path) -> None:
    assert not {module for module in _imports(path) if module.split(".")[0].startswith("tensorflow")}


def _imported_by(code: str) -> set[str]:
    """Top-level names in sys.modules after `code` has run in an interpreter of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(ran.stdout))


def test_import_fastserve_is_light() -> None:
    loaded = _imported_by("import fastserve")
    assert not {name for name in loaded if name.split(".")[0] in HEAVY | {"asyncio", "uvloop"}}
    assert not {name for name in loaded if name.startswith("fastserve._native.")}


def test_the_core_imports_nothing_heavy() -> None:
    modules = [_module(path) for path in sorted((PACKAGE / "core").rglob("*.py"))]
    modules += [_module(path) for path in sorted((PACKAGE / "_native").rglob("*.pyx"))]
    assert "fastserve.core.__main__" in modules
    loaded = _imported_by("\n".join(f"import {module}" for module in modules))
    assert set(modules) <= loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    assert not {name for name in loaded if name.startswith(("fastserve.control", "fastserve.cli"))}


@pytest.mark.parametrize("path", [path for path in CSRC if not path.name.startswith("tf")], ids=_relative)
def test_only_tf_knows_tensorflow(path: Path) -> None:
    text = path.read_text()
    assert '#include "tf_api.h"' not in text
    assert not re.findall(r"\bTF_[A-Z]\w*\s*\(", text)


@pytest.mark.parametrize("path", [path for path in CSRC if not path.name.startswith("litert")], ids=_relative)
def test_only_litert_knows_litert(path: Path) -> None:
    text = path.read_text()
    assert '#include "litert_api.h"' not in text
    assert not re.findall(r"\bLiteRt[A-Z]\w*\s*\(", text)


@pytest.mark.parametrize("path", CSRC, ids=_relative)
def test_a_c_file_opens_with_what_it_is(path: Path) -> None:
    assert path.read_text().startswith(f"/* {path.stem}: ")


@pytest.mark.parametrize("path", [*PYTHON, *CYTHON], ids=_relative)
def test_a_python_file_opens_with_what_it_is(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".py":
        assert ast.get_docstring(ast.parse(text))
    else:
        code = re.sub(r"\A(#\s*(cython|distutils):.*\n)*", "", text).lstrip()
        assert code.startswith(('"""', "# "))


@pytest.mark.parametrize("path", CSRC, ids=_relative)
def test_every_atomic_operation_names_its_order(path: Path) -> None:
    operation = r"\batomic_(?:load|store|exchange|fetch_\w+?|compare_exchange_(?:weak|strong)|flag_\w+?)\s*\("
    assert not [found for found in re.findall(operation, path.read_text()) if "_explicit" not in found]


@pytest.mark.parametrize("path", CSRC, ids=_relative)
def test_c_allocates_only_what_the_sweeps_can_fail(path: Path) -> None:
    """Out-of-memory tests stand in front of malloc and its kin, not of what libc allocates inside."""
    banned = "strdup strndup asprintf vasprintf getline open_memstream alloca reallocarray valloc memalign"
    assert not re.findall(rf"\b({banned.replace(' ', '|')})\s*\(", path.read_text())


def test_the_core_has_no_global_state(tmp_path: Path) -> None:
    """No object of csrc has a writable section: constants only."""
    cflags = subprocess.check_output(["pkg-config", "--cflags", "libnghttp2", "zlib"], text=True).split()
    wrong = {}
    for source in sorted((REPO / "csrc").glob("*.c")):
        target = tmp_path / f"{source.stem}.o"
        compiler = [
            "gcc",
            "-std=c11",
            "-D_GNU_SOURCE",
            "-O1",
            *cflags,
        ]  # not -fPIC: tables of pointers are constant
        subprocess.run([*compiler, "-fno-pic", "-c", source, "-o", target], cwd=REPO, check=True)
        sections = subprocess.check_output(["size", "-A", target], text=True)
        sizes = re.findall(r"^(\.(?:data|bss|tdata|tbss)[\w.]*)\s+([1-9]\d*)", sections, re.MULTILINE)
        if sizes:
            wrong[source.name] = sizes
    assert not wrong


# Spelled in pieces, so that this file passes its own test.
FORBIDDEN = {
    "unfinished": r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b",
    "not written": "NotImplemented" + "Error",
    "a test that does not run": r"pytest\.(mark\.)?(skip|x" + r"fail)|unittest\.skip",
    "a path of one machine": r"(?<![\w.])/(home|root|work)/",
}
# Where a test may be passed over: without a browser, which tools/system_packages could not install.
MAY_SKIP = {"tests/e2e/test_page.py"}


@pytest.mark.parametrize("path", _our_files(), ids=_relative)
def test_no_file_holds_what_it_should_not(path: Path) -> None:
    text = path.read_text()
    found = {why: match.group() for why, word in FORBIDDEN.items() if (match := re.search(word, text))}
    if _relative(path) in MAY_SKIP:
        found.pop("a test that does not run", None)
    assert not found


def test_the_descriptor_set_is_up_to_date(tmp_path: Path) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    fresh = tmp_path / "protos.binpb"
    subprocess.run([sys.executable, "protos/generate.py", fresh], cwd=REPO, check=True)
    checked_in = (PACKAGE / "protos.binpb").read_bytes()
    assert FileDescriptorSet.FromString(fresh.read_bytes()) == FileDescriptorSet.FromString(checked_in)


def test_generated_c_is_not_checked_in() -> None:
    assert not [path for path in _our_files() if path.suffix == ".c" and path.is_relative_to(PACKAGE)]


def test_the_change_log_knows_this_version() -> None:
    spec = importlib.util.spec_from_file_location("version", PACKAGE / "version.py")
    assert spec is not None and spec.loader is not None
    version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(version)
    assert f"## {version.__version__}" in (REPO / "CHANGELOG.md").read_text()
