# Mirror of csrc/policy.h. No logic.
from libc.stdint cimport int32_t, int64_t, uint32_t


cdef extern from "policy.h" nogil:
    enum:
        FS_MAX_BUCKETS

    ctypedef struct fs_queue_view:
        int64_t oldest_us
        int64_t ready_us
        int64_t virtual_us
        double weight

    ctypedef struct fs_plan_view:
        int64_t rows
        int64_t max_rows
        uint32_t n_buckets
        int32_t bucket_rows[32]
        float cost_us[32]

    ctypedef struct fs_policy:
        int (*pick)(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us) noexcept nogil
        int64_t (*plan)(const fs_plan_view *view) noexcept nogil
