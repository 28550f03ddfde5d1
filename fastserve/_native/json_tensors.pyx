"""The tensors of a predict request in JSON, without Python's lists and numbers between: csrc/json_tensors.h.

Used by the gateway, on its loop. What is not read here, json_values.pyx and fastserve/gateway/json_tensors.py
read from what a JSON parser gave.
"""

cimport cython
from cpython.buffer cimport Py_buffer, PyBuffer_FillInfo
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libcpp cimport bool

from fastserve._native.c_json_tensors cimport (
    fs_json_signature,
    fs_json_tensor,
    fs_json_tensor_dtype,
    fs_json_tensors_read,
)
from fastserve._native.c_status cimport FS_RESOURCE_EXHAUSTED, fs_slice


cdef object np = None


def readable(int number):
    """Whether tensors of that number of TensorFlow's DataType are read here."""
    return fs_json_tensor_dtype(number)


def signature_of(bytes text not None):
    """The signature that a request's text begins or ends with; "" if there is none at either place."""
    cdef fs_slice name = fs_json_signature(_slice(text))
    return (<bytes>name.data[:name.len]).decode() if name.len > 0 else ""


@cython.final
cdef class Reader:
    """Reads the requests for one signature."""

    cdef fs_json_tensor *tensors
    cdef uint32_t count
    cdef bytes signature
    cdef list names   # as text and, what C points into, as bytes
    cdef list dtypes

    def __cinit__(self, str signature not None, list inputs not None):
        """`signature`: as `signature_of` has it. `inputs`: name, number of TensorFlow's DataType, which is
        `readable`, and name of numpy's dtype for each."""
        self.signature = signature.encode()
        self.names = [(name, name.encode()) for name, _, _ in inputs]
        self.dtypes = [dtype for _, _, dtype in inputs]
        self.tensors = <fs_json_tensor *>calloc(len(inputs) + 1, sizeof(fs_json_tensor))
        if self.tensors is NULL:
            raise MemoryError
        self.count = len(inputs)
        for i, (_, number, _) in enumerate(inputs):
            self.tensors[i].name = _slice(<bytes>self.names[i][1])
            self.tensors[i].dtype = number

    def __dealloc__(self):
        free(self.tensors)

    def read(self, bytes text not None):
        """An array for each input, and whether they came in rows. None: not this way."""
        cdef bool in_rows = False
        cdef uint32_t i
        cdef int rc = fs_json_tensors_read(
            _slice(text), _slice(self.signature), self.tensors, self.count, &in_rows
        )
        try:
            if rc == -FS_RESOURCE_EXHAUSTED:
                raise MemoryError
            if rc != 0:
                return None
            made = {
                self.names[i][0]: _array(&self.tensors[i], self.dtypes[i]) for i in range(self.count)
            }
            return made, <bint>in_rows
        finally:
            for i in range(self.count):
                free(self.tensors[i].data)


@cython.final
cdef class _Values:
    """An array's memory."""

    cdef uint8_t *data
    cdef size_t bytes

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.bytes, 0, flags)


cdef object _array(fs_json_tensor *tensor, str dtype):
    """An array of numpy's, which takes the tensor's memory over."""
    global np
    if np is None:
        import numpy as module

        np = module
    cdef _Values values = _Values.__new__(_Values)
    values.data = tensor.data
    values.bytes = tensor.bytes
    tensor.data = NULL
    return np.ndarray([tensor.dims[i] for i in range(tensor.ndim)], dtype, values)


cdef fs_slice _slice(bytes text) noexcept:
    return fs_slice(<const uint8_t *><char *>text, len(text))
