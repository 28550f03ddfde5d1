"""Reading what a core counts (csrc/metrics.h), in the control process and in tools. metrics.pyi has the contracts.

Reading touches the memory and nothing else: the core does not notice. Whatever stands there, reading ends and gives
numbers.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport ceil
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastserve._native.c_metrics cimport (
    FS_METRICS_CODES,
    FS_METRICS_DOUBLINGS,
    FS_METRICS_METHODS,
    FS_METRICS_SIZES,
    FS_METRICS_TRANSPORTS,
    FS_TALLY_SLOTS,
    fs_endings,
    fs_meter,
    fs_meter_name,
    fs_metrics_head,
    fs_metrics_view,
    fs_metrics_view_begin,
    fs_metrics_view_close,
    fs_metrics_view_head,
    fs_metrics_view_next,
    fs_metrics_view_open,
    fs_metrics_view_padding,
    fs_metrics_view_same,
    fs_metrics_view_tally,
    fs_padding,
    fs_tally,
    fs_tally_high,
    fs_tally_low,
    fs_tally_pair,
    fs_tally_slot,
    fs_tick,
    fs_tick_read,
)

from fastserve.call_names import CODES, METHODS, TRANSPORTS

cdef double TIME = 1e-3  # a nanosecond in microseconds
cdef double ROWS = 1.0

cdef enum:
    TRIES = 3  # of a block that is given to another series while it is read


@cython.final
@cython.no_gc
cdef class Histogram:
    cdef fs_tally_pair *pairs  # of the slots that are not empty, in rising order
    cdef uint32_t n
    cdef double unit           # what a slot's 1 is
    cdef readonly object count
    cdef readonly double sum

    def __dealloc__(self):
        free(self.pairs)

    @staticmethod
    def of(values, double unit=1e-3):
        cdef dict counts = {}
        cdef uint32_t slot, i
        cdef double total = 0
        cdef double value
        for value in values:
            if not value >= 0:
                raise ValueError(f"{value}: a value is 0 or more")
            slot = fs_tally_slot(<uint64_t>min(value / unit + 0.5, 1e18))
            counts[slot] = counts.get(slot, 0) + 1
            total += value
        cdef Histogram made = make(<uint32_t>len(counts), unit, total)
        for i, (slot, n) in enumerate(sorted(counts.items())):
            made.pairs[i].slot = slot
            made.pairs[i].n = n
        return seal(made)

    def quantile(self, double q) -> float:
        return self.quantiles((q,))[0]

    def quantiles(self, qs) -> list[float]:
        cdef uint32_t i
        cdef uint64_t seen
        cdef double q, rank
        cdef list found = []
        for q in qs:
            if not 0 <= q <= 1:
                raise ValueError(f"{q}: a quantile is from 0 to 1")
            if self.n == 0:
                found.append(0.0)
                continue
            # A product such as 0.07 * 100 comes out a hair above 7, and must not count as 8.
            rank = ceil(q * <double>self.count * (1 - 2.0 ** -50))
            seen = self.pairs[0].n
            i = 0
            while seen < rank and i + 1 < self.n:
                i += 1
                seen += self.pairs[i].n
            found.append(self.middle(i))
        return found

    def cumulative(self, bounds) -> list[int]:
        cdef uint32_t i = 0
        cdef double bound
        cdef list found = []
        seen = 0
        for bound in bounds:
            while i < self.n and self.middle(i) <= bound:
                seen += self.pairs[i].n
                i += 1
            found.append(seen)
        return found

    def items(self) -> list[tuple[float, float, int]]:
        cdef uint32_t i
        return [
            (fs_tally_low(self.pairs[i].slot) * self.unit, fs_tally_high(self.pairs[i].slot) * self.unit,
             self.pairs[i].n)
            for i in range(self.n)
        ]

    def minus(self, Histogram other not None):
        cdef Histogram made = make(self.n, self.unit, max(self.sum - other.sum, 0.0))
        cdef uint32_t i, k = 0, n = 0
        cdef uint64_t before
        for i in range(self.n):
            while k < other.n and other.pairs[k].slot < self.pairs[i].slot:
                k += 1
            before = other.pairs[k].n if k < other.n and other.pairs[k].slot == self.pairs[i].slot else 0
            if self.pairs[i].n > before:
                made.pairs[n].slot = self.pairs[i].slot
                made.pairs[n].n = self.pairs[i].n - before
                n += 1
        made.n = n
        return seal(made)

    def plus(self, Histogram other not None):
        if other.n == 0:
            return self
        if self.n == 0:
            return other
        cdef Histogram made = make(self.n + other.n, self.unit, self.sum + other.sum)
        cdef uint32_t i = 0, k = 0, n = 0
        while i < self.n or k < other.n:
            if k == other.n or (i < self.n and self.pairs[i].slot < other.pairs[k].slot):
                made.pairs[n] = self.pairs[i]
                i += 1
            elif i == self.n or other.pairs[k].slot < self.pairs[i].slot:
                made.pairs[n] = other.pairs[k]
                k += 1
            else:
                made.pairs[n].slot = self.pairs[i].slot
                made.pairs[n].n = self.pairs[i].n + other.pairs[k].n
                i += 1
                k += 1
            n += 1
        made.n = n
        return seal(made)

    cdef double middle(self, uint32_t i):
        cdef uint32_t slot = self.pairs[i].slot
        return (<double>fs_tally_low(slot) + <double>fs_tally_high(slot)) / 2 * self.unit

    def __eq__(self, other):
        if not isinstance(other, Histogram):
            return NotImplemented
        return self.items() == other.items() and self.sum == (<Histogram>other).sum

    def __repr__(self):
        return f"<Histogram of {self.count}, sum {self.sum:g}>"


cdef Histogram make(uint32_t room, double unit, double total):
    """With room for so many slots, which the caller fills; then `seal` is due."""
    cdef Histogram made = Histogram.__new__(Histogram)
    made.pairs = <fs_tally_pair *>malloc((room + 1) * sizeof(fs_tally_pair))
    if made.pairs is NULL:
        raise MemoryError
    made.n = room
    made.unit = unit
    made.sum = total
    return made


cdef Histogram seal(Histogram made):
    cdef uint32_t i
    total = 0  # a damaged memory may have any numbers in it
    for i in range(made.n):
        total += made.pairs[i].n
    made.count = total
    return made


cdef dict together(dict some, dict others):
    """Histograms by key."""
    cdef dict both = dict(some)
    for key, histogram in others.items():
        both[key] = both[key].plus(histogram) if key in both else histogram
    return both


class Series:
    __slots__ = (
        "model", "version", "signature", "closed", "serial", "requests", "latency", "request_rows", "queue",
        "formation", "compute", "encode", "batch_rows", "padding", "expired", "cancelled", "shed", "waiting_calls",
        "waiting_rows",
    )

    def __init__(
        self, model, version, signature, *, closed=False, serial=0, requests=None, latency=None,
        request_rows=None, queue=None, formation=None, compute=None, encode=None, batch_rows=None, padding=None,
        expired=0, cancelled=0, shed=0, waiting_calls=0, waiting_rows=0,
    ):
        times, rows = Histogram.of(()), Histogram.of((), 1.0)
        self.model, self.version, self.signature = model, version, signature
        self.closed, self.serial = closed, serial
        self.requests = {} if requests is None else requests
        self.latency = {} if latency is None else latency
        self.request_rows = {} if request_rows is None else request_rows
        self.queue = queue or times
        self.formation = formation or times
        self.compute = compute or times
        self.encode = encode or times
        self.batch_rows = batch_rows or rows
        self.padding = {} if padding is None else padding
        self.expired, self.cancelled, self.shed = expired, cancelled, shed
        self.waiting_calls, self.waiting_rows = waiting_calls, waiting_rows

    @property
    def rows(self):
        return round(self.batch_rows.sum)

    @property
    def batches(self):
        return self.batch_rows.count

    @property
    def padding_rows(self):
        return round(sum(histogram.sum for histogram in self.padding.values()))

    def plus(self, other, version=None):
        requests = dict(self.requests)
        for key, n in other.requests.items():
            requests[key] = requests.get(key, 0) + n
        return Series(
            self.model,
            version,
            self.signature,
            requests=requests,
            latency=together(self.latency, other.latency),
            request_rows=together(self.request_rows, other.request_rows),
            queue=self.queue.plus(other.queue),
            formation=self.formation.plus(other.formation),
            compute=self.compute.plus(other.compute),
            encode=self.encode.plus(other.encode),
            batch_rows=self.batch_rows.plus(other.batch_rows),
            padding=together(self.padding, other.padding),
            expired=self.expired + other.expired,
            cancelled=self.cancelled + other.cancelled,
            shed=self.shed + other.shed,
            waiting_calls=self.waiting_calls + other.waiting_calls,
            waiting_rows=self.waiting_rows + other.waiting_rows,
        )

    def __repr__(self):
        return f"<Series {self.model}:{self.version} {self.signature!r}, {sum(self.requests.values())} requests>"


class MetricsSnapshot:
    __slots__ = ("unresolved", "series")

    def __init__(self, unresolved=None, series=()):
        self.unresolved = {} if unresolved is None else unresolved
        self.series = list(series)


@cython.final
@cython.no_gc
cdef class Metrics:
    cdef fs_metrics_view view
    cdef bint opened
    cdef fs_tally_pair *room

    def __cinit__(self, int fd):
        self.room = <fs_tally_pair *>malloc(FS_TALLY_SLOTS * sizeof(fs_tally_pair))
        if self.room is NULL:
            raise MemoryError
        if fs_metrics_view_open(fd, &self.view) != 0:
            raise ValueError(f"descriptor {fd} is none of a core's memory: a memfd that is sealed against shrinking")
        self.opened = True

    def __dealloc__(self):
        if self.opened:
            fs_metrics_view_close(&self.view)
        free(self.room)

    def read(self):
        cdef uint32_t i = 0
        cdef fs_meter_name name
        cdef const fs_meter *meter
        cdef int tries = 0
        if fs_metrics_view_begin(&self.view) != 0:
            raise ValueError("what a core has counted has another layout: it is of another version")
        if self.view.n == 0:
            return MetricsSnapshot()
        unresolved = endings(&fs_metrics_view_head(&self.view).unresolved)
        found = []
        while True:
            meter = fs_metrics_view_next(&self.view, &i, &name)
            if meter is NULL:
                break
            series = self.series_of(meter, &name)
            if fs_metrics_view_same(meter, &name):
                found.append(series)
            elif tries < TRIES:
                tries += 1
                continue  # once more, whoever it belongs to now
            tries = 0
            i += 1
        return MetricsSnapshot(unresolved, found)

    cdef object series_of(self, const fs_meter *meter, fs_meter_name *name):
        cdef uint32_t method, transport
        cdef uint64_t left_calls = fs_tick_read(&meter.left_calls), left_rows = fs_tick_read(&meter.left_rows)
        cdef uint64_t pushed_calls = fs_tick_read(&meter.pushed_calls), pushed_rows = fs_tick_read(&meter.pushed_rows)
        latency, request_rows = {}, {}
        for method in range(FS_METRICS_METHODS):
            for transport in range(FS_METRICS_TRANSPORTS):
                histogram = self.histogram(&meter.latency[method][transport], &meter.latency_sum[method][transport],
                                           TIME)
                if histogram.count:
                    latency[METHODS[method], TRANSPORTS[transport]] = histogram
        queue = self.histogram(&meter.queue, &meter.queue_sum, TIME)
        for method in range(FS_METRICS_METHODS):
            histogram = self.histogram(&meter.request_rows[method], &meter.request_rows_sum[method], ROWS)
            if histogram.count:
                request_rows[METHODS[method]] = histogram
        return Series(
            text(name.model, name.model_len),
            name.version,
            text(name.signature, name.signature_len),
            closed=bool(name.closed),
            serial=name.serial,
            requests=endings(&meter.requests),
            latency=latency,
            request_rows=request_rows,
            queue=queue,
            formation=self.histogram(&meter.formation, &meter.formation_sum, TIME),
            compute=self.histogram(&meter.compute, &meter.compute_sum, TIME),
            encode=self.histogram(&meter.encode, &meter.encode_sum, TIME),
            batch_rows=self.histogram(&meter.rows, &meter.rows_sum, ROWS),
            padding=self.padding(meter),
            expired=fs_tick_read(&meter.expired),
            cancelled=fs_tick_read(&meter.cancelled),
            shed=fs_tick_read(&meter.shed),
            # What has left may have been counted before what came.
            waiting_calls=pushed_calls - left_calls if pushed_calls > left_calls else 0,
            waiting_rows=pushed_rows - left_rows if pushed_rows > left_rows else 0,
        )

    cdef dict padding(self, const fs_meter *meter):
        cdef uint32_t i, k, n
        cdef fs_padding place
        cdef Histogram made
        cdef dict found = {}
        for i in range(FS_METRICS_SIZES):
            if not fs_metrics_view_padding(&self.view, meter, i, &place):
                continue
            made = make(FS_METRICS_DOUBLINGS + 2, ROWS, <double>fs_tick_read(&place.sum))
            n = 0
            for k in range(FS_METRICS_DOUBLINGS + 2):
                made.pairs[n].n = fs_tick_read(&place.batches[k])
                if made.pairs[n].n:
                    made.pairs[n].slot = fs_tally_slot(<uint64_t>1 << (k - 1) if k else 0)
                    n += 1
            made.n = n
            size = fs_tick_read(&place.size)
            found[size] = found[size].plus(seal(made)) if size in found else seal(made)
        return found

    cdef Histogram histogram(self, const fs_tally *tally, const fs_tick *total, double unit):
        cdef uint32_t n = fs_metrics_view_tally(&self.view, tally, self.room)
        cdef Histogram made = make(n, unit, <double>fs_tick_read(total) * unit)
        memcpy(made.pairs, self.room, n * sizeof(fs_tally_pair))
        return seal(made)


cdef str text(const char *data, uint32_t length):
    return PyBytes_FromStringAndSize(data, length).decode("utf-8", "replace")


cdef dict endings(const fs_endings *counts):
    cdef uint32_t method, transport, code
    cdef uint64_t n
    cdef dict found = {}
    for method in range(FS_METRICS_METHODS):
        for transport in range(FS_METRICS_TRANSPORTS):
            for code in range(FS_METRICS_CODES):
                n = fs_tick_read(&counts.count[method][transport][code])
                if n:
                    found[METHODS[method], TRANSPORTS[transport], CODES[code]] = n
    return found
