"""The live page in Debian's chromium: a switch is seen as it happens, on desks and phones, in light and dark.

Most of it with a monitor that is made up, which says what a test wants when it wants it; at the end with a
daemon that has traffic.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import browser as chrome
import numpy as np
import pytest
import pytest_asyncio
from browser import Browser, Page
from fake_monitor import Demo, FakeMonitor, Scene
from lifecycle import Serving, install, table

from fastserve._native.client_codec import encode_request
from fastserve._native.load import start
from fastserve.bench.wire import PREDICT_PATH

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = "document.documentElement?.dataset.connection === 'live'"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    if not chrome.chromium():
        pytest.skip("there is no chromium, and tools/system_packages test could not install it")
    async with Browser.launch(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def switching() -> Scene:
    scene = Scene()
    scene.model("ranker", 41, labels={"stable": 41})
    scene.model("ctr", 12)
    scene.traffic("ranker", 1_250.0, 210.0)
    scene.traffic("ctr", 310.0, 900.0)
    for _ in range(120):
        scene.tick()
    return scene


@asynccontextmanager
async def opened(browser: Browser, scene: Scene, **how: Any) -> AsyncIterator[tuple[FakeMonitor, Page]]:
    """The page of a scene, once it has its first word. It must not complain, nor ask others."""
    monitor = FakeMonitor(scene)
    async with monitor.serving() as address, browser.page(address, **how) as page:
        await page.until(LIVE)
        yield monitor, page
        assert page.complaints == []
        assert {url.split("/")[2] for url in page.asked if not url.startswith("data:")} == {
            address.split("/")[2]
        }


def chips(model: str) -> str:
    """Script: what the table says of a model's versions."""
    return (
        "[...document.querySelectorAll('tr.model')].find((row) => row.querySelector('.name').textContent === "
        f"{model!r})?.querySelector('.chips').innerText.replace(/\\s+/g, ' ')"
    )


def bars(model: str) -> str:
    """Script: what the timeline shows of a model, such as 41 available from 10:00:00 to 10:00:02, 2.0 s."""
    return (
        f"[...document.querySelectorAll('.lane[aria-label=\"{model}\"] .segment')]"
        ".map((bar) => bar.dataset.tip).join('; ')"
    )


async def test_a_switch_is_seen_as_it_happens(browser: Browser) -> None:
    scene = switching()
    async with opened(browser, scene) as (monitor, page):
        assert "41" in await page.until(chips("ranker"))
        monitor.push()
        scene.load("ranker", 42, "open")
        monitor.push()
        await page.until(f"{chips('ranker')}.includes('42 loading open')")
        scene.load("ranker", 42, "compile", 0.4)
        monitor.push()
        await page.until(f"{chips('ranker')}.includes('42 loading compile 40 %')")
        monitor.push()
        scene.switch("ranker", 42, 3.1)
        monitor.push()
        await page.until(f"{chips('ranker')}.includes('41 unloading')")
        scene.gone("ranker", 41)
        monitor.push()
        await page.until(f"!{chips('ranker')}.includes('41')")
        seen = await page.until(bars("ranker"))
        for words in ("ranker 42: loading from", "ranker 42: available from", "ranker 41: available from"):
            assert words in seen
        assert re.search(r"ranker 41: unloading from [\d:]+ to [\d:]+, 1\.0 s", seen)
        told = await page.text("#events")
        assert re.search(r"available\s*ranker 42 published\s*3\.1 s", told)
        assert re.search(r"loading\s*ranker 42", told) and re.search(r"ended\s*ranker 41", told)
        # The other model has not moved, so it has no lane while this one does.
        assert await page.ask("document.querySelectorAll('.lane').length") == 1
        assert await page.text("#said") != ""


async def test_figures_are_what_the_daemon_says(browser: Browser) -> None:
    scene = switching()
    scene.traffic("ranker", 12_400.0, 210.0, waiting_rows=17, shed_per_s=2.5)
    async with opened(browser, scene) as (monitor, page):
        monitor.push()
        await page.until("document.querySelector('#r-requests').textContent.startsWith('12.7')")
        figure = {name: (await page.text(f"#r-{name}")).replace("\u202f", " ") for name in (
            "requests", "rows", "p50", "p99", "p999", "waiting", "errors", "shed", "padding", "batch",
        )}  # fmt: skip
        assert figure == {
            "requests": "12.7 k", "rows": "153 k", "p50": "227 µs", "p99": "1.13 ms", "p999": "2.72 ms",
            "waiting": "17", "errors": "0", "shed": "2.5", "padding": "3.1 %", "batch": "12",
        }  # fmt: skip
        label = await page.ask("document.querySelector('#c-latency').getAttribute('aria-label')")
        assert "Latency, last 5 min" in label and "p99.9 2.72" in label
        assert "up, pid 4243, no restarts" in await page.text("#core")
        assert await page.text("#memory") == "1.3\xa0GiB of 8.0\xa0GiB"
        assert "up, pid 4250" in await page.text("#gateway")
        assert await page.text("#ready") == "ready"


async def test_the_past_is_drawn_at_once(browser: Browser) -> None:
    """What history.json has is in the charts before a second has gone by."""
    async with opened(browser, switching()) as (monitor, page):
        await page.until(_inked("c-traffic", "requests", 100))
        assert monitor.asked.count("/history.json") == 1


def _inked(canvas: str, colour: str, pixels: int) -> str:
    """Script: whether at least so many pixels of a chart have a series' colour."""
    return f"""(() => {{
      const canvas = document.getElementById({canvas!r});
      const copy = new OffscreenCanvas(canvas.width, canvas.height);
      const surface = copy.getContext('2d', {{ willReadFrequently: true }});
      surface.drawImage(canvas, 0, 0);
      const probe = document.body.appendChild(document.createElement('i'));
      probe.style.color = 'var(--{colour})';
      const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
      probe.remove();
      const data = surface.getImageData(0, 0, canvas.width, canvas.height).data;
      let found = 0;
      for (let i = 0; i < data.length; i += 4) {{
        const off = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
        if (data[i + 3] > 100 && off < 30) found++;
      }}
      return found >= {pixels};
    }})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_a_phone_need_not_scroll_sideways(browser: Browser, theme: str) -> None:
    demo = Demo(60, before_s=300)
    async with opened(browser, demo.scene, width=360, height=740, phone=True, theme=theme) as (monitor, page):
        monitor.push()
        await page.until("document.querySelectorAll('tr.model').length === 60")
        await page.ask("document.querySelector('tr.model .name').click()")
        await page.until("document.querySelector('tr.detail')")
        assert await page.ask("[window.innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        beyond = """[...document.querySelectorAll('body *')].filter((element) => {
          const box = element.getBoundingClientRect();
          return box.width && box.right > 361 && !element.closest('.unseen, thead, .tip, .skip');
        }).map((element) => element.outerHTML.slice(0, 120))"""
        assert await page.ask(beyond) == []
        # What is to be touched is large enough for a finger.
        heights = "[...document.querySelectorAll('button:not(thead *)')].map((button) => button.offsetHeight)"
        assert min(height for height in await page.ask(heights) if height) >= 24


async def test_it_follows_the_system_and_may_be_told_otherwise(browser: Browser) -> None:
    background = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
    )
    async with opened(browser, switching(), theme="dark") as (_, page):
        dark = await page.ask(background)
        await page.until(_inked("c-traffic", "requests", 100))
        await page.prefer("light")
        light = await page.until(f"({background}) > 600 && {background}")
        assert dark < 120 < 600 < light
        await page.until(_inked("c-traffic", "requests", 100))
        theme = "document.querySelector('#theme')"
        await page.ask(f"{theme}.click()")
        await page.ask(f"{theme}.click()")
        assert await page.text("#theme") == "Theme: dark"
        assert await page.ask(background) == dark
        await page.until(_inked("c-traffic", "requests", 100))
        await page.call("Page.reload")
        await page.until(f"{LIVE} && document.querySelector('#theme').textContent === 'Theme: dark'")
        assert await page.ask(background) == dark
        await page.ask("localStorage.clear()")


async def test_silence_is_said_and_ends_by_itself(browser: Browser) -> None:
    async with opened(browser, switching()) as (monitor, page):
        monitor.push()
        await page.until("document.documentElement?.dataset.connection === 'stale'")
        assert re.match(r"stale, \d", await page.text("#live-text"))
        assert "No word from the daemon since" in await page.text("#stale")
        monitor.push()
        await page.until(LIVE)
        assert await page.ask("document.querySelector('#stale').hidden")


async def test_a_daemon_that_comes_back_is_heard_again(browser: Browser) -> None:
    scene = switching()
    monitor = FakeMonitor(scene)
    async with monitor.serving() as address, browser.page(address) as page:
        await page.until(LIVE)
        monitor.away = True
        monitor.drop()
        await page.until("document.documentElement?.dataset.connection === 'stale'")
        scene.core.update(pid=4999, restarts=1)
        scene.tell("core", text="process 4243 died: killed by SIGKILL")
        scene.tell("core", text="process 4999 started")
        scene.tick(7)
        monitor.away = False
        await page.until(
            f"{LIVE} && document.querySelector('#core').textContent.includes('pid 4999, 1 restart')"
        )
        await page.until("document.querySelectorAll('#events .is-bad').length === 1")
        assert await page.ask("document.querySelectorAll('#posts .post').length") == 2
        assert "killed by SIGKILL" in await page.ask("document.querySelector('#posts .is-bad').dataset.tip")
        # and what was said meanwhile is asked for
        assert monitor.asked.count("/history.json") >= 2


async def test_a_tab_that_nobody_sees_draws_nothing(browser: Browser) -> None:
    scene = switching()
    async with opened(browser, scene) as (monitor, page):
        monitor.push()
        await page.until("document.querySelector('#r-requests').textContent.startsWith('1.56')")
        hide = "Object.defineProperty(document, 'hidden', { configurable: true, get: () => %s })"
        change = "document.dispatchEvent(new Event('visibilitychange'))"
        await page.ask(f"{hide % 'true'}; {change}")
        scene.traffic("ranker", 5_000.0)
        for _ in range(3):
            monitor.push()
        await page.ask("new Promise((resolve) => setTimeout(resolve, 700))")
        assert (await page.text("#r-requests")).startswith("1.56")
        await page.ask(f"{hide % 'false'}; {change}")
        await page.until("document.querySelector('#r-requests').textContent.startsWith('5.31')")


async def test_sixty_models_do_not_make_it_slow(browser: Browser) -> None:
    demo = Demo(60, before_s=300)
    async with opened(browser, demo.scene) as (monitor, page):
        await page.until("document.querySelectorAll('tr.model').length === 60")
        await page.call("Performance.enable", timeDomain="threadTicks")

        async def busy_s() -> float:
            metrics = (await page.call("Performance.getMetrics"))["metrics"]
            return sum(row["value"] for row in metrics if row["name"] == "TaskDuration")

        before = await busy_s()
        for _ in range(10):
            demo.step()
            monitor.push(0.0)
            now = demo.scene.now
            await page.until(f"document.querySelector('#uptime').dataset.drawn >= {now}")
        assert (await busy_s() - before) / 10 < 0.2


async def test_models_are_found_by_name_and_state(browser: Browser) -> None:
    demo = Demo(60, before_s=280)
    async with opened(browser, demo.scene) as (_, page):
        await page.until("document.querySelectorAll('tr.model').length === 60")
        await page.key("/")
        await page.until("document.activeElement.id === 'filter'")
        for letter in "failed":
            await page.key(letter)
        await page.until("document.querySelectorAll('tr.model').length === 1")
        assert "fraud" in await page.text("#rows")
        assert "is shorter than its index says" in await page.ask(
            "document.querySelector('.chip.s-failed').dataset.tip"
        )
        for letter in "xyz":
            await page.key(letter)
        await page.until("!document.querySelector('#none-match').hidden")
        await page.key("Escape")
        await page.until("document.querySelectorAll('tr.model').length === 60")
        await page.ask("document.querySelector('.c-requests button').click()")
        await page.until("document.querySelector('tr.model .name').textContent === 'ranker'")
        await page.ask("document.querySelector('.c-p99 button').click()")
        await page.until("document.querySelector('tr.model .name').textContent === 'toxicity'")
        assert await page.ask("document.querySelector('th.c-p99').getAttribute('aria-sort')") == "descending"


async def test_a_model_that_is_chosen_is_shown_alone(browser: Browser) -> None:
    demo = Demo(before_s=150)
    async with opened(browser, demo.scene) as (monitor, page):
        await page.until("document.querySelectorAll('tr.model').length === 6")
        await page.ask("[...document.querySelectorAll('tr.model .name')][1].click()")
        await page.until("document.querySelector('#scope').textContent === 'ctr-candidates'")
        detail = await page.text("tr.detail")
        assert "canary of version 13 beside 12 with 10 % of the requests" in detail.replace("\xa0", " ")
        assert "REST" in detail and "p99" in detail
        assert await page.ask("location.hash") == "#model=ctr-candidates"
        monitor.push()
        rate = demo.scene.models["ctr-candidates"]["traffic"]["requests_per_s"]
        await page.until(f"document.querySelector('#r-requests').textContent.startsWith('{rate / 1000:.2f}')")
        await page.key("Escape")
        await page.until("document.querySelector('#scope').textContent === 'All models'")
        assert await page.ask("location.hash") == ""


async def test_an_empty_daemon_teaches(browser: Browser) -> None:
    scene = Scene()
    scene.gateway = None
    async with opened(browser, scene) as (monitor, page):
        await page.until("!document.querySelector('#first-steps').hidden")
        assert "[[models]]" in await page.text("#first-steps")
        assert "base_path" in await page.text("#no-events")
        assert "off" in await page.text("#gateway")
        scene.model("ranker", 1)
        monitor.push()
        await page.until("document.querySelectorAll('tr.model').length === 1")
        assert "fastserve predict ranker" in await page.text("#panels")
        assert "\u2013" in await page.text("#r-p99")


async def test_names_and_errors_are_text(browser: Browser) -> None:
    hostile = "<img src=x onerror=document.title='owned'>"
    scene = Scene()
    scene.model(hostile, 1, labels={"<b>": 1})
    scene.fail(hostile, 2, "<script>document.title='owned'</script>")
    async with opened(browser, scene) as (_, page):
        await page.until(f"document.querySelector('tr.model .name').textContent === {hostile!r}")
        await page.ask("document.querySelector('tr.model .name').click()")
        await page.until("document.querySelector('tr.detail')")
        assert "<script>" in await page.text("tr.detail")
        assert "owned" not in await page.ask("document.title.replace(/<img.*>/, '')")
        assert await page.ask("document.querySelectorAll('img').length") == 0


async def test_charts_are_read_with_the_keyboard(browser: Browser) -> None:
    async with opened(browser, switching()) as (monitor, page):
        monitor.push()
        await page.until("document.querySelector('#r-p99').textContent.startsWith('1.74')")
        await page.ask("document.querySelector('#c-latency').focus()")
        await page.key("ArrowLeft")
        await page.until("/p99 1.74.ms/.test(document.querySelector('#said').textContent)")
        assert re.fullmatch(r"\d\d:\d\d:\d\d", await page.text("section:has(#c-latency) .when"))


async def test_everything_has_a_name_for_those_who_hear_it(browser: Browser) -> None:
    demo = Demo(before_s=150)
    async with opened(browser, demo.scene) as (_, page):
        await page.until("document.querySelectorAll('tr.model').length === 6")
        tree = (await page.call("Accessibility.getFullAXTree"))["nodes"]
        named = (
            "button",
            "image",
            "textbox",
            "searchbox",
            "heading",
            "table",
            "columnheader",
            "meter",
            "progressbar",
        )
        roles = {node["role"]["value"] for node in tree if not node["ignored"]}
        assert {
            "button",
            "image",
            "heading",
            "table",
            "columnheader",
            "row",
            "cell",
            "main",
            "banner",
        } <= roles
        shown = [node for node in tree if not node["ignored"] and node["role"]["value"] in named]
        assert [node for node in shown if not node.get("name", {}).get("value")] == []


async def test_nothing_moves_for_those_who_ask_for_that(browser: Browser) -> None:
    async with opened(browser, switching()) as (_, page):
        assert await page.ask("document.getAnimations().length") > 0
        await page.prefer("light", still=True)
        await page.until("document.getAnimations().length === 0")


# ---- a daemon ------------------------------------------------------------------------------------


@asynccontextmanager
async def daemon_with_traffic(directory: Path) -> AsyncIterator[Serving]:
    """Serves a model `m` and has a hundred requests a second for it, each of which must be answered."""
    serving = Serving(directory)
    install("half", directory / "m/1")
    config = serving.config(table("m", directory / "m"))
    await asyncio.to_thread(serving.begin, f'{config}\n[monitoring]\nlisten = ["127.0.0.1:0"]\n')
    try:
        await asyncio.to_thread(serving.daemon.wait_ready)
        address = serving.daemon.ready["addresses"][0]
        host, port = address.split(":")
        body = encode_request("m", {"x": np.ones(4, np.float32)}, signature="serving_default")
        load = start(
            (host, int(port)), [body], path=PREDICT_PATH, authority=address, rate=100.0, duration_s=600.0
        )
        try:
            yield serving
        finally:
            load.finish()
            result = await asyncio.to_thread(load.wait)
        assert (result.failed, result.unanswered) == ({}, 0)
        assert result.latency.total > 100
    finally:
        await asyncio.to_thread(serving.daemon.end)


async def test_a_daemons_switch_under_load_is_seen_as_it_happens(browser: Browser, tmp_path: Path) -> None:
    async with daemon_with_traffic(tmp_path) as serving:
        url = f"http://{serving.daemon.ready['monitoring'][0]}/"
        async with browser.page(url) as page:
            await page.until(LIVE)
            await page.until("parseFloat(document.querySelector('#r-requests').textContent) > 50")
            await page.until("/[µm]s/.test(document.querySelector('#r-p99').textContent)")
            assert "1 available" in await page.ask(chips("m"))
            install("half", tmp_path / "m/2")
            await page.until(f"{bars('m')}.includes('m 2: loading from')", 60)
            await page.until(f"{chips('m')}.includes('2 available')", 60)
            await page.until(f"!{chips('m')}.includes('1')", 60)
            seen = await page.until(bars("m"))
            for words in ("m 1: available from", "m 2: loading from", "m 2: available from"):
                assert words in seen
            told = await page.until("document.querySelector('#events').innerText")
            assert re.search(r"available\s*m 2", told) and re.search(r"ended\s*m 1", told)
            assert await page.text("#r-errors") == "0"
            assert await page.ask("parseFloat(document.querySelector('#r-requests').textContent) > 50")
            # all of it under the policy that the daemon sends, from nowhere else
            assert page.complaints == []
            assert {asked.split("/")[2] for asked in page.asked if not asked.startswith("data:")} == {
                url.split("/")[2]
            }
            assert "'sha256-" in await page.ask(
                "fetch('/').then((a) => a.headers.get('content-security-policy'))"
            )
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "fastserve", "top", "--once"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.search(r"^m +2 available +\d", ran.stdout, re.MULTILINE)
        assert re.search(r"available m 2 \(", ran.stdout)
