# Mirror of csrc/compress.h, and of h2.h's encodings. No logic.
from fastserve._native.c_slab cimport fs_slab
from fastserve._native.c_status cimport fs_error
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef extern from "h2.h" nogil:
    enum fs_encoding:
        FS_IDENTITY
        FS_GZIP
        FS_DEFLATE


cdef extern from "compress.h" nogil:
    int fs_inflate(fs_slab *slab, int encoding, const uint8_t *data, size_t len, size_t limit, uint8_t **out,
                   size_t *out_len, fs_error *err) noexcept
    int fs_deflate(fs_slab *slab, int encoding, const uint8_t *data, size_t len, size_t before, uint8_t **out,
                   size_t *out_len) noexcept
