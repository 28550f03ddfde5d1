"""The load generator of csrc/load.h for Python: what it is to send goes in, what came of it comes out.

The generator runs on a native thread that never takes the GIL; the calling thread sleeps meanwhile, shows
progress and notices signals. load.pyi has the contracts.
"""

import array
from typing import NamedTuple, TypedDict

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, UINT32_MAX, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from fastserve._native.c_hist cimport (
    FS_HIST_SLOTS,
    fs_hist,
    fs_hist_clear,
    fs_hist_high,
    fs_hist_low,
    fs_hist_merge,
    fs_hist_record,
    fs_hist_slot,
    fs_hist_values_at,
)
from fastserve._native.c_load cimport (
    AF_INET,
    AF_INET6,
    AF_UNIX,
    FS_LOAD_BAD_HTTP,
    FS_LOAD_BAD_REPLY,
    FS_LOAD_CLOSED,
    FS_LOAD_CONSTANT,
    FS_LOAD_FAILURES,
    FS_LOAD_FULL,
    FS_LOAD_HTTP,
    FS_LOAD_LOST,
    FS_LOAD_MISVERSIONED,
    FS_LOAD_POISSON,
    FS_LOAD_REPLAY,
    FS_LOAD_REPLY_SIZE,
    FS_LOAD_TIMEOUT,
    fs_header,
    fs_load,
    fs_load_check,
    fs_load_config,
    fs_load_finish,
    fs_load_free,
    fs_load_interval,
    fs_load_join,
    fs_load_new,
    fs_load_progress,
    fs_load_read,
    fs_load_record,
    fs_load_result,
    fs_load_start,
    fs_load_stop,
    fs_load_wait,
    fs_tls_config,
    fs_tls_context_new,
    fs_tls_context_unref,
    htonl,
    htons,
    inet_pton,
    sockaddr_in,
    sockaddr_in6,
    sockaddr_un,
)
from fastserve._native.c_status cimport fs_error, fs_slice

from fastserve.call_names import CODES
from fastserve.errors import FastServeError

cdef enum:
    LOOK_MS = 50                # how late a signal may be noticed
    LOOKS_PER_PROGRESS = 5
    CONNECT_TIMEOUT_US = 5000000

cdef double LONGEST_S = 1e8     # three years; keeps sums of times within 64 bits

_FAILURES = {
    FS_LOAD_LOST: "connection",
    FS_LOAD_TIMEOUT: "timeout",
    FS_LOAD_REPLY_SIZE: "reply size",
    FS_LOAD_FULL: "generator full",
    FS_LOAD_BAD_HTTP: "not HTTP",
    FS_LOAD_BAD_REPLY: "bad reply",
    FS_LOAD_MISVERSIONED: "misversioned",
}


class LoadError(FastServeError):
    """The run could not be made: no connection came about, or there is no memory for it."""


class Interval(NamedTuple):
    """What happened in one interval of the window."""

    start_s: float
    sent: int
    done: int
    failed: int
    p50_ns: int
    p90_ns: int
    p99_ns: int
    max_ns: int


class LoadResult(NamedTuple):
    """What came of the requests that were due inside the window."""

    sent: int
    done: int
    failed: dict[str, int]
    unanswered: int
    per_body_done: list[int]
    seconds: float
    rate: float
    latency: Histogram
    intervals: list[Interval]
    cpu_s: float
    bytes_in: int
    bytes_out: int
    behind_ns: Histogram
    reconnects: int
    first_error: str
    records: bytes = b""
    unrecorded: int = 0


class Progress(TypedDict):
    """How far a run is."""

    elapsed_s: float
    measuring: bool
    sent: int
    done: int
    failed: int
    outstanding: int


class Check(NamedTuple):
    """What replies must hold, by version and body."""

    output: str
    expected: list
    atol: float
    rtol: float


class Tls(NamedTuple):
    """TLS towards the server. PEM bytes; empty ones are not there."""

    server_name: str
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""


# ---- histogram ----------------------------------------------------------------------------------


@cython.final
cdef class Histogram:
    """Counts of values from 0 to 2^42, each known to one part in a thousand. Owns an fs_hist."""

    cdef fs_hist *c

    def __cinit__(self):
        self.c = <fs_hist *>calloc(1, sizeof(fs_hist))
        if self.c is NULL:
            raise MemoryError
        fs_hist_clear(self.c)

    def __dealloc__(self):
        free(self.c)

    @property
    def total(self):
        return self.c.total

    @property
    def min(self):
        return self.c.min if self.c.total > 0 else 0

    @property
    def max(self):
        return self.c.max

    @property
    def sum(self):
        return self.c.sum

    @property
    def mean(self):
        return self.c.sum / <double>self.c.total if self.c.total > 0 else 0.0

    def value_at(self, double quantile):
        return self.values_at((quantile,))[0]

    def values_at(self, quantiles):
        asked = [float(quantile) for quantile in quantiles]
        for quantile in asked:
            if not 0.0 <= quantile <= 1.0:
                raise ValueError(f"{quantile} is not a share: 0 to 1")
        rising = array.array("d", sorted(asked))
        found = array.array("Q", bytes(8 * len(asked)))
        cdef double[::1] shares = rising
        cdef uint64_t[::1] values = found
        if len(asked) > 0:
            fs_hist_values_at(self.c, &shares[0], &values[0], <uint32_t>len(asked))
        by_share = dict(zip(rising, found, strict=True))
        return [by_share[quantile] for quantile in asked]

    def record(self, value):
        if not 0 <= value <= UINT64_MAX:
            raise ValueError(f"{value} is not a value from 0 to 2^64 - 1")
        fs_hist_record(self.c, value)

    def merge(self, Histogram other not None):
        if other is self:
            other = self.copy()
        fs_hist_merge(self.c, other.c)

    def copy(self):
        return histogram_of(self.c)

    def pairs(self):
        cdef uint32_t slot
        found = []
        if self.c.total > 0:
            for slot in range(fs_hist_slot(self.c.min), fs_hist_slot(self.c.max) + 1):
                if self.c.counts[slot] > 0:
                    found.append((slot, self.c.counts[slot]))
        return found

    @classmethod
    def from_pairs(cls, pairs, minimum, maximum, double total_sum):
        cdef Histogram made = Histogram()
        cdef uint64_t n
        first = last = None
        for slot, count in pairs:
            if not 0 <= slot < FS_HIST_SLOTS or not 0 < count <= INT64_MAX:
                raise ValueError(f"({slot}, {count}) is no slot of a histogram with its count")
            if last is not None and slot <= last:
                raise ValueError(f"slot {slot} comes after slot {last}")
            n = count
            made.c.counts[slot] = n
            made.c.total += n
            first = slot if first is None else first
            last = slot
        if first is None:
            return made
        if not (0 <= minimum <= maximum <= UINT64_MAX):
            raise ValueError(f"a minimum of {minimum} and a maximum of {maximum}")
        made.c.min, made.c.max, made.c.sum = minimum, maximum, total_sum
        if fs_hist_slot(made.c.min) != first or fs_hist_slot(made.c.max) != last:
            raise ValueError(f"{minimum} and {maximum} are not in the slots {first} and {last}")
        return made

    def cdf(self):
        cdef uint64_t seen = 0
        points = []
        for slot, count in self.pairs():
            seen += count
            value = min(fs_hist_high(slot), self.c.max) if seen < self.c.total else self.c.max
            points.append((value, <double>seen / <double>self.c.total))
        return points

    def __eq__(self, other):
        if not isinstance(other, Histogram):
            return NotImplemented
        return memcmp(self.c, (<Histogram>other).c, sizeof(fs_hist)) == 0

    __hash__ = None

    def __repr__(self):
        return f"<Histogram of {self.total} values, {self.min} to {self.max}>"


cdef Histogram histogram_of(const fs_hist *hist):
    cdef Histogram made = Histogram()
    memcpy(made.c, hist, sizeof(fs_hist))
    return made


# ---- what is to be sent ---------------------------------------------------------------------------


cdef fs_slice slice_of(bytes data):
    """Points into `data`, which the caller keeps."""
    cdef fs_slice s
    s.data = <const uint8_t *>PyBytes_AS_STRING(data)
    s.len = len(data)
    return s


cdef bytes header_text(str what, str text):
    """As it goes over the wire. Raises ValueError for what would end a header, or is no ASCII."""
    if not text.isascii() or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError(f"{what} {text!r} has characters that no header may have")
    return text.encode()


cdef str error_text(const fs_error *err):
    return bytes((<const char *>err.msg)[:err.len]).decode(errors="replace")


cdef str failure_name(int failure):
    if failure < len(CODES):
        return CODES[failure]
    return _FAILURES[failure] if failure in _FAILURES else f"HTTP {failure - <int>FS_LOAD_HTTP}"


cdef uint64_t nanoseconds(str what, double seconds) except? 0:
    if not 0.0 <= seconds <= LONGEST_S:
        raise ValueError(f"{what} is {seconds}, and must be from 0 to {LONGEST_S:g}")
    return <uint64_t>(seconds * 1e9 + 0.5)


@cython.final
cdef class Generator:
    """Owns an fs_load and what its configuration points to; that is given up when the thread has ended."""

    cdef fs_load *load
    cdef fs_load_config config
    cdef fs_slice *bodies
    cdef fs_header *headers
    cdef list kept               # what the slices point into
    cdef const int64_t[::1] sizes, times
    cdef const uint32_t[::1] order
    cdef fs_load_check check
    cdef const uint64_t[::1] first
    cdef const float[::1] expected

    def __cinit__(self):
        self.config.processor = -1

    def __dealloc__(self):
        fs_load_free(self.load)  # which ends the thread, if it runs
        if self.config.tls is not NULL:
            fs_tls_context_unref(self.config.tls)
        free(self.bodies)
        free(self.headers)

    cdef int fill_address(self, address) except -1:
        cdef sockaddr_in *in4 = <sockaddr_in *>&self.config.address
        cdef sockaddr_in6 *in6 = <sockaddr_in6 *>&self.config.address
        cdef sockaddr_un *unix = <sockaddr_un *>&self.config.address
        cdef bytes host
        memset(&self.config.address, 0, sizeof(self.config.address))
        if len(address) == 2 and address[0] == "unix":
            host = address[1].encode() if isinstance(address[1], str) else bytes(address[1])
            if not 0 < len(host) < sizeof(unix.sun_path):
                raise ValueError(f"{address[1]!r} is no path of a socket: too long, or empty")
            unix.sun_family = AF_UNIX
            memcpy(unix.sun_path, PyBytes_AS_STRING(host), len(host))
            self.config.address_len = sizeof(sockaddr_un)
            return 0
        if len(address) not in (2, 4) or not 0 < address[1] < 65536:
            raise ValueError(f"{address!r} is not (host, port), (host, port, flow, scope) or ('unix', path)")
        host = address[0].encode()
        if inet_pton(AF_INET, PyBytes_AS_STRING(host), &in4.sin_addr) == 1:
            in4.sin_family = AF_INET
            in4.sin_port = htons(address[1])
            self.config.address_len = sizeof(sockaddr_in)
        elif inet_pton(AF_INET6, PyBytes_AS_STRING(host), &in6.sin6_addr) == 1:
            in6.sin6_family = AF_INET6
            in6.sin6_port = htons(address[1])
            if len(address) == 4:
                in6.sin6_flowinfo = htonl(address[2])
                in6.sin6_scope_id = address[3]
            self.config.address_len = sizeof(sockaddr_in6)
        else:
            raise ValueError(f"{address[0]!r} is no IP address: resolve names first (socket.getaddrinfo)")
        return 0

    cdef int fill_message(self, bodies, str path, str authority, headers, reply_bytes) except -1:
        cdef Py_ssize_t i
        self.kept = [bytes(body) for body in bodies]
        if not 0 < len(self.kept) < 1 << 24:
            raise ValueError("there must be at least one body")
        self.bodies = <fs_slice *>calloc(len(self.kept), sizeof(fs_slice))
        if self.bodies is NULL:
            raise MemoryError
        for i, body in enumerate(self.kept):
            self.bodies[i] = slice_of(body)
            if len(body) >= UINT32_MAX:
                raise ValueError(f"body {i} has {len(body)} bytes: gRPC carries less than 4 GiB")
        self.config.bodies = self.bodies
        self.config.n_bodies = len(self.kept)
        if not path.startswith("/") or " " in path:
            raise ValueError(f"path {path!r} is not '/' and a path without spaces")
        self.kept += [header_text("path", path), header_text("authority", authority)]
        self.config.path = slice_of(self.kept[-2])
        self.config.authority = slice_of(self.kept[-1])
        pairs = list(headers.items() if hasattr(headers, "items") else headers)
        self.headers = <fs_header *>calloc(len(pairs) + 1, sizeof(fs_header))
        if self.headers is NULL:
            raise MemoryError
        for i, (name, value) in enumerate(pairs):
            name = name.lower()
            if not name or not all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name):
                raise ValueError(f"{name!r} is no name of a header")
            self.kept += [header_text("header", name), header_text(f"header {name}:", value)]
            self.headers[i].name = slice_of(self.kept[-2])
            self.headers[i].value = slice_of(self.kept[-1])
        self.config.headers = self.headers
        self.config.n_headers = len(pairs)
        if reply_bytes is not None:
            sizes = array.array("q", reply_bytes)
            if len(sizes) != <Py_ssize_t>self.config.n_bodies:
                raise ValueError(f"{len(sizes)} reply_bytes for {self.config.n_bodies} bodies")
            self.sizes = sizes
            self.config.reply_bytes = &self.sizes[0]
        return 0

    cdef int fill_order(self, order) except -1:
        cdef Py_ssize_t i
        if order is None:
            return 0
        self.order = order
        if self.order.shape[0] == 0:
            raise ValueError("the order is empty")
        for i in range(self.order.shape[0]):
            if self.order[i] >= self.config.n_bodies:
                raise ValueError(f"order[{i}] is {self.order[i]}, of {self.config.n_bodies} bodies")
        self.config.order = &self.order[0]
        self.config.n_order = self.order.shape[0]
        return 0

    cdef int fill_times(self, times_us) except -1:
        cdef Py_ssize_t i
        cdef int64_t before = 0
        self.times = times_us
        if self.times.shape[0] == 0:
            raise ValueError("times_us is empty")
        for i in range(self.times.shape[0]):
            if self.times[i] < before or self.times[i] > <int64_t>(LONGEST_S * 1e6):
                raise ValueError(f"times_us[{i}] is {self.times[i]} after {before}: they must rise from 0 on")
            before = self.times[i]
        self.config.kind = FS_LOAD_REPLAY
        self.config.times_us = &self.times[0]
        self.config.n_times = self.times.shape[0]
        return 0

    cdef int fill_schedule(self, int64_t in_flight, double rate, str arrivals, times_us, seed) except -1:
        if (in_flight != 0) + (rate != 0.0) + (times_us is not None) != 1:
            raise ValueError("give one of in_flight (closed loop), rate (open loop) and times_us (replay)")
        if in_flight != 0:
            most = 1 if self.config.http else (1 << 20) // self.config.connections
            if not 0 < in_flight <= most:
                raise ValueError(f"in_flight is {in_flight}, and must be from 1 to {most}")
            self.config.kind = FS_LOAD_CLOSED
            self.config.in_flight = <uint32_t>in_flight
        elif rate != 0.0:
            if not 1e-6 <= rate <= 1e8:
                raise ValueError(f"rate is {rate}, and must be from 1e-6 to 1e8 a second")
            if arrivals not in ("poisson", "constant"):
                raise ValueError(f"arrivals is {arrivals!r}, and must be 'poisson' or 'constant'")
            self.config.kind = FS_LOAD_POISSON if arrivals == "poisson" else FS_LOAD_CONSTANT
            self.config.rate = rate
            self.config.seed = seed & UINT64_MAX
        else:
            self.fill_times(times_us)
        return 0

    cdef int fill_check(self, check) except -1:
        cdef Py_ssize_t n_bodies = self.config.n_bodies
        if check is None:
            return 0
        if self.config.http:
            raise ValueError("check is for protocol 'grpc'")
        if not check.expected or any(len(content) != n_bodies for content in check.expected):
            raise ValueError(f"check.expected has no content, or one without values for all {n_bodies} bodies")
        lengths = [len(values) for values in check.expected[0]]
        if any([len(values) for values in content] != lengths for content in check.expected):
            raise ValueError("check.expected has contents with different numbers of values for one body")
        if not (check.atol >= 0.0 and check.rtol >= 0.0):
            raise ValueError(f"check.atol is {check.atol} and check.rtol {check.rtol}: 0 or more")
        first, expected = array.array("Q", [0]), array.array("f")
        for length in lengths:
            first.append(first[-1] + length)
        for content in check.expected:
            for values in content:
                expected.extend(array.array("f", values))
        expected.append(0.0)  # so that there is something to point at
        self.first, self.expected = first, expected
        self.kept.append(check.output.encode())
        self.check.output = slice_of(self.kept[-1])
        self.check.n_contents = <uint32_t>len(check.expected)
        self.check.n_bodies = <uint32_t>n_bodies
        self.check.first = &self.first[0]
        self.check.expected = &self.expected[0]
        self.check.atol = check.atol
        self.check.rtol = check.rtol
        self.config.check = &self.check
        return 0

    cdef int fill_tls(self, tls) except -1:
        cdef fs_tls_config config
        cdef fs_error err
        if tls is None:
            return 0
        if self.config.http:
            raise ValueError("TLS is for protocol 'grpc'")
        memset(&config, 0, sizeof(config))
        config.verify_peer = True
        pem = [bytes(part) for part in (tls.ca, tls.certificate, tls.key)]
        if pem[0]:
            config.ca = PyBytes_AS_STRING(pem[0])
        if pem[1]:
            config.certificate = PyBytes_AS_STRING(pem[1])
        if pem[2]:
            config.key = PyBytes_AS_STRING(pem[2])
        self.config.tls = fs_tls_context_new(&config, &err)
        if self.config.tls is NULL:
            raise LoadError(error_text(&err))
        self.kept.append(tls.server_name.encode())
        self.config.server_name = PyBytes_AS_STRING(self.kept[-1])
        return 0

    cdef int start(self) except -1:
        cdef fs_error err
        self.load = fs_load_new(&self.config, &err)
        if self.load is NULL or fs_load_start(self.load, &err) != 0:
            raise LoadError(error_text(&err))
        return 0

    cdef int wait(self, on_progress) except -1:
        """Until the run is over; what a signal or on_progress raises ends it."""
        cdef fs_load *load = self.load
        cdef bint over = False
        cdef int looks = 0
        try:
            while not over:
                with nogil:
                    over = fs_load_wait(load, LOOK_MS)
                PyErr_CheckSignals()
                looks += 1
                if on_progress is not None and (over or looks % LOOKS_PER_PROGRESS == 0):
                    on_progress(progress_of(fs_load_read(load)))
        except BaseException:
            fs_load_stop(load)
            raise
        finally:
            with nogil:
                fs_load_join(load)
        return 0


cdef dict progress_of(fs_load_progress progress):
    return {
        "elapsed_s": progress.elapsed_ns * 1e-9,
        "measuring": bool(progress.measuring),
        "sent": progress.sent,
        "done": progress.done,
        "failed": progress.failed,
        "outstanding": progress.outstanding,
    }


cdef object interval_of(const fs_load_interval *interval):
    return Interval(
        interval.start_ns * 1e-9,
        interval.sent,
        interval.done,
        interval.failed,
        interval.p50_ns,
        interval.p90_ns,
        interval.p99_ns,
        interval.max_ns,
    )


cdef str first_error_of(const fs_load_result *result):
    if result.first_error.code == 0:
        return ""
    name, text = failure_name(result.first_error.code), error_text(&result.first_error)
    return name if not text or text == name else f"{name}: {text}"


cdef object result_of(const fs_load_result *result, uint32_t n_bodies):
    cdef int i
    seconds = result.window_ns * 1e-9
    return LoadResult(
        sent=result.sent,
        done=result.done,
        failed={failure_name(i): result.failed[i] for i in range(FS_LOAD_FAILURES) if result.failed[i] > 0},
        unanswered=result.unanswered,
        per_body_done=[result.done_by_body[i] for i in range(<int>n_bodies)],
        seconds=seconds,
        rate=result.arrived / seconds if seconds > 0 else 0.0,
        latency=histogram_of(&result.latency),
        intervals=[interval_of(&result.intervals[i]) for i in range(<int>result.n_intervals)],
        cpu_s=result.cpu_ns * 1e-9,
        bytes_in=result.bytes_in,
        bytes_out=result.bytes_out,
        behind_ns=histogram_of(&result.behind),
        reconnects=result.reconnects,
        first_error=first_error_of(result),
        records=PyBytes_FromStringAndSize(
            <const char *>result.records, <Py_ssize_t>(result.n_records * sizeof(fs_load_record))
        ),
        unrecorded=result.unrecorded,
    )


@cython.final
cdef class Running:
    """A run that `start` has begun. The thread ends with the object at the latest."""

    cdef Generator generator
    cdef tuple address

    def read(self):
        return progress_of(fs_load_read(self.generator.load))

    def over(self):
        return fs_load_wait(self.generator.load, 0)

    def stop(self):
        fs_load_stop(self.generator.load)

    def finish(self):
        fs_load_finish(self.generator.load)

    def wait(self, on_progress=None):
        cdef const fs_load_result *result
        self.generator.wait(on_progress)
        result = fs_load_join(self.generator.load)
        if result.no_connection:
            where = self.address[1] if self.address[0] == "unix" else f"{self.address[0]}:{self.address[1]}"
            why = error_text(&result.first_error)
            raise LoadError(f"no connection to {where}: {why}; is the server there?")
        return result_of(result, self.generator.config.n_bodies)


def run(address, bodies, *, on_progress=None, **options):
    return start(address, bodies, **options).wait(on_progress)


def start(
    address,
    bodies,
    *,
    str protocol="grpc",
    str path,
    str authority,
    connections=1,
    in_flight=0,
    double rate=0.0,
    str arrivals="poisson",
    times_us=None,
    order=None,
    seed=1,
    double warmup_s=0.0,
    double duration_s=0.0,
    requests=0,
    double interval_s=0.1,
    double timeout_s=10.0,
    bint send_deadline=False,
    reply_bytes=None,
    http_headers=(),
    processor=None,
    tls=None,
    max_outstanding=1_000_000,
    double spin_us=0.0,
    check=None,
    max_records=0,
):
    cdef Generator generator = Generator()
    cdef fs_load_config *config = &generator.config
    cdef Running running = Running.__new__(Running)
    if protocol not in ("grpc", "http"):
        raise ValueError(f"protocol is {protocol!r}, and must be 'grpc' or 'http'")
    if not 0 < connections <= 65536:
        raise ValueError(f"connections is {connections}, and must be from 1 to 65536")
    if not 0 < max_outstanding <= 1 << 26:
        raise ValueError(f"max_outstanding is {max_outstanding}, and must be from 1 to {1 << 26}")
    if duration_s != 0.0 and requests != 0:
        raise ValueError("give duration_s or requests, not both")
    if duration_s == 0.0 and requests == 0 and times_us is None:
        raise ValueError("give duration_s or requests: when is it to end?")
    if not 0 <= requests <= INT64_MAX:
        raise ValueError(f"requests is {requests}")
    if processor is not None and not 0 <= processor < 1 << 16:
        raise ValueError(f"processor is {processor}")
    if not 0 <= max_records <= 1 << 32:
        raise ValueError(f"max_records is {max_records}, and must be from 0 to {1 << 32}")
    if timeout_s < 1e-3:
        raise ValueError(f"timeout_s is {timeout_s}, and must be at least a millisecond")
    if 0.0 < interval_s < 1e-3:
        raise ValueError(f"interval_s is {interval_s}, and must be 0 or at least a millisecond")
    config.http = protocol == "http"
    config.connections = connections
    config.max_outstanding = max_outstanding
    config.warmup_ns = nanoseconds("warmup_s", warmup_s)
    config.duration_ns = nanoseconds("duration_s", duration_s)
    config.interval_ns = nanoseconds("interval_s", interval_s)
    config.timeout_us = nanoseconds("timeout_s", timeout_s) // 1000
    config.spin_ns = nanoseconds("spin_us", spin_us * 1e-6)
    config.connect_timeout_us = min(config.timeout_us, <int64_t>CONNECT_TIMEOUT_US)
    config.requests = requests
    config.max_records = max_records
    config.send_deadline = send_deadline
    if processor is not None:
        config.processor = processor
    generator.fill_address(address)
    generator.fill_message(bodies, path, authority, http_headers, reply_bytes)
    generator.fill_order(order)
    generator.fill_schedule(in_flight, rate, arrivals, times_us, seed)
    generator.fill_check(check)
    generator.fill_tls(tls)
    generator.start()
    running.generator = generator
    running.address = tuple(address)
    return running
