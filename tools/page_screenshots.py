"""Takes the pictures of the live page that the documentation shows: docs/page.png and docs/page-phone.png.

    python tools/page_screenshots.py [--url http://127.0.0.1:8501/ --model ranker] [--seconds 60]

Without --url of a monitor that is made up (tests/fake_monitor.py), in the middle of a switch. Takes chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

from browser import Browser, Page, chromium  # noqa: E402
from fake_monitor import Demo, FakeMonitor  # noqa: E402

LIVE = "document.documentElement?.dataset.connection === 'live'"
# Of the scene that is made up: the third switch is under way, two are to be seen.
STEPS = 324


async def take(url: str, out: Path, seconds: float, model: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with Browser.launch(Path(profile)) as browser:
            async with browser.page(url, width=1440, height=1110, theme="light") as page:
                await page.until(LIVE)
                await asyncio.sleep(seconds)
                await save(page, out / "page.png")
            where = f"{url}#model={model}" if model else url
            async with browser.page(where, width=390, height=844, phone=True, theme="dark") as page:
                await page.until(LIVE)
                await asyncio.sleep(min(seconds, 3))
                await save(page, out / "page-phone.png")


async def save(page: Page, file: Path) -> None:
    await asyncio.sleep(0.5)  # what was drawn is to be on the screen
    picture = await page.screenshot()
    await asyncio.to_thread(file.write_bytes, picture)
    print(f"{file}: {len(picture) // 1024} KiB")


async def made_up(out: Path) -> None:
    demo = Demo(before_s=0)
    monitor = FakeMonitor(demo.scene)
    async with monitor.serving() as address:

        async def run() -> None:
            """All that has been, at once, as soon as a page listens; then a second a second."""
            listened = 0
            while True:
                await asyncio.sleep(0.05 if monitor.listeners else 0.2)
                if monitor.listeners > listened:
                    for _ in range(max(STEPS - demo.second, 1)):
                        demo.step()
                        monitor.push(0.0)
                listened = monitor.listeners

        running = asyncio.create_task(run(), name="scene")
        try:
            await take(address, out, 1.0, "")
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--url", help="a page that is there")
    parser.add_argument("--model", default="", help="the one that the phone shows")
    parser.add_argument("--seconds", type=float, default=60.0, help="to listen first")
    parser.add_argument("--out", type=Path, default=REPO / "docs")
    options = parser.parse_args()
    if not chromium():
        sys.exit("there is no chromium: tools/system_packages test")
    if options.url:
        asyncio.run(take(options.url, options.out, options.seconds, options.model))
    else:
        asyncio.run(made_up(options.out))


if __name__ == "__main__":
    main()
