# Mirror of csrc/io.h. No logic.
from fastserve._native.c_channel cimport fs_tls_context
from fastserve._native.c_engine cimport fs_budget, fs_h2_handler, fs_h2_limits, fs_mailbox, sockaddr
from fastserve._native.c_runtime cimport fs_slab
from fastserve._native.c_trace cimport fs_track
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint64_t


cdef extern from "io.h" nogil:
    ctypedef struct fs_io:
        pass

    ctypedef struct fs_io_config:
        const fs_h2_limits *limits
        const fs_h2_handler *handler
        fs_budget *budget
        void (*on_mail)(void *ctx) noexcept
        void (*on_empty)(void *ctx) noexcept
        void (*on_refused)(void *ctx, const sockaddr *peer, const char *why) noexcept
        int64_t handshake_timeout_us
        size_t slab_cache_bytes
        char name[16]
        fs_track *track

    ctypedef struct fs_io_stats:
        uint64_t accepted
        uint64_t closed
        uint64_t connections
        uint64_t calls
        uint64_t bytes_in
        uint64_t bytes_out
        uint64_t wakes
        int64_t cpu_us

    enum fs_io_drain_step:
        FS_IO_NOTICE
        FS_IO_SHUTDOWN
        FS_IO_CLOSE

    fs_io *fs_io_new(const fs_io_config *config) noexcept
    int fs_io_start(fs_io *io, void *ctx) noexcept
    fs_mailbox *fs_io_mailbox(fs_io *io) noexcept
    fs_slab *fs_io_slab(fs_io *io) noexcept
    void fs_io_touch(void *io, void *conn) noexcept
    int fs_io_adopt(fs_io *io, int fd, fs_tls_context *tls, void *ctx) noexcept
    int fs_io_drain(fs_io *io, fs_io_drain_step step) noexcept
    fs_io_stats fs_io_read(const fs_io *io) noexcept
    void fs_io_stop(fs_io *io) noexcept
    void fs_io_free(fs_io *io) noexcept
