"""`fastserve profile` on models with planted faults: it names them, and its times add up.

The command runs in a process of its own, as it does for users: it sets TensorFlow's environment for good.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import EXPORTER, PROFILE, exported_models

DENSE, CITIES = 64, 500


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastserve", "profile", *map(str, arguments)]


def profiled(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran


def model(name: str) -> Path:
    return exported_models(PROFILE) / name


@dataclass(frozen=True)
class Found:
    """Of the planted model: the JSON, what is printed, and where the files are."""

    json: dict[str, Any]
    printed: str
    folder: Path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("planted")
    files = [f"--{kind}={folder / f'out.{kind}'}" for kind in ("json", "html", "trace")]
    ran = profiled(model("planted"), "--batch-sizes", "1,64", "--seconds", "2", *files)
    return Found(json.loads((folder / "out.json").read_text()), ran.stdout, folder)


def test_the_slow_op_is_named(planted: Found) -> None:
    found, printed = planted.json, planted.printed
    for batch in found["batches"]:
        slowest = batch["ops"][0]
        assert slowest["label"].startswith("slow_layer/matmul")
        assert slowest["op"] in ("MatMul", "_FusedMatMul")
        assert batch["types"][0]["op"] == slowest["op"]
        assert slowest["own_us"] > 0.4 * batch["ops_us"]
    assert "slow_layer/matmul" in printed


def test_the_one_hot_is_named_with_what_would_replace_it(planted: Found) -> None:
    found, printed = planted.json, planted.printed
    (one_hot,) = [op for op in found["host_ops"] if op["kind"] == "one-hot"]
    assert one_hot["label"].startswith("city_one_hot/")
    assert "city_one_hot/" in one_hot["feeds"]
    assert "tf.gather" in one_hot["replacement"]
    assert "city_one_hot/one_hot" in printed
    strings = [op for op in found["host_ops"] if op["kind"] == "strings"]
    assert {op["label"].split("/")[0] for op in strings} == {"rounding"}


def test_what_breaks_the_cluster_is_named(planted: Found) -> None:
    found, printed = planted.json, planted.printed
    xla = found["xla"]
    for kind in ("could", "served"):
        cut = xla[kind]
        assert {breaker["label"].split("/")[0] for breaker in cut["breakers"]} == {"rounding"}
        assert {breaker["op"] for breaker in cut["breakers"]} == {"AsString", "StringToNumber"}
        assert all(breaker["before"] >= 3 and breaker["after"] >= 3 for breaker in cut["breakers"])
        assert cut["clusters"] == 2
        assert {"tower/matmul", "slow_layer/matmul_1"} <= {node["label"] for node in cut["inside"]}
        assert {node["op"] for node in cut["outside"]} == {"AsString", "StringToNumber"}
        assert 0.5 < cut["share_of_time"]["64"] < 1
    assert "rounding/AsString" in printed
    assert re.search(r"XLA has no kernel for \w+ \(rounding/", xla["full_why"])
    assert xla["cluster_why"] == ""


def test_times_add_up_to_the_sessions_own(planted: Found, tmp_path: Path) -> None:
    """The ops of traced runs against runs of the daemon's that are not traced, of several profiles the middle
    one; and the parts of a traced run against the clock around it."""
    rounds = [planted.json]
    target = tmp_path / "again.json"
    for _ in range(4):
        profiled(model("planted"), "--batch-sizes", "64", "--seconds", "1.5", "--no-xla", "--json", target)
        rounds.append(json.loads(target.read_text()))
    batches = [batch for found in rounds for batch in found["batches"]]
    many = [batch for batch in batches if batch["rows"] == 64]
    assert len(many) == 5
    assert statistics.median(batch["accounted"] for batch in many) == pytest.approx(1.0, abs=0.1)
    for batch in batches:
        assert batch["accounted"] == pytest.approx(batch["ops_us"] / batch["daemon_us"])
        parts = batch["before_us"] + batch["ops_us"] + batch["between_us"] + batch["after_us"]
        assert parts == pytest.approx(batch["wall_us"], rel=0.02)
        assert sum(op["own_us"] for op in batch["ops"]) == pytest.approx(batch["ops_us"], rel=1e-6)
        assert sum(kind["own_us"] for kind in batch["types"]) == pytest.approx(batch["ops_us"], rel=1e-6)
        assert batch["tracing_us"] == pytest.approx(batch["wall_us"] - batch["same_us"])


def test_memory_is_at_least_that_of_the_tensors(planted: Found) -> None:
    (batch,) = [batch for batch in planted.json["batches"] if batch["rows"] == 64]
    one_hot = next(op for op in batch["ops"] if op["op"] == "OneHot")
    assert one_hot["output_bytes"] == 64 * CITIES * 4
    assert one_hot["peak_bytes"] >= one_hot["output_bytes"]


def test_what_a_row_costs(planted: Found) -> None:
    costs = {cost["rows"]: cost for cost in planted.json["costs"]}
    assert sorted(costs) == [1, 2, 4, 8, 16, 32, 64]
    assert costs[64]["row_us"] == pytest.approx(costs[64]["plain_us"] / 64)
    assert costs[64]["row_us"] < costs[1]["row_us"]
    assert costs[64]["cluster_us"] > 0 and costs[8]["cluster_us"] is None
    assert costs[64]["compiled_us"] is None


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href", "action", "data")]


def test_the_page_needs_no_other_host(planted: Found) -> None:
    text = (planted.folder / "out.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.links == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert not re.search(r"https?://|@import|url\(", text)
    assert "prefers-color-scheme:dark" in text
    for named in ("slow_layer/matmul", "city_one_hot/one_hot", "rounding/AsString", "tf.gather"):
        assert named in text


def test_the_trace_is_chromes(planted: Found) -> None:
    events = json.loads((planted.folder / "out.trace").read_text())["traceEvents"]
    processes = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert processes == {"1 row at once", "64 rows at once"}
    slices = [event for event in events if event["ph"] == "X"]
    runs = {event["pid"]: event for event in slices if event["name"] == "run"}
    for event in slices:
        around = runs[event["pid"]]
        assert event["ts"] >= -1 and event["ts"] + event["dur"] <= around["dur"] + 1
    assert any(event["name"].startswith("slow_layer/matmul") for event in slices)


def test_ops_inside_a_call_are_told_apart(tmp_path: Path) -> None:
    target = tmp_path / "calls.json"
    profiled(
        model("planted") / "1",
        *("--signature", "calls", "--batch-sizes", "16", "--seconds", "0.3", "--no-xla", "--json", target),
    )
    (batch,) = json.loads(target.read_text())["batches"]
    assert batch["ops"][0]["op"] in ("MatMul", "_FusedMatMul")
    calls = [op for op in batch["ops"] if op["op"].endswith("PartitionedCall")]
    assert calls
    assert sum(op["own_us"] for op in calls) < 0.3 * batch["ops_us"]


def test_a_function_that_is_not_in_the_graph_counts_as_not_compiled(tmp_path: Path) -> None:
    target = tmp_path / "apart.json"
    printed = profiled(model("apart"), "--batch-sizes", "16", "--seconds", "0.1", "--json", target).stdout
    found = json.loads(target.read_text())
    assert {op["label"] for op in found["host_ops"]} == {"inner/AsString", "inner/StringToNumber"}
    (batch,) = found["batches"]
    costs = {kind["op"]: kind["own_us"] for kind in batch["types"]}
    for kind in ("could", "served"):
        cut = found["xla"][kind]
        compiled = {node["op"] for node in cut["inside"]}
        assert {"Tanh", "Relu", "Sigmoid"} <= compiled
        assert compiled <= {"Tanh", "Relu", "Sigmoid", "MatMul", "AddV2", "Mul"}
        assert [breaker["op"] for breaker in cut["breakers"]] == ["PartitionedCall"]
        share = sum(costs[op] for op in compiled) / batch["ops_us"]
        assert cut["share_of_time"]["16"] == pytest.approx(share)
    assert "auto-clustering leaves it out" in " ".join(printed.split())


@pytest.mark.parametrize(("name", "says"), [("shapes", True), ("tensorflow1", False)])
def test_xla_is_tried_with_the_executor_that_was_found(name: str, says: bool) -> None:
    code = (
        "import sys\nfrom fastserve.cli import main\nfrom fastserve.workshop.profiling import command\n"
        "command.examine_xla = lambda task, nodes, costs: sys.exit(f'with one: {task.single_threaded}')\n"
        "main(sys.argv[1:])"
    )
    signature = {"shapes": "rows", "tensorflow1": "switched"}[name]
    asked = ["profile", str(exported_models(EXPORTER) / name), "--signature", signature, "--seconds", "0.05"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *asked], capture_output=True, text=True, timeout=300, check=False
    )
    assert f"with one: {says}" in ran.stderr, ran.stdout + ran.stderr


def test_layers_of_keras_are_named_and_the_whole_compiles(tmp_path: Path) -> None:
    target = tmp_path / "layers.json"
    printed = profiled(model("layers"), "--batch-sizes", "1,8", "--seconds", "0.2", "--json", target).stdout
    found = json.loads(target.read_text())
    products = [op["label"] for op in found["batches"][1]["ops"] if "MatMul" in op["op"]]
    assert any("hidden_units" in label for label in products)
    assert found["host_ops"] == []
    assert found["xla"]["full_why"] == ""
    assert found["xla"]["could"]["breakers"] == []
    assert all(cost["compiled_us"] > 0 for cost in found["costs"] if cost["rows"] in (1, 8))
    assert "the whole signature compiles" in printed


def test_rows_of_the_users_own(tmp_path: Path) -> None:
    rows = tmp_path / "rows.npz"
    np.savez(rows, city=np.arange(20) % CITIES, dense=np.ones((20, DENSE), np.float32))
    target = tmp_path / "out.json"
    common = ("--batch-sizes", "4", "--seconds", "0.1", "--no-xla")
    profiled(model("planted"), "--rows", rows, "--json", target, *common)
    assert json.loads(target.read_text())["inputs"] == f"rows of {rows}"
    np.savez(rows, city=np.arange(20), dense=np.ones((20, DENSE - 1), np.float32))
    said = profiled(model("planted"), "--rows", rows, *common, code=2).stderr
    assert "input dense has the shape [20, 63]; the signature takes [?, 64]" in said


def test_the_users_rows_are_what_runs_here_and_under_xla(tmp_path: Path) -> None:
    rows, target = tmp_path / "rows.json", tmp_path / "out.json"
    rows.write_text(json.dumps({"inputs": {"word": [str(number) for number in range(20)]}}))
    common = ("--signature", "numbers", "--batch-sizes", "4,50", "--seconds", "0.1")
    refused = profiled(model("apart"), *common, code=1).stderr
    assert "StringToNumber" in refused  # made-up words are no numbers
    profiled(model("apart"), "--rows", rows, "--json", target, *common)
    found = json.loads(target.read_text())
    assert [batch["rows"] for batch in found["batches"]] == [4, 50]
    assert (found["xla"]["could_why"], found["xla"]["cluster_why"]) == ("", "")


@pytest.mark.parametrize("own_rows", [False, True])
def test_a_fixed_number_of_rows_is_the_one_size(tmp_path: Path, own_rows: bool) -> None:
    rows, target = tmp_path / "rows.npz", tmp_path / "out.json"
    np.savez(rows, x=np.arange(30, dtype=np.float32).reshape(10, 3))
    profiled(
        model("apart"),
        *("--signature", "fixed", "--seconds", "0.1", "--no-xla", "--json", target),
        *(("--rows", rows) if own_rows else ()),
    )
    found = json.loads(target.read_text())
    assert [batch["rows"] for batch in found["batches"]] == [4]
    (cost,) = found["costs"]
    assert cost["row_us"] == pytest.approx(cost["plain_us"] / 4)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["/nowhere"], 1, "/nowhere: no such directory"),
        ([PROFILE.parent / "unit"], 1, "holds neither a saved_model.pb nor versions"),
        (
            ["PLANTED", "--signature", "absent"],
            1,
            "no signature absent with inputs; there are: calls, serving_default",
        ),
        (["PLANTED", "--batch-sizes", "1,x"], 2, 'no list of batch sizes, such as "1,8,64"'),
        (["PLANTED", "--json", "/nowhere/out.json"], 1, "/nowhere: no such directory; make it first"),
    ],
)
def test_what_cannot_be_profiled_is_refused(arguments: list[Any], code: int, says: str) -> None:
    chosen = [model("planted") if argument == "PLANTED" else argument for argument in arguments]
    assert says in profiled(*chosen, code=code).stderr.replace("\n", " ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_runs_or_writes_it_leaves_the_files_of_before(
    tmp_path: Path, number: signal.Signals
) -> None:
    target = tmp_path / "out.trace"
    target.write_text("before")
    runs = subprocess.Popen(
        command(model("planted"), "--seconds", "30", "--trace", target),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert runs.stderr is not None
    for line in runs.stderr:
        if "op by op" in line:
            break
    runs.send_signal(number)
    assert runs.wait(30) == 1
    runs.stderr.close()
    code = (
        "import os, sys, time\nfrom fastserve.cli import main\n"
        "from fastserve.workshop.profiling import command\n"
        "def half(file, profile):\n"
        f" file.write(b'half')\n file.flush()\n os.kill(os.getpid(), {number.value})\n time.sleep(60)\n"
        "command.write_trace = half\nmain(sys.argv[1:])"
    )
    asked = [model("planted"), "--batch-sizes", "1", "--seconds", "0.05", "--no-xla", "--trace", target]
    writes = subprocess.run(
        [sys.executable, "-c", code, "profile", *map(str, asked)],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert writes.returncode == 1 and b"By op" in writes.stdout, writes.stderr
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
