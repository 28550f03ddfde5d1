# Mirror of csrc/{tally,metrics,metrics_read}.h, what a reader binds of them. No logic.
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef extern from "tally.h" nogil:
    enum:
        FS_TALLY_SLOTS

    ctypedef struct fs_tally:
        pass

    uint32_t fs_tally_slot(uint64_t value) noexcept
    uint64_t fs_tally_low(uint32_t slot) noexcept
    uint64_t fs_tally_high(uint32_t slot) noexcept


cdef extern from "metrics.h" nogil:
    enum:
        FS_METRICS_METHODS
        FS_METRICS_TRANSPORTS
        FS_METRICS_CODES
        FS_METRICS_SIZES
        FS_METRICS_DOUBLINGS

    ctypedef struct fs_tick:
        pass

    ctypedef struct fs_endings:
        fs_tick count[5][3][17]

    ctypedef struct fs_padding:
        fs_tick size
        fs_tick sum
        fs_tick batches[16]

    ctypedef struct fs_meter:
        fs_tick pushed_calls
        fs_tick pushed_rows
        fs_tick queue_sum
        fs_endings requests
        fs_tick latency_sum[5][3]
        fs_tick request_rows_sum[5]
        fs_tick left_calls
        fs_tick left_rows
        fs_tick formation_sum
        fs_tick compute_sum
        fs_tick encode_sum
        fs_tick rows_sum
        fs_tick expired
        fs_tick cancelled
        fs_tick shed
        fs_tally latency[5][3]
        fs_tally queue
        fs_tally request_rows[5]
        fs_tally formation
        fs_tally compute
        fs_tally encode
        fs_tally rows

    ctypedef struct fs_metrics_head:
        fs_endings unresolved


cdef extern from "metrics_read.h" nogil:
    ctypedef struct fs_metrics_view:
        int fd
        uint32_t n

    ctypedef struct fs_meter_name:
        uint64_t serial
        bint closed
        int64_t version
        uint32_t model_len
        uint32_t signature_len
        char model[400]
        char signature[400]

    ctypedef struct fs_tally_pair:
        uint32_t slot
        uint64_t n

    int fs_metrics_view_open(int fd, fs_metrics_view *view) noexcept
    void fs_metrics_view_close(fs_metrics_view *view) noexcept
    int fs_metrics_view_begin(fs_metrics_view *view) noexcept
    const fs_meter *fs_metrics_view_next(fs_metrics_view *view, uint32_t *i, fs_meter_name *name) noexcept
    bint fs_metrics_view_same(const fs_meter *meter, const fs_meter_name *name) noexcept
    uint32_t fs_metrics_view_tally(fs_metrics_view *view, const fs_tally *tally, fs_tally_pair *pairs) noexcept
    bint fs_metrics_view_padding(fs_metrics_view *view, const fs_meter *meter, uint32_t i, fs_padding *out) noexcept
    const fs_metrics_head *fs_metrics_view_head(const fs_metrics_view *view) noexcept
    uint64_t fs_tick_read(const fs_tick *tick) noexcept
