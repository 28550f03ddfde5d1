"""Targets on the command line, the configuration of those that are started, and child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fastserve.bench.child import Child, ChildError
from fastserve.bench.daemon_config import with_options, write_config
from fastserve.bench.export import ExportError, export
from fastserve.bench.processes import tree, usage
from fastserve.bench.start import version_directory
from fastserve.bench.target import TargetError, check_names, parse_start, parse_target


def test_targets_are_addresses_with_names() -> None:
    grpc = parse_target("ours=127.0.0.1:8500")
    assert (grpc.name, grpc.protocol, grpc.address) == ("ours", "grpc", ("127.0.0.1", 8500))
    assert grpc.authority == "127.0.0.1:8500"
    assert parse_target("u=unix:/run/f.sock").address == ("unix", "/run/f.sock")
    rest = parse_target("rest=http://127.0.0.1:8501/")
    assert (rest.protocol, rest.address) == ("http", ("127.0.0.1", 8501))


def test_what_is_started_has_a_kind_a_name_and_options() -> None:
    assert parse_start("fastserve").name == "fastserve"
    plan = parse_start(
        'fast-2=fastserve:executor.spin_us=300,model.xla="auto",'
        "model.batching.allowed_batch_sizes=[1,8,64],model.row_wise=true,model.xla=full"
    )
    assert (plan.name, plan.kind) == ("fast-2", "fastserve")
    assert plan.options == {
        "executor.spin_us": 300,
        "model.xla": "full",
        "model.batching.allowed_batch_sizes": [1, 8, 64],
        "model.row_wise": True,
    }


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_target, "127.0.0.1:8500", 'expected NAME=ADDRESS, such as "tfserving=127.0.0.1:8500"'),
        (parse_target, "a=127.0.0.1", 'expected "HOST:PORT"'),
        (parse_target, "a=https://x:1", "expected HOST:PORT, unix:PATH or http://HOST:PORT"),
        (parse_target, "a=http://unix:/x", "HTTP goes to HOST:PORT only"),
        (parse_start, "triton", "expected one of fastserve, grpc-aio, flask, or NAME=KIND"),
        (parse_start, "a b=flask", "a name has letters"),
        (parse_start, "flask:threads", "threads: expected KEY=VALUE"),
    ],
)
def test_what_is_no_target_is_told(parse: object, text: str, told: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse(text)  # type: ignore[operator]
    assert told in str(caught.value) and caught.value.exit_code == 2


def test_names_are_there_and_differ() -> None:
    with pytest.raises(TargetError, match="there is nothing to measure"):
        check_names([])
    with pytest.raises(TargetError, match="two targets are called a"):
        check_names(["a", "b", "a"])


def test_options_are_set_in_the_tables_of_the_configuration(tmp_path: Path) -> None:
    serve = {"executor": {"threads": 3}, "model": {"batching": {"max_batch_size": 64}}}
    tables = with_options(
        serve, {"executor.spin_us": 50, "model.batching.batch_timeout_us": 7, "model.xla": "full"}
    )
    assert serve["executor"] == {"threads": 3}
    path = write_config(tmp_path, tables, "ranker", tmp_path / "models")
    written = tomllib.loads(path.read_text())
    assert written["executor"] == {"threads": 3, "spin_us": 50}
    assert written["server"]["listen"] == ["127.0.0.1:0"]
    assert written["models"] == [
        {
            "name": "ranker",
            "base_path": str(tmp_path / "models"),
            "xla": "full",
            "batching": {"max_batch_size": 64, "batch_timeout_us": 7},
        }
    ]


def test_a_configuration_that_fastserve_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"\[executor\] spinus: no such key; did you mean spin_us\?"):
        write_config(tmp_path, {"executor": {"spinus": 3}}, "m", tmp_path)
    with pytest.raises(TargetError, match=r"spin_us: expected TABLE\.KEY"):
        with_options({}, {"spin_us": 1})


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    for version in ("2", "10", "old"):
        (tmp_path / version).mkdir()
    assert version_directory(tmp_path).name == "10"
    (tmp_path / "2" / "saved_model.pb").touch()
    assert version_directory(tmp_path / "2").name == "2"
    with pytest.raises(TargetError, match="neither a SavedModel nor a directory with versions"):
        version_directory(tmp_path / "old")


# ---- child processes ----------------------------------------------------------------------------

FAMILY = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
print("ready", flush=True)
time.sleep(60)
"""


def _ready(child: Child) -> bool | None:
    return True if "ready" in child.log_lines() else None


def test_a_child_and_what_it_started_end_with_the_block() -> None:
    with Child("family") as child:
        child.start([sys.executable, "-c", FAMILY])
        child.wait_until(lambda: _ready(child), 20)
        deadline = time.monotonic() + 10
        while len(tree(child.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        members = tree(child.pid)
        used = usage(child.pid)
        assert len(members) == 2 and used is not None and used.processes == 2 and used.rss_bytes > 1 << 20
        folder = child.folder
    deadline = time.monotonic() + 10
    while any(tree(pid) for pid in members) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(tree(pid) for pid in members)
    assert not folder.exists()


def test_a_child_that_dies_is_told_with_its_last_words() -> None:
    with Child("poor") as child:
        child.start([sys.executable, "-c", "import sys; sys.exit('out of luck')"])
        with pytest.raises(ChildError, match="poor: ended with exit code 1; it said:\nout of luck"):
            child.wait_until(lambda: None, 20)


def test_a_child_runs_nothing_of_its_parent_before_its_command() -> None:
    """In a fork of its process gRPC would start its threads anew, and they abort: descriptors are closed."""
    code = (
        "import os, sys\nfrom fastserve.bench.child import Child\n"
        "os.register_at_fork(after_in_child=os.abort)\n"
        "with Child('x') as child:\n"
        "    child.start([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'])\n"
        "    child.wait_until(lambda: child.log_lines() or None, 20)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_child_that_is_never_ready_is_given_up() -> None:
    with Child("slow") as child:
        child.start([sys.executable, "-c", "import time; print('loading', flush=True); time.sleep(60)"])
        child.wait_until(lambda: child.log_lines() or None, 20)
        with pytest.raises(ChildError, match="slow: was not ready within 0 s; it said:\nloading"):
            child.wait_until(lambda: None, 0.05)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    code = (
        "import sys, time\nfrom fastserve.bench.child import Child\nchild = Child('x')\n"
        "child.start([sys.executable, '-c', 'import time; time.sleep(60)'])\nprint(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while tree(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not tree(pid)


# ---- exports ------------------------------------------------------------------------------------

EXPORTER = """
import sys
from pathlib import Path
import helper
folder = Path(sys.argv[1])
(folder / "1").mkdir(parents=True)
(folder / "1" / "saved_model.pb").write_text(helper.TEXT)
"""


def test_a_model_is_exported_again_only_when_its_code_changes(tmp_path: Path) -> None:
    file, helper, cache = tmp_path / "model.py", tmp_path / "helper.py", tmp_path / "cache"
    file.write_text(EXPORTER)
    helper.write_text("TEXT = 'one'\n")
    first = export(file, cache)
    pb = first.base_path / "1" / "saved_model.pb"
    assert pb.read_text() == "one" and first.recorded is None
    stamp = pb.stat().st_mtime_ns
    assert export(file, cache) == first and pb.stat().st_mtime_ns == stamp
    helper.write_text("TEXT = 'another'\n")
    assert export(file, cache) == first and pb.read_text() == "another"


def test_an_export_that_fails_is_told(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    with pytest.raises(ExportError, match="no such file"):
        export(file, tmp_path / "cache")
    file.write_text("raise SystemExit('no data')\n")
    with pytest.raises(ExportError, match="exporting ended with 1:\nno data"):
        export(file, tmp_path / "cache")
    file.write_text("pass\n")
    with pytest.raises(ExportError, match=r"wrote no OUT_DIR/1/saved_model\.pb"):
        export(file, tmp_path / "cache")
