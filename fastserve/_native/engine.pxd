# The engine, and the versions that it serves.
from fastserve._native.c_engine cimport (
    fs_batching,
    fs_engine,
    fs_metrics,
    fs_owner,
    fs_servable,
    fs_signature_plan,
    fs_task,
)
from fastserve._native.c_trace cimport fs_trace
from libc.stdint cimport int64_t
from fastserve._native.model_spec cimport ModelSpec
from fastserve._native.runtime cimport Runtime


cdef class Engine:
    cdef fs_engine *c        # NULL: stopped
    cdef fs_trace *trace     # where the threads tell what they do; NULL: nowhere
    cdef fs_metrics *metrics # where calls are counted; NULL: nowhere
    cdef readonly bint counts
    cdef fs_owner *home      # of the loop's thread, where tasks come back to; set by the front end
    cdef object loop
    cdef dict servables      # (model, version) -> Servable
    cdef dict replacements   # (model, version) -> Servable that is to take the place of a published one
    cdef size_t max_message_bytes
    cdef readonly bint session_run # whether it serves SessionRun
    cdef frozenset ablate    # what is left out, for measurement
    cdef dict routes         # model -> Route, where one is set
    cdef dict logs           # model -> RequestLog, of every model that ever had one
    cdef object logging      # a lock: of changes to logs, one at a time
    cdef object on_loss      # called with a log's statistics when it loses more


cdef class Servable:
    cdef fs_servable *c          # NULL: not loaded, or closed
    cdef fs_signature_plan *plans
    cdef fs_batching batching
    cdef fs_task *loading        # NULL: not being loaded
    cdef int64_t since_us        # in this state
    cdef int warm_iterations
    cdef bytes warm_requests     # a path, or None
    cdef readonly str signature_def_map # in base64; not looked at
    cdef readonly ModelSpec spec
    cdef bytes name
    cdef const char *model       # in name
    cdef list flags              # bytes objects that the plans point into
    cdef readonly Runtime runtime
    cdef readonly str state      # "loading", "loaded", "published", "retiring", "closing"

    cdef void fill_broadcast(self, fs_signature_plan *plan, list inputs, list names) except *
    cdef void enter(self, str state)
