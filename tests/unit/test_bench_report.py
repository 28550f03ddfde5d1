"""Reports: what they say, and that a page needs nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_windows import CLOSED, OPEN, result_of, run_of, window
from click.testing import CliRunner
from msgspec.structs import replace
from rich.console import Console

from fastserve.bench.bootstrap import Estimate
from fastserve.bench.report_html import html
from fastserve.bench.report_rows import base_target
from fastserve.bench.report_table import show
from fastserve.bench.result import Found, Result, Step, write_result
from fastserve.bench.svg_plot import linear_axis, log_axis, simplified
from fastserve.bench.units import bytes_text, rate_text, ratio_text, time_text
from fastserve.cli import main


def result() -> Result:
    windows = [
        window(target, round=i, rate=rate * (1 + 0.01 * i), mean_ms=mean_ms, point=point, failed=failed)
        for target, rate, mean_ms in (("fast", 2000.0, 1.0), ("aio", 500.0, 8.0))
        for point, failed in ((CLOSED, 0), (OPEN, 3))
        for i in range(3)
    ]  # fmt: skip
    found = Found(
        target="fast", point=CLOSED.label, objective="p99", bound_ms=10.0, rate=1234.0, refused=1300.0,
        steps=[Step(rate=1234.0, value_ms=9.0, share=0.995, kept=True)],
    )  # fmt: skip
    run = run_of(windows, kinds={"fast": "fastserve", "aio": "grpc-aio"})
    return result_of(replace(run, found=[found], complete=False, ended="aio: ended <badly>"))


class Page(HTMLParser):
    """Every tag is closed, in order, and nothing is fetched."""

    VOID = frozenset({"meta", "br", "img", "link", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_self_contained() -> None:
    page = html(result())
    parser = Page()
    parser.feed(page.removeprefix("<!DOCTYPE html>"))
    parser.close()
    assert not parser.open
    assert not {"script", "link", "iframe", "img", "object"} & set(parser.seen)
    assert not [name for name, _ in parser.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert (
        "url(" not in page
        and "@import" not in page
        and "http" not in re.sub(r"http://www\.w3\.org", "", page)
    )
    charts = re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    # Two curves; for each of two points a CDF and two timelines.
    assert len(charts) == 2 + 2 * 3
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "nan" not in chart and "inf" not in chart
    assert len(page) < 200_000


def test_the_page_says_what_was_found() -> None:
    page = html(result())
    for text in (
        "dcn &lt;one row&gt;",
        "A &amp; B",
        "closed 4 x 4",
        "Not complete: aio: ended &lt;badly&gt;",
        "99.99 %",
        "Latency against throughput",
        "Answers per second",
        "fastserve bench run x.toml",
        "Compared with aio",
        "keeps p99 within 10 ms up to <strong>1,234/s</strong>; refused at 1,300/s",
        "prefers-color-scheme:dark",
        "@media print",
    ):
        assert text in page, text


def test_the_table_says_what_was_found() -> None:
    text = StringIO()
    show(Console(file=text, width=200), result())
    said = text.getvalue()
    for part in (
        "dcn <one row>",
        "closed 4 x 4",
        "2,020/s",
        "9 (0.15%)",
        "compared with aio",
        "p99 <= 10 ms up to",
    ):
        assert part in said, part
    assert "not complete: aio: ended <badly>" in said


def test_the_base_is_who_is_not_fastserve() -> None:
    kinds = {"fast": "fastserve", "aio": "grpc-aio"}
    assert base_target(run_of([window("fast"), window("aio")], kinds=kinds)) == "aio"
    assert base_target(run_of([window("a"), window("b")])) == "a"
    assert base_target(run_of([window("a")])) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (time_text(12_345_678), "12.3 ms"),
        (time_text(999_990), "1.00 ms"),
        (time_text(0), "0 ns"),
        (time_text(float("nan")), "-"),
        (rate_text(123_456.7), "123,457/s"),
        (bytes_text(1536), "1.50 KiB"),
        (bytes_text(12), "12 B"),
        (ratio_text(Estimate(1.5, 1.25, 1.75)), "1.5 (1.25 to 1.75)"),
        (ratio_text(Estimate(1.5, 0.01, 99.0)), "1.5 (unsure)"),
    ],
)
def test_figures_have_units(text: str, said: str) -> None:
    assert text == said


def test_lines_are_simplified_without_losing_their_corners() -> None:
    straight = [(float(i), 2.0 * i) for i in range(1000)]
    assert simplified(straight) == [straight[0], straight[-1]]
    peak = [*straight, (1000.0, 0.0), *((1000.0 + i, 5.0) for i in range(1, 500))]
    assert (999.0, 1998.0) in simplified(peak) and (1000.0, 0.0) in simplified(peak)
    zigzag = [(float(i), float(i % 7) * 20) for i in range(1500)]
    assert len(simplified(zigzag)) <= 240


def test_axes_hold_their_values() -> None:
    axis = log_axis("t", [0.0, 3e3, 8e5], time_text)
    assert axis.low < 3e3 and axis.high > 8e5
    assert [text for _, text in axis.ticks][:2] == ["5.00 us", "10.0 us"]
    assert linear_axis("n", 987.0, str).ticks[-1][0] == 1000.0
    assert log_axis("t", [], time_text).ticks and linear_axis("n", 0.0, str).ticks


def test_the_commands_report_and_compare(tmp_path: Path) -> None:
    before, after, page = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "r.html"
    write_result(before, result_of(run_of([window(round=i, rate=1000.0 + i, seed=1) for i in range(5)])))
    write_result(after, result_of(run_of([window(round=i, rate=500.0 + i, seed=2) for i in range(5)])))
    run = CliRunner().invoke
    done = run(main, ["bench", "report", str(before), "--html", str(page)])
    assert done.exit_code == 0 and page.read_text().startswith("<!DOCTYPE html>")
    assert "closed 4 x 4" in run(main, ["bench", "report", str(before)]).output
    same = run(main, ["bench", "compare", str(before), str(before), "--fail-on-regression"])
    assert same.exit_code == 0 and "nothing got slower" in same.output
    slower = run(main, ["bench", "compare", str(before), str(after)])
    assert slower.exit_code == 0 and "slower" in slower.output
    assert run(main, ["bench", "compare", str(before), str(after), "--fail-on-regression"]).exit_code == 1
    write_result(after, result_of(run_of([window()], name="other")))
    nothing = run(main, ["bench", "compare", str(before), str(after)])
    assert nothing.exit_code == 1 and "have no workload, target and load in common" in nothing.output
