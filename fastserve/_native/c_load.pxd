# Mirror of csrc/load.h, and what of tls.h its caller needs. No logic.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastserve._native.c_hist cimport fs_hist
from fastserve._native.c_status cimport fs_error, fs_slice


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    enum:
        AF_INET
        AF_INET6
        AF_UNIX

    struct sockaddr_storage:
        sa_family_t ss_family


cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]


cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        pass

    struct in6_addr:
        pass

    struct sockaddr_in:
        sa_family_t sin_family
        unsigned short sin_port
        in_addr sin_addr

    struct sockaddr_in6:
        sa_family_t sin6_family
        unsigned short sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    unsigned short htons(unsigned short value)
    uint32_t htonl(uint32_t value)


cdef extern from "tls.h" nogil:
    ctypedef struct fs_tls_context:
        pass

    ctypedef struct fs_tls_config:
        bint server
        const char *ca
        const char *certificate
        const char *key
        bint verify_peer

    fs_tls_context *fs_tls_context_new(const fs_tls_config *config, fs_error *err) noexcept
    void fs_tls_context_unref(fs_tls_context *context) noexcept


cdef extern from "load.h" nogil:
    ctypedef struct fs_load:
        pass

    ctypedef struct fs_header:
        fs_slice name
        fs_slice value

    enum fs_load_kind:
        FS_LOAD_CLOSED
        FS_LOAD_CONSTANT
        FS_LOAD_POISSON
        FS_LOAD_REPLAY

    ctypedef struct fs_load_check:
        fs_slice output
        uint32_t n_contents
        uint32_t n_bodies
        const uint64_t *first
        const float *expected
        float atol
        float rtol

    ctypedef struct fs_load_record:
        pass

    ctypedef struct fs_load_config:
        sockaddr_storage address
        socklen_t address_len
        bint http
        fs_tls_context *tls
        const char *server_name
        fs_slice path
        fs_slice authority
        const fs_header *headers
        uint32_t n_headers
        const fs_slice *bodies
        uint32_t n_bodies
        const int64_t *reply_bytes
        const fs_load_check *check
        const uint32_t *order
        uint64_t n_order
        uint32_t connections
        fs_load_kind kind
        uint32_t in_flight
        double rate
        uint64_t seed
        const int64_t *times_us
        uint64_t n_times
        int64_t warmup_ns
        int64_t duration_ns
        uint64_t requests
        int64_t interval_ns
        int64_t timeout_us
        bint send_deadline
        int64_t connect_timeout_us
        uint64_t max_outstanding
        int64_t spin_ns
        int processor
        uint64_t max_records

    enum fs_load_failure:
        FS_LOAD_LOST
        FS_LOAD_TIMEOUT
        FS_LOAD_REPLY_SIZE
        FS_LOAD_FULL
        FS_LOAD_BAD_HTTP
        FS_LOAD_BAD_REPLY
        FS_LOAD_MISVERSIONED
        FS_LOAD_HTTP
        FS_LOAD_FAILURES

    ctypedef struct fs_load_interval:
        int64_t start_ns
        uint64_t sent
        uint64_t done
        uint64_t failed
        uint64_t p50_ns
        uint64_t p90_ns
        uint64_t p99_ns
        uint64_t max_ns

    ctypedef struct fs_load_result:
        uint64_t sent
        uint64_t done
        uint64_t unanswered
        uint64_t *failed
        uint64_t *done_by_body
        int64_t window_ns
        uint64_t arrived
        fs_hist latency
        fs_hist behind
        fs_load_interval *intervals
        uint32_t n_intervals
        int64_t cpu_ns
        uint64_t bytes_in
        uint64_t bytes_out
        uint64_t reconnects
        const fs_load_record *records
        uint64_t n_records
        uint64_t unrecorded
        fs_error first_error
        bint no_connection

    ctypedef struct fs_load_progress:
        int64_t elapsed_ns
        bint measuring
        uint64_t sent
        uint64_t done
        uint64_t failed
        uint64_t outstanding

    fs_load *fs_load_new(const fs_load_config *config, fs_error *err) noexcept
    int fs_load_start(fs_load *load, fs_error *err) noexcept
    bint fs_load_wait(fs_load *load, int timeout_ms) noexcept
    fs_load_progress fs_load_read(const fs_load *load) noexcept
    void fs_load_stop(fs_load *load) noexcept
    void fs_load_finish(fs_load *load) noexcept
    const fs_load_result *fs_load_join(fs_load *load) noexcept
    void fs_load_free(fs_load *load) noexcept
