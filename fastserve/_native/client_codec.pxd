# The Predict codec of the calling side: what client.pyx uses of it.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t

from cpython.buffer cimport Py_buffer

from fastserve._native.c_predict cimport fs_model_ref
from fastserve._native.c_predict_call cimport fs_call_input
from fastserve._native.c_slab cimport fs_arena, fs_slab
from fastserve._native.c_status cimport fs_slice
from fastserve._native.c_tensor cimport fs_tensor


cdef class Memory:
    """Owns a slab, from which requests and decoded outputs come. Touched with the GIL held only."""

    cdef fs_slab *slab


cdef class Spec:
    """Owns a ModelSpec and an output filter as C has them."""

    cdef fs_model_ref model
    cdef fs_slice *filter
    cdef uint32_t n_filter
    cdef tuple keep


cdef class Inputs:
    """Owns input tensors made from Python values; pins the arrays whose memory they are."""

    cdef Memory memory
    cdef fs_arena arena
    cdef fs_tensor *tensors
    cdef fs_call_input *inputs
    cdef Py_buffer *views
    cdef uint32_t n
    cdef uint32_t n_views
    cdef list keep
    cdef readonly int64_t rows

    cdef int add(self, str alias, object value) except -1
    cdef int add_normal(self, str alias, object value, fs_tensor *tensor) except -1
    cdef int set_shape(self, str alias, fs_tensor *tensor, int ndim, const Py_ssize_t *shape) except -1
    cdef int add_texts(self, str alias, object array, fs_tensor *tensor) except -1
    cdef int add_objects(self, str alias, object array, fs_tensor *tensor) except -1
    cdef Py_buffer *pin(self, object value, int flags) except NULL


cdef class Request:
    """Owns a PredictRequest as pieces: heads of its own, payloads in the arrays that `inputs` pins."""

    cdef Inputs inputs
    cdef fs_arena arena
    cdef fs_slice *pieces
    cdef uint32_t n_pieces
    cdef size_t bytes


cdef class Block:
    """Owns a slab block, and offers it as a buffer."""

    cdef uint8_t *data
    cdef size_t len


cdef Request new_request(Spec spec, Inputs inputs, int64_t first_row, int64_t rows)
cdef Block new_block(uint8_t *data, size_t len)
cdef tuple decode(Block reply, Memory memory, object into, object limit_bytes)
cdef tuple decode_joined(list replies, list rows, Memory memory, object into, object limit_bytes)
