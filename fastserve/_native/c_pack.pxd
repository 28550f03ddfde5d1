# Mirror of csrc/pack.h, csrc/pool.h, csrc/vocab.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastserve._native.c_column cimport fs_column
from fastserve._native.c_status cimport fs_slice


cdef extern from "pool.h" nogil:
    ctypedef struct fs_pool:
        pass

    fs_pool *fs_pool_new(uint32_t helpers) noexcept
    void fs_pool_free(fs_pool *pool) noexcept
    uint32_t fs_pool_slots(const fs_pool *pool) noexcept


cdef extern from "vocab.h" nogil:
    ctypedef struct fs_vocab:
        pass

    fs_vocab *fs_vocab_new(const fs_column *terms, int64_t *repeated) noexcept
    void fs_vocab_free(fs_vocab *vocab) noexcept
    int64_t fs_vocab_terms(const fs_vocab *vocab) noexcept
    size_t fs_vocab_bytes(const fs_vocab *vocab) noexcept


cdef extern from "pack.h" nogil:
    enum fs_pack_op:
        FS_PACK_FINGERPRINT
        FS_PACK_HASH
        FS_PACK_CROSS
        FS_PACK_BUCKETIZE
        FS_PACK_LOOKUP
        FS_PACK_DENSE

    enum fs_out_kind:
        FS_OUT_I32
        FS_OUT_I64
        FS_OUT_F32
        FS_OUT_F64

    ctypedef struct fs_out:
        uint8_t *data
        int64_t row_stride
        int64_t item_stride
        fs_out_kind kind

    ctypedef struct fs_hasher:
        bint strong
        uint64_t key[2]
        uint64_t buckets

    ctypedef struct fs_dense:
        double fill
        double mean
        double scale
        bint log1p

    ctypedef struct fs_pack_step:
        fs_pack_op op
        const fs_column *columns
        uint32_t n_columns
        int64_t rows
        fs_out out
        fs_hasher hasher
        bint has_mask
        fs_slice mask
        const float *boundaries
        int64_t n_boundaries
        const fs_vocab *vocab
        int64_t first_id
        int64_t first_unknown
        bint unknown_mod
        bint refuse_unknown
        const fs_dense *dense
        int64_t refused_row

    int fs_pack_run(fs_pool *pool, fs_pack_step *steps, uint32_t n_steps) noexcept
