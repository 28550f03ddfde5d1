# Mirror of csrc/example.h and csrc/infer_reply.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t

from fastserve._native.c_column cimport fs_column
from fastserve._native.c_status cimport fs_slice


cdef extern from "example.h" nogil:
    ctypedef struct fs_feature:
        fs_slice name
        fs_column column
        const int64_t *offsets
        const uint8_t *present

    int fs_examples_measure(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                            uint32_t *sizes, size_t *bytes) noexcept
    size_t fs_example_size(uint32_t size) noexcept
    uint8_t *fs_example_write(const fs_feature *features, uint32_t n_features, int64_t row, uint32_t size,
                              uint8_t *dst) noexcept
    uint8_t *fs_examples_write(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                               const uint32_t *sizes, uint8_t *dst) noexcept


cdef extern from "infer_reply.h" nogil:
    ctypedef struct fs_class:
        fs_slice label
        float score

    int64_t fs_regressions_count(fs_slice reply) noexcept
    void fs_regressions_read(fs_slice reply, float *values) noexcept
    bint fs_classes_count(fs_slice reply, int64_t *examples, int64_t *classes) noexcept
    void fs_classes_read(fs_slice reply, int64_t *counts, fs_class *classes) noexcept
