# A runtime, its models, and tensors to feed them with.
from fastserve._native.c_runtime cimport fs_error, fs_model, fs_plugin, fs_runtime, fs_slab, fs_tensor
from fastserve._native.model_spec cimport ModelSpec


cdef class Runtime:
    cdef fs_runtime c         # valid as long as this object
    cdef fs_plugin *plugin    # NULL: one of our own


cdef class Inputs:
    cdef fs_slab *slab      # behind `tensors`; what a runtime keeps a reference on outlives it
    cdef fs_tensor *tensors
    cdef readonly unsigned count
    cdef list kept          # bytes objects that string tensors point into

    cdef void fill(self, fs_tensor *tensor, int dtype, tuple dims, data) except *


cdef class Model:
    cdef readonly Runtime runtime
    cdef readonly ModelSpec spec
    cdef fs_model *c        # NULL: closed
    cdef int running        # calls inside the runtime, counted under the GIL

    cdef unsigned index(self, signature, Inputs inputs) except? 0xffffffff


cdef int check(int rc, const fs_error *err) except -1
