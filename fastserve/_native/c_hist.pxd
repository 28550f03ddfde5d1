# Mirror of csrc/hist.h. No logic.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "hist.h" nogil:
    enum:
        FS_HIST_SLOTS

    ctypedef struct fs_hist:
        uint64_t total
        uint64_t min
        uint64_t max
        double sum
        uint64_t *counts

    uint32_t fs_hist_slot(uint64_t value) noexcept
    void fs_hist_record(fs_hist *hist, uint64_t value) noexcept
    void fs_hist_clear(fs_hist *hist) noexcept
    void fs_hist_merge(fs_hist *to, const fs_hist *source) noexcept
    uint64_t fs_hist_low(uint32_t slot) noexcept
    uint64_t fs_hist_high(uint32_t slot) noexcept
    void fs_hist_values_at(const fs_hist *hist, const double *quantiles, uint64_t *values,
                           uint32_t n) noexcept
