"""Runtimes for Python: what trial processes and tests open and run models with.

The core takes Runtime (it opens a library once) and drives it from native threads; nothing here is on the
path of a request. Imports no numpy: tensors go in as buffers and come out as bytes.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import os
from contextlib import contextmanager

from fastserve._native.c_runtime cimport (
    FS_DT_STRING,
    FS_MAX_DIMS,
    FS_RUN_COMPILED,
    FS_RUN_PLAIN,
    FS_TF_TRACE_DEVICES,
    FS_TF_TRACE_GRAPHS,
    fs_buf_new,
    fs_buf_unref,
    fs_dtype_name,
    fs_dtype_size,
    fs_error,
    fs_litert_options,
    fs_model,
    fs_runtime_explain,
    fs_plugin,
    fs_run_variant,
    fs_runtime_litert,
    fs_runtime_litert_free,
    fs_runtime_null,
    fs_runtime_null_free,
    fs_runtime_ops,
    fs_runtime_plugin,
    fs_runtime_plugin_free,
    fs_runtime_tensorflow,
    fs_runtime_tensorflow_free,
    fs_runtime_tensorflow_metadata_free,
    fs_runtime_tensorflow_op_library,
    fs_runtime_tensorflow_run_traced,
    fs_runtime_tensorflow_version,
    fs_slab_new,
    fs_slab_release,
    fs_slice,
    fs_tensor,
    fs_tf_metadata,
)
from fastserve._native.model_spec cimport ModelSpec

from fastserve.call_names import CODES


cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)


class RuntimeFailure(Exception):
    """What a runtime answered instead of a result. `code` is a gRPC status name, `message` its text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


cdef int check(int rc, const fs_error *err) except -1:
    """Raises what `err` says when `rc` is not 0."""
    if rc != 0:
        raise RuntimeFailure(CODES[-rc], err.msg[:err.len].decode("utf-8", "replace"))
    return 0


def dtype_name(int dtype) -> str:
    """TensorFlow's name of a DataType number: "float", "int32", "string"; "unknown" for no DataType."""
    return fs_dtype_name(dtype).decode()


def dtype_size(int dtype) -> int:
    """Bytes of one element; 0 for what cannot be served. Strings have no size of their own."""
    return 0 if dtype == FS_DT_STRING else fs_dtype_size(dtype)


@contextmanager
def quiet_stderr():
    """Throws away what is written to stderr meanwhile, if TensorFlow is to log less than all. Its static
    constructors report on processor and drivers before its log level has any effect."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0":
        yield
        return
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


cdef class Runtime:
    """A runtime by its kind: "tensorflow" (needs `library_dir`, the directory of the `tensorflow` package, and loads
    `op_libraries`),
    "litert" (that of the `ai_edge_litert` package; `threads` for each run, `interpreters` for each model), "null" (`options` as csrc/runtime_null.h has them), or the name of a plug-in, whose `library` is a path.
    Freed once its models are gone. RuntimeFailure says what is wrong with a library."""

    def __init__(
        self,
        str kind,
        *,
        str library_dir="",
        str options="",
        str library="",
        op_libraries=(),
        int threads=1,
        int interpreters=1,
    ):
        cdef fs_error err
        cdef int rc
        cdef fs_litert_options litert
        if self.c.ops is not NULL:
            raise RuntimeError("a Runtime is opened once")
        text = (library or (library_dir if kind in ("tensorflow", "litert") else options)).encode()
        cdef const char *argument = text
        if library:
            with nogil:
                rc = fs_runtime_plugin(argument, <const fs_plugin **>&self.plugin, &self.c, &err)
        elif kind == "tensorflow":
            with quiet_stderr():
                with nogil:
                    rc = fs_runtime_tensorflow(argument, &self.c, &err)
            for path in op_libraries if rc == 0 else ():
                op_library = path.encode()
                argument = op_library
                with quiet_stderr():
                    with nogil:
                        rc = fs_runtime_tensorflow_op_library(&self.c, argument, &err)
                if rc != 0:
                    break
        elif kind == "litert":
            litert.threads, litert.interpreters = threads, interpreters
            with quiet_stderr():
                with nogil:
                    rc = fs_runtime_litert(argument, &litert, &self.c, &err)
        elif kind == "null":
            rc = fs_runtime_null(argument, &self.c, &err)
        else:
            raise ValueError(
                f"no such runtime: {kind!r}; there are 'tensorflow', 'litert' and 'null', and plug-ins by their library"
            )
        check(rc, &err)

    def __dealloc__(self):
        if self.c.ops is NULL:
            return
        if self.plugin is not NULL:
            fs_runtime_plugin_free(self.plugin, &self.c)
        elif self.c.ops.name[0] == b"t":
            fs_runtime_tensorflow_free(&self.c)
        elif self.c.ops.name[0] == b"l":
            fs_runtime_litert_free(&self.c)
        else:
            fs_runtime_null_free(&self.c)

    @property
    def name(self) -> str:
        return self.c.ops.name.decode()

    @property
    def version(self) -> str:
        """TensorFlow's version: "2.21.0"; empty for any other runtime."""
        if self.plugin is not NULL or self.c.ops.name[0] != b"t":
            return ""
        return fs_runtime_tensorflow_version(&self.c).decode()

    def open(self, ModelSpec spec) -> Model:
        """Opens a model, without the GIL. RuntimeFailure when the runtime refuses."""
        cdef Model model = Model.__new__(Model)
        cdef fs_error err
        cdef int rc
        model.runtime = self
        model.spec = spec
        with nogil:
            rc = self.c.ops.open(self.c.self, &spec.c, &model.c, &err)
        check(rc, &err)
        return model


@cython.no_gc
cdef class Inputs:
    """Tensors made once and run as often as one likes: a sequence of (dtype, dims, data), in the order of the
    signature's inputs. `data` is a buffer of exactly the tensor's bytes, or for strings a list of bytes."""

    def __init__(self, tensors):
        if self.tensors is not NULL:
            raise RuntimeError("Inputs are made once")
        tensors = list(tensors)
        self.kept = []
        self.slab = fs_slab_new(0)
        self.tensors = <fs_tensor *>calloc(len(tensors) + 1, sizeof(fs_tensor))
        if self.slab is NULL or self.tensors is NULL:
            raise MemoryError
        for dtype, dims, data in tensors:
            self.count += 1
            self.fill(&self.tensors[self.count - 1], dtype, tuple(dims), data)

    def __dealloc__(self):
        cdef unsigned i
        if self.tensors is not NULL:
            for i in range(self.count):
                free(<void *>self.tensors[i].dims)
                fs_buf_unref(self.tensors[i].buf)
        free(self.tensors)
        fs_slab_release(self.slab)

    cdef void fill(self, fs_tensor *tensor, int dtype, tuple dims, data) except *:
        cdef Py_buffer view
        cdef fs_slice *slices
        cdef int64_t elements = 1
        if fs_dtype_size(dtype) == 0:
            raise ValueError(f"tensors of type {dtype_name(dtype)} cannot be fed")
        if len(dims) > FS_MAX_DIMS:
            raise ValueError(f"a tensor has at most {FS_MAX_DIMS} dimensions")
        cdef int64_t *own_dims = <int64_t *>calloc(len(dims) + 1, sizeof(int64_t))
        if own_dims is NULL:
            raise MemoryError
        tensor.dims = own_dims
        tensor.ndim = len(dims)
        for i, dim in enumerate(dims):
            if dim < 0 or (dim > 0 and elements > (1 << 40) // dim):
                raise ValueError(f"no tensor has the shape {dims}")
            own_dims[i] = dim
            elements *= own_dims[i]
        tensor.dtype = dtype
        tensor.elements = elements
        tensor.bytes = elements * fs_dtype_size(dtype)
        tensor.buf = fs_buf_new(self.slab, tensor.bytes)
        if tensor.buf is NULL:
            raise MemoryError
        tensor.data = tensor.buf.data

        if dtype == FS_DT_STRING:
            if len(data) != elements:
                raise ValueError(f"shape {dims} holds {elements} strings, not {len(data)}")
            slices = <fs_slice *>tensor.data
            for i, text in enumerate(data):
                text = bytes(text)
                self.kept.append(text)
                slices[i].data = <const uint8_t *>PyBytes_AS_STRING(text)
                slices[i].len = PyBytes_GET_SIZE(text)
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len != tensor.bytes:
                raise ValueError(
                    f"shape {dims} of {dtype_name(dtype)} takes {tensor.bytes} bytes, not {view.len}"
                )
            memcpy(tensor.data, view.buf, tensor.bytes)
        finally:
            PyBuffer_Release(&view)


@cython.no_gc  # its runtime and its spec must still be there when it is freed, and they refer to nothing
cdef class Model:
    """An open model; made by Runtime.open. Closed by close(), or when it is collected."""

    def __init__(self):
        raise TypeError("models are opened by Runtime.open")

    def __dealloc__(self):
        if self.c is not NULL:
            self.runtime.c.ops.close(self.c)

    cdef unsigned index(self, signature, Inputs inputs) except? 0xffffffff:
        """The signature's number, once it is sure that it can run on `inputs`."""
        cdef unsigned i
        if self.c is NULL:
            raise ValueError("the model is closed")
        i = self.spec.names.index(signature)
        if self.spec.signatures[i].n_inputs != inputs.count:
            raise ValueError(
                f"'{signature}' takes {self.spec.signatures[i].n_inputs} inputs, not {inputs.count}"
            )
        return i

    def run(self, str signature, inputs, *, bint compiled=False) -> list:
        """Runs once, without the GIL. `inputs`: Inputs, or what they are made from. Returns (dtype, dims,
        data) for each output, data being bytes or a list of bytes. RuntimeFailure when the run fails."""
        cdef Inputs fed = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        cdef unsigned sig = self.index(signature, fed)
        cdef unsigned n_outputs = self.spec.signatures[sig].n_outputs
        cdef const fs_runtime_ops *ops = self.runtime.c.ops
        cdef fs_run_variant variant = FS_RUN_COMPILED if compiled else FS_RUN_PLAIN
        cdef fs_error err
        cdef int rc
        cdef unsigned i
        cdef fs_tensor *outputs = <fs_tensor *>calloc(n_outputs + 1, sizeof(fs_tensor))
        if outputs is NULL:
            raise MemoryError
        self.running += 1
        try:
            with nogil:
                rc = ops.run(self.c, sig, variant, fed.tensors, outputs, &err)
                if rc != 0 and variant == FS_RUN_PLAIN:
                    fs_runtime_explain(&self.runtime.c, self.c, sig, fed.tensors, &err)
            check(rc, &err)
            try:
                return [_copy(&outputs[i]) for i in range(n_outputs)]
            finally:
                for i in range(n_outputs):
                    ops.release(&outputs[i])
        finally:
            self.running -= 1
            free(outputs)

    def time(self, str signature, inputs, *, bint compiled=False, int repeats=1) -> list:
        """Runs `repeats` times in a row and returns what each took, outputs thrown away, in microseconds."""
        cdef Inputs fed = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        cdef unsigned sig = self.index(signature, fed)
        cdef unsigned n_outputs = self.spec.signatures[sig].n_outputs
        cdef const fs_runtime_ops *ops = self.runtime.c.ops
        cdef fs_run_variant variant = FS_RUN_COMPILED if compiled else FS_RUN_PLAIN
        cdef fs_error err
        cdef int rc = 0
        cdef unsigned i
        cdef int done
        cdef timespec begin, end
        cdef fs_tensor *outputs = <fs_tensor *>calloc(n_outputs + 1, sizeof(fs_tensor))
        cdef double *took = <double *>calloc(repeats + 1, sizeof(double))
        self.running += 1
        try:
            if outputs is NULL or took is NULL:
                raise MemoryError
            with nogil:
                for done in range(repeats):
                    clock_gettime(CLOCK_MONOTONIC, &begin)
                    rc = ops.run(self.c, sig, variant, fed.tensors, outputs, &err)
                    if rc != 0:
                        break
                    for i in range(n_outputs):
                        ops.release(&outputs[i])
                    clock_gettime(CLOCK_MONOTONIC, &end)
                    took[done] = (end.tv_sec - begin.tv_sec) * 1e6 + (end.tv_nsec - begin.tv_nsec) / 1e3
            check(rc, &err)
            return [took[i] for i in range(<unsigned>repeats)]
        finally:
            self.running -= 1
            free(outputs)
            free(took)

    def trace(self, str signature, inputs, *, bint compiled=False, bint devices=False, bint graphs=False) -> tuple:
        """Runs once and says what TensorFlow tells of the run: (a serialized tensorflow.RunMetadata, the time of day
        in nanoseconds when it began, and when it ended). `devices`: what accelerators did, too; `graphs`: the graphs
        that ran. Of TensorFlow's models only; see fs_runtime_tensorflow_run_traced."""
        cdef Inputs fed = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
        cdef unsigned sig = self.index(signature, fed)
        cdef unsigned n_outputs = self.spec.signatures[sig].n_outputs
        cdef fs_run_variant variant = FS_RUN_COMPILED if compiled else FS_RUN_PLAIN
        cdef unsigned what = (FS_TF_TRACE_DEVICES if devices else 0) | (FS_TF_TRACE_GRAPHS if graphs else 0)
        cdef fs_tf_metadata metadata
        cdef timespec begin, end
        cdef fs_error err
        cdef int rc
        cdef unsigned i
        if not self.runtime.version:
            raise TypeError("only TensorFlow's models can be traced")
        cdef fs_tensor *outputs = <fs_tensor *>calloc(n_outputs + 1, sizeof(fs_tensor))
        if outputs is NULL:
            raise MemoryError
        self.running += 1
        try:
            with nogil:
                clock_gettime(CLOCK_REALTIME, &begin)
                rc = fs_runtime_tensorflow_run_traced(
                    self.c, sig, variant, what, fed.tensors, outputs, &metadata, &err
                )
                clock_gettime(CLOCK_REALTIME, &end)
            check(rc, &err)
            for i in range(n_outputs):
                self.runtime.c.ops.release(&outputs[i])
            try:
                told = PyBytes_FromStringAndSize(<const char *>metadata.bytes.data, metadata.bytes.len)
            finally:
                fs_runtime_tensorflow_metadata_free(self.c, &metadata)
            return (
                told,
                <int64_t>begin.tv_sec * 1_000_000_000 + begin.tv_nsec,
                <int64_t>end.tv_sec * 1_000_000_000 + end.tv_nsec,
            )
        finally:
            self.running -= 1
            free(outputs)

    def close(self) -> None:
        """Frees the model. Closing twice is fine; closing it under a run is an error."""
        cdef fs_model *model = self.c
        if self.running:
            raise RuntimeError("the model is running")
        self.c = NULL
        if model is not NULL:
            with nogil:
                self.runtime.c.ops.close(model)


cdef tuple _copy(const fs_tensor *tensor):
    cdef int64_t i
    cdef const fs_slice *slices
    dims = tuple([tensor.dims[i] for i in range(tensor.ndim)])
    if tensor.dtype != FS_DT_STRING:
        return tensor.dtype, dims, PyBytes_FromStringAndSize(<const char *>tensor.data, tensor.bytes)
    slices = <const fs_slice *>tensor.data
    strings = [
        PyBytes_FromStringAndSize(<const char *>slices[i].data, slices[i].len)
        for i in range(tensor.elements)
    ]
    return tensor.dtype, dims, strings
