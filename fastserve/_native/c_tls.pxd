# Mirror of csrc/tls.h, what making contexts needs of it. No logic.
from fastserve._native.c_channel cimport fs_tls_context
from fastserve._native.c_status cimport fs_error
from libc.stdint cimport int64_t
from libcpp cimport bool


cdef extern from "tls.h" nogil:
    ctypedef struct fs_tls_config:
        bool server
        const char *ca
        const char *certificate
        const char *key
        bool verify_peer

    fs_tls_context *fs_tls_context_new(const fs_tls_config *config, fs_error *err) noexcept
    void fs_tls_context_unref(fs_tls_context *context) noexcept
    int fs_tls_context_validity(const fs_tls_context *context, int64_t *valid_for_s, int64_t *left_s) noexcept
