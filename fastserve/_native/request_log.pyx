"""RequestLog: which requests of a model are written to files, and what has come of it.

Used by the engine, on the loop's thread. Holds a reference to the native log, so that its figures can be read for as
long as anybody wants them. The engine keeps every log that it has made: news of losses may be on its way to it.
"""

import os

from libc.stdint cimport INT64_MAX, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastserve._native.c_engine cimport (
    FS_LOG_RECORDING,
    FS_LOG_STANDING,
    fs_log_settings_new,
    fs_log_sink,
    fs_log_tally,
    fs_mail,
    fs_request_log_heard,
    fs_request_log_new,
    fs_request_log_unref,
)
from fastserve._native.c_runtime cimport fs_slice

# A file's name is its prefix, what is added to that, and its NUL, within PATH_MAX.
cdef enum:
    PATH_BYTES = 4000


cdef void hear(fs_mail *mail) noexcept with gil:
    cdef fs_request_log *c = <fs_request_log *>mail
    log = <RequestLog>c.user
    try:
        if log.on_loss is not None:
            log.on_loss(log.stats())
    finally:
        fs_request_log_heard(c)


cdef RequestLog make_request_log(str model, fs_owner *home, on_loss):
    """`on_loss` is called with the statistics when more is lost, at the most once for each doubling; or None."""
    cdef RequestLog log = RequestLog.__new__(RequestLog)
    log.model = model
    log.name = model.encode()
    log.on_loss = on_loss
    log.c = fs_request_log_new(home, hear, <void *>log)
    if log.c is NULL:
        raise MemoryError
    return log


cdef fs_log_settings *settings_of(dict settings) except NULL:
    """Settings as the command `logging` or `record` has them."""
    cdef fs_log_settings c
    cdef bytes path = os.fsencode(settings["path"])
    cdef fs_slice[64] tags
    cdef list names = [text.encode() for text in settings.get("tags", ())]
    cdef bytes tag
    memset(&c, 0, sizeof(fs_log_settings))
    c.sampling_rate = settings.get("sampling_rate", 1.0)
    if not 0 <= c.sampling_rate <= 1:
        raise ValueError(f"sampling_rate {c.sampling_rate}: 0 to 1")
    c.responses = settings.get("responses", False)
    c.max_file_bytes = settings.get("max_file_bytes", 0)
    age_s = settings.get("max_file_age_s", 0)
    c.max_file_age_us = <int64_t>(age_s * 1e6) if age_s else INT64_MAX
    c.keep_files = settings.get("keep_files", 0)
    c.max_records = settings.get("records", 0)
    if not path or len(path) > PATH_BYTES or b"\0" in path:
        raise ValueError(f"path of {len(path)} bytes: 1 to {PATH_BYTES}, none of them NUL")
    memcpy(c.path, <const char *>path, <size_t>len(path))
    if len(names) > 64:
        raise ValueError(f"{len(names)} tags: at most 64")
    for i in range(len(names)):
        tag = names[i]
        tags[i].data = <const uint8_t *><const char *>tag
        tags[i].len = <size_t>len(tag)
    made = fs_log_settings_new(&c, tags, <unsigned>len(names))
    if made is NULL:
        raise MemoryError
    return made


cdef LogErrand *make_order(RequestLog log, fs_log_sinks sink, dict settings) except NULL:
    """The order that brings a sink these settings, or turns it off (None); that closes all files, without a log."""
    cdef LogErrand *errand = <LogErrand *>calloc(1, sizeof(LogErrand))
    if errand is NULL:
        raise MemoryError
    try:
        if log is not None:
            errand.order.log = log.c
            errand.order.sink = sink
        if settings is not None:
            errand.order.max_buffer_bytes = settings.get("max_buffer_bytes", 0)
            errand.order.settings = settings_of(settings)
    except BaseException:
        free(errand)
        raise
    return errand


cdef dict figures_of(const fs_log_sink *sink, dict settings):
    cdef const fs_log_tally *tally = &sink.tally
    error = tally.error
    return {
        "path": None if settings is None else settings["path"],
        "sampling_rate": 0.0 if settings is None else settings.get("sampling_rate", 1.0),
        "records": tally.records,
        "bytes": tally.bytes,
        "files": tally.files,
        "failed": tally.failed,
        "error": os.strerror(error) if error else "",
    }


cdef class RequestLog:
    """Made by the engine."""

    def __dealloc__(self):
        fs_request_log_unref(self.c)

    def stats(self) -> dict:
        """What has become of the requests that were to be logged, and of a recording."""
        row = {
            "model": self.model,
            **figures_of(&self.c.sinks[<int>FS_LOG_STANDING], self.standing),
            "sampled": self.c.sampled,
            "dropped": self.c.dropped,
            "skipped": self.c.skipped,
            "buffered_bytes": self.c.buffered_bytes,
            "recording": None,
        }
        if self.recording is not None:
            row["recording"] = {
                **figures_of(&self.c.sinks[<int>FS_LOG_RECORDING], self.recording),
                "wanted": self.recording["records"],
                "finished": bool(self.c.sinks[<int>FS_LOG_RECORDING].finished),
            }
        return row
