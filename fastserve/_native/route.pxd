# A route of the engine's catalog, and its figures.
from fastserve._native.c_engine cimport fs_route


cdef class Route:
    cdef fs_route *c            # a reference
    cdef readonly str model
    cdef bytes name             # of the model, as C wants it
