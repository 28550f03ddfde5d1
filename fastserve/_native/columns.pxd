# Column: a feature's values, held still for as long as native code reads them.
from cpython.buffer cimport Py_buffer
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t

from fastserve._native.c_column cimport fs_column
from fastserve._native.c_status cimport fs_slice


cdef struct block:
    # Memory of short strings, which follow it.
    block *before


cdef class Column:
    cdef fs_column c
    cdef readonly str name
    cdef readonly int ndim
    cdef Py_buffer view
    cdef bint viewed
    cdef fs_slice *slices
    cdef list pinned
    cdef block *blocks
    cdef uint8_t *next
    cdef Py_ssize_t room

    cdef bint take_buffer(self, values) except -1
    cdef void take_texts(self, list values, int64_t rows, int64_t width) except *
    cdef void take_objects(self, array) except *
    cdef void make_slices(self, int64_t rows, int64_t width) except *
    cdef int take_text(self, int64_t i, PyObject *item) except -1
    cdef int new_block(self) except -1
