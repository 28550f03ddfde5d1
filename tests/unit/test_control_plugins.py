"""Native plug-ins by their names: what an entry point leads to, and what is said when it leads nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.control.plugins import batcher_library, prepared_request, runtime_library
from fastserve.errors import ConfigError, ModelError
from fastserve.extensions import Prepared, include_dir
from fastserve.savedmodel import Port, Signature

BATCHER = """
#include <fastserve/plugin.h>

static int64_t plan(const fs_plan_view *view) { return view->max_rows / 2; }

const fs_plugin *fastserve_plugin(void)
{
    static const fs_plugin plugin = {FS_PLUGIN_ABI, FS_PLUGIN_BATCHER, "halves", .batcher = {.plan = plan}};
    return &plugin;
}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on sys.path with a distribution whose plug-ins are functions of one module."""
    names = ("file", "relative", "absent", "folder", "number", "raises", "halves", "not_one", "empty")
    points = "\n".join(f"{name} = some_plugins:{name}" for name in (*names, "no_such_function"))
    info = tmp_path / "site" / "some_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[fastserve.runtimes]\n{points}\n\n[fastserve.batchers]\n{points}\nbroken = some_broken:it\n"
    )
    (tmp_path / "site" / "some_broken.py").write_text("raise OSError('no such device')\n")
    (tmp_path / "site" / "some_plugins.py").write_text(
        "import pathlib\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def file(): return here / 'plugin.so'\n"
        "def relative(): return 'plugin.so'\n"
        "def absent(): return here / 'absent.so'\n"
        "def folder(): return here\n"
        "def number(): return 7\n"
        "def raises(): raise RuntimeError('not built')\n"
        "def halves(): return here / 'halves.so'\n"
        "def not_one(): return here / 'plugin.so'\n"
        "def empty(): return ''\n"
    )
    (tmp_path / "plugin.so").write_text("no library")
    monkeypatch.delitem(sys.modules, "some_plugins", raising=False)  # an earlier test's
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path


def problem(of: object, name: str) -> str:
    assert callable(of)
    with pytest.raises(ConfigError) as caught:
        of(name)
    (text,) = caught.value.problems
    return text


def compiled(source: str, target: Path) -> None:
    """As the author of a plug-in does it: with the headers that FastServe ships, and nothing else."""
    (target.with_suffix(".c")).write_text(source)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wl,--no-undefined"]
    subprocess.run(
        ["gcc", *flags, "-shared", "-fPIC", f"-I{include_dir()}", target.with_suffix(".c"), "-o", target],
        check=True,
        cwd=target.parent,
    )


# ---- names ----------------------------------------------------------------------------------


def test_our_own_need_no_library() -> None:
    assert runtime_library("tensorflow") == runtime_library("null") == ""
    assert batcher_library("fair") is None


def test_a_runtime_is_the_file_that_its_plug_in_names(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime_library("file") == str(site / "plugin.so")
    monkeypatch.chdir(site)
    assert runtime_library("relative") == str(site / "plugin.so")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent", "there is no file {site}/absent.so: build the plug-in, or install it again"),
        ("folder", "there is no file {site}: build"),
        ("empty", "there is no file "),
        ("number", "the plug-in names no library: TypeError: "),
        ("raises", "the plug-in names no library: RuntimeError: not built"),
        ("no_such_function", "the plug-in cannot be imported: AttributeError: "),
        ("unheard_of", "no such plug-in in fastserve.runtimes; there are absent, empty, file, "),
    ],
)
def test_a_runtime_that_is_none_is_refused(site: Path, name: str, says: str) -> None:
    assert problem(runtime_library, name).startswith(
        f'the loader\'s runtime = "{name}": {says}'.format(site=site)
    )


def test_a_batcher_is_opened_before_it_is_taken(site: Path) -> None:
    compiled(BATCHER, site / "halves.so")
    assert batcher_library("halves") == str(site / "halves.so")
    assert problem(batcher_library, "not_one").startswith(
        f'[executor] policy = "not_one": {site}/plugin.so cannot be opened as a shared library: '
    )
    assert problem(batcher_library, "broken") == (
        '[executor] policy = "broken": the plug-in cannot be imported: OSError: no such device'
    )
    assert problem(batcher_library, "tensorflow").startswith(
        '[executor] policy = "tensorflow": no such plug-in in fastserve.batchers; there are absent, broken, '
    )


# ---- what a trial is told -------------------------------------------------------------------

SIGNATURE = Signature(
    "b", "predict", (Port("y", "y:0", 1, (-1,)), Port("x", "x:0", 9, None, b"\0\1")), (Port("z", "z", 1, ()),)
)


def test_a_trial_is_told_what_a_loader_has_prepared(site: Path) -> None:
    prepared = Prepared("/m/1/file", "file", (SIGNATURE, Signature("a", "predict", (), ())))
    told = prepared_request(prepared)
    assert told["path"] == "/m/1/file"
    assert told["runtime"] == "file"
    assert told["runtime_library"] == str(site / "plugin.so")
    first, second = told["signatures"]
    assert first["name"] == "a"
    assert [port["alias"] for port in second["inputs"]] == ["x", "y"]
    assert second["inputs"][0] == {
        "alias": "x", "tensor": "x:0", "dtype": 9, "dims": None, "default": "AAE=", "features": (),
    }  # fmt: skip
    assert second["inputs"][1]["dims"] == (-1,)


def test_a_saved_model_speaks_for_itself() -> None:
    assert prepared_request(Prepared("/m/1")) == {
        "path": "/m/1",
        "runtime": "tensorflow",
        "runtime_library": "",
        "signatures": None,
    }


def test_what_cannot_be_tried_is_the_models_error(site: Path) -> None:
    with pytest.raises(ModelError, match=r"no such plug-in in fastserve\.runtimes"):
        prepared_request(Prepared("/m/1", "unheard_of"))
    with pytest.raises(ModelError, match="names the runtime 'file' and gives no signatures"):
        prepared_request(Prepared("/m/1", "file"))


# ---- the headers ----------------------------------------------------------------------------


def test_the_headers_are_whole_in_c_and_each_alone(tmp_path: Path) -> None:
    headers = sorted(name for name in os.listdir(Path(include_dir(), "fastserve")))
    assert headers == ["dense.h", "outcome.h", "plugin.h", "policy.h", "runtime.h"]
    for name in headers:
        compiled(f"#include <fastserve/{name}>\nextern int nothing;\n", tmp_path / f"{name[:-2]}.so")


def test_the_headers_are_those_of_the_core() -> None:
    for header in Path(include_dir(), "fastserve").iterdir():
        ours = Path(__file__).parents[2] / "csrc" / header.name
        assert header.read_bytes() == ours.read_bytes()
