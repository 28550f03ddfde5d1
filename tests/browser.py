"""Debian's chromium without a screen, driven by its DevTools protocol, for tests of the live page.

`Browser` is one process; `Page` a tab of it, which notes what the console says and which addresses are asked.
There is no other network than this machine's for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

Answer = dict[str, Any]

INSTALLER = Path(__file__).resolve().parents[1] / "tools" / "system_packages"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_START_S = 60.0
_FLAGS = (
    "--headless=new",
    "--remote-debugging-port=0",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def chromium() -> str:
    """The browser's path. It is installed when it is not there; "" when that is not possible."""
    found = _found()
    if not found:
        subprocess.run([INSTALLER, "test"], capture_output=True, check=False, timeout=500)
        found = _found()
    return found


def _found() -> str:
    return next((path for name in _NAMES if (path := shutil.which(name))), "")


class Browser:
    """A running chromium. Made by `launch`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._pages: dict[str, Page] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def launch(cls, profile: Path) -> AsyncIterator[Browser]:
        """`profile`: a directory that is its own."""
        flags = [*_FLAGS, f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")  # which root has none of
        process = await asyncio.create_subprocess_exec(
            chromium(), *flags, "about:blank", stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        draining: asyncio.Task[None] | None = None
        try:
            url = await asyncio.wait_for(_devtools(process.stderr), _START_S)
            draining = asyncio.create_task(_drain(process.stderr), name="chromium-stderr")
            async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
                browser = cls(socket)
                reading = asyncio.create_task(browser._read(), name="chromium-answers")
                try:
                    yield browser
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its own session: it and what it has started
            await process.wait()
            if draining is not None:
                await draining

    @contextlib.asynccontextmanager
    async def page(
        self, url: str, *, width: int = 1360, height: int = 900, phone: bool = False, theme: str = "light"
    ) -> AsyncIterator[Page]:
        """A tab that is opening `url`. `theme`: what the system prefers."""
        target = await self.call("Target.createTarget", url="about:blank", newWindow=True)
        session = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, session["sessionId"])
        self._pages[session["sessionId"]] = page
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                await page.call(f"{domain}.enable")
            await page.call(
                "Emulation.setFocusEmulationEnabled", enabled=True
            )  # it is seen, whatever else is open
            await page.resize(width, height, phone=phone)
            await page.prefer(theme)
            await page.call("Page.navigate", url=url)
            yield page
        finally:
            del self._pages[session["sessionId"]]
            await self.call("Target.closeTarget", targetId=target["targetId"])

    async def call(self, method: str, session: str | None = None, **params: Any) -> Answer:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message: Answer = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        await self._socket.send_json(message)
        try:
            answer = await asyncio.wait_for(self._answers[number], 30)
        finally:
            del self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: Answer = answer["result"]
        return result

    async def _read(self) -> None:
        async for message in self._socket:
            answer = message.json()
            if "id" in answer:
                waiting = self._answers.get(answer["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
            elif page := self._pages.get(answer.get("sessionId", "")):
                page.hear(answer["method"], answer["params"])


class Page:
    """A tab. `complaints`: errors and warnings of the console, exceptions; `asked`: addresses, in order."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._browser = browser
        self._session = session

    async def call(self, method: str, **params: Any) -> Answer:
        return await self._browser.call(method, self._session, **params)

    def hear(self, method: str, params: Answer) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details.get("text"))))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(arg.get("value", "")) for arg in params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    async def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        await self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    async def prefer(self, theme: str, *, still: bool = False) -> None:
        """What the system is set to: light or dark, and with `still` no motion."""
        features = [{"name": "prefers-color-scheme", "value": theme}]
        features.append({"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"})
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def ask(self, script: str) -> Any:
        """The value of an expression; a promise's when it has one."""
        value, thrown = await self._try(script)
        assert thrown is None, f"{script}: {thrown}"
        return value

    async def until(self, script: str, timeout_s: float = 20.0) -> Any:
        """Waits for an expression to become true, and has its value. Looks after each change of the page.

        One that throws is not true yet: what it asks of may not have been drawn.
        """
        end = time.monotonic() + timeout_s
        while True:
            value, thrown = await self._try(script)
            if thrown is None and value:
                return value
            assert time.monotonic() < end, (
                f"not in {timeout_s} s: {script}\n{thrown or ''}\n{self.complaints}\n{await self.text()}"
            )
            await self.ask(_NEXT_CHANGE)

    async def _try(self, script: str) -> tuple[Any, str | None]:
        """An expression's value, and what it threw."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if (details := answer.get("exceptionDetails")) is None:
            return answer["result"].get("value"), None
        return None, str(details.get("exception", {}).get("description", details["text"]))

    async def text(self, selector: str = "body") -> str:
        """What is to be read there; "" where there is nothing."""
        text = await self.ask(f"document.querySelector({selector!r})?.innerText ?? ''")
        return str(text)

    async def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    async def screenshot(self) -> bytes:
        """PNG of what is in the window."""
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])


# Resolves with the document's next change, or soon.
_NEXT_CHANGE = """new Promise((resolve) => {
  const observer = new MutationObserver(done), timer = setTimeout(done, 250);
  function done() { observer.disconnect(); clearTimeout(timer); resolve(); }
  const all = { subtree: true, childList: true, characterData: true, attributes: true };
  observer.observe(document, all);
})"""


async def _devtools(stderr: asyncio.StreamReader) -> str:
    """Where it listens: it says so."""
    said = b""
    while line := await stderr.readline():
        said += line
        if b"DevTools listening on " in line:
            return line.split(b"DevTools listening on ", 1)[1].strip().decode()
    raise AssertionError(f"chromium ended: {said.decode(errors='replace')}")


async def _drain(stderr: asyncio.StreamReader) -> None:
    while await stderr.read(65536):
        pass
