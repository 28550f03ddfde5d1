"""Arrays to PredictRequest, PredictResponse to arrays: csrc/predict_call.h for Python.

A request is pieces: an array goes as it lies in its own memory, through the buffer protocol, and stays pinned
for as long as the request lives. A reply's arrays lie over the reply's own bytes. What must be converted is:
arrays that are not contiguous or not in this machine's byte order, strings, lists and scalars (by numpy's
rules); on the way back varints, short lists of values and strings. Any thread, under the GIL. numpy is
imported by the first call that needs it, ml_dtypes only by a reply that has such a type.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport INT64_MAX, int32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memmove

from fastserve._native.c_predict cimport FS_VERSION_LABEL, FS_VERSION_LATEST, FS_VERSION_NUMBER
from fastserve._native.c_predict_call cimport (
    FS_DT_BOOL,
    FS_DT_COMPLEX64,
    FS_DT_COMPLEX128,
    FS_DT_DOUBLE,
    FS_DT_FLOAT,
    FS_DT_HALF,
    FS_DT_INT8,
    FS_DT_INT16,
    FS_DT_INT32,
    FS_DT_INT64,
    FS_DT_UINT8,
    FS_DT_UINT16,
    FS_DT_UINT32,
    FS_DT_UINT64,
    fs_arena_alloc,
    fs_predict_call_write,
    fs_predict_reply,
    fs_predict_reply_parse,
    fs_slab_alloc,
    fs_slab_free,
    fs_tensor_view_in_place,
    fs_tensor_view_string_bytes,
)
from fastserve._native.c_slab cimport fs_arena_clear, fs_arena_init, fs_slab_new, fs_slab_release
from fastserve._native.c_status cimport FS_INVALID_ARGUMENT, FS_RESOURCE_EXHAUSTED
from fastserve._native.c_tensor cimport (
    FS_DT_STRING,
    FS_MAX_DIMS,
    fs_dtype_name,
    fs_dtype_size,
    fs_tensor_view,
    fs_tensor_view_decode,
    fs_tensor_view_parse,
)

from fastserve.errors import FastServeError


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    str PyUnicode_DecodeUTF8(const char *text, Py_ssize_t size, const char *errors)


# What the outputs of one reply may take beyond the reply itself: a few bytes may claim any shape.
DECODE_LIMIT_BYTES = 1 << 30

# Kept by a Memory for the next request.
cdef size_t CACHE_BYTES = 4 << 20

# From here on decoding lets other threads run.
cdef int64_t ALONE_BELOW = 1 << 16

# numpy's dtypes by TensorFlow's numbers; those that are not numpy's own come from ml_dtypes.
_NUMPY_NAMES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 8: "complex64", 9: "int64",
    10: "bool", 11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16", 17: "uint16",
    18: "complex128", 19: "float16", 22: "uint32", 23: "uint64",
}
_ML_NAMES = {
    14: "bfloat16", 24: "float8_e5m2", 25: "float8_e4m3fn", 26: "float8_e4m3fnuz", 27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz", 29: "int4", 30: "uint4", 31: "int2", 32: "uint2", 33: "float4_e2m1fn",
}
# Those that the buffer protocol has no letters for, by the names of their dtypes.
_BY_NAME = {name: number for number, name in _ML_NAMES.items()}
# TensorFlow's quantized dtypes are numpy structures of one field, named so.
_QUANTIZED = {("qint8",): 11, ("quint8",): 12, ("qint32",): 13, ("qint16",): 15, ("quint16",): 16}

cdef object np = None
cdef dict numpy_dtypes = {}


class ReplyError(FastServeError):
    """A server's reply that is none, or that claims more than it may."""


cdef object numpy():
    global np
    if np is None:
        import numpy as module

        np = module
    return np


cdef object numpy_dtype(int number, str alias):
    """The numpy dtype of an output. ReplyError for what has none here."""
    found = numpy_dtypes.get(number)
    if found is not None:
        return found
    name = _NUMPY_NAMES.get(number)
    if name is not None:
        found = numpy().dtype(name)
    elif number in _ML_NAMES:
        name = _ML_NAMES[number]
        try:
            import ml_dtypes

            found = numpy().dtype(getattr(ml_dtypes, name))
        except (ImportError, AttributeError):
            raise ReplyError(
                f"output {alias!r} is {name}, which numpy does not have: "
                f"install a version of ml_dtypes that does, or do not ask for this output"
            ) from None
    else:
        raise ReplyError(f"output {alias!r} is of type {fs_dtype_name(number).decode()}, which has no array")
    numpy_dtypes[number] = found
    return found


cdef fs_slice text_slice(object text) except *:
    """Points into `text`, which the caller keeps. UnicodeEncodeError for lone surrogates."""
    cdef Py_ssize_t size = 0
    cdef fs_slice s
    s.data = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &size)
    s.len = size
    return s


cdef str slice_text(fs_slice s):
    return PyUnicode_DecodeUTF8(<const char *>s.data, s.len, NULL) if s.len > 0 else ""


@cython.final
cdef class Memory:
    def __cinit__(self):
        self.slab = fs_slab_new(CACHE_BYTES)
        if self.slab is NULL:
            raise MemoryError

    def __dealloc__(self):
        fs_slab_release(self.slab)


cdef Memory shared = None  # of the functions that are no client's


cdef Memory shared_memory():
    global shared
    if shared is None:
        shared = Memory()
    return shared


# ---- which model, and which outputs ------------------------------------------------------------------------


@cython.final
@cython.no_gc  # holds str only
cdef class Spec:
    def __cinit__(self, model, version=None, label=None, signature=None, outputs=None):
        cdef fs_model_ref *m = &self.model
        if not isinstance(model, str):
            raise TypeError(f"model is the name that the server has for it, not {type(model).__name__}")
        if not model:
            raise ValueError("model is empty: it is the name that the server has for the model")
        if version is not None and label is not None:
            raise ValueError("version or label, not both")
        names = _output_names(outputs)
        self.keep = (model, label, signature, names)
        m.present = True
        m.name = text_slice(model)
        m.choice = FS_VERSION_LATEST
        if version is not None:
            if isinstance(version, bool) or not hasattr(version, "__index__"):
                raise TypeError(f"version is a number, not {type(version).__name__}")
            number = version.__index__()
            if not 0 <= number <= INT64_MAX:
                raise ValueError(f"version {number}: versions are numbers from 0 to 2^63 - 1")
            m.choice = FS_VERSION_NUMBER
            m.version = number
        elif label is not None:
            if not isinstance(label, str):
                raise TypeError(f"label is text, not {type(label).__name__}")
            m.choice = FS_VERSION_LABEL
            m.label = text_slice(label)
        if signature is not None:
            if not isinstance(signature, str):
                raise TypeError(f"signature is the name of one, not {type(signature).__name__}")
            m.signature = text_slice(signature)
        if names:
            self.filter = <fs_slice *>fs_slab_alloc(shared_memory().slab, len(names) * sizeof(fs_slice))
            if self.filter is NULL:
                raise MemoryError
            for name in names:
                self.filter[self.n_filter] = text_slice(name)
                self.n_filter += 1

    def __dealloc__(self):
        fs_slab_free(self.filter)


def _output_names(outputs):
    if outputs is None:
        return ()
    if isinstance(outputs, str):
        raise TypeError(f"outputs is a list of names: [{outputs!r}]")
    names = tuple(outputs)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"outputs is a list of names, and {type(name).__name__} is none")
    if len(set(names)) != len(names):
        raise ValueError("outputs names one output twice")
    return names


# ---- inputs ------------------------------------------------------------------------------------------------


cdef int dtype_of(const char *format, Py_ssize_t size) noexcept nogil:
    """TensorFlow's number for a buffer's items; -1: to be converted first, or none."""
    if format is NULL:
        return FS_DT_UINT8
    if format[0] == b"@" or format[0] == b"=" or format[0] == b"<":
        format += 1
    cdef char kind = format[0]
    if kind == b"Z":
        if format[1] == b"f" and format[2] == 0 and size == 8:
            return FS_DT_COMPLEX64
        return FS_DT_COMPLEX128 if format[1] == b"d" and format[2] == 0 and size == 16 else -1
    if kind == 0 or format[1] != 0:
        return -1
    if kind == b"f":
        return FS_DT_FLOAT if size == 4 else -1
    if kind == b"d":
        return FS_DT_DOUBLE if size == 8 else -1
    if kind == b"e":
        return FS_DT_HALF if size == 2 else -1
    if kind == b"?":
        return FS_DT_BOOL if size == 1 else -1
    if kind == b"b" or kind == b"h" or kind == b"i" or kind == b"l" or kind == b"q":
        return (FS_DT_INT64 if size == 8 else FS_DT_INT32 if size == 4 else FS_DT_INT16 if size == 2
                else FS_DT_INT8 if size == 1 else -1)
    if kind == b"B" or kind == b"H" or kind == b"I" or kind == b"L" or kind == b"Q":
        return (FS_DT_UINT64 if size == 8 else FS_DT_UINT32 if size == 4 else FS_DT_UINT16 if size == 2
                else FS_DT_UINT8 if size == 1 else -1)
    return -1


def _normal(str alias, value):
    """`value` as a contiguous array that can travel, and TensorFlow's number for it. Of strings the dtype is
    'S', 'U' or object."""
    module = numpy()
    if isinstance(value, (str, bytes)):
        array = module.empty((), dtype=object)
        array[()] = value
        return array, FS_DT_STRING
    if value is None:
        raise TypeError(f"input {alias!r} is None: it needs an array")
    first = value
    while isinstance(first, (list, tuple)) and len(first) > 0:
        first = first[0]
    try:
        if first is not value and isinstance(first, (str, bytes)):
            array = module.asarray(value, dtype=object)
        else:
            array = module.asarray(value)
            if array.dtype.kind in "SU" and not hasattr(value, "dtype"):
                array = module.asarray(value, dtype=object)  # or numpy would make strings of numbers beside strings
    except ValueError as error:
        raise ValueError(f"input {alias!r} cannot be an array: {error}") from None
    dtype = array.dtype
    number = _BY_NAME.get(dtype.name, 0) or _QUANTIZED.get(dtype.names, 0)
    if number:
        stored = module.dtype(f"u{fs_dtype_size(number)}")
        if dtype.itemsize != stored.itemsize:
            raise TypeError(f"input {alias!r}: {dtype.name} of {dtype.itemsize} bytes cannot be sent")
        return module.asarray(array, order="C").view(stored), number
    kind = dtype.kind
    if kind in "SU":
        return module.asarray(array, dtype=dtype.newbyteorder("="), order="C"), FS_DT_STRING
    if kind in "OT":
        return module.asarray(array, dtype=object, order="C"), FS_DT_STRING
    if kind in "biufc":
        array = module.asarray(array, dtype=dtype.newbyteorder("="), order="C")
        for number, name in _NUMPY_NAMES.items():
            if name == array.dtype.name:
                return array, number
    raise TypeError(
        f"input {alias!r} is an array of {dtype}, which TensorFlow Serving does not know: "
        f"numbers, bool, bytes and str can be sent"
    )


@cython.final
@cython.no_gc  # what it keeps are arrays, which must stay as long as the tensors point to them
cdef class Inputs:
    def __cinit__(self, Memory memory not None, inputs):
        self.memory = memory
        fs_arena_init(&self.arena, memory.slab)
        self.keep = []
        self.rows = -1
        if not isinstance(inputs, dict):
            if not hasattr(inputs, "keys"):
                raise TypeError(
                    f"inputs maps names to arrays, such as {{'x': array}}; this is {type(inputs).__name__}"
                )
            inputs = dict(inputs)
        cdef list items = list((<dict>inputs).items())
        cdef size_t n = len(items)
        self.tensors = <fs_tensor *>fs_arena_alloc(&self.arena, n * sizeof(fs_tensor))
        self.inputs = <fs_call_input *>fs_arena_alloc(&self.arena, n * sizeof(fs_call_input))
        self.views = <Py_buffer *>fs_arena_alloc(&self.arena, n * sizeof(Py_buffer))
        if self.tensors is NULL or self.inputs is NULL or self.views is NULL:
            raise MemoryError
        for alias, value in items:
            if not isinstance(alias, str):
                raise TypeError(f"inputs maps names to arrays, and {alias!r} is no name")
            self.add(str(alias), value)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        fs_arena_clear(&self.arena)

    cdef Py_buffer *pin(self, object value, int flags) except NULL:
        cdef Py_buffer *view = &self.views[self.n_views]
        PyObject_GetBuffer(value, view, flags)
        self.n_views += 1
        return view

    cdef int add(self, str alias, object value) except -1:
        cdef fs_tensor *tensor = &self.tensors[self.n]
        cdef fs_call_input *input = &self.inputs[self.n]
        cdef Py_buffer *view
        cdef bint ready = False
        cdef int dtype
        self.keep.append(alias)
        input.alias = text_slice(alias)
        input.tensor = tensor
        if PyObject_CheckBuffer(value) and not isinstance(value, bytes):
            try:
                view = self.pin(value, PyBUF_FORMAT | PyBUF_STRIDES)
            except (BufferError, ValueError):
                view = NULL  # a dtype without letters
            if view is not NULL:
                dtype = dtype_of(view.format, view.itemsize)
                if dtype >= 0 and PyBuffer_IsContiguous(view, b"C"):
                    tensor.dtype = dtype
                    tensor.data = view.buf
                    tensor.bytes = view.len
                    self.set_shape(alias, tensor, view.ndim, view.shape)
                    ready = True
                else:
                    self.n_views -= 1
                    PyBuffer_Release(view)
        if not ready:
            self.add_normal(alias, value, tensor)
        if self.n == 0:
            self.rows = tensor.dims[0] if tensor.ndim > 0 else -1
        elif tensor.ndim == 0 or tensor.dims[0] != self.rows:
            self.rows = -1
        self.n += 1
        return 0

    cdef int set_shape(self, str alias, fs_tensor *tensor, int ndim, const Py_ssize_t *shape) except -1:
        cdef int i
        cdef int64_t *dims = <int64_t *>fs_arena_alloc(&self.arena, ndim * sizeof(int64_t))
        if dims is NULL:
            raise MemoryError
        tensor.ndim = ndim
        tensor.dims = dims
        tensor.elements = 1
        for i in range(ndim):
            dims[i] = shape[i]
            tensor.elements *= shape[i]
        return 0

    cdef int add_normal(self, str alias, object value, fs_tensor *tensor) except -1:
        cdef Py_buffer *view
        array, number = _normal(alias, value)
        tensor.dtype = number
        if number != FS_DT_STRING:
            view = self.pin(array, PyBUF_STRIDES)
            tensor.data = view.buf
            tensor.bytes = view.len
            return self.set_shape(alias, tensor, view.ndim, view.shape)
        if array.dtype.kind == "O":
            return self.add_objects(alias, array, tensor)
        return self.add_texts(alias, array, tensor)

    cdef int add_objects(self, str alias, object array, fs_tensor *tensor) except -1:
        cdef Py_buffer *view = self.pin(array, PyBUF_FORMAT | PyBUF_STRIDES)
        cdef PyObject **items = <PyObject **>view.buf
        cdef fs_slice *strings
        cdef int64_t i
        self.set_shape(alias, tensor, view.ndim, view.shape)
        strings = <fs_slice *>fs_arena_alloc(&self.arena, tensor.elements * sizeof(fs_slice))
        if strings is NULL:
            raise MemoryError
        for i in range(tensor.elements):
            item = <object>items[i] if items[i] is not NULL else None
            if isinstance(item, bytes):
                strings[i].data = <const uint8_t *>PyBytes_AS_STRING(item)
                strings[i].len = PyBytes_GET_SIZE(item)
            elif isinstance(item, str):
                try:
                    strings[i] = text_slice(item)
                except UnicodeEncodeError as error:
                    raise ValueError(f"input {alias!r}, element {i}: {error}") from None
            else:
                raise TypeError(
                    f"input {alias!r}, element {i} is {type(item).__name__}: "
                    f"an array of objects may hold bytes and str, and numbers need an array of a numeric type"
                )
            self.keep.append(item)  # the array may change
        tensor.data = strings
        tensor.bytes = tensor.elements * sizeof(fs_slice)
        return 0

    cdef int add_texts(self, str alias, object array, fs_tensor *tensor) except -1:
        """Strings of one width, filled up with zeros that do not count."""
        cdef bint wide = array.dtype.kind == "U"
        cdef Py_buffer *view = self.pin(array, PyBUF_FORMAT | PyBUF_STRIDES)
        cdef size_t width = view.itemsize
        cdef const uint8_t *at = <const uint8_t *>view.buf
        cdef fs_slice *strings
        cdef uint8_t *room = NULL
        cdef uint8_t *end
        cdef size_t length, total = 0
        cdef int64_t i
        self.set_shape(alias, tensor, view.ndim, view.shape)
        strings = <fs_slice *>fs_arena_alloc(&self.arena, tensor.elements * sizeof(fs_slice))
        if strings is NULL:
            raise MemoryError
        if wide:
            for i in range(tensor.elements):
                length = utf8_size(<const uint32_t *>(at + i * width), width // 4)
                if length == <size_t>-1:
                    raise ValueError(f"input {alias!r}, element {i} holds half a surrogate pair, which is no text")
                total += length
            room = <uint8_t *>fs_arena_alloc(&self.arena, total)
            if room is NULL:
                raise MemoryError
        for i in range(tensor.elements):
            if wide:
                end = utf8_write(<const uint32_t *>at, width // 4, room)
                strings[i].data = room
                strings[i].len = end - room
                room = end
            else:
                length = width
                while length > 0 and at[length - 1] == 0:
                    length -= 1
                strings[i].data = at
                strings[i].len = length
            at += width
        tensor.data = strings
        tensor.bytes = tensor.elements * sizeof(fs_slice)
        return 0


cdef size_t text_length(const uint32_t *text, size_t width) noexcept nogil:
    while width > 0 and text[width - 1] == 0:
        width -= 1
    return width


cdef size_t utf8_size(const uint32_t *text, size_t width) noexcept nogil:
    """Of the text as UTF-8; SIZE_MAX where there is none."""
    cdef size_t i, size = 0
    for i in range(text_length(text, width)):
        if 0xD800 <= text[i] < 0xE000 or text[i] > 0x10FFFF:
            return <size_t>-1
        size += 1 if text[i] < 0x80 else 2 if text[i] < 0x800 else 3 if text[i] < 0x10000 else 4
    return size


cdef uint8_t *utf8_write(const uint32_t *text, size_t width, uint8_t *dst) noexcept nogil:
    cdef size_t i
    cdef uint32_t c
    for i in range(text_length(text, width)):
        c = text[i]
        if c < 0x80:
            dst[0] = <uint8_t>c
            dst += 1
            continue
        if c < 0x800:
            dst[0] = <uint8_t>(0xC0 | c >> 6)
            dst += 1
        else:
            if c < 0x10000:
                dst[0] = <uint8_t>(0xE0 | c >> 12)
                dst += 1
            else:
                dst[0] = <uint8_t>(0xF0 | c >> 18)
                dst[1] = <uint8_t>(0x80 | c >> 12 & 0x3F)
                dst += 2
            dst[0] = <uint8_t>(0x80 | c >> 6 & 0x3F)
            dst += 1
        dst[0] = <uint8_t>(0x80 | c & 0x3F)
        dst += 1
    return dst


# ---- the request -------------------------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Request:
    def __dealloc__(self):
        fs_arena_clear(&self.arena)


cdef Request new_request(Spec spec, Inputs inputs, int64_t first_row, int64_t rows):
    """Rows [first_row, first_row + rows) of each input that has rows, all for rows < 0."""
    cdef Request request = Request.__new__(Request)
    cdef uint32_t i
    cdef int rc
    request.inputs = inputs
    fs_arena_init(&request.arena, inputs.memory.slab)
    for i in range(inputs.n):
        inputs.inputs[i].first_row = first_row
        inputs.inputs[i].rows = rows
    rc = fs_predict_call_write(&request.arena, &spec.model, inputs.inputs, inputs.n, spec.filter, spec.n_filter,
                               &request.pieces, &request.n_pieces, &request.bytes)
    if rc == 0:
        return request
    if rc == -FS_INVALID_ARGUMENT:
        raise TypeError("an input is of a type that cannot be sent")
    if payload_bytes(inputs) >> 30 == 0:
        raise MemoryError
    raise ValueError("the request would pass 2 GiB, the most that a message may have: send fewer rows at once")


cdef uint64_t payload_bytes(Inputs inputs):
    cdef uint64_t total = 0
    cdef uint32_t i
    cdef int64_t k
    cdef fs_slice *strings
    for i in range(inputs.n):
        total += inputs.tensors[i].bytes
        if inputs.tensors[i].dtype == FS_DT_STRING:
            strings = <fs_slice *>inputs.tensors[i].data
            for k in range(inputs.tensors[i].elements):
                total += strings[k].len
    return total


cdef bytes join(const fs_slice *pieces, uint32_t n, size_t total):
    out = PyBytes_FromStringAndSize(NULL, total)
    cdef char *dst = PyBytes_AS_STRING(out)
    cdef uint32_t i
    for i in range(n):
        memcpy(dst, pieces[i].data, pieces[i].len)
        dst += pieces[i].len
    return out


def encode_request(model, inputs, version=None, label=None, signature=None, outputs=None, first_row=0, rows=None):
    """A PredictRequest's bytes: rows [first_row, first_row + rows) of each input, by default all. Inputs
    without dimensions go whole. Raises TypeError and ValueError as `Client.predict` does."""
    cdef Inputs native = Inputs(shared_memory(), inputs)
    cdef Request request
    if rows is not None and not (native.rows >= 0 and 0 <= first_row and 0 <= rows <= native.rows - first_row):
        raise ValueError(f"rows {first_row} to {first_row + rows} are not in every input")
    request = new_request(Spec(model, version, label, signature, outputs), native, first_row,
                          -1 if rows is None else rows)
    return join(request.pieces, request.n_pieces, request.bytes)


# ---- the reply ---------------------------------------------------------------------------------------------


@cython.final
@cython.freelist(16)
cdef class Block:
    def __dealloc__(self):
        fs_slab_free(self.data)

    def __len__(self):
        return self.len

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.len, 0, flags)


cdef Block new_block(uint8_t *data, size_t len):
    """Takes the slab block over."""
    cdef Block block = Block.__new__(Block)
    block.data = data
    block.len = len
    return block


cdef Block allocate_block(Memory memory, size_t len):
    cdef uint8_t *data = <uint8_t *>fs_slab_alloc(memory.slab, len)
    if data is NULL:
        raise MemoryError
    return new_block(data, len)


cdef tuple shape_of(const fs_tensor_view *view):
    if view.ndim == 2:  # nearly always
        return (view.dims[0], view.dims[1])
    return tuple([view.dims[i] for i in range(view.ndim)])


cdef inline size_t alignment_of(size_t size) noexcept nogil:
    return 8 if size > 8 else size


cdef bint claim(const fs_tensor_view *view, uint64_t *left) noexcept nogil:
    """Takes what decoding the view needs from what is left; false when that is not enough."""
    cdef uint64_t needed = <uint64_t>view.elements * fs_dtype_size(view.dtype)
    cdef uint64_t strings = 0
    if view.dtype == FS_DT_STRING:
        strings = fs_tensor_view_string_bytes(view)
        needed += <uint64_t>view.elements * sizeof(PyObject *)
    if needed > left[0] or strings > left[0] - needed:
        return False
    left[0] -= needed + strings
    return True


cdef int parse_reply(Block reply, fs_arena *arena, fs_predict_reply *parsed, fs_tensor_view **views) except -1:
    """Parses all of a reply and looks at every output."""
    cdef int rc = fs_predict_reply_parse(arena, reply.data, reply.len, parsed)
    cdef uint32_t i
    if rc == -FS_RESOURCE_EXHAUSTED:
        raise ReplyError("the reply has more outputs than can be read, or memory is short")
    if rc != 0:
        raise ReplyError("the reply is not a PredictResponse")
    views[0] = <fs_tensor_view *>fs_arena_alloc(arena, parsed.n_outputs * sizeof(fs_tensor_view))
    if views[0] is NULL:
        raise MemoryError
    for i in range(parsed.n_outputs):
        rc = fs_tensor_view_parse(arena, parsed.outputs[i].proto.data, parsed.outputs[i].proto.len, &views[0][i])
        if rc == -FS_RESOURCE_EXHAUSTED:
            raise MemoryError
        if rc != 0:
            raise ReplyError(f"output {slice_text(parsed.outputs[i].alias)!r} of the reply is no tensor")
    return 0


cdef object too_large(str alias, const fs_tensor_view *view, object limit_bytes):
    kind = fs_dtype_name(view.dtype).decode()
    return ReplyError(
        f"output {alias!r} of the reply claims shape {list(shape_of(view))} of {kind}: "
        f"decoded it would take the reply beyond {limit_bytes} bytes"
    )


cdef int fill_strings(const fs_tensor_view *view, fs_arena *arena, PyObject **items) except -1:
    """Puts a view's elements into `items`, whose references they replace."""
    cdef fs_slice *strings = <fs_slice *>fs_arena_alloc(arena, view.elements * sizeof(fs_slice))
    cdef PyObject *before
    cdef bytes item = None
    cdef int64_t i
    if strings is NULL:
        raise MemoryError
    if fs_tensor_view_decode(view, 0, view.elements, strings) != 0:
        raise ReplyError("the reply has strings that cannot be read")
    for i in range(view.elements):
        # The last value of a short list stands for all that follow: one object does, too.
        if item is None or strings[i].data != strings[i - 1].data or strings[i].len != strings[i - 1].len:
            item = PyBytes_FromStringAndSize(<const char *>strings[i].data, strings[i].len) if strings[i].len else b""
        Py_INCREF(item)
        before = items[i]
        items[i] = <PyObject *>item
        Py_XDECREF(before)
    return 0


cdef int decode_values(const fs_tensor_view *view, uint8_t *dst) except -1:
    cdef int rc
    if view.elements < ALONE_BELOW:
        rc = fs_tensor_view_decode(view, 0, view.elements, dst)
    else:
        with nogil:
            rc = fs_tensor_view_decode(view, 0, view.elements, dst)
    if rc != 0:
        raise ReplyError("the reply has values that cannot be read")
    return 0


cdef object string_array(const fs_tensor_view *view, fs_arena *arena):
    cdef Py_buffer buffer
    array = numpy().empty(shape_of(view), dtype=object)
    if view.elements > 0:
        PyObject_GetBuffer(array, &buffer, PyBUF_FORMAT | PyBUF_WRITABLE | PyBUF_STRIDES)
        try:
            fill_strings(view, arena, <PyObject **>buffer.buf)
        finally:
            PyBuffer_Release(&buffer)
    return array


cdef object make_array(Block reply, Memory memory, fs_arena *arena, const fs_tensor_view *view, str alias,
                       uint64_t *left, object limit_bytes):
    cdef const uint8_t *at
    cdef uint8_t *moved
    cdef size_t size = fs_dtype_size(view.dtype), shift
    cdef Block block
    if view.dtype == FS_DT_STRING:
        if not claim(view, left):
            raise too_large(alias, view, limit_bytes)
        return string_array(view, arena)
    dtype = numpy_dtype(view.dtype, alias)
    at = fs_tensor_view_in_place(view)
    if at is not NULL and reply.data <= at < reply.data + reply.len:
        # To be aligned it moves down, over the head of its own TensorProto, which has been read: so it meets
        # no other payload.
        shift = <uintptr_t>at & (alignment_of(size) - 1)
        if view.proto.data + shift <= at:
            moved = reply.data + (at - reply.data) - shift
            if shift > 0:
                memmove(moved, at, view.elements * size)
            return numpy().ndarray(shape_of(view), dtype, reply, moved - reply.data)
    if not claim(view, left):
        raise too_large(alias, view, limit_bytes)
    block = allocate_block(memory, view.elements * size)
    decode_values(view, block.data)
    return numpy().ndarray(shape_of(view), dtype, block)


cdef tuple model_of(const fs_model_ref *model):
    return (
        slice_text(model.name),
        model.version if model.choice == FS_VERSION_NUMBER else None,
        slice_text(model.signature),
    )


cdef tuple decode(Block reply, Memory memory, object into, object limit_bytes):
    """Puts a reply's outputs into `into`, arrays by name; returns (model, version, signature). The reply's
    bytes become the arrays' memory, and are good for nothing else afterwards. ReplyError."""
    cdef fs_predict_reply parsed
    cdef fs_tensor_view *views = NULL
    cdef fs_arena arena
    cdef uint32_t i
    cdef uint64_t left = limit_bytes
    cdef list names
    fs_arena_init(&arena, memory.slab)
    try:
        parse_reply(reply, &arena, &parsed, &views)
        # Names first: arrays that move may end up where a name was.
        model = model_of(&parsed.model)
        names = [slice_text(parsed.outputs[i].alias) for i in range(parsed.n_outputs)]
        for i in range(parsed.n_outputs):
            into[names[i]] = make_array(reply, memory, &arena, &views[i], names[i], &left, limit_bytes)
        return model
    finally:
        fs_arena_clear(&arena)


cdef class Part:
    """One of several replies to be joined: what it was parsed to."""

    cdef Memory memory
    cdef Block reply
    cdef fs_arena arena
    cdef fs_predict_reply parsed
    cdef fs_tensor_view *views
    cdef dict places

    def __cinit__(self, Memory memory not None, Block reply not None):
        self.memory = memory
        self.reply = reply
        fs_arena_init(&self.arena, memory.slab)
        parse_reply(reply, &self.arena, &self.parsed, &self.views)
        self.places = {slice_text(self.parsed.outputs[i].alias): i for i in range(self.parsed.n_outputs)}

    def __dealloc__(self):
        fs_arena_clear(&self.arena)


cdef object join_output(str alias, list parts, list rows, Memory memory, uint64_t *left, object limit_bytes):
    cdef Part part = parts[0]
    cdef const fs_tensor_view *first = &part.views[<uint32_t>part.places[alias]]
    cdef const fs_tensor_view *view
    cdef size_t size = fs_dtype_size(first.dtype)
    cdef int64_t total_rows = 0, per_row = 1, at = 0, n
    cdef Block block
    cdef Py_buffer buffer
    cdef int32_t k
    dtype = object if first.dtype == FS_DT_STRING else numpy_dtype(first.dtype, alias)
    for part, n in zip(parts, rows):
        if alias not in part.places:
            raise ReplyError(f"output {alias!r} came for some of the rows and not for others")
        view = &part.views[<uint32_t>part.places[alias]]
        if view.ndim < 1 or view.dims[0] != n:
            raise ReplyError(
                f"output {alias!r} has shape {list(shape_of(view))} for {n} rows: the answers to chunks of rows "
                f"cannot be joined; call predict, or leave this output out"
            )
        same = view.dtype == first.dtype and view.ndim == first.ndim
        for k in range(1, view.ndim if same else 0):
            same = same and view.dims[k] == first.dims[k]
        if not same:
            raise ReplyError(
                f"output {alias!r} differs between chunks of rows: {list(shape_of(first))} of "
                f"{fs_dtype_name(first.dtype).decode()} and {list(shape_of(view))} of "
                f"{fs_dtype_name(view.dtype).decode()}; call predict, or leave this output out"
            )
        if not claim(view, left):
            raise too_large(alias, view, limit_bytes)
        total_rows += n
    for k in range(1, first.ndim):
        per_row *= first.dims[k]
    shape = (total_rows, *shape_of(first)[1:])
    if first.dtype == FS_DT_STRING:
        array = numpy().empty(shape, dtype=object)
        PyObject_GetBuffer(array, &buffer, PyBUF_FORMAT | PyBUF_WRITABLE | PyBUF_STRIDES)
        try:
            for part in parts:
                view = &part.views[<uint32_t>part.places[alias]]
                fill_strings(view, &part.arena, <PyObject **>buffer.buf + at)
                at += view.elements
        finally:
            PyBuffer_Release(&buffer)
        return array
    block = allocate_block(memory, total_rows * per_row * size)
    for part in parts:
        view = &part.views[<uint32_t>part.places[alias]]
        decode_values(view, block.data + at * size)
        at += view.elements
    return numpy().ndarray(shape, dtype, block)


cdef tuple decode_joined(list replies, list rows, Memory memory, object into, object limit_bytes):
    """The replies to chunks of `rows` rows each, joined by rows into one array for each output."""
    cdef list parts = [Part(memory, reply) for reply in replies]
    cdef Part first = parts[0]
    cdef Part part
    cdef uint64_t left = limit_bytes
    cdef tuple model = model_of(&first.parsed.model)
    for part in parts:
        if model_of(&part.parsed.model) != model:
            raise ReplyError(
                f"the chunks of rows were answered by different versions, "
                f"{model[1]} and {part.parsed.model.version}: call again, or say which version"
            )
        if part.parsed.n_outputs != first.parsed.n_outputs:
            raise ReplyError("some chunks of rows were answered with more outputs than others")
    for alias in first.places:
        into[alias] = join_output(alias, parts, rows, memory, &left, limit_bytes)
    return model


cdef Block copy_block(Memory memory, data):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        block = allocate_block(memory, view.len)
        memcpy(block.data, view.buf, view.len)
        return block
    finally:
        PyBuffer_Release(&view)


def decode_reply(reply, into=None, limit_bytes=DECODE_LIMIT_BYTES):
    """A PredictResponse's outputs, arrays by name, in `into` or a new dict, and (model, version or None,
    signature). Strings become arrays of bytes objects. ReplyError where the bytes are none, or claim shapes
    of more than `limit_bytes` beyond themselves."""
    cdef Memory memory = shared_memory()
    into = {} if into is None else into
    return into, decode(copy_block(memory, reply), memory, into, limit_bytes)


def join_replies(replies, rows, limit_bytes=DECODE_LIMIT_BYTES):
    """As decode_reply, for the replies to consecutive chunks of `rows` rows each: one array for each
    output."""
    cdef Memory memory = shared_memory()
    into = {}
    parts = [copy_block(memory, reply) for reply in replies]
    return into, decode_joined(parts, list(rows), memory, into, limit_bytes)
