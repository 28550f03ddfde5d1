"""Arrays out of what a JSON parser gave: nested lists of numbers, and rows of objects as columns.

One pass over the lists. Strict, as TensorFlow Serving's REST API is: where a value does not fit, the answer is
None, and which value it was, whoever wants to know finds out (fastserve/gateway/json_reasons.py). Used by the
gateway, on its loop; holds the GIL, since the lists are Python's.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(PyObject *list, Py_ssize_t i)
    Py_ssize_t PyList_GET_SIZE(PyObject *list)
    bint PyList_CheckExact(PyObject *value)
    bint PyFloat_CheckExact(PyObject *value)
    double PyFloat_AS_DOUBLE(PyObject *value)
    bint PyLong_CheckExact(PyObject *value)
    long long PyLong_AsLongLongAndOverflow(PyObject *value, int *overflow)
    unsigned long long PyLong_AsUnsignedLongLong(PyObject *value)
    PyObject *PyErr_Occurred()
    void PyErr_Clear()
    PyObject *Py_True
    PyObject *Py_False


cdef enum:
    MAX_DIMS = 32

cdef enum Kind:
    FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BOOL

# Whole numbers that a float of that size has exactly.
cdef int64_t FLOAT32_WHOLE = (1 << 24) - 1
cdef int64_t FLOAT64_WHOLE = ((<int64_t>1) << 53) - 1

cdef dict KINDS = {
    "float32": FLOAT32, "float64": FLOAT64, "int8": INT8, "int16": INT16, "int32": INT32, "int64": INT64,
    "uint8": UINT8, "uint16": UINT16, "uint32": UINT32, "uint64": UINT64, "bool": BOOL,
}


cdef struct Target:
    Kind kind
    int ndim
    Py_ssize_t shape[MAX_DIMS]
    char *at


@cython.final
cdef class _Writable:
    """A buffer that is let go of whatever happens."""
    cdef Py_buffer view

    def __cinit__(self, array):
        PyObject_GetBuffer(array, &self.view, PyBUF_WRITABLE | PyBUF_SIMPLE)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


def numbers(value, str dtype not None, Py_ssize_t most):
    """`value`, a number or bool or lists of these in lists, as an array of `dtype`, a name of numpy's. None
    where that cannot be, or there would be more than `most` elements."""
    import numpy as np

    cdef Target target
    cdef Py_ssize_t elements = 1
    cdef int i
    found = KINDS.get(dtype)
    if found is None:
        return None
    target.kind = found
    if not shape_of(<PyObject *>value, &target):
        return None
    for i in range(target.ndim):
        if target.shape[i] != 0 and elements > most // target.shape[i]:
            return None
        elements *= target.shape[i]
    array = np.empty([target.shape[i] for i in range(target.ndim)], dtype)
    cdef _Writable room = _Writable(array)
    target.at = <char *>room.view.buf
    return array if fill(<PyObject *>value, 0, &target) else None


def columns(list rows not None, tuple names not None):
    """What each row has by each of `names`: a list for each. None where a row is no dict with just these."""
    cdef list made = [[] for _ in names]
    cdef Py_ssize_t count = len(names), i
    cdef dict values
    for row in rows:
        if type(row) is not dict:
            return None
        values = <dict>row
        if len(values) != count:
            return None
        for i in range(count):
            item = values.get(names[i], values)
            if item is values:
                return None
            (<list>made[i]).append(item)
    return made


cdef bint shape_of(PyObject *value, Target *target) noexcept:
    """The lengths of the first list at each level. False: too many levels."""
    target.ndim = 0
    while PyList_CheckExact(value):
        if target.ndim == MAX_DIMS:
            return False
        target.shape[target.ndim] = PyList_GET_SIZE(value)
        target.ndim += 1
        if PyList_GET_SIZE(value) == 0:
            break
        value = PyList_GET_ITEM(value, 0)
    return True


cdef bint fill(PyObject *value, int level, Target *target) noexcept:
    """Writes `value` and moves on. False where it is not of the shape, or holds something else."""
    cdef Py_ssize_t i, n
    if level == target.ndim:
        return put(value, target)
    if not PyList_CheckExact(value):
        return False
    n = PyList_GET_SIZE(value)
    if n != target.shape[level]:
        return False
    if level + 1 == target.ndim:
        for i in range(n):
            if not put(PyList_GET_ITEM(value, i), target):
                return False
        return True
    for i in range(n):
        if not fill(PyList_GET_ITEM(value, i), level + 1, target):
            return False
    return True


cdef inline bint put(PyObject *value, Target *target) noexcept:
    cdef Kind kind = target.kind
    cdef double real
    cdef int64_t whole = 0
    cdef uint64_t large
    cdef int overflow = 0
    if kind == BOOL:
        if value != Py_True and value != Py_False:
            return False
        (<uint8_t *>target.at)[0] = value == Py_True
        target.at += 1
        return True
    if PyFloat_CheckExact(value):
        real = PyFloat_AS_DOUBLE(value)
        if kind == FLOAT32:
            # What is rounded to the largest float is none that it has not.
            if not isfinite(<float>real) and isfinite(real):
                return False
            (<float *>target.at)[0] = <float>real
            target.at += 4
            return True
        if kind == FLOAT64:
            (<double *>target.at)[0] = real
            target.at += 8
            return True
        return False
    if not PyLong_CheckExact(value):
        return False
    whole = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow != 0:
        if kind != UINT64 or overflow < 0:
            return False
        large = PyLong_AsUnsignedLongLong(value)
        if large == <uint64_t>-1 and PyErr_Occurred() is not NULL:
            PyErr_Clear()
            return False
        (<uint64_t *>target.at)[0] = large
        target.at += 8
        return True
    if kind == FLOAT32:
        if whole > FLOAT32_WHOLE or whole < -FLOAT32_WHOLE:
            return False
        (<float *>target.at)[0] = <float>whole
        target.at += 4
    elif kind == FLOAT64:
        if whole > FLOAT64_WHOLE or whole < -FLOAT64_WHOLE:
            return False
        (<double *>target.at)[0] = <double>whole
        target.at += 8
    elif kind == INT64:
        (<int64_t *>target.at)[0] = whole
        target.at += 8
    elif kind == INT32:
        if whole != <int32_t>whole:
            return False
        (<int32_t *>target.at)[0] = <int32_t>whole
        target.at += 4
    elif kind == INT16:
        if whole != <int16_t>whole:
            return False
        (<int16_t *>target.at)[0] = <int16_t>whole
        target.at += 2
    elif kind == INT8:
        if whole != <int8_t>whole:
            return False
        (<int8_t *>target.at)[0] = <int8_t>whole
        target.at += 1
    elif kind == UINT64:
        if whole < 0:
            return False
        (<uint64_t *>target.at)[0] = <uint64_t>whole
        target.at += 8
    elif kind == UINT32:
        if whole != <int64_t><uint32_t>whole:
            return False
        (<uint32_t *>target.at)[0] = <uint32_t>whole
        target.at += 4
    elif kind == UINT16:
        if whole != <int64_t><uint16_t>whole:
            return False
        (<uint16_t *>target.at)[0] = <uint16_t>whole
        target.at += 2
    else:
        if whole != <int64_t><uint8_t>whole:
            return False
        (<uint8_t *>target.at)[0] = <uint8_t>whole
        target.at += 1
    return True
