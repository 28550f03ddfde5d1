# Column: a feature's values, held still for as long as native code reads them.
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint8_t

from fastserve._native.c_column cimport fs_column
from fastserve._native.c_status cimport fs_slice


cdef class Column:
    cdef fs_column c
    cdef readonly str name
    cdef readonly int ndim
    cdef Py_buffer view
    cdef bint viewed
    cdef fs_slice *slices
    cdef list pinned

    cdef bint take_buffer(self, values) except -1
    cdef void take_texts(self, list values, int64_t rows, int64_t width) except *
