"""`fastserve top` against a monitor that is made up: what it shows, what fits, what keys do, its errors."""

from __future__ import annotations

import io
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fake_monitor import Demo, FakeMonitor, Scene
from rich.console import Console

from fastserve.cli import main
from fastserve.cli_top_figures import NOTHING, amount, bar, duration, latency, size, sparkline
from fastserve.cli_top_live import Keys, watch
from fastserve.cli_top_show import SORTS, Screen, top_view
from fastserve.config_read import admin_socket, monitor_socket
from fastserve.errors import FastServeError

Answer = dict[str, Any]


def call(*args: str, columns: int = 80) -> Result:
    return CliRunner().invoke(main, args, env={"COLUMNS": str(columns)})


def shown(status: Answer, history: list[Answer], screen: Screen) -> list[str]:
    """The lines on the screen."""
    console = Console(file=io.StringIO(), width=screen.width, color_system=None)
    console.print(top_view(status, history, screen), end="")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().split("\n")[:-1]


@pytest.fixture
def scene() -> Scene:
    """Two models with traffic, one of which is about to switch, and a quiet one that has failed."""
    scene = Scene()
    scene.model("ranker", 41, labels={"stable": 41})
    scene.model("ctr", 12)
    scene.model("fraud", 8)
    scene.traffic("ranker", 12_400.0, 210.0)
    scene.traffic("ctr", 320.0, 4_800.0, errors_per_s=3.5, waiting_rows=17)
    scene.load("ranker", 42, "compile", 0.4)
    scene.fail("fraud", 9, "saved_model.pb is cut short")
    for _ in range(90):
        scene.tick()
    return scene


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration to be run in."""
    (tmp_path / "state").mkdir()
    (tmp_path / "config.toml").write_text('[server]\nstate_dir = "state"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def monitor(scene: Scene, directory: Path) -> Iterator[FakeMonitor]:
    monitor = FakeMonitor(scene)
    with monitor.in_thread(unix=directory / "state" / "monitor.sock"):
        yield monitor


def test_the_socket_is_in_the_state_directory(directory: Path) -> None:
    assert monitor_socket("config.toml") == str(directory / "state" / "monitor.sock")
    assert Path(monitor_socket("config.toml")).parent == Path(admin_socket("config.toml")).parent


def test_once_says_all_there_is(monitor: FakeMonitor) -> None:
    ran = call("top", "--once")
    assert ran.exit_code == 0, ran.output
    for words in (
        "FastServe 0.1.0  ready",
        "core up pid 4243  memory 1.3 GiB of 8.0 GiB",
        "gateway up pid 4250",
        "41 available",
        "42 loading compile ████░░░░░░ 40 %",
        "9 failed saved_model.pb is cut short",
        "stable 41",
        "12.4 k",
        "210 µs",
        "1.05 ms",
        "errors/s 3.5",
        "its trial begins",
    ):
        assert words in ran.output
    assert max(map(len, ran.output.splitlines())) <= 80
    assert monitor.asked == ["/status.json", "/history.json"]


def test_without_a_terminal_it_is_printed_once(monitor: FakeMonitor) -> None:
    assert call("top").output == call("top", "--once").output


def test_json_is_what_the_daemon_says(monitor: FakeMonitor, scene: Scene) -> None:
    ran = call("top", "--once", "--json")
    assert json.loads(ran.output) == scene.status()
    assert len(ran.output.splitlines()) == 1


def test_it_asks_at_a_url(scene: Scene) -> None:
    with FakeMonitor(scene).in_thread() as url:
        for written in (url, url.rstrip("/")):
            ran = call("top", "--once", "--url", written)
            assert ran.exit_code == 0 and "42 loading" in ran.output


@pytest.mark.parametrize("url", ["ranker:8501", "ftp://ranker/", "http://", "http://ranker:x/"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    ran = call("top", "--once", "--url", url)
    assert ran.exit_code == 1 and "is not a URL such as http://" in ran.output


def test_socket_and_url_at_once_are_one_too_many() -> None:
    assert call("top", "--socket", "x", "--url", "http://x/").exit_code == 2


def test_no_daemon_is_said_with_the_remedy(directory: Path) -> None:
    ran = call("top", "--once")
    assert ran.exit_code == 1
    assert "no daemon listens on" in ran.output and "fastserve serve config.toml" in ran.output


def test_no_configuration_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = call("top")
    assert ran.exit_code == 1 and "there is no config.toml" in ran.output


def test_a_monitor_that_refuses_is_quoted(monitor: FakeMonitor) -> None:
    monitor.away = True
    ran = call("top", "--once")
    assert ran.exit_code == 1 and "answers 503 Service Unavailable to /status.json" in ran.output


@pytest.mark.parametrize("says", [b"hello\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"])
def test_another_programs_socket_is_not_taken_for_it(directory: Path, says: bytes) -> None:
    import threading

    with socket.socket(socket.AF_UNIX) as server:
        server.bind("other.sock")
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        ran = call("top", "--once", "--socket", "other.sock")
        thread.join()
    assert ran.exit_code == 1 and "is not the monitor socket" in ran.output


# ---- what fits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def busy() -> tuple[Answer, list[Answer]]:
    demo = Demo(60, now=1_790_000_000.0, before_s=300)
    return demo.before[-1], demo.scene.history()["points"]


@pytest.mark.parametrize("width", [60, 80, 100, 132, 200])
@pytest.mark.parametrize("height", [16, 24, 50])
def test_it_is_as_large_as_the_screen(busy: tuple[Answer, list[Answer]], width: int, height: int) -> None:
    lines = shown(*busy, Screen(width, height))
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    assert lines[-1].startswith("q quit")
    assert any(line.startswith("ranker") for line in lines)


def test_wide_screens_have_more_columns(busy: tuple[Answer, list[Answer]]) -> None:
    narrow, wide = (shown(*busy, Screen(width, None)) for width in (80, 140))
    for column in ("p99.9 ", "batch", "queue99", "run50", "memory"):
        title = next(line for line in wide if line.startswith("model"))
        assert column in title
        assert column not in next(line for line in narrow if line.startswith("model"))


def test_versions_that_have_ended_take_no_memory(scene: Scene) -> None:
    scene.switch("ctr", 13)
    scene.models["ctr"]["versions"][0]["state"] = "END"
    line = next(line for line in shown(scene.tick(), [], Screen(140, None)) if line.startswith("ctr"))
    assert "13 available" in line and line.endswith("182 MiB")


def test_scrolling_reaches_the_last_model(busy: tuple[Answer, list[Answer]]) -> None:
    first = shown(*busy, Screen(80, 30))
    assert any("more: j" in line for line in first) and not any("segment-59" in line for line in first)
    last = shown(*busy, Screen(80, 30, scroll=59))
    assert any(line.startswith("segment-59") for line in last)
    assert not any("more: j" in line for line in last)


def test_sorting_puts_the_highest_first(scene: Scene) -> None:
    def order(sort: str) -> list[str]:
        names = ("ranker", "ctr", "fraud")
        lines = shown(scene.status(), [], Screen(80, 40, sort))
        table = lines[next(i for i, line in enumerate(lines) if line.startswith("model")) :]
        return [line.split()[0] for line in table if line.startswith(names)]

    assert order("configuration") == ["ranker", "ctr", "fraud"]
    assert order("p99")[0] == order("errors")[0] == "ctr"
    assert order("requests")[0] == "ranker"
    assert order("name") == ["ctr", "fraud", "ranker"]


def test_names_are_text_not_markup() -> None:
    scene = Scene()
    scene.model("[red]m[/red]", 1)
    scene.fail("[red]m[/red]", 2, "no [bold]file[/bold] \x1b[31m")
    text = "\n".join(shown(scene.tick(), [], Screen(120, None)))
    assert "[red]m[/red]" in text and "no [bold]file[/bold]" in text
    assert "\x1b" not in text


def test_without_models_it_teaches() -> None:
    text = "\n".join(shown(Scene().tick(), [], Screen(80, 24)))
    assert "[[models]]" in text and "base_path" in text and "none yet" in text


def test_a_core_that_is_down_stands_out(scene: Scene) -> None:
    scene.core.update(up=False, pid=None, restarts=2)
    scene.ready, scene.gateway = False, None
    scene.tell("core", text="process 4243 died: killed by SIGKILL")
    text = "\n".join(shown(scene.tick(), [], Screen(80, 24)))
    assert "not ready" in text and "core down, 2 restarts" in text and "gateway" not in text
    assert "core      process 4243 died" in text


# ---- live ----------------------------------------------------------------------------------------


class Daemon:
    """Says what a scene says, a second later each time; away when told so."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.away, self.asked = scene, False, 0

    def status(self) -> Answer:
        self.asked += 1
        if self.away:
            raise FastServeError(
                "no daemon listens on monitor.sock; start it with: fastserve serve config.toml"
            )
        return self.scene.tick()

    def history(self) -> list[Answer]:
        points: list[Answer] = self.scene.history()["points"]
        return points


class Typed(Keys):
    """Keys that come when the test says, and a clock that goes on while they are waited for."""

    def __init__(self, *steps: str | Callable[[], None]) -> None:
        self.steps = list(steps)
        self.now = 0.0

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, seconds: float) -> str:
        step = self.steps.pop(0)
        if callable(step):
            step()
            self.now += seconds
            return ""
        return step


def watched(daemon: Daemon, *steps: str | Callable[[], None], height: int = 30) -> str:
    keys = Typed(*steps)
    file = io.StringIO()
    console = Console(file=file, width=80, height=height, force_terminal=True, color_system=None)
    watch(daemon, 1.0, console=console, keys=keys, clock=lambda: keys.now)
    assert not keys.steps
    return file.getvalue()


def test_q_ends_it_and_time_alone_asks_again(scene: Scene) -> None:
    daemon = Daemon(scene)
    watched(daemon, "x", lambda: None, lambda: None, "q")
    assert daemon.asked == 3


def test_s_goes_through_the_orders(scene: Scene) -> None:
    text = watched(Daemon(scene), *["s"] * len(SORTS), "q")
    found = [sort for sort in SORTS if f"sort: {sort}" in text]
    assert found == list(SORTS)


def test_j_and_k_scroll_and_stop_at_the_ends() -> None:
    demo = Demo(60, now=1_790_000_000.0, before_s=5)
    text = watched(Daemon(demo.scene), *["k"] * 3, *["j"] * 80, "q", height=24)
    assert "segment-59" in text


def test_a_daemon_that_goes_is_waited_for(scene: Scene) -> None:
    daemon = Daemon(scene)

    def leave() -> None:
        daemon.away = True

    def come_back() -> None:
        daemon.away = False
        scene.switch("ranker", 42)

    text = watched(daemon, leave, come_back, lambda: None, "q")
    assert "as of " in text and "no daemon listens on monitor.sock" in text
    assert "42 available" in text.rsplit("no daemon listens", 1)[1]


def test_without_a_daemon_at_first_it_is_an_error(scene: Scene) -> None:
    daemon = Daemon(scene)
    daemon.away = True
    with pytest.raises(FastServeError, match="no daemon listens"):
        watched(daemon)


def test_q_in_a_real_terminal_leaves_it_as_it_was(monitor: FakeMonitor, directory: Path) -> None:
    leader, follower = pty.openpty()
    try:
        termios.tcsetwinsize(follower, (24, 80))
        before = termios.tcgetattr(follower)
        process = subprocess.Popen(
            [sys.executable, "-m", "fastserve", "top"], stdin=follower, stdout=follower, stderr=follower
        )
        said = b""
        while b"sort: configuration" not in said:
            said += os.read(leader, 65536)
        os.write(leader, b"q")
        assert process.wait(20) == 0
        assert termios.tcgetattr(follower) == before
        assert b"\x1b[?1049h" in said  # a screen of its own
    finally:
        os.close(leader)
        os.close(follower)


# ---- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NOTHING), (float("nan"), NOTHING), (0, "0"), (0.01, "<0.1"), (0.44, "0.4"),
        (7, "7"), (12.5, "12.5"), (99.97, "100"), (840.2, "840"), (999.6, "1.00 k"), (12_430, "12.4 k"),
        (158_000, "158 k"), (999_600, "1.00 M"), (2.5e9, "2.50 G"),
    ],
)  # fmt: skip
def test_amounts_have_three_digits(value: float | None, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, NOTHING), (8.44, "8.4 µs"), (84, "84 µs"), (999.4, "999 µs"), (999.6, "1.00 ms"),
        (1_240, "1.24 ms"), (12_400, "12.4 ms"), (124_000, "124 ms"), (999_600, "1.00 s"), (12.4e6, "12.4 s"),
    ],
)  # fmt: skip
def test_latencies_have_their_unit(us: float | None, text: str) -> None:
    assert latency(us) == text


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (None, 512, 1536, 182 << 20, 8 << 30)] == [
        NOTHING,
        "512 B",
        "1.5 KiB",
        "182 MiB",
        "8.0 GiB",
    ]
    assert [duration(s) for s in (None, 0.0021, 0.0116, 0, 0.84, 42.9, 192, 11_520, 356_400)] == [
        NOTHING, "2.1 ms", "12 ms", "0.0 s", "0.8 s", "42 s", "3 min 12 s", "3 h 12 min", "4 d 3 h",
    ]  # fmt: skip
    assert bar(0.4, 10) == "████░░░░░░" and bar(7, 4) == "████" and bar(-1, 4) == "░░░░"


def test_a_sparkline_shows_the_newest_at_its_end() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, None, 2], 5) == "  ▅ █"
    assert sparkline([], 4) == "    "
    assert sparkline([None, None], 2) == "  "
    assert sparkline([0, 0], 2) == "▁▁"
    # Where several share a block, a spike among them is seen.
    assert sparkline([0] * 99 + [9] + [0] * 100, 20) == "▁" * 9 + "█" + "▁" * 10
