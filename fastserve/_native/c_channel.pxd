# Mirror of csrc/channel.h, and of what it takes from h2_client.h and tls.h. No logic.
from fastserve._native.c_status cimport fs_error, fs_slice
from libc.stddef cimport size_t
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t

    struct sockaddr_storage:
        unsigned short ss_family


cdef extern from "tls.h" nogil:
    ctypedef struct fs_tls_context:
        pass


cdef extern from "h2_client.h" nogil:
    ctypedef struct fs_header:
        fs_slice name
        fs_slice value


cdef extern from "channel.h" nogil:
    ctypedef struct fs_channel:
        pass

    enum fs_balance:
        FS_ROUND_ROBIN
        FS_LEAST_OUTSTANDING

    ctypedef struct fs_endpoint:
        sockaddr_storage address
        socklen_t address_len
        char name[128]

    ctypedef struct fs_channel_config:
        const fs_endpoint *endpoints
        uint32_t n_endpoints
        uint32_t connections
        fs_balance balance
        fs_tls_context *tls
        char server_name[256]
        char authority[256]
        size_t max_reply_bytes
        int64_t connect_timeout_us
        int64_t stall_timeout_us
        int64_t keepalive_us
        int64_t keepalive_timeout_us
        int64_t reconnect_first_us
        int64_t reconnect_max_us
        uint32_t max_attempts
        uint32_t retry_codes
        int64_t backoff_first_us
        int64_t backoff_max_us
        double retry_ratio
        double retry_burst
        double hedge_percentile
        int64_t hedge_min_us
        double hedge_ratio
        double hedge_burst
        uint32_t eject_failures
        int64_t eject_us
        double eject_at_most
        bool wait_for_ready

    ctypedef struct fs_channel_call:
        fs_slice path
        const fs_slice *pieces
        uint32_t n_pieces
        size_t message_bytes
        uint8_t encoding
        const fs_header *headers
        uint32_t n_headers
        int64_t deadline_us
        bool no_retry
        void (*on_done)(fs_channel_call *call) noexcept
        void *user
        bool done
        int code
        fs_error error
        uint8_t *reply
        size_t reply_bytes
        uint8_t reply_encoding
        uint16_t attempts
        uint16_t hedges
        int16_t endpoint

    ctypedef struct fs_endpoint_stats:
        uint64_t attempts
        uint64_t failures
        uint64_t ejections
        uint32_t outstanding
        uint32_t connections
        bool ejected

    ctypedef struct fs_channel_stats:
        uint64_t calls
        uint64_t retries
        uint64_t unprocessed
        uint64_t hedges
        uint64_t hedge_wins
        uint64_t budget_refusals
        uint64_t bytes_in
        uint64_t bytes_out

    fs_channel *fs_channel_new(const fs_channel_config *config, fs_error *err) noexcept
    void fs_channel_free(fs_channel *channel) noexcept
    void fs_channel_start(fs_channel *channel, fs_channel_call *call) noexcept
    bool fs_channel_wait(fs_channel *channel, fs_channel_call *call, int64_t until_us) noexcept
    bool fs_channel_cancel(fs_channel *channel, fs_channel_call *call) noexcept
    int fs_channel_fd(const fs_channel *channel) noexcept
    int64_t fs_channel_drive(fs_channel *channel) noexcept
    int64_t fs_channel_due(fs_channel *channel) noexcept
    int fs_channel_update(fs_channel *channel, const fs_endpoint *endpoints, uint32_t n) noexcept
    fs_channel_stats fs_channel_read(fs_channel *channel) noexcept
    uint32_t fs_channel_endpoints(fs_channel *channel, fs_endpoint_stats *stats, uint32_t room) noexcept
