# Mirror of csrc/json_tensors.h. No logic.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libcpp cimport bool

from fastserve._native.c_status cimport fs_slice


cdef extern from "json_tensors.h" nogil:
    ctypedef struct fs_json_tensor:
        fs_slice name
        int32_t dtype
        int32_t ndim
        int64_t dims[1]
        uint8_t *data
        size_t bytes

    bool fs_json_tensor_dtype(int32_t dtype) noexcept
    fs_slice fs_json_signature(fs_slice text) noexcept
    int fs_json_tensors_read(
        fs_slice text, fs_slice signature, fs_json_tensor *tensors, uint32_t count, bool *in_rows
    ) noexcept
