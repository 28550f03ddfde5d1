# Mirror of csrc/predict_call.h, and what the calling side needs of tensor.h and slab.h beside it. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastserve._native.c_predict cimport fs_model_ref, fs_named_view
from fastserve._native.c_slab cimport fs_arena, fs_slab
from fastserve._native.c_status cimport fs_slice
from fastserve._native.c_tensor cimport fs_tensor, fs_tensor_view


cdef extern from "slab.h" nogil:
    void *fs_slab_alloc(fs_slab *slab, size_t size) noexcept
    void fs_slab_free(void *block) noexcept
    void *fs_arena_alloc(fs_arena *arena, size_t size) noexcept


cdef extern from "tensor.h" nogil:
    enum:
        FS_DT_FLOAT
        FS_DT_DOUBLE
        FS_DT_INT32
        FS_DT_UINT8
        FS_DT_INT16
        FS_DT_INT8
        FS_DT_COMPLEX64
        FS_DT_INT64
        FS_DT_BOOL
        FS_DT_UINT16
        FS_DT_COMPLEX128
        FS_DT_HALF
        FS_DT_UINT32
        FS_DT_UINT64

    uint64_t fs_tensor_view_string_bytes(const fs_tensor_view *view) noexcept


cdef extern from "predict_call.h" nogil:
    ctypedef struct fs_call_input:
        fs_slice alias
        const fs_tensor *tensor
        int64_t first_row
        int64_t rows

    int fs_predict_call_write(fs_arena *arena, const fs_model_ref *model, const fs_call_input *inputs,
                              uint32_t n_inputs, const fs_slice *filter, uint32_t n_filter, fs_slice **pieces,
                              uint32_t *n_pieces, size_t *bytes) noexcept

    ctypedef struct fs_predict_reply:
        fs_model_ref model
        fs_named_view *outputs
        uint32_t n_outputs

    int fs_predict_reply_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_predict_reply *out) noexcept
    const uint8_t *fs_tensor_view_in_place(const fs_tensor_view *view) noexcept
