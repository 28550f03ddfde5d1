"""Stores on loopback for tests of remote sources: S3 by moto, a plain web server, and fsspec's memory. What
they serve can be made to fail. And a source that looks when a test says so."""

from __future__ import annotations

import asyncio
import functools
import http.server
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastserve.config import Model, Versions
from fastserve.control.source import Choice
from fastserve.control.source_remote import RemoteSource, Timing
from fastserve.extensions import Aspired, SourceContext
from fastserve.log import Log

LIMIT_S = 30
EVERY_DEFAULT = Versions()


class Faults:
    """What happens to requests whose path has a text in it: a status, or one of the words below."""

    STALL = "stall"  # after half of the body, until `release`
    SILENT = "silent"  # before any answer, until `release`
    CUT = "cut"  # half of the body, then the end of the connection
    FLIP = "flip"  # a byte of the body is another

    def __init__(self) -> None:
        self.by_path: dict[str, str | int] = {}
        self.method = ""  # only for this one, when set
        self.seen: list[str] = []
        self.stalled = threading.Event()
        self._released = threading.Event()

    def of(self, method: str, path: str) -> str | int:
        self.seen.append(f"{method} {path}")
        if self.method not in ("", method):
            return ""
        fault = next((fault for text, fault in self.by_path.items() if text in path), "")
        if fault == self.SILENT:
            self.wait()
        return fault

    def wait(self) -> None:
        self.stalled.set()
        self._released.wait(LIMIT_S)

    def clear(self) -> None:
        self.by_path.clear()
        self.release()

    def release(self) -> None:
        self._released.set()

    def change(self, body: bytes, fault: str | int) -> Iterator[bytes]:
        half = len(body) // 2
        if fault == self.FLIP and body:
            yield body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        elif fault == self.CUT:
            yield body[:half]
        elif fault == self.STALL:
            yield body[:half]
            self.wait()
            yield body[half:]
        else:
            yield body


@dataclass
class RemoteStore:
    """`url` is a model's base path; the rest is what tests do to it."""

    url: str
    options: dict[str, Any]
    put: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    faults: Faults = field(default_factory=Faults)
    client: Any = None

    def upload(self, version: Path, number: int, *, without: Iterable[str] = ()) -> None:
        """All files of a version, but for some."""
        for file in sorted(version.rglob("*")):
            name = str(file.relative_to(version))
            if file.is_file() and name not in without:
                self.put(f"{number}/{name}", file.read_bytes())

    def upload_file(self, version: Path, number: int, name: str) -> None:
        self.put(f"{number}/{name}", (version / name).read_bytes())


def memory_store() -> RemoteStore:
    from fsspec.implementations.memory import MemoryFileSystem

    root = f"/{uuid.uuid4().hex}/m"
    store = MemoryFileSystem(skip_instance_cache=True)
    store.makedirs(root)
    return RemoteStore(
        url=f"memory:/{root}",
        options={},
        put=lambda name, data: store.pipe_file(f"{root}/{name}", data),
        delete=lambda name: store.rm(f"{root}/{name}", recursive=True),
    )


# ---- a web server -----------------------------------------------------------------------------


class _Web(http.server.SimpleHTTPRequestHandler):
    faults: Faults

    def do_GET(self) -> None:
        self._serve(super().do_GET)

    def do_HEAD(self) -> None:
        self._serve(super().do_HEAD)

    def _serve(self, serve: Callable[[], None]) -> None:
        self.fault = self.faults.of(self.command, self.path)
        if isinstance(self.fault, int):
            self.send_error(self.fault)
        else:
            serve()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        for piece in self.faults.change(source.read(), self.fault):
            outputfile.write(piece)
            outputfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a test's output is the test's."""


def web_store(root: Path) -> tuple[RemoteStore, Callable[[], None]]:
    """A web server for `root`/m, and what stops it."""
    faults = Faults()
    (root / "m").mkdir(parents=True)
    handler = type("Web", (_Web,), {"faults": faults})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(root))
    )
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def put(name: str, data: bytes) -> None:
        path = root / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def stop() -> None:
        faults.release()
        server.shutdown()
        server.server_close()
        thread.join(LIMIT_S)

    url = f"http://127.0.0.1:{server.server_address[1]}/m"
    return RemoteStore(url, {}, put, lambda name: shutil.rmtree(root / "m" / name), faults), stop


# ---- S3 -----------------------------------------------------------------------------------------


def _faulty(app: Any, current: Callable[[], Faults]) -> Any:
    """A WSGI application, in front of which there are faults."""

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        faults = current()
        fault = faults.of(
            environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        )
        if isinstance(fault, int):
            start_response(f"{fault} No", [("Content-Length", "0")])
            return [b""]
        body = b"".join(app(environ, start_response))
        return faults.change(body, fault)

    return call


class S3Server:
    """An S3 of moto's on loopback, for many buckets, in front of which there are faults."""

    def __init__(self) -> None:
        import boto3
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                """Nothing: a test's output is the test's."""

        self.faults = Faults()
        moto = DomainDispatcherApplication(create_backend_app)
        app = _faulty(moto, lambda: self.faults)
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self._endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._client = boto3.client(
            "s3",
            endpoint_url=self._endpoint,
            aws_access_key_id="id",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )

    def store(self) -> RemoteStore:
        """A new bucket, and no faults."""
        self.faults.release()
        self.faults = Faults()
        client, bucket = self._client, f"bucket-{uuid.uuid4().hex}"
        client.create_bucket(Bucket=bucket)

        def delete(name: str) -> None:
            listed = client.list_objects_v2(Bucket=bucket, Prefix=f"models/m/{name}/")
            for entry in listed.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=entry["Key"])

        return RemoteStore(
            url=f"s3://{bucket}/models/m",
            options={"key": "id", "secret": "secret", "endpoint_url": self._endpoint},
            put=lambda name, data: client.put_object(Bucket=bucket, Key=f"models/m/{name}", Body=data),
            delete=delete,
            faults=self.faults,
            client=client,
        )

    def stop(self) -> None:
        self.faults.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(LIMIT_S)


# ---- a source that looks when a test says so --------------------------------------------------


class Watch:
    """A remote source, step by step: it looks once at the start, and then at each `look`."""

    def __init__(
        self,
        store: RemoteStore,
        cache: Path,
        *,
        versions: Versions = EVERY_DEFAULT,
        poll_s: float = 10.0,
        answer_s: float = LIMIT_S,
        clock: Callable[[], float] = lambda: 0.0,
        **model: Any,
    ) -> None:
        self.cache = cache / "m"
        self.choice = Choice(versions)
        self.told: list[Aspired] = []
        # What it meant to wait, after each look.
        self.waits: list[float] = []
        self.log_lines: list[str] = []
        context = SourceContext(
            model=Model(
                name="m", base_path=store.url, versions=versions, options=dict(store.options), **model
            ),
            choose=self.choice,
            poll_s=poll_s,
            cache_dir=str(cache),
            log=_MemoryLog(self.log_lines),
        )
        timing = Timing(answer_s=answer_s, stall_s=LIMIT_S, retry_s=0.001, attempts=2)
        self.source = RemoteSource(context, timing, sleep=self._sleep, clock=clock)
        self._waiting = asyncio.Event()
        self._go = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watch:
        await self.look()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> asyncio.Task[None]:
        self.task = asyncio.create_task(self.source.run(self.told.append), name="source")
        return self.task

    async def look(self, times: int = 1) -> Aspired | None:
        """Lets it look; what is aspired after that."""
        for _ in range(times):
            task = self.task or self.start()
            self._waiting.clear()
            self._go.set()
            waiting = asyncio.create_task(self._waiting.wait())
            done, _ = await asyncio.wait({task, waiting}, timeout=LIMIT_S, return_when="FIRST_COMPLETED")
            waiting.cancel()
            if task in done:
                task.result()
            assert done, "the source does not come to an end with its look"
        return self.aspired

    def limit(self, *, answer_s: float = LIMIT_S, stall_s: float = LIMIT_S) -> None:
        """From now on the store gets so long: long where it is to answer, however busy the machine is."""
        self.source._store._answer_s = answer_s
        self.source._store._stall_s = stall_s

    async def turn(self) -> None:
        """Lets other tasks and threads do something."""
        await asyncio.to_thread(lambda: None)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=LIMIT_S)
            assert self.task.done()

    @property
    def aspired(self) -> Aspired | None:
        return self.told[-1] if self.told else None

    @property
    def served(self) -> list[int]:
        return [path.version for path in self.aspired.versions] if self.aspired else []

    @property
    def problem(self) -> str:
        return self.aspired.problem if self.aspired else ""

    def cached(self) -> list[str]:
        """Names in the model's cache directory."""
        return sorted(path.name for path in self.cache.iterdir() if path.name != ".lock")

    async def _sleep(self, seconds: float) -> None:
        if seconds < 0.1:  # between attempts
            await asyncio.sleep(0)
            return
        self.waits.append(seconds)
        self._go.clear()
        self._waiting.set()
        await self._go.wait()


class _MemoryLog(Log):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(fd=2)
        self._lines = lines

    def event(self, level: Any, event: str, **fields: object) -> None:
        self._lines.append(" ".join([event, *(f"{key}={value}" for key, value in fields.items())]))
