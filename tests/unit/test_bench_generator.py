"""bench/generator.py: reading h2load's report and log, and telling good replies from errors that look like
successes."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
from program_file import program_file

REPORT = """\
starting benchmark...
finished in 1.50s, 5813.00 req/s, 2.01MB/s
requests: 5813 total, 5813 started, 5813 done, 5813 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 5813 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 2.01MB (2104465) total, 27.56KB (28224) headers (space savings 96.29%), 1.69MB (1772965) data
                     min         max         mean         sd        +/- sd
time for request:      289us     11.35ms      2.74ms       687us    87.53%
time for connect:      850us       850us       850us         0us   100.00%
"""


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return program_file("bench/generator.py")


def test_a_report_is_read(generator: ModuleType) -> None:
    got = generator.parse(REPORT)
    assert (got.done, got.per_s, got.wire_bytes) == (5813, 5813.0, 2104465)
    assert got.mean_us == pytest.approx(2740.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h2load: could not connect",
        REPORT.replace("traffic", "trafic"),
        REPORT.replace("5813 succeeded, 0 failed", "5812 succeeded, 1 failed"),
        REPORT.replace("0 errored", "3 errored"),
        REPORT.replace("0 timeout", "1 timeout"),
        REPORT.replace("5813 done, 5813 succeeded", "0 done, 0 succeeded"),
    ],
)
def test_what_is_no_report_of_a_good_run_is_refused(generator: ModuleType, text: str) -> None:
    assert generator.parse(text) is None


def test_the_bytes_must_be_those_of_good_replies(generator: ModuleType) -> None:
    got = generator.parse(REPORT)
    got.check(362, 16)
    with pytest.raises(generator.GeneratorError, match="some were errors"):
        got.check(380, 16)


def test_a_log_is_read(generator: ModuleType) -> None:
    assert generator.read_log("1\t200\t250\n2\t200\t1000\n") == [250.0, 1000.0]
    with pytest.raises(generator.GeneratorError, match="HTTP status 503"):
        generator.read_log("1\t503\t250\n")


def test_percentiles_are_values_that_occurred(generator: ModuleType) -> None:
    values = [float(value) for value in range(1, 101)]
    assert generator.percentile(values, 50) == 50.0
    assert generator.percentile(values, 99) == 99.0
    assert generator.percentile(values, 100) == 100.0
    assert generator.percentile([7.0], 1) == 7.0
    assert math.isnan(generator.percentile([], 50))
