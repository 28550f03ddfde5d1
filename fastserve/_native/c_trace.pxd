# Mirror of csrc/{trace_ring,random}.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "trace_ring.h" nogil:
    enum:
        FS_TRACE_RECORDING
        FS_TRACE_SPANS
        FS_TRACE_SLOTS

    enum fs_trace_kind:
        FS_TRACE_TASK

    enum fs_trace_turn:
        FS_TURN_READ
        FS_TURN_DELIVER

    ctypedef struct fs_trace_event:
        uint8_t kind
        int64_t begin_us
        int64_t end_us

    ctypedef struct fs_track:
        pass

    ctypedef struct fs_trace:
        pass

    fs_trace *fs_trace_open(int fd, uint32_t tracks) noexcept
    void fs_trace_close(fs_trace *trace) noexcept
    fs_track *fs_trace_track(fs_trace *trace, const char *name) noexcept
    bint fs_track_wants(const fs_track *track, uint32_t what) noexcept
    void fs_track_write(fs_track *track, const fs_trace_event *event) noexcept
    void fs_track_turn(fs_track *track, fs_trace_turn what, int64_t begin_us, int64_t count) noexcept

    ctypedef struct fs_trace_view:
        uint32_t tracks

    int fs_trace_map(int fd, fs_trace_view *view) noexcept
    void fs_trace_unmap(fs_trace_view *view) noexcept
    void fs_trace_want(const fs_trace_view *view, uint32_t wanted, uint64_t share) noexcept
    const char *fs_trace_track_name(const fs_trace_view *view, uint32_t i) noexcept
    uint64_t fs_trace_written(const fs_trace_view *view, uint32_t i) noexcept
    bint fs_trace_read(const fs_trace_view *view, uint32_t i, uint64_t *at, fs_trace_event *event,
                       uint64_t *lost) noexcept


cdef extern from "random.h" nogil:
    uint64_t fs_random_share(double share) noexcept
