"""Columns of features for native code: numpy arrays where they lie, lists of strings as slices.

A Column pins what it was made from until it is gone, or has copied it, so it may be read without the GIL.
Who writes to an array meanwhile gets some of the old and some of the new values, no more. numpy is imported
by the first column that has to be converted.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastserve._native.c_column cimport (
    FS_COLUMN_BOOL,
    FS_COLUMN_F32,
    FS_COLUMN_F64,
    FS_COLUMN_FIXED,
    FS_COLUMN_I8,
    FS_COLUMN_I16,
    FS_COLUMN_I32,
    FS_COLUMN_I64,
    FS_COLUMN_SLICE,
    FS_COLUMN_U8,
    FS_COLUMN_U16,
    FS_COLUMN_U32,
    FS_COLUMN_U64,
    FS_COLUMN_UCS4,
    fs_column_is_real,
    fs_column_is_text,
    fs_column_kind,
    fs_column_valid,
)

from fastserve.errors import FastServeError


cdef extern from "Python.h":
    bint PyUnicode_Check(PyObject *thing)
    bint PyBytes_Check(PyObject *thing)
    const char *PyUnicode_AsUTF8AndSize(PyObject *text, Py_ssize_t *size) except NULL
    PyObject *PyList_GET_ITEM(list values, Py_ssize_t i)
    Py_ssize_t PyList_GET_SIZE(list values)

# Longer strings are not copied.
cdef Py_ssize_t LONG = 1024
cdef Py_ssize_t FIRST_BLOCK = 8 << 10
cdef Py_ssize_t BLOCK = 256 << 10


class ColumnError(FastServeError, ValueError):
    """A column, or what is to be done with it, that cannot be. The text names the column."""


cdef int kind_of(const char *format, Py_ssize_t itemsize) noexcept:
    """The fs_column_kind of a buffer's format; -1 for those that numpy has to convert."""
    cdef char code
    if format is NULL:
        return FS_COLUMN_U8
    if format[0] == b"@" or format[0] == b"=" or format[0] == b"<":
        format += 1
    while b"0" <= format[0] <= b"9":
        format += 1
    code = format[0]
    if code == 0 or format[1] != 0:
        return -1
    if code == b"s":
        return FS_COLUMN_FIXED
    if code == b"w":
        return FS_COLUMN_UCS4
    if code == b"?":
        return FS_COLUMN_BOOL
    if code == b"f":
        return FS_COLUMN_F32
    if code == b"d":
        return FS_COLUMN_F64
    if code in (b"b", b"h", b"i", b"l", b"q"):
        return {1: FS_COLUMN_I8, 2: FS_COLUMN_I16, 4: FS_COLUMN_I32, 8: FS_COLUMN_I64}[itemsize]
    if code in (b"B", b"H", b"I", b"L", b"Q"):
        return {1: FS_COLUMN_U8, 2: FS_COLUMN_U16, 4: FS_COLUMN_U32, 8: FS_COLUMN_U64}[itemsize]
    return -1


@cython.final
cdef class Column:
    """Values of one feature, [n] or [n, k]: numbers, bools, bytes or str (as UTF-8).

    From an array of numpy's or anything that has a buffer or that numpy takes; lists and object arrays may
    hold bytes and str. `name` is for errors. ColumnError for other shapes and types.
    """

    def __init__(self, values, str name):
        if self.name is not None:
            raise RuntimeError("a Column is made once")
        self.name = name
        if isinstance(values, (str, bytes, bytearray)):
            raise ColumnError(f"{name}: {values!r:.40} is one value, not a column of them; put it in a list")
        if isinstance(values, tuple):
            values = list(values)
        if isinstance(values, list) and values and isinstance(values[0], (str, bytes)):
            self.ndim = 1
            self.take_texts(values, len(values), 1)
            return
        if not PyObject_CheckBuffer(values) or not self.take_buffer(values):
            self.convert(values)
        cdef int64_t row = 0
        if not fs_column_valid(&self.c, &row):
            raise ColumnError(f"{name}: row {row} holds a surrogate, which UTF-8 cannot; give bytes")

    def __dealloc__(self):
        if self.viewed:
            PyBuffer_Release(&self.view)
        free(self.slices)
        cdef block *made = self.blocks
        while made is not NULL:
            self.blocks = made.before
            free(made)
            made = self.blocks

    def __len__(self):
        return self.c.rows

    @property
    def width(self):
        """Values of a row."""
        return self.c.width

    @property
    def int_bytes(self):
        """How many bytes a signed integer needs for any of its values; those of 2^63 and more left aside."""
        cdef int size = self.c.item_bytes
        if self.c.kind in (FS_COLUMN_U8, FS_COLUMN_U16, FS_COLUMN_U32):
            size *= 2
        return size

    @property
    def is_text(self):
        return fs_column_is_text(&self.c)

    @property
    def is_real(self):
        """Whether the values are floats."""
        return fs_column_is_real(&self.c)

    def exceeds_int64(self):
        """Whether it holds an unsigned number of 2^63 or more."""
        cdef const uint8_t *at
        cdef int64_t row, item, value = 0
        if self.c.kind != FS_COLUMN_U64:
            return False
        for row in range(self.c.rows):
            for item in range(self.c.width):
                at = self.c.data + row * self.c.row_stride + item * self.c.item_stride
                memcpy(&value, at, sizeof(value))
                if value < 0:
                    return True
        return False

    cdef bint take_buffer(self, values) except -1:
        """Whether the buffer can be read as it is."""
        cdef int kind
        try:
            PyObject_GetBuffer(values, &self.view, PyBUF_STRIDES | PyBUF_FORMAT)
        except (ValueError, BufferError, TypeError):
            return False  # dates, structures and the like have none
        kind = kind_of(self.view.format, self.view.itemsize)
        if kind < 0:
            PyBuffer_Release(&self.view)
            return False
        self.viewed = True
        self.ndim = self.view.ndim
        self.check_ndim(self.ndim)
        self.c.kind = <fs_column_kind>kind
        self.c.data = <const uint8_t *>self.view.buf
        self.c.rows = self.view.shape[0]
        self.c.row_stride = self.view.strides[0]
        self.c.width = self.view.shape[1] if self.ndim == 2 else 1
        self.c.item_stride = self.view.strides[1] if self.ndim == 2 else 0
        self.c.item_bytes = self.view.itemsize
        return True

    cdef void take_texts(self, list values, int64_t rows, int64_t width) except *:
        """Strings from a list."""
        cdef int64_t i, n = len(values)
        self.make_slices(rows, width)
        if n != rows * width:
            raise ColumnError(f"{self.name}: its rows are not of one length; pad them to [n, k]")
        for i in range(n):
            if i >= PyList_GET_SIZE(values):  # keeping a long string may let the collector run, and others
                raise ColumnError(f"{self.name}: the list was changed while it was read")
            self.take_text(i, PyList_GET_ITEM(values, i))

    cdef void take_objects(self, array) except *:
        """Strings from numpy's array of objects, by the buffer protocol: its items are pointers."""
        cdef Py_buffer view
        cdef int64_t r, i, width
        cdef PyObject *item
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES | PyBUF_FORMAT)
        try:
            width = view.shape[1] if view.ndim == 2 else 1
            self.make_slices(view.shape[0], width)
            for r in range(view.shape[0]):
                for i in range(width):
                    item = (<PyObject **>(
                        <char *>view.buf + r * view.strides[0] + (i * view.strides[1] if i > 0 else 0)
                    ))[0]
                    self.take_text(r * width + i, item)
        finally:
            PyBuffer_Release(&view)

    cdef void make_slices(self, int64_t rows, int64_t width) except *:
        self.slices = <fs_slice *>malloc((rows * width + 1) * sizeof(fs_slice))
        if self.slices is NULL:
            raise MemoryError
        self.pinned = []
        self.c.kind = FS_COLUMN_SLICE
        self.c.data = <const uint8_t *>self.slices
        self.c.rows = rows
        self.c.width = width
        self.c.item_stride = sizeof(fs_slice)
        self.c.row_stride = width * <int64_t>sizeof(fs_slice)

    cdef int take_text(self, int64_t i, PyObject *item) except -1:
        """Short strings are copied while they are at hand; to keep their objects would mean to come back to
        each of them twice. Long ones are kept."""
        cdef Py_ssize_t size = 0
        cdef const char *text
        if item is not NULL and PyUnicode_Check(item):
            try:
                # For as long as the str lives: its own characters, or the UTF-8 that it keeps.
                text = PyUnicode_AsUTF8AndSize(item, &size)
            except UnicodeEncodeError:
                raise ColumnError(
                    f"{self.name}: row {i // self.c.width} holds a surrogate, which UTF-8 cannot; give bytes"
                ) from None
        elif item is not NULL and PyBytes_Check(item):
            text = PyBytes_AS_STRING(<object>item)
            size = PyBytes_GET_SIZE(<object>item)
        else:
            raise ColumnError(
                f"{self.name}: row {i // self.c.width} is "
                f"{(<object>item if item is not NULL else None)!r:.40}, not bytes or str as others; "
                f"put a string in its place"
            )
        self.slices[i].len = size
        if size > LONG:
            self.pinned.append(<object>item)
            self.slices[i].data = <const uint8_t *>text
            return 0
        if size > self.room or self.next is NULL:
            self.new_block()
        memcpy(self.next, text, size)
        self.slices[i].data = self.next
        self.next += size
        self.room -= size
        return 0

    cdef int new_block(self) except -1:
        """Small at first, so that a column of a few strings costs little."""
        cdef Py_ssize_t size = BLOCK if self.blocks is not NULL else FIRST_BLOCK
        cdef block *made = <block *>malloc(sizeof(block) + size)
        if made is NULL:
            raise MemoryError
        made.before = self.blocks
        self.blocks = made
        self.next = <uint8_t *>(made + 1)
        self.room = size
        return 0

    def check_ndim(self, int ndim):
        if ndim not in (1, 2):
            raise ColumnError(f"{self.name}: has {ndim} dimensions; a column is [n] or [n, k]")

    def convert(self, values):
        """By numpy: lists of numbers, object arrays, other byte orders, float16, bfloat16."""
        import numpy as np

        try:
            array = np.asarray(values)
        except ValueError:
            raise ColumnError(
                f"{self.name}: its rows are not of one length; pad them to [n, k]"
            ) from None
        self.check_ndim(array.ndim)
        if array.dtype.kind in "SU" and isinstance(values, list):
            # As objects: numpy would make strings of numbers among them, and cut NULs off.
            rows = values if array.ndim == 1 else [item for row in values for item in row]
            self.ndim = array.ndim
            self.take_texts(rows, array.shape[0], array.shape[1] if array.ndim == 2 else 1)
            return
        if array.dtype.kind == "T":  # numpy's strings of any length
            array = array.astype(object)
        if array.dtype.kind == "O":
            if array.size == 0 or isinstance(array.flat[0], (str, bytes)):
                self.ndim = array.ndim
                self.take_objects(array)
                return
            raise ColumnError(
                f"{self.name}: holds objects such as {array.flat[0]!r:.40}; "
                f"give numbers with a dtype of their own, or bytes or str"
            )
        target = array.dtype.newbyteorder("=")
        if array.dtype.kind == "f" and array.dtype.itemsize == 2:
            target = np.dtype(np.float32)
        elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
            target = np.dtype(np.float64)
        elif array.dtype.name == "bfloat16":
            target = np.dtype(np.float32)
        if not self.take_buffer(array.astype(target, copy=False)):
            raise ColumnError(
                f"{self.name}: {array.dtype} is no type of features; give numbers, bytes or str"
            )


