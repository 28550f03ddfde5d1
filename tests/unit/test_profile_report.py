"""What a profile shows: tables, page and trace, from made-up values; and which version an argument means."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fastserve.workshop.errors import WorkshopError
from fastserve.workshop.model_place import version_of
from fastserve.workshop.profiling.clusters import Breaker, Clustering
from fastserve.workshop.profiling.graph import Node
from fastserve.workshop.profiling.host_ops import HostOp
from fastserve.workshop.profiling.report_html import html
from fastserve.workshop.profiling.report_table import show
from fastserve.workshop.profiling.report_trace import write_trace
from fastserve.workshop.profiling.steps import OpRun, Step
from fastserve.workshop.profiling.values import BatchProfile, CostPoint, OpCost, Profile, Xla, as_json

ODD = "tower/<b>&[red]x"
OPS = (OpCost("n1", ODD, "MatMul", 1, 60.0, 100, 200), OpCost("n2", "hot/one_hot", "OneHot", 1, 30.0, 50, 50))
STEP = Step(
    (OpRun("n1", "MatMul", "n1 = MatMul(x)", "/device:CPU:0", 0, 1500, 2500, 1000, 1, 0),),
    (),
    1000,
    4000,
    400,
    500,
    0,
)
CUT = Clustering(
    2,
    (Node("n1", "MatMul", (), ODD),),
    (Node("n3", "AsString", ("n1",), "mid/AsString"),),
    (Breaker("n3", "mid/AsString", "AsString", "works on strings", 3, 4),),
)
PROFILE = Profile(
    path="/m/1",
    signature="score",
    inputs_from="made-up values",
    executor="SINGLE_THREADED_EXECUTOR",
    batched_why="",
    tensorflow_version="2.21.0",
    machine={"processor": "one"},
    costs=(CostPoint(1, 50.0), CostPoint(8, 100.0, 90.0)),
    batches=(BatchProfile(8, 16, 100.0, 110.0, 150.0, 10.0, 90.0, 20.0, 30.0, OPS),),
    host_ops=(HostOp("n2", "OneHot", "one-hot", "tf.gather of the rows", "n1"),),
    xla=Xla("XLA has no kernel for AsString (mid/AsString)", "", "", CUT, CUT),
    notes=("a [bold]note",),
    steps={8: STEP},
    labels={"n1": ODD, "n2": "hot/one_hot"},
)


def printed(profile: Profile, top: int = 15) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(profile, console, top)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_says_what_was_found() -> None:
    text = printed(PROFILE)
    for said in (
        ODD,
        "a [bold]note",
        "90.0%",
        "perhaps beyond: a row takes 12.5 us there, 50.0 us with 1.",
        f"hot/one_hot (into {ODD})",
        "tf.gather of the rows",
        "1 node in 2 clusters, 67% of the ops' time with 8 rows.",
        "Outside stay AsString.",
        "mid/AsString",
        "no kernel for AsString",
    ):
        assert said in text
    assert "and 1 nodes more" in printed(PROFILE, top=1)


def test_without_xla_nothing_is_said_of_it() -> None:
    plain = replace(PROFILE, xla=None, host_ops=())
    assert "XLA" not in printed(plain)
    assert "<h2>XLA" not in html(plain)
    assert as_json(plain)["xla"] is None


def test_the_page_shows_names_as_text() -> None:
    page = html(PROFILE)
    assert "<b>&[red]" not in page
    assert "tower/&lt;b&gt;&amp;[red]x" in page
    assert "mid/AsString" in page


def test_json_holds_what_the_tables_show() -> None:
    made = json.loads(json.dumps(as_json(PROFILE)))
    (batch,) = made["batches"]
    assert (batch["accounted"], batch["tracing_us"]) == (0.9, 40.0)
    assert [kind["op"] for kind in batch["types"]] == ["MatMul", "OneHot"]
    assert made["host_ops"][0]["own_us"] == {"8": 30.0}
    assert made["xla"]["served"]["share_of_time"]["8"] == pytest.approx(2 / 3)
    assert made["stops_paying_at_rows"] is None


def test_the_trace_counts_from_the_runs_beginning() -> None:
    file = io.BytesIO()
    write_trace(file, PROFILE)
    events = json.loads(file.getvalue())["traceEvents"]
    op = next(event for event in events if event["name"] == ODD)
    assert (op["ts"], op["dur"], op["args"]["own_us"]) == (0.5, 1.0, 1.0)
    run = next(event for event in events if event["name"] == "run")
    assert (run["ts"], run["dur"]) == (0.0, 3.0)


def test_which_version_is_meant(tmp_path: Path) -> None:
    for name in ("2", "10", "old"):
        (tmp_path / name).mkdir()
    for name in ("2", "10", "old"):
        (tmp_path / name / "saved_model.pb").touch()
    assert version_of(tmp_path) == tmp_path / "10"
    assert version_of(tmp_path / "2") == tmp_path / "2"
    (tmp_path / "11").mkdir()
    for place, says in (
        (tmp_path, r"11: the newest version holds no saved_model\.pb; .*10, say"),
        (tmp_path / "11", "holds neither a saved_model.pb nor versions"),
        (tmp_path / "absent", "no such directory"),
        (tmp_path / "2" / "saved_model.pb", "not a directory"),
    ):
        with pytest.raises(WorkshopError, match=says):
            version_of(place)
    (tmp_path / "10" / "saved_model.pb").unlink()
    (tmp_path / "2" / "saved_model.pb").unlink()
    with pytest.raises(WorkshopError, match=r"none of its versions holds a saved_model\.pb"):
        version_of(tmp_path)
