# Mirror of csrc/status.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "status.h" nogil:
    enum fs_code:
        FS_OK
        FS_INVALID_ARGUMENT
        FS_RESOURCE_EXHAUSTED
        FS_INTERNAL
        FS_UNAVAILABLE

    ctypedef struct fs_error:
        int code
        uint32_t len
        char msg[1]

    ctypedef struct fs_slice:
        const uint8_t *data
        size_t len

    int fs_fail(fs_error *err, fs_code code, const char *fmt, ...) noexcept
