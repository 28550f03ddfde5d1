"""ServerTls: a server's certificate and key, and whose clients it lets in, ready for connections.

Made by the control process to see whether files are any good, and by the core, whose front end gives each new
connection a reference. Any thread; knows PEM, no files.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t
from libc.string cimport memset

from fastserve._native.c_status cimport fs_error
from fastserve._native.c_tls cimport (
    fs_tls_config,
    fs_tls_context_new,
    fs_tls_context_unref,
    fs_tls_context_validity,
)


class TlsRefused(Exception):
    """PEM that cannot be used, in words."""


cdef class ServerTls:
    """PEM as bytes. With `client_ca` clients must show a certificate that it has signed. Raises TlsRefused."""

    def __init__(self, bytes certificate not None, bytes key not None, bytes client_ca=None):
        cdef fs_tls_config config
        cdef fs_error err
        memset(&config, 0, sizeof(config))
        config.server = True
        config.certificate = PyBytes_AS_STRING(certificate)
        config.key = PyBytes_AS_STRING(key)
        if client_ca is not None:
            config.ca = PyBytes_AS_STRING(client_ca)
            config.verify_peer = True
        self.c = fs_tls_context_new(&config, &err)
        if self.c is NULL:
            raise TlsRefused(err.msg[:err.len].decode("utf-8", "replace"))

    def __dealloc__(self):
        fs_tls_context_unref(self.c)

    def validity(self) -> tuple[int, int]:
        """For how many seconds the certificate has been valid, and will be. Negative: not yet, or not any more."""
        cdef int64_t valid_for_s = 0
        cdef int64_t left_s = 0
        if fs_tls_context_validity(self.c, &valid_for_s, &left_s) != 0:
            raise TlsRefused("the certificate does not say when it is valid")
        return valid_for_s, left_s
