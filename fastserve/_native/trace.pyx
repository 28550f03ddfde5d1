"""The reader of a core's trace. See trace.pyi.

In the control process, on one thread at a time. Knows where events are and when they ended, and nothing else of them:
fastserve/trace_events.py does.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc

from fastserve._native.c_status cimport FS_UNAVAILABLE
from fastserve._native.c_trace cimport (
    FS_TRACE_RECORDING,
    FS_TRACE_SLOTS,
    FS_TRACE_SPANS,
    FS_TRACE_TASK,
    fs_random_share,
    fs_trace_event,
    fs_trace_map,
    fs_trace_read,
    fs_trace_track_name,
    fs_trace_unmap,
    fs_trace_view,
    fs_trace_want,
    fs_trace_written,
)

RECORDING = FS_TRACE_RECORDING
SPANS = FS_TRACE_SPANS


class TraceUnreadable(Exception):
    pass


# What read() gives of an event.
cdef struct Record:
    uint64_t track
    fs_trace_event event


cdef class TraceReader:
    cdef fs_trace_view view   # tracks is 0: closed
    cdef uint64_t *at         # of each track, how many events were read or passed over
    cdef readonly uint64_t lost

    @classmethod
    def open(cls, int fd):
        cdef TraceReader reader = TraceReader.__new__(TraceReader)
        cdef uint32_t i
        cdef int rc = fs_trace_map(fd, &reader.view)
        if rc == -FS_UNAVAILABLE:
            return None
        if rc != 0:
            raise TraceUnreadable(f"the core's trace cannot be read (code {-rc})")
        reader.at = <uint64_t *>calloc(reader.view.tracks, sizeof(uint64_t))
        if reader.at is NULL:
            raise MemoryError
        for i in range(reader.view.tracks):
            reader.at[i] = fs_trace_written(&reader.view, i)
        return reader

    def __dealloc__(self):
        self.close()

    def close(self):
        fs_trace_unmap(&self.view)
        free(self.at)
        self.at = NULL

    def want(self, uint32_t wanted, double share):
        if self.at is NULL:
            raise ValueError("the trace is closed")
        fs_trace_want(&self.view, wanted, fs_random_share(share))

    def tracks(self):
        names = []
        cdef const char *name = fs_trace_track_name(&self.view, 0)
        while name is not NULL:
            names.append(name.decode("utf-8", "replace"))
            name = fs_trace_track_name(&self.view, <uint32_t>len(names))
        return names

    def rewind(self):
        cdef uint32_t i
        cdef uint64_t written
        for i in range(self.view.tracks):
            written = fs_trace_written(&self.view, i)
            self.at[i] = written - FS_TRACE_SLOTS if written > FS_TRACE_SLOTS else 0

    def read(self, uint32_t kinds, int64_t since_us=0):
        cdef Record *records = NULL
        cdef Record *more
        cdef Record record
        cdef size_t n = 0, room = 0
        cdef uint64_t until
        cdef uint32_t i
        try:
            for i in range(self.view.tracks):
                if fs_trace_track_name(&self.view, i) is NULL:
                    break
                record.track = i
                until = fs_trace_written(&self.view, i)  # what comes meanwhile is for the next time
                while self.at[i] < until and fs_trace_read(
                    &self.view, i, &self.at[i], &record.event, &self.lost
                ):
                    if not kinds >> (record.event.kind & 31) & 1:
                        continue
                    # The end of a task is told apart from its beginning.
                    if record.event.end_us != 0 and record.event.end_us < since_us and (
                        record.event.kind != FS_TRACE_TASK
                    ):
                        continue
                    if n == room:
                        room = room * 2 if room > 0 else 64
                        more = <Record *>realloc(records, room * sizeof(Record))
                        if more is NULL:
                            raise MemoryError
                        records = more
                    records[n] = record
                    n += 1
            return PyBytes_FromStringAndSize(<const char *>records, <Py_ssize_t>(n * sizeof(Record)))
        finally:
            free(records)
