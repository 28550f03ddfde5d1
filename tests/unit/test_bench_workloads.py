"""bench/workloads: every file can be read, and what it names is there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fastserve.bench.workload import Workload, read_workload

BENCH = Path(__file__).parents[2] / "bench"
FILES = sorted((BENCH / "workloads").glob("*.toml"))


@pytest.fixture(scope="module")
def workloads() -> list[Workload]:
    return [read_workload(file) for file in FILES]


def test_the_workloads_are_there(workloads: list[Workload]) -> None:
    names = {workload.name for workload in workloads}
    assert names >= {"overhead", "dcn_1row", "dcn_100_700rows", "wide_deep_100rows", "din_history", "mmoe"}


def test_names_are_the_files_and_titles_are_distinct(workloads: list[Workload]) -> None:
    assert [workload.name for workload in workloads] == [file.stem for file in FILES]
    assert len({workload.title for workload in workloads}) == len(workloads)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_export_is_a_program_that_makes_this_model(file: Path) -> None:
    workload = read_workload(file)
    export = Path(workload.workload.export)
    assert export.parent == BENCH / "models" and export.is_file()
    functions = {
        node.name for node in ast.parse(export.read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert "make" in functions
    assert workload.model == export.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recorded_rows_are_sent_over_a_curve_of_rates(file: Path) -> None:
    workload = read_workload(file)
    assert workload.requests.source == "rows" and workload.requests.count >= 16
    assert workload.load.closed[0].connections * workload.load.closed[0].in_flight == 1
    assert workload.load.open is not None and len(workload.load.open.fractions) >= 4


def test_both_sides_of_a_users_history_are_cut_to_one_length() -> None:
    requests = read_workload(BENCH / "workloads" / "din_history.toml").requests
    items, categories = requests.inputs["history_items"], requests.inputs["history_categories"]
    assert items.trim == categories.trim == 0
    assert items.dims == categories.dims == ("history",)
    assert requests.rows == requests.run  # a request is one user
