"""tensorflow_model_server's command line: how it is read, and that every flag is documented as the code has
it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastserve.compat.flag_table import BY_NAME, FLAGS, OWN, Verdict
from fastserve.compat.flags import WrongFlags, parse_flags, usage, why_unknown

ROOT = Path(__file__).resolve().parents[2]


def test_there_are_48_flags_and_one_of_our_own_each_once() -> None:
    assert len(FLAGS) == len(BY_NAME) == 48 + len(OWN)
    assert OWN.issubset(BY_NAME)


def test_every_flag_says_what_becomes_of_it() -> None:
    assert all(flag.text and not flag.text.endswith(".") for flag in FLAGS)
    assert {flag.verdict for flag in FLAGS} == set(Verdict)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_default_has_its_flags_type(flag: object) -> None:
    kinds = {"bool": bool, "int32": int, "int64": int, "float": float, "string": str}
    assert flag.default is None or type(flag.default) is kinds[flag.kind]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--port=9000", "port", 9000),
        ("--port= +12", "port", 12),
        ("--load_retry_interval_micros=-1", "load_retry_interval_micros", -1),
        ("--load_retry_interval_micros=9223372036854775807", "load_retry_interval_micros", (1 << 63) - 1),
        ("--enable_batching", "enable_batching", True),
        ("--enable_batching=true", "enable_batching", True),
        ("--enable_batching=TRUE", "enable_batching", True),
        ("--enable_batching=false", "enable_batching", False),
        ("--per_process_gpu_memory_fraction=0.25", "per_process_gpu_memory_fraction", 0.25),
        ("--per_process_gpu_memory_fraction=1e-2", "per_process_gpu_memory_fraction", 0.01),
        ("--model_name=", "model_name", ""),
        ("--model_name=a=b c", "model_name", "a=b c"),
    ],
)
def test_a_value_is_read_as_there(argument: str, name: str, value: object) -> None:
    flags = parse_flags([argument])
    assert flags.given == {name: value}
    assert type(flags.given[name]) is type(value)


@pytest.mark.parametrize(
    "argument",
    [
        "--port=85oo",
        "--port=",
        "--port=1.5",
        "--port=1 ",
        "--port=2147483648",
        "--enable_batching=1",
        "--enable_batching=yes",
        "--enable_batchings",
        "--per_process_gpu_memory_fraction=half",
        "--per_process_gpu_memory_fraction=0.5x",
        "--load_retry_interval_micros=9223372036854775808",
    ],
)
def test_a_value_that_is_none_is_told(argument: str) -> None:
    with pytest.raises(WrongFlags) as caught:
        parse_flags([argument, "--model_name=x"])
    (problem,) = caught.value.problems
    assert problem.startswith("Couldn't interpret value ") and argument[2:6] in problem


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(WrongFlags) as caught:
        parse_flags(["--port=x", "--num_load_threads=y"])
    assert caught.value.problems == [
        "Couldn't interpret value x for flag port: expected a whole number",
        "Couldn't interpret value y for flag num_load_threads: expected a whole number",
    ]


def test_what_is_given_twice_counts_as_given_last() -> None:
    assert parse_flags(["--port=1", "--port=2"]).number("port") == 2


def test_what_is_not_given_is_the_default() -> None:
    flags = parse_flags([])
    assert flags.given == {}
    assert flags.number("port") == 8500
    assert flags.text("model_name") == "default"
    assert flags.is_on("enable_model_warmup")
    assert flags.fraction("per_process_gpu_memory_fraction") == 0.0


def test_what_no_flag_takes_is_left_over() -> None:
    flags = parse_flags(["--port", "9000", "-v", "--nosuch=1", "--model_name=m", "--", "--port=1"])
    assert flags.unknown == ("--port", "9000", "-v", "--nosuch=1", "--", "--port=1")
    assert flags.given == {"model_name": "m"}


def test_help_comes_first_or_not_at_all() -> None:
    with pytest.raises(WrongFlags) as caught:
        parse_flags(["--port=1", "--help"])
    assert caught.value.problems == []
    assert parse_flags(["x", "--help"]).unknown == ("x", "--help")


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("--port", "write --port=VALUE"),
        ("--enable_bathing", "did you mean --enable_batching?"),
        ("--noenable_batching", "write --enable_batching=false"),
        ("9000", ""),
    ],
)
def test_what_may_have_been_meant_is_said(argument: str, why: str) -> None:
    assert why_unknown(argument) == why


def test_usage_names_every_flag_with_type_and_default() -> None:
    text = usage("tensorflow_model_server")
    assert text.startswith("usage: tensorflow_model_server\nFlags:\n\t--port=8500")
    assert '\t--model_name="default"' in text and "\t--enable_batching=false" in text
    assert all(f"\t--{flag.name}=" in text for flag in FLAGS)


def test_the_documented_table_is_the_codes_own(tmp_path: Path) -> None:
    fresh = tmp_path / "flags.md"
    subprocess.run([sys.executable, ROOT / "tools" / "flag_table.py", fresh], check=True, timeout=60)
    assert (ROOT / "docs" / "tfserving_flags.md").read_text() == fresh.read_text(), (
        "the flags have changed: run python tools/flag_table.py"
    )
