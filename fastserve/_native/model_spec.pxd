# A ServableSpec as the native core reads it.
from fastserve._native.c_runtime cimport fs_model_spec, fs_port, fs_signature, fs_slice


cdef class ModelSpec:
    cdef fs_model_spec c          # valid as long as this object: whoever keeps `&spec.c` keeps the object too
    cdef fs_signature *signatures # c.n_signatures of them
    cdef const char **methods     # as many: their method names; what runtimes need not know is not in the ABI
    cdef fs_slice **defaults      # as many: for each input its default, a TensorProto or empty; NULL: there is none
    cdef list texts               # bytes objects that the C structs point into
    cdef readonly str model
    cdef readonly long long version
    cdef readonly str runtime     # "tensorflow" or "null"
    cdef readonly tuple names     # of the signatures, in order

    cdef char *text(self, str text) except NULL
    cdef fs_slice data(self, text) except *
    cdef void fill_port(self, fs_port *port, dict spec) except *
    cdef void fill_signature(self, unsigned index, dict spec) except *
    cdef void fill_defaults(self, unsigned index, list inputs) except *
