"""Workloads: what a file may say, and what a wrong one is told."""

# ruff: noqa: E501 - messages stand in one piece, so that they can be searched for.

from __future__ import annotations

from pathlib import Path

import pytest

from fastserve.bench import workload as workload_module
from fastserve.bench.points import all_points, offered
from fastserve.bench.workload import Closed, parse_workload
from fastserve.errors import ConfigError

NAME = '[workload]\nname = "dcn"\n'
LOAD = "[load]\nclosed = [{ connections = 1 }]\n"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_workload(text, "w.toml")
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LOAD, "w.toml: workload: is missing"),
        (NAME, "w.toml: load: there is no load: expected closed, open or slo, or a table [replay]"),
        (NAME + "[lod]\n" + LOAD, "w.toml:3: lod: no such key; did you mean load?"),
        (
            NAME + '[requests]\nsource = "row"\n' + LOAD,
            'w.toml:4: [requests] source = "row": expected "signature", "rows" or "file"; did you mean "rows"?',
        ),
        (
            NAME + "[requests]\nrows = [7, 3]\n" + LOAD,
            "w.toml:4: [requests] rows = [7, 3]: expected [least, greatest]",
        ),
        (
            NAME + "[requests]\nrows = [1, 2, 3]\n" + LOAD,
            "w.toml:4: [requests] rows = [1, 2, 3]: expected a whole number, 1 or more, or [least, greatest]",
        ),
        (
            NAME + '[requests]\nsource = "file"\n' + LOAD,
            'w.toml:3: [requests] file: is missing: source = "file" needs one',
        ),
        (
            NAME + '[requests]\nsource = "rows"\n' + LOAD,
            'w.toml:3: [requests] file: is missing: source = "rows" needs one where there is no export',
        ),
        (
            NAME + '[requests.inputs.x]\ndims = ["history"]\n' + LOAD,
            'w.toml:4: [requests.inputs.x] dims[0] = "history": no such dim in [requests.dims], which has none',
        ),
        (
            NAME + "[requests.inputs.x]\nlow = 3\nhigh = 2\n" + LOAD,
            "w.toml:5: [requests.inputs.x] high = 2: is less than low, which is 3",
        ),
        (
            NAME + '[requests.inputs.x]\ndistribution = "zipf"\n' + LOAD,
            'w.toml:3: [requests.inputs.x] high: is missing: distribution = "zipf" needs one',
        ),
        (
            NAME + "[load]\nclosed = [{ connections = 1, in_flight = 0 }]\n",
            "w.toml:4: [load] closed[0].in_flight = 0: expected requests in flight, 1 to 100000",
        ),
        (
            NAME + "[load]\nopen = { fractions = [0.5] }\n",
            "w.toml:4: [load.open] fractions = [0.5]: are of the highest rate in closed loop, and there is no closed loop: expected [load] closed",
        ),
        (NAME + "[load]\nopen = { connections = 3 }\n", "w.toml:4: [load] open: expected rates or fractions"),
        (
            NAME + "[load]\nslo = { connections = 3 }\n",
            "w.toml:4: [load] slo: expected one of p50_ms, p90_ms, p95_ms, p99_ms, p999_ms",
        ),
        (
            NAME + LOAD + "[serve.exec]\nthreads = 1\n",
            "w.toml:5: [serve] exec: no such table; there are server, limits, executor, tensorflow, model",
        ),
        (
            NAME + 'export = "a.py"\nsaved_model = "b"\n' + LOAD,
            "w.toml:4: [workload] saved_model: is there beside export; remove one of the two",
        ),
        (
            "[workload\n",
            "w.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 1, column 10)",
        ),
    ],
)
def test_a_wrong_file_is_told_what_would_be_right(text: str, problem: str) -> None:
    assert problem in problems(text)


def test_all_problems_are_found_in_one_go() -> None:
    assert len(problems('[workload]\nnam = "x"\n[load]\nrounds = 0\nwindow_s = -1\n')) == 4


def test_the_example_in_the_documentation_is_a_workload(tmp_path: Path) -> None:
    assert workload_module.__doc__ is not None
    example = workload_module.__doc__.split("every key.\n")[1]
    text = "\n".join(line[4:] for line in example.splitlines())
    found = parse_workload(text, str(tmp_path / "w.toml"))
    assert found.title == "DCN-v2, 100 to 700 rows"
    assert found.workload.export == str(tmp_path.parent / "models/dcn.py")
    assert found.load.slo is not None and found.load.slo.objective == ("p99", 0.99, 10.0)
    assert found.load.closed[1] == Closed(connections=8, in_flight=4)
    assert found.serve == {"executor": {"spin_us": 300}}
    assert found.requests.inputs["history_items"].dims == ("history",)


def test_names_default_to_the_workloads_own() -> None:
    found = parse_workload(NAME + LOAD, "w.toml")
    assert (found.title, found.model, found.workload.export) == ("dcn", "dcn", "")


def test_points_have_labels_of_their_own_and_rates_of_the_right_target() -> None:
    found = parse_workload(
        NAME
        + "[load]\nclosed = [{ connections = 1 }, { connections = 2 }]\n"
        + 'open = { rates = [100.0], fractions = [0.5], of = "each" }\nslo = { p999_ms = 5 }\n',
        "w.toml",
    )
    points = all_points(found.load, None)
    assert [point.label for point in points] == [
        "closed 1 x 1",
        "closed 2 x 1",
        "open 100/s",
        "open 0.5 of its own highest rate",
        "highest rate with p99.9 <= 5 ms",
    ]
    highest = {"a": 1000.0, "b": 10.0}
    assert offered(points[2], highest, "a") == 100.0
    assert offered(points[3], highest, "a") == 500.0
    slowest = all_points(
        parse_workload(NAME + LOAD.rstrip() + "\nopen = { fractions = [0.5] }\n", "w").load, None
    )
    assert offered(slowest[-1], highest, "a") == 5.0
