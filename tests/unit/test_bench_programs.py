"""bench/programs.py: what `make bench` starts beside the cases is there, and takes what it is given."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from program_file import program_file

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def programs() -> ModuleType:
    return program_file("bench/programs.py")


def test_every_program_is_there_and_has_the_options_that_it_is_given(programs: ModuleType) -> None:
    for name, command in programs.PROGRAMS.items():
        for quick in (False, True):
            python, program, *arguments = command(quick)
            assert python == sys.executable
            if program != "-m":
                source = Path(program).read_text()
                if "arguments(__doc__" in source:  # which several have in common
                    source += Path(program).with_name("rounds.py").read_text()
                options = {argument for argument in arguments if argument.startswith("--")}
                assert all(f'"{option}"' in source for option in options), name


def test_quick_runs_leave_the_results_alone(programs: ModuleType) -> None:
    for command in programs.PROGRAMS.values():
        written = {
            quick: [Path(text) for text in command(quick) if "/results/" in text] for quick in (False, True)
        }
        assert written[False] and all(not path.name.startswith("dev") for path in written[False])
        assert [f"dev_{path.name}" for path in written[False]] == [path.name for path in written[True]]


def test_the_curves_are_of_every_workload_and_two_servers(programs: ModuleType) -> None:
    from fastserve.cli_bench import run

    command = programs.curves(True)
    assert command[1:5] == ["-m", "fastserve", "bench", "run"]
    given = run.make_context("run", command[5:]).params
    assert {path.name for path in given["workloads"]} == {
        path.name for path in (BENCH / "workloads").iterdir()
    }
    assert given["starts"] == ("fastserve", "grpc-aio") and given["quick"]
    assert given["out"].suffix == ".json" and given["page"].suffix == ".html"
