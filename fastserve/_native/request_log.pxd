# A model's request log, and the order that tells the logger of its settings.
from fastserve._native.c_engine cimport fs_log_order, fs_log_settings, fs_log_sinks, fs_owner, fs_request_log
from cpython.ref cimport PyObject


cdef class RequestLog:
    cdef fs_request_log *c        # a reference
    cdef readonly str model
    cdef bytes name               # of the model, as C wants it
    cdef object on_loss           # called with the statistics
    cdef readonly dict standing   # the settings of each sink, None: it is off
    cdef readonly dict recording


cdef RequestLog make_request_log(str model, fs_owner *home, on_loss)

# An order on its way. Freed when it is delivered.
cdef struct LogErrand:
    fs_log_order order  # first: the mail is the errand
    PyObject *future    # a reference of its own
    PyObject *subject   # what is kept alive meanwhile; a reference of its own

cdef LogErrand *make_order(RequestLog log, fs_log_sinks sink, dict settings) except NULL
