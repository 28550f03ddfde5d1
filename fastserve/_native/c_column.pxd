# Mirror of csrc/column.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from fastserve._native.c_status cimport fs_slice


cdef extern from "column.h" nogil:
    enum fs_column_kind:
        FS_COLUMN_I8
        FS_COLUMN_I16
        FS_COLUMN_I32
        FS_COLUMN_I64
        FS_COLUMN_U8
        FS_COLUMN_U16
        FS_COLUMN_U32
        FS_COLUMN_U64
        FS_COLUMN_BOOL
        FS_COLUMN_F32
        FS_COLUMN_F64
        FS_COLUMN_SLICE
        FS_COLUMN_FIXED
        FS_COLUMN_UCS4

    ctypedef struct fs_column:
        const uint8_t *data
        int64_t rows
        int64_t width
        int64_t row_stride
        int64_t item_stride
        int64_t item_bytes
        fs_column_kind kind

    bint fs_column_is_text(const fs_column *column) noexcept
    bint fs_column_is_real(const fs_column *column) noexcept
    bint fs_column_valid(const fs_column *column, int64_t *row) noexcept
    size_t fs_column_scratch(const fs_column *column) noexcept
