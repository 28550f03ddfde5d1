"""A route's pool with real worker processes and a core on the null runtime: every way a request can go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_driver import Core, servable
from daemon_process import alive

from fastserve.gateway.refusal import Refusal
from fastserve.gateway.routes import make_pool, response_of
from fastserve.gateway.routes_pool import Pool, Refused
from fastserve.gateway.settings import RouteSettings

PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def core() -> Iterator[Core]:
    with Core(executor={"threads": 2}) as core:
        core.serve(
            servable("half"),
            servable("slow", options="run_us=300000"),
            servable("slower", options="run_us=400000"),
        )
        yield core


class Route:
    """One route, and what its log says."""

    def __init__(self, file: Path, address: str) -> None:
        self.file = file
        self.address = address
        self.log: list[tuple[str, dict[str, Any]]] = []
        self.pool: Pool

    def open(self, **settings: Any) -> Route:
        given = {
            "path": "/r",
            "file": str(self.file),
            "model": "half",
            "version": None,
            "label": "",
            "signature": "",
            "methods": ("POST",),
            "workers": 1,
            "concurrency": 16,
            "max_waiting": 100,
            "timeout_s": 10.0,
            "reload": False,
            "max_body_bytes": 1 << 24,
            **settings,
        }
        self.pool = make_pool(RouteSettings(**given), self.address, self._note)
        self.pool.open()
        return self

    def _note(self, level: str, message: str, **fields: Any) -> None:
        self.log.append((message, {"level": level, **fields}))

    def write(self, text: str) -> None:
        self.file.write_text(textwrap.dedent(text))

    async def ask(self, body: bytes = b"", *, query: str = "", metadata: Any = (), **head: Any) -> Any:
        """Status, and the body: JSON if it is that."""
        said = {"method": "POST", "path": "/r", "query": query, "headers": [], "remote": "", **head}
        try:
            reply = await self.pool.ask({**said, "metadata": list(metadata)}, body)
            response = response_of(reply)
        except Refused as refused:
            return refused.status, str(refused)
        except Refusal as refusal:
            return refusal.status, refusal.text
        data = response.body
        assert isinstance(data, bytes)
        return response.status, json.loads(data) if response.content_type == "application/json" else data

    async def logged(self, message: str) -> dict[str, Any]:
        await until(lambda: any(said == message for said, _ in self.log))
        return next(fields for said, fields in self.log if said == message)

    async def pid(self, other_than: int = 0) -> int:
        """The one worker's, once there is one."""
        await until(lambda: any(worker.pid != other_than for worker in self.pool.workers))
        return self.pool.workers[0].pid


async def until(look: Callable[[], Any], timeout_s: float = PATIENCE_S) -> None:
    """What another process is about to do has no event here: looks until it is done."""
    async with asyncio.timeout(timeout_s):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def route(tmp_path: Path, core: Core) -> AsyncIterator[Route]:
    route = Route(tmp_path / "hooks.py", core.unix_address)
    yield route
    await route.pool.close(5.0)
    assert not route.pool.workers


PLAIN = """
import numpy as np

def preprocess(request):
    request.state["n"] = len(request.json())
    return {"x": np.array(request.json(), np.float32).reshape(-1, 1)}

def postprocess(outputs, request):
    return {"y": outputs["y"][:, 0], "n": request.state["n"], "rows": request.rows}
"""
ASYNC = PLAIN.replace("def ", "async def ")


# ---- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PLAIN, ASYNC])
async def test_a_request_goes_through_both_hooks_and_the_model(route: Route, text: str) -> None:
    route.write(text)
    route.open()
    assert await route.ask(b"[2, 4, 6]") == (200, {"y": [3.0, 4.0, 5.0], "n": 3, "rows": 3})


async def test_several_models_are_called_at_the_same_time(route: Route) -> None:
    route.write("""
        import numpy as np, time
        from fastserve.web import Call
        def preprocess(request):
            request.state["began"] = time.monotonic()
            x = {"x": np.zeros((1, 1), np.float32)}
            one = {"x": np.ones((1, 1), np.float32)}
            return [Call("slow", x), Call("half", one), Call("slower", x, outputs=["y"])]
        def postprocess(outputs, request):
            return [len(outputs), outputs[1]["y"][0, 0], time.monotonic() - request.state["began"]]
    """)
    route.open()
    answers = [await route.ask() for _ in range(3)]
    assert {(status, count, y) for status, (count, y, _) in answers} == {(200, 3, 2.5)}
    seconds = min(said[2] for _, said in answers)
    assert 0.4 <= seconds < 0.69  # one after the other it would be 0.7


async def test_async_hooks_ask_one_model_after_the_other(route: Route) -> None:
    route.write("""
        import numpy as np
        async def preprocess(request):
            first = await request.predict("half", {"x": np.array([[4.0]], np.float32)})
            return {"x": first["y"]}
        async def postprocess(outputs, request):
            return outputs["y"][0]
    """)
    route.open()
    assert await route.ask() == (200, [4.0])


async def test_an_early_answer_needs_no_model(route: Route) -> None:
    route.write("""
        from fastserve.web import Response
        def preprocess(request):
            return Response(request.body[::-1], 203, {"x-a": "b"}, "image/png")
        def postprocess(outputs, request): ...
    """)
    route.open(model="")
    reply = await route.pool.ask(
        {"method": "GET", "path": "/r", "query": "", "headers": [], "remote": "", "metadata": []}, b"abc"
    )
    assert (reply.status, reply.body) == (203, b"cba")
    assert sorted(reply.headers) == [("content-type", "image/png"), ("x-a", "b")]


async def test_large_bodies_go_both_ways(route: Route) -> None:
    route.write("""
        from fastserve.web import Response
        def preprocess(request): return Response(request.body + request.body)
        def postprocess(outputs, request): ...
    """)
    route.open()
    body = os.urandom(6 << 20)
    assert await route.ask(body) == (200, body + body)


async def test_what_hooks_print_is_in_the_log_line_by_line(route: Route) -> None:
    route.write("""
        import logging, sys, threading
        from fastserve.web import Response
        print("imported", end="\\n\\n")
        def preprocess(request):
            print("a", 1, file=sys.stderr)
            sys.stdout.write("half ")
            logging.warning("careful %s", "ä\\udcff")
            thread = threading.Thread(target=print, args=("by a thread",))
            thread.start()
            thread.join()
            print("line", "x" * 5000)
            return Response("y")
        def postprocess(outputs, request): ...
    """)
    route.open()
    assert await route.ask() == (200, b"y")
    await until(lambda: len(route.log) >= 5)
    assert {said for said, _ in route.log} == {"hook output"}
    lines = [fields["line"] for _, fields in route.log]
    assert lines[:3] == ["imported", "a 1", "WARNING:root:careful ä?"]
    assert sorted(lines[3:]) == ["half by a thread", "line " + "x" * 1995]


async def test_setup_runs_once_before_the_first_request_and_may_be_async(route: Route) -> None:
    route.write("""
        from fastserve.web import Response
        runs = []
        async def setup(): runs.append(1)
        def preprocess(request): return Response({"runs": len(runs)})
        def postprocess(outputs, request): ...
    """)
    route.open()
    assert [await route.ask() for _ in range(3)] == [(200, {"runs": 1})] * 3


async def test_a_worker_knows_neither_tensorflow_nor_the_control_code(route: Route) -> None:
    route.write("""
        import os, sys
        from fastserve.web import Response
        def preprocess(request): return Response([os.nice(0), sorted(sys.modules)])
        def postprocess(outputs, request): ...
    """)
    route.open()
    status, (nice, modules) = await route.ask()
    assert status == 200 and "numpy" in modules
    assert not {"tensorflow", "aiohttp", "msgspec", "google"} & {name.split(".")[0] for name in modules}
    rooms = {name.split(".")[1] for name in modules if name.startswith("fastserve.")}
    assert not {room for room in rooms if room.startswith(("control", "core", "cli_", "compat"))}
    assert nice == os.nice(0)


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("raise BadRequest('no rows', 422)", 422, "no rows"),
        ("raise ValueError('age is negative')", 400, "age is negative"),
        ("request.json()", 400, "the body is empty where JSON is expected"),
        ("return Call('nobody', {'x': np.zeros((1, 1), np.float32)})", 404, "Servable not found for request"),
        ("return Call('half', {'x': np.zeros((1, 1), np.float32)}, version=7)", 404, "not found"),
        ("return {'z': np.zeros((1, 1), np.float32)}", 400, "z"),
        ("return {'x': [[1.0], [1.0, 2.0]]}", 400, ""),
    ],
)
async def test_what_is_the_clients_fault_is_told_to_it(
    route: Route, line: str, status: int, said: str
) -> None:
    route.write(f"""
        import numpy as np
        from fastserve.web import BadRequest, Call
        def preprocess(request):
            {line}
        def postprocess(outputs, request): ...
    """)
    route.open()
    got, text = await route.ask()
    assert (got, said in text) == (status, True), text
    assert not route.log


@pytest.mark.parametrize(
    ("pre", "post", "hook", "why"),
    [
        ("1 / 0", "", "preprocess", "hooks.py:5: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "", "preprocess", "hooks.py:5: SystemExit: 3"),
        ("return 3", "", "preprocess", "preprocess returned int: expected the model's inputs"),
        ("return {'x': object()}", "", "preprocess", "TypeError"),
        (
            "return {'x': np.zeros((1, 1), np.float32)}",
            "raise ValueError('no')",
            "postprocess",
            "hooks.py:7: Val",
        ),
        ("return {'x': np.zeros((1, 1), np.float32)}", "return object()", "postprocess", "returned object"),
    ],
)
async def test_a_defect_of_a_hook_is_500_and_its_reason_is_in_the_log_alone(
    route: Route, pre: str, post: str, hook: str, why: str
) -> None:
    route.write(f"""
        import numpy as np
        from fastserve.web import BadRequest
        def preprocess(request):
            {pre}
        def postprocess(outputs, request):
            {post or "..."}
    """)
    route.open()
    status, text = await route.ask()
    assert status == 500 and "Traceback" not in text and "hooks.py" not in text
    fields = await route.logged("hook failed")
    assert fields["route"] == "/r" and fields["hook"] == hook and why in fields["why"]
    assert fields["incident"] in text
    assert "gateway/worker" not in fields.get("traceback", "").split("hooks.py")[0]
    assert (await route.ask())[0] == 500  # it goes on


ODD = """
from fastserve.web import BadRequest, Response
class Mute(Exception):
    def __str__(self): raise RuntimeError("no words")
class MuteValue(Mute, ValueError): ...
class Own(BadRequest):
    def __init__(self, year): self.year = year
class OddStatus(BadRequest):
    def __init__(self): self.status = object()
class Quit(BaseException): ...
def preprocess(request):
    {}
def postprocess(outputs, request): ...
"""


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("raise BadRequest(KeyError('age'), 422)", 422, "'age'"),
        ("raise BadRequest('x' * 5_000_000)", 400, "xxx"),
        ("raise Own(1999)", 400, "the request cannot be answered"),
        ("raise ValueError('x' * 5_000_000)", 400, "xxx"),
        ("raise OddStatus", 500, "incident"),
        ("raise BadRequest(Mute())", 500, "incident"),
        ("raise Mute", 500, "incident"),
        ("raise MuteValue", 500, "incident"),
        ("raise Quit", 500, "incident"),
        ("raise OSError('x' * 5_000_000)", 500, "incident"),
        ("raise SyntaxError('x' * 5_000_000, ('f', 1, 1, ''))", 500, "incident"),
        ("return Response(headers={'x-a': 'x' * 5_000_000})", 500, "incident"),
    ],
)
async def test_whatever_a_hook_raises_is_answered_at_once_by_a_worker_that_goes_on(
    route: Route, line: str, status: int, said: str
) -> None:
    route.write(ODD.format(line))
    route.open()
    pid = await route.pid()
    async with asyncio.timeout(5):  # long before the route's own
        got, text = await route.ask()
    assert (got, said in text) == (status, True), text
    assert len(text) < 20_000
    if status == 500:
        assert len((await route.logged("hook failed"))["why"]) < 3000
    assert await route.pid() == pid


async def test_inputs_without_a_model_say_what_to_do(route: Route) -> None:
    route.write(PLAIN)
    route.open(model="")
    assert (await route.ask(b"[1]"))[0] == 500
    assert "set `model` in [[routes]]" in (await route.logged("hook failed"))["why"]


# ---- time limits, crashes, clients that go away ------------------------------------------------------------


BUSY = """
import os, time, asyncio
from fastserve.web import Response
{0}def preprocess(request):
    if request.query.get("busy"):
        while True: pass
    if request.query.get("sleep"):
        {1}
    if request.query.get("die"):
        os._exit(3)
    return Response({{"pid": os.getpid()}})
{0}def postprocess(outputs, request): ...
"""
SYNC_BUSY = BUSY.format("", "time.sleep(float(request.query['sleep']))")
ASYNC_BUSY = BUSY.format("async ", "await asyncio.sleep(float(request.query['sleep']))")


@pytest.mark.parametrize("text", [SYNC_BUSY, ASYNC_BUSY])
async def test_a_worker_stuck_in_a_hook_is_killed_and_replaced(route: Route, text: str) -> None:
    route.write(text)
    route.open(timeout_s=0.5)
    stuck = await route.pid()
    began = time.monotonic()
    status, said = await route.ask(query="busy=1")
    assert status == 504 and "not answered within 0.5 s" in said
    assert time.monotonic() - began < 1.5
    assert (await route.logged("route worker ended"))["how"] == "stuck in a hook, killed"
    assert await route.pid(other_than=stuck) != stuck
    assert not alive(stuck)
    assert (await route.ask())[0] == 200


async def test_an_async_hook_that_is_late_is_cancelled_and_its_worker_stays(route: Route) -> None:
    route.write(ASYNC_BUSY)
    route.open(timeout_s=0.3)
    pid = await route.pid()
    late = [route.ask(query="sleep=60") for _ in range(5)]
    assert {status for status, _ in await asyncio.gather(*late)} == {504}
    await until(lambda: route.pool.workers[0].busy == 0)
    assert await route.ask() == (200, {"pid": pid})


async def test_a_model_that_is_late_is_504_and_its_worker_stays(route: Route) -> None:
    route.write(PLAIN)
    route.open(model="slow", timeout_s=0.15)
    pid = await route.pid()
    assert (await route.ask(b"[1]"))[0] == 504
    await until(lambda: route.pool.workers[0].busy == 0)
    assert await route.pid() == pid


@pytest.mark.parametrize("text", [SYNC_BUSY, ASYNC_BUSY])
async def test_a_worker_that_dies_is_502_and_is_started_again(route: Route, text: str) -> None:
    route.write(text)
    route.open()
    assert await route.ask(query="die=1") == (
        502,
        "the worker of /r died before it answered (exit status 3)",
    )
    assert (await route.logged("route worker ended"))["how"] == "exit status 3"
    status, said = await route.ask()
    assert status == 200 and said["pid"] == await route.pid()
    os.kill(said["pid"], signal.SIGKILL)
    await route.pid(other_than=said["pid"])
    assert [fields["how"] for said, fields in route.log if said == "route worker ended"][1:] == ["SIGKILL"]
    assert (await route.ask())[0] == 200


async def test_plain_hooks_have_one_request_at_a_time_and_async_ones_many(route: Route) -> None:
    route.write(SYNC_BUSY)
    route.open()
    await route.pid()
    began = time.monotonic()
    assert {
        status for status, _ in await asyncio.gather(*[route.ask(query="sleep=0.1") for _ in range(4)])
    } == {200}
    assert time.monotonic() - began >= 0.4
    await route.pool.close(5.0)
    route.write(ASYNC_BUSY)
    route.open(concurrency=4)
    await route.pid()
    began = time.monotonic()
    assert {
        status for status, _ in await asyncio.gather(*[route.ask(query="sleep=0.3") for _ in range(8)])
    } == {200}
    assert 0.6 <= time.monotonic() - began < 2.3  # one after the other it would be 2.4


async def test_a_full_queue_refuses_at_once_and_waiting_is_limited(route: Route) -> None:
    route.write(SYNC_BUSY)
    route.open(max_waiting=2, timeout_s=2.0)
    await route.pid()
    first = asyncio.create_task(route.ask(query="sleep=1.5"))
    await until(lambda: route.pool.workers[0].busy)
    others = [asyncio.create_task(route.ask(query="sleep=1.5")) for _ in range(2)]
    await until(lambda: route.pool.waiting == 2)
    assert await route.ask() == (503, "/r is overloaded: 2 requests are waiting")
    assert (await first)[0] == 200
    late = [await other for other in others]
    assert {status for status, _ in late} == {504}
    assert any("waited for a worker" in said for _, said in late)
    assert route.pool.waiting == 0


async def test_a_client_that_goes_away_cancels_an_async_hook(route: Route, tmp_path: Path) -> None:
    route.write(f"""
        import asyncio
        from pathlib import Path
        from fastserve.web import Response
        async def preprocess(request):
            if request.body:
                return Response("here")
            try:
                Path({str(tmp_path / "began")!r}).touch()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                Path({str(tmp_path / "cancelled")!r}).touch()
                raise
        async def postprocess(outputs, request): ...
    """)
    route.open()
    pid = await route.pid()
    gone = asyncio.create_task(route.ask())
    await until((tmp_path / "began").exists)
    gone.cancel()
    await until((tmp_path / "cancelled").exists)
    assert await route.ask(b"x") == (200, b"here")
    assert await route.pid() == pid


async def test_a_client_that_goes_away_leaves_a_plain_hook_its_time_but_no_more(route: Route) -> None:
    route.write(SYNC_BUSY)
    route.open(timeout_s=1.0)
    pid = await route.pid()
    for query, same in (("sleep=0.5", True), ("busy=1", False)):
        gone = asyncio.create_task(route.ask(query=query))
        await until(lambda: route.pool.workers and route.pool.workers[0].busy)
        gone.cancel()
        status, said = await route.ask()
        if not same:  # it waited for one that was killed when its time was up
            await route.pid(other_than=pid)
            status, said = await route.ask()
        assert status == 200 and (said["pid"] == pid) is same


@pytest.mark.parametrize("text", [SYNC_BUSY, ASYNC_BUSY])
async def test_requests_that_are_dropped_at_once_take_no_place_for_ever(route: Route, text: str) -> None:
    route.write(text)
    route.open(max_waiting=1000)
    pid = await route.pid()
    for turns in range(60):
        gone = asyncio.create_task(route.ask())
        for _ in range(turns // 4):
            await asyncio.sleep(0)
        gone.cancel()
    assert await route.ask() == (200, {"pid": pid})
    await until(lambda: route.pool.workers[0].busy == route.pool.waiting == 0)


async def test_a_worker_dies_with_the_gateway_even_in_a_busy_loop(tmp_path: Path, core: Core) -> None:
    (tmp_path / "hooks.py").write_text(SYNC_BUSY)
    script = textwrap.dedent(f"""
        import asyncio, uvloop
        from fastserve.gateway.routes import make_pool
        from fastserve.gateway.settings import RouteSettings
        async def main():
            route = RouteSettings(path="/r", file={str(tmp_path / "hooks.py")!r}, model="",
                version=None, label="", signature="", methods=("POST",), workers=2,
                concurrency=1, max_waiting=9, timeout_s=600.0, reload=False, max_body_bytes=1)
            pool = make_pool(route, {core.unix_address!r}, lambda *args, **fields: None)
            pool.open()
            while not pool.workers: await asyncio.sleep(0.01)
            print(*(worker.pid for worker in pool.workers), flush=True)
            head = dict(method="POST", path="/r", query="busy=1", headers=[], remote="", metadata=[])
            await asyncio.gather(*(pool.ask(head, b"") for _ in range(2)))
        uvloop.run(main())
    """)
    gateway = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert gateway.stdout is not None
    pids = [int(word) for word in gateway.stdout.readline().split()]
    assert len(pids) == 2
    await until(lambda: all(cpu_ticks(pid) > 20 for pid in pids))  # they are in the loop
    gateway.kill()
    gateway.wait()
    gateway.stdout.close()
    await until(lambda: not any(alive(pid) for pid in pids))


def cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ")[1].split()[11])


# ---- files that are wrong, and reloads ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def preprocess(request:\n", "hooks.py:1: '(' was never closed"),
        ("import nothing_of_that_name\n", "hooks.py:1: ModuleNotFoundError: No module named"),
        ("def preprocess(request): ...\n", "has no function postprocess()"),
        ("import sys\nsys.exit('no')\n", "hooks.py:2: SystemExit: no"),
        (PLAIN + "def setup(): raise OSError('no vocabulary')\n", "setup() failed: "),
        ("import os\nos._exit(9)\n", "the worker ended before it was ready: exit status 9"),
    ],
)
async def test_a_file_that_cannot_be_loaded_is_503_and_says_why_in_the_log(
    route: Route, text: str, why: str
) -> None:
    route.write(text)
    route.open()
    status, said = await route.ask(b"[1]")
    assert status == 503 and "cannot be loaded; see the log" in said
    fields = await route.logged("route not loaded")
    assert why in fields["why"] and fields["route"] == "/r"
    route.write(PLAIN)  # tried again with back-off, reload or not
    await until(lambda: route.pool.workers)
    assert (await route.ask(b"[2]"))[0] == 200


async def test_a_file_that_is_not_there_is_503(route: Route) -> None:
    route.open()
    assert (await route.ask())[0] == 503
    assert "hooks.py: No such file" in (await route.logged("route not loaded"))["why"]


VERSIONED = """
import time
from fastserve.web import Response
{0}
def preprocess(request):
    time.sleep(0.005)
    return Response({{"version": {1}}})
def postprocess(outputs, request): ...
"""


async def test_a_reload_under_load_loses_no_request(route: Route) -> None:
    route.write(VERSIONED.format("", 1))
    route.open(workers=2, reload=True)
    await until(lambda: len(route.pool.workers) == 2)
    before = {worker.pid for worker in route.pool.workers}
    seen: list[Any] = []

    async def load() -> None:
        while seen.count((200, {"version": 3})) < 50:
            seen.append(await route.ask())

    asking = [asyncio.create_task(load()) for _ in range(6)]
    await until(lambda: len(seen) > 20)
    route.write(VERSIONED.format("", 2))
    await until(lambda: (200, {"version": 2}) in seen)
    route.write(VERSIONED.format("", 3))
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*asking)
    assert {status for status, _ in seen} == {200}
    versions = [said["version"] for _, said in seen]
    assert set(versions) == {1, 2, 3}
    await until(lambda: not any(alive(pid) for pid in before))
    assert [said for said, _ in route.log] == ["route reloaded"] * 2


async def test_a_change_of_an_imported_module_reloads(route: Route) -> None:
    helper = route.file.parent / "helper.py"
    helper.write_text("VERSION = 1\n")
    route.write(VERSIONED.format("import helper", "helper.VERSION"))
    route.open(reload=True)
    assert await route.ask() == (200, {"version": 1})
    helper.write_text("VERSION = 22\n")
    await route.logged("route reloaded")
    assert await route.ask() == (200, {"version": 22})


async def test_a_broken_change_leaves_the_old_workers_and_a_good_one_takes_over(route: Route) -> None:
    route.write(VERSIONED.format("", 1))
    route.open(reload=True)
    pid = await route.pid()
    route.write(VERSIONED.format("what this", 2))
    fields = await route.logged("route not reloaded, its old file stays")
    assert "hooks.py:4: invalid syntax" in fields["why"]
    assert await route.ask() == (200, {"version": 1}) and await route.pid() == pid
    route.write(VERSIONED.format("", 3))
    await route.logged("route reloaded")
    assert await route.ask() == (200, {"version": 3})


async def test_a_file_that_was_broken_from_the_start_is_taken_once_it_is_whole(route: Route) -> None:
    route.write("1 +\n")
    route.open(reload=True)
    assert (await route.ask())[0] == 503
    route.write(VERSIONED.format("", 1))
    await until(lambda: route.pool.workers)
    assert await route.ask() == (200, {"version": 1})


async def test_what_old_workers_are_at_is_finished_before_they_end(route: Route) -> None:
    route.write(SYNC_BUSY)
    route.open(reload=True)
    pid = await route.pid()
    asked = asyncio.create_task(route.ask(query="sleep=3"))
    await until(lambda: route.pool.workers[0].busy)
    route.write(SYNC_BUSY + "# changed\n")
    await route.logged("route reloaded")
    assert (await route.ask())[1] != {"pid": pid} and not asked.done()
    assert await asked == (200, {"pid": pid})
    await until(lambda: not alive(pid))


async def test_closing_ends_the_workers_and_answers_who_waits(route: Route) -> None:
    route.write(SYNC_BUSY)
    route.open()
    pid = await route.pid()
    busy = asyncio.create_task(route.ask(query="busy=1"))
    waiting = asyncio.create_task(route.ask())
    await until(lambda: route.pool.waiting == 1)
    await route.pool.close(0.2)
    assert (await busy)[0] == 502 and (await waiting)[0] == 503
    await until(lambda: not alive(pid))
