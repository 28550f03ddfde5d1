"""tf.Examples from columns, and the replies of Classify and Regress: csrc/{example,infer_reply}.h for Python.

Examples are measured and written without the GIL. Any thread; the arguments may be shared between them.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport INT32_MAX, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from fastserve._native.c_example cimport (
    fs_class,
    fs_classes_count,
    fs_classes_read,
    fs_example_size,
    fs_example_write,
    fs_examples_measure,
    fs_examples_write,
    fs_feature,
    fs_regressions_count,
    fs_regressions_read,
)
from fastserve._native.c_status cimport fs_slice
from fastserve._native.columns cimport Column

from fastserve._native.columns import ColumnError


cdef extern from "Python.h":
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)


cdef extern from "wire.h" nogil:
    size_t fs_wire_bytes_size(uint32_t number, size_t len) noexcept
    uint8_t *fs_wire_put_head(uint8_t *dst, uint32_t number, size_t len) noexcept


TOO_LONG = "the examples pass 2 GiB, the limit of a message; send them in several requests"

CHANGED = "an array was written to while the examples were made of it; give a copy"


class MalformedError(ValueError):
    """The bytes are not the reply that they should be."""


@cython.final
cdef class Features:
    """The features of `rows` examples, from (name, Column, offsets, present) of each.

    With `offsets`, int64 [rows + 1], example r has the Column's rows offsets[r] to offsets[r + 1]; with
    `present`, bool [rows], it has the feature at all where that is true. None: row r, and always. ColumnError
    where they do not fit together, or where the examples pass 2 GiB.
    """

    cdef fs_feature *items
    cdef Py_buffer *views
    cdef uint32_t n
    cdef uint32_t n_views
    cdef readonly int64_t rows
    cdef uint32_t *sizes
    cdef size_t bytes
    cdef list pinned

    def __init__(self, list features, int64_t rows):
        cdef Column column
        cdef bytes name
        if self.pinned is not None:
            raise RuntimeError("Features are made once")
        if rows < 0:
            raise ValueError(f"{rows} rows")
        self.pinned = []
        self.rows = rows
        self.items = <fs_feature *>calloc(len(features) + 1, sizeof(fs_feature))
        self.views = <Py_buffer *>calloc(2 * len(features) + 1, sizeof(Py_buffer))
        self.sizes = <uint32_t *>malloc((rows + 1) * sizeof(uint32_t))
        if self.items is NULL or self.views is NULL or self.sizes is NULL:
            raise MemoryError
        for text, column, offsets, present in features:
            name = text.encode()
            self.pinned.append((name, column))
            self.items[self.n].name.data = <const uint8_t *>PyBytes_AS_STRING(name)
            self.items[self.n].name.len = PyBytes_GET_SIZE(name)
            self.items[self.n].column = column.c
            if offsets is not None:
                self.items[self.n].offsets = self.take_offsets(offsets, column)
            elif column.c.rows != rows:
                raise ColumnError(f"{text}: has {column.c.rows} rows where other columns have {rows}")
            if present is not None:
                self.items[self.n].present = <const uint8_t *>self.take(present, rows)
            self.n += 1
        self.measure()

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.items)
        free(self.sizes)

    cdef void *take(self, array, int64_t size) except NULL:
        """The memory of `array`, which must have `size` bytes."""
        cdef Py_buffer *view = &self.views[self.n_views]
        PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        self.n_views += 1
        if view.len != size:
            raise ValueError(f"an array of {view.len} bytes where {size} are needed")
        # The caller must not be given NULL for nothing.
        return view.buf if view.buf is not NULL else <void *>self.views

    cdef const int64_t *take_offsets(self, offsets, Column column) except NULL:
        cdef const int64_t *at = <const int64_t *>self.take(offsets, (self.rows + 1) * sizeof(int64_t))
        cdef int64_t r
        cdef bint good = at[0] >= 0 and at[self.rows] <= column.c.rows and column.c.width == 1
        for r in range(self.rows):
            good = good and at[r] <= at[r + 1]
        if not good:
            raise ColumnError(
                f"{column.name}: the offsets do not run from 0 up to its {column.c.rows} values"
            )
        return at

    cdef int measure(self) except -1:
        cdef int rc
        with nogil:
            rc = fs_examples_measure(self.items, self.n, 0, self.rows, self.sizes, &self.bytes)
        if rc != 0:
            raise ColumnError(TOO_LONG)
        return 0

    def encode_input(self, bytes context=None):
        """A tensorflow.serving.Input: an ExampleList, or where `context`, an Example, is given, an
        ExampleListWithContext."""
        cdef size_t context_size = 0, inner
        cdef uint32_t number = 1
        cdef uint8_t *at
        cdef bytes out
        if context is not None:
            number = 2
            context_size = fs_wire_bytes_size(2, PyBytes_GET_SIZE(context))
        inner = self.bytes + context_size
        if fs_wire_bytes_size(number, inner) > <size_t>INT32_MAX:
            raise ColumnError(TOO_LONG)
        out = PyBytes_FromStringAndSize(NULL, fs_wire_bytes_size(number, inner))
        at = <uint8_t *>PyBytes_AS_STRING(out)
        with nogil:
            at = fs_wire_put_head(at, number, inner)
            at = fs_examples_write(self.items, self.n, 0, self.rows, self.sizes, at)
        if at is NULL:
            raise ColumnError(CHANGED)
        if context is not None:
            at = fs_wire_put_head(at, 2, PyBytes_GET_SIZE(context))
            memcpy(at, PyBytes_AS_STRING(context), PyBytes_GET_SIZE(context))
        return out

    def encode_each(self):
        """A list of bytes, each a tf.Example."""
        cdef int64_t row
        cdef bytes out
        cdef uint8_t *at
        cdef list examples = []
        for row in range(self.rows):
            out = PyBytes_FromStringAndSize(NULL, fs_example_size(self.sizes[row]))
            at = <uint8_t *>PyBytes_AS_STRING(out)
            if fs_example_write(self.items, self.n, row, self.sizes[row], at) is NULL:
                raise ColumnError(CHANGED)
            examples.append(out)
        return examples


cdef fs_slice slice_of(bytes data):
    """Points into `data`, which the caller keeps."""
    cdef fs_slice s
    s.data = <const uint8_t *>PyBytes_AS_STRING(data)
    s.len = PyBytes_GET_SIZE(data)
    return s


def regression_values(bytes reply):
    """The values of a RegressionResponse: a numpy array, float32 [n]. MalformedError."""
    import numpy as np

    cdef fs_slice data = slice_of(reply)
    cdef int64_t n
    cdef Py_buffer view
    with nogil:
        n = fs_regressions_count(data)
    if n < 0:
        raise MalformedError("not a RegressionResponse")
    values = np.empty(n, np.float32)
    if n == 0:
        return values
    PyObject_GetBuffer(values, &view, PyBUF_WRITABLE | PyBUF_SIMPLE)
    with nogil:
        fs_regressions_read(data, <float *>view.buf)
    PyBuffer_Release(&view)
    return values


def classification_rows(bytes reply):
    """For each example of a ClassificationResponse a list of (label, score). MalformedError."""
    cdef fs_slice data = slice_of(reply)
    cdef int64_t examples = 0, classes = 0, row, i, at = 0
    cdef int64_t *counts = NULL
    cdef fs_class *found = NULL
    cdef bint good
    cdef list rows = [], own
    cdef dict labels = {}
    cdef bytes key
    with nogil:
        good = fs_classes_count(data, &examples, &classes)
    if not good:
        raise MalformedError("not a ClassificationResponse")
    try:
        counts = <int64_t *>malloc((examples + 1) * sizeof(int64_t))
        found = <fs_class *>malloc((classes + 1) * sizeof(fs_class))
        if counts is NULL or found is NULL:
            raise MemoryError
        with nogil:
            fs_classes_read(data, counts, found)
        for row in range(examples):
            own = []
            for i in range(at, at + counts[row]):
                key = PyBytes_FromStringAndSize(<const char *>found[i].label.data, found[i].label.len)
                label = labels.get(key)
                if label is None:  # a model has few labels, and rows share them
                    label = PyUnicode_DecodeUTF8(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), NULL)
                    labels[key] = label
                own.append((label, <double>found[i].score))
            at += counts[row]
            rows.append(own)
        return rows
    finally:
        free(counts)
        free(found)
