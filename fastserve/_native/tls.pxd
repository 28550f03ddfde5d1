# The TLS that a server speaks.
from fastserve._native.c_channel cimport fs_tls_context


cdef class ServerTls:
    cdef fs_tls_context *c
