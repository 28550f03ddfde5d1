"""The native load generator of csrc/load.h: requests to one server, and how long its answers took.

`run` sends recorded bodies from one native thread and returns what came of them. Times are nanoseconds on
CLOCK_MONOTONIC unless a name says otherwise. Knows gRPC and HTTP/1.1; knows no message's meaning.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from typing_extensions import Buffer

from fastserve.errors import FastServeError

class LoadError(FastServeError):
    """The run could not be made: no connection came about, or there is no memory for it."""

class Histogram:
    """Counts of values from 0 to 2^42 (73 minutes in ns), each known to one part in a thousand.

    min, max, mean and total are exact. Values above the range count as its largest, save in max and mean.
    """

    def __init__(self) -> None: ...
    @property
    def total(self) -> int:
        """How many values were recorded."""
    @property
    def min(self) -> int:
        """The least value; 0 when empty."""
    @property
    def max(self) -> int:
        """The greatest value; 0 when empty."""
    @property
    def mean(self) -> float:
        """0.0 when empty."""
    @property
    def sum(self) -> float:
        """Of all values."""
    def value_at(self, quantile: float) -> int:
        """The value that the share `quantile` (0 to 1) of all is not above; 0 when empty."""
    def values_at(self, quantiles: Sequence[float]) -> list[int]:
        """`value_at` for each, in any order, in one pass."""
    def record(self, value: int) -> None:
        """Raises ValueError when it is negative or 2^64 and more."""
    def merge(self, other: Histogram) -> None:
        """Adds the counts of `other`."""
    def copy(self) -> Histogram: ...
    def pairs(self) -> list[tuple[int, int]]:
        """(slot, count) of each slot that is not empty, in rising order."""
    @classmethod
    def from_pairs(
        cls, pairs: Iterable[tuple[int, int]], minimum: int, maximum: int, total_sum: float
    ) -> Histogram:
        """The histogram whose `pairs`, `min`, `max` and `sum` these are. Raises ValueError when they cannot
        be of one: a slot out of range, a count that is not positive, min and max outside the slots."""
    def cdf(self) -> list[tuple[int, float]]:
        """(value, share of all that is at or below it) of each slot that is not empty."""
    def __eq__(self, other: object) -> bool: ...

class Interval(NamedTuple):
    """What happened in one interval of the window, counted where it happened: `sent` when it was due, `done`
    and `failed` when the outcome came, latencies of those that were done in it (0 when none was)."""

    start_s: float
    """From the window's begin."""
    sent: int
    done: int
    failed: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int

class LoadResult(NamedTuple):
    """What came of the requests that were due inside the window: sent = done + failed + unanswered."""

    sent: int
    done: int
    """Answered well: gRPC status OK or HTTP 200 to 299, and of the expected size where one was given."""
    failed: dict[str, int]
    """By kind: a gRPC status name ("RESOURCE_EXHAUSTED"), "HTTP 500", "connection" (lost, refused, or the
    server was leaving), "timeout", "reply size", "generator full" (too many outstanding), and with `check`
    "bad reply" (not what was asked for) and "misversioned" (not what the version that it names answers)."""
    unanswered: int
    """Outstanding when the run ended; all have failed with "timeout" before, unless it was cut short."""
    per_body_done: list[int]
    """`done` by the body that was sent."""
    seconds: float
    """Length of the measured window. With `requests` or `times_us` it ends with the last answer."""
    rate: float
    """Good answers that arrived inside the window, per second: where the server falls behind, fewer than
    done / seconds, for the rest came afterwards."""
    latency: Histogram
    """Of `done`: closed loop from when the request was handed to its connection, open loop from when it was
    due, to when its last bytes were read."""
    intervals: list[Interval]
    cpu_s: float
    """CPU time of the generator's thread inside the window."""
    bytes_in: int
    """Read inside the window."""
    bytes_out: int
    """Written inside the window."""
    behind_ns: Histogram
    """Open loop: how late the generator itself got to each request that was due, whether or not a connection
    then had room for it. What is here is its own fault and part of `latency`."""
    reconnects: int
    """Connections that were dialled again, over the whole run."""
    first_error: str
    """The first failure in words, warm-up included; "" when there was none."""
    records: bytes = b""
    """With max_records: of each request that ended, in that order, 24 bytes: int64 when it was due, on
    CLOCK_MONOTONIC, int64 how long it took, int32 the version that answered (-1: none is known), int32 0 or
    why it failed."""
    unrecorded: int = 0
    """Requests for which there was no room in `records`."""

class Progress(TypedDict):
    """Given to on_progress. Counts are of all requests so far, warm-up included."""

    elapsed_s: float
    """Since the connections were there; 0.0 before."""
    measuring: bool
    """Inside the window."""
    sent: int
    done: int
    failed: int
    outstanding: int

class Check(NamedTuple):
    """What replies of Predict must hold: version v has content v modulo the number of contents."""

    output: str
    """Whose values are compared, all of them: a float tensor."""
    expected: Sequence[Sequence[Sequence[float]]]
    """By content and body."""
    atol: float
    rtol: float
    """A value may be off by atol + rtol * |expected|."""

class Tls(NamedTuple):
    """TLS towards the server, for protocol "grpc". PEM bytes; empty ones are not there."""

    server_name: str
    """What the certificate must be for."""
    ca: bytes = b""
    """Whom to trust; default the system's list."""
    certificate: bytes = b""
    key: bytes = b""

def run(
    address: tuple[Any, ...],
    bodies: Sequence[bytes],
    *,
    protocol: Literal["grpc", "http"] = "grpc",
    path: str,
    authority: str,
    connections: int = 1,
    in_flight: int = 0,
    rate: float = 0.0,
    arrivals: Literal["poisson", "constant"] = "poisson",
    times_us: Buffer | None = None,
    order: Buffer | None = None,
    seed: int = 1,
    warmup_s: float = 0.0,
    duration_s: float = 0.0,
    requests: int = 0,
    interval_s: float = 0.1,
    timeout_s: float = 10.0,
    send_deadline: bool = False,
    reply_bytes: Sequence[int] | None = None,
    http_headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    processor: int | None = None,
    tls: Tls | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    max_outstanding: int = 1_000_000,
    spin_us: float = 0.0,
    check: Check | None = None,
    max_records: int = 0,
) -> LoadResult:
    """Sends `bodies` to `address` until the time or the number is up, and waits for the answers.

    address: as the socket module gives it, resolved: ("127.0.0.1", 8500), ("::1", 8500, 0, 0), or
        ("unix", path).
    bodies: messages, without gRPC's prefix; sent in turn, or as `order` says.
    protocol: "grpc" over HTTP/2, or "http": POST over HTTP/1.1, one request in flight on each connection.
    path: "/package.Service/Method", or an HTTP path. authority: the Host, "127.0.0.1:8500".
    Exactly one of these says when requests are due:
        in_flight: closed loop; so many on each connection, each followed by the next (1 with "http").
        rate: open loop; so many each second over all connections, with independent gaps (`arrivals`
            "poisson", drawn from `seed`) or equal ones ("constant").
        times_us: replay; int64 microseconds from the begin, in rising order.
    order: uint32, which body each request takes, warm-up included, and from its begin again at its end.
    warmup_s: sent, not measured. Then either duration_s (the window's length) or `requests` (how many are
        measured) must be given; a replay may have neither, and ends with its last time.
    interval_s: length of the intervals; 0.0: none.
    timeout_s: a request fails when it is not answered so long after it was due; with send_deadline the
        server is told (grpc-timeout). Connecting may take as long, but no longer than 5 s.
    reply_bytes: how long a good reply is, for each body; -1: any length.
    http_headers: further headers; with "grpc" they are metadata.
    processor: the processor that the generator's thread stays on.
    on_progress: called a few times a second on this thread; what it raises ends the run, as Ctrl-C does.
    max_outstanding: open loop: requests beyond so many fail with "generator full".
    check: what replies must hold; with "grpc".
    max_records: how many requests of the window are recorded one by one; memory for all is taken first.
    spin_us: open loop: so long before a request is due, sleep no more but look. Needs a processor to itself.

    A connection that is lost is dialled again, with growing delays; its requests failed, and in an open loop
    those fail that are due while no connection is up or coming up.

    Raises LoadError when no connection comes about, ValueError for arguments that make no sense.
    """

class Running:
    """A run on its way. Its thread ends with the object at the latest. One thread at a time."""

    def read(self) -> Progress: ...
    def over(self) -> bool: ...
    def stop(self) -> None:
        """Ends the run soon, without waiting for answers."""
    def finish(self) -> None:
        """Sends nothing more; the run is over when all is answered, or late."""
    def wait(self, on_progress: Callable[[Progress], object] | None = None) -> LoadResult:
        """Sleeps until the run is over. As `run`; call it once."""

def start(
    address: tuple[Any, ...],
    bodies: Sequence[bytes],
    *,
    protocol: Literal["grpc", "http"] = "grpc",
    path: str,
    authority: str,
    connections: int = 1,
    in_flight: int = 0,
    rate: float = 0.0,
    arrivals: Literal["poisson", "constant"] = "poisson",
    times_us: Buffer | None = None,
    order: Buffer | None = None,
    seed: int = 1,
    warmup_s: float = 0.0,
    duration_s: float = 0.0,
    requests: int = 0,
    interval_s: float = 0.1,
    timeout_s: float = 10.0,
    send_deadline: bool = False,
    reply_bytes: Sequence[int] | None = None,
    http_headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    processor: int | None = None,
    tls: Tls | None = None,
    max_outstanding: int = 1_000_000,
    spin_us: float = 0.0,
    check: Check | None = None,
    max_records: int = 0,
) -> Running:
    """As `run`, but does not wait: several generators may be at work at once, each on a thread of its own."""
