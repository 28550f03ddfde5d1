# Mirror of csrc/{clock,slab,mailbox,sticky,h2,compress,owner,call,front,refusals,access,servable,executor,figures,
# route,log_sink,request_log,warm,loader,catalog,resolve,logger,metrics,engine}.h, what the core binds of them. No logic.
from fastserve._native.c_policy cimport fs_policy
from fastserve._native.c_predict cimport fs_model_ref
from fastserve._native.c_runtime cimport fs_error, fs_model_spec, fs_runtime, fs_slab, fs_slice
from fastserve._native.c_trace cimport fs_trace, fs_track
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool


cdef extern from "clock.h" nogil:
    int64_t fs_now_us() noexcept


cdef extern from "slab.h" nogil:
    ctypedef struct fs_slab_stats:
        uint64_t system_allocs
        uint64_t large_allocs
        size_t cached_bytes

    void *fs_slab_alloc(fs_slab *slab, size_t size) noexcept
    void fs_slab_free(void *block) noexcept
    size_t fs_slab_trim(fs_slab *slab, size_t keep_bytes) noexcept
    fs_slab_stats fs_slab_read(const fs_slab *slab) noexcept


cdef extern from "mailbox.h" nogil:
    ctypedef struct fs_node:
        fs_node *next

    ctypedef struct fs_mailbox:
        int fd

    int fs_mailbox_open(fs_mailbox *box) noexcept
    void fs_mailbox_close(fs_mailbox *box) noexcept


cdef extern from "sticky.h" nogil:
    ctypedef struct fs_sticky:
        pass


cdef extern from "h2.h" nogil:
    ctypedef struct fs_h2:
        pass

    ctypedef struct fs_budget:
        size_t limit

    size_t fs_budget_used(const fs_budget *budget) noexcept

    enum fs_transport:
        FS_TRANSPORT_GRPC
        FS_TRANSPORT_REST
        FS_TRANSPORT_WEB

    ctypedef struct fs_rpc:
        fs_h2 *h2
        void *conn
        int64_t deadline_us
        uint8_t *message
        size_t message_len
        uint8_t encoding

    ctypedef struct fs_h2_handler:
        pass

    ctypedef struct fs_h2_limits:
        uint32_t max_concurrent_streams
        uint32_t max_header_bytes
        size_t max_message_bytes
        size_t max_conn_bytes
        uint32_t window_bytes
        uint32_t reset_burst
        uint32_t reset_per_s
        uint32_t chatter_burst
        uint32_t chatter_per_s
        int64_t request_timeout_us
        int64_t stall_timeout_us
        int64_t keepalive_us
        int64_t keepalive_timeout_us
        const fs_sticky *sticky
        const fs_trace *trace

    fs_h2 *fs_h2_new(const fs_h2_limits *limits, const fs_h2_handler *handler, void *ctx, void *conn,
                     fs_budget *budget, fs_slab *slab, int64_t now_us) noexcept
    void fs_h2_free(fs_h2 *h2) noexcept
    int fs_h2_recv(fs_h2 *h2, const uint8_t *data, size_t len, int64_t now_us) noexcept
    size_t fs_h2_send(fs_h2 *h2, uint8_t *dst, size_t room, int64_t now_us) noexcept
    int64_t fs_h2_tick(fs_h2 *h2, int64_t now_us) noexcept
    void fs_h2_shutdown_notice(fs_h2 *h2) noexcept
    void fs_h2_shutdown(fs_h2 *h2) noexcept
    bint fs_h2_done(const fs_h2 *h2) noexcept
    uint32_t fs_h2_active_calls(const fs_h2 *h2) noexcept
    size_t fs_h2_unsent_bytes(const fs_h2 *h2) noexcept


cdef extern from "compress.h" nogil:
    int fs_inflate(fs_slab *slab, int encoding, const uint8_t *data, size_t len, size_t limit, uint8_t **out,
                   size_t *out_len, fs_error *err) noexcept


cdef extern from "access.h" nogil:
    enum:
        FS_SHA256_BYTES

    ctypedef struct fs_access:
        pass

    ctypedef struct fs_grant:
        fs_slice model
        const uint8_t *digests
        uint32_t n

    int fs_access_set(fs_access *access, const fs_grant *grants, uint32_t n) noexcept


cdef extern from "owner.h" nogil:
    ctypedef struct fs_engine:
        fs_catalog *catalog
        fs_access access
        fs_executors *executors
        fs_loader *loader
        fs_logger *logger

    ctypedef struct fs_mail:
        void (*deliver)(fs_mail *mail) noexcept

    ctypedef struct fs_owner:
        fs_mailbox *box
        fs_slab *slab
        void *ctx
        fs_track *track

    void fs_owner_deliver(fs_owner *owner) noexcept
    void fs_owner_post(fs_owner *owner, fs_mail *mail) noexcept


cdef extern from "call.h" nogil:
    enum fs_call_kind:
        FS_CALL_PREDICT
        FS_CALL_CLASSIFY
        FS_CALL_REGRESS
        FS_CALL_MULTI_INFERENCE


cdef extern from "front.h" nogil:
    enum fs_event_kind:
        FS_EVENT_CALL
        FS_EVENT_OPEN
        FS_EVENT_MESSAGE
        FS_EVENT_HALF_CLOSE
        FS_EVENT_CANCEL

    ctypedef struct fs_method:
        const char *path
        bint streaming

    ctypedef struct fs_front:
        fs_method methods[64]
        int n_methods
        fs_owner *loop
        void (*on_event)(fs_mail *mail) noexcept

    ctypedef struct fs_event:
        fs_front *front
        fs_event_kind kind
        fs_rpc *rpc
        fs_owner *owner
        int method
        bint admin
        uint8_t *data
        size_t len
        bint compressed

    ctypedef struct fs_front_ctx:
        fs_front *front
        fs_owner *owner
        bint admin
        uint8_t transport

    const fs_h2_handler fs_front_handler

    int fs_front_add(fs_front *front, const char *path, bint streaming) noexcept
    int fs_front_add_engine(fs_front *front, const char *path, fs_call_kind kind) noexcept
    int fs_front_add_named_run(fs_front *front, const char *path) noexcept
    int fs_front_admit(fs_owner *loop, const fs_rpc *rpc, fs_slice model, fs_error *err) noexcept
    void fs_front_consume(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, size_t len) noexcept
    int fs_front_answer(fs_owner *loop, fs_owner *owner, fs_rpc *rpc, void *frame, size_t len, bint finish, int code,
                        const char *text, size_t text_len) noexcept


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass


cdef extern from "refusals.h" nogil:
    ctypedef struct fs_refusals:
        fs_owner *loop
        void (*tell)(fs_mail *mail) noexcept
        void *ctx

    ctypedef struct fs_refusal:
        fs_refusals *refusals
        uint64_t n
        const char *peer
        const char *why

    void fs_refusals_add(fs_refusals *refusals, fs_slab *slab, const sockaddr *peer,
                         const char *why) noexcept
    uint64_t fs_refusals_read(const fs_refusals *refusals) noexcept


cdef extern from "servable.h" nogil:
    ctypedef struct fs_signature_plan:
        bint batched
        bint compiled
        uint32_t n_buckets
        int32_t buckets[32]
        float costs_us[32]
        const char *method
        const fs_slice *defaults
        const bool *broadcast

    ctypedef struct fs_batching:
        int64_t max_batch_size
        int64_t timeout_us
        int64_t max_enqueued_batches
        int64_t num_batch_threads
        bint split_large
        int64_t refuse_above
        bint pad_variable_length
        bint refuse_unknown_shapes
        bint shed_predicted
        double weight
        int32_t reserved_executors

    ctypedef struct fs_queue:
        pass

    ctypedef struct fs_servable:
        uint32_t n_queues

    enum fs_counter:
        FS_COUNTERS

    const char *fs_counter_name(int counter) noexcept
    uint64_t fs_servable_count(const fs_servable *servable, uint32_t queue, int counter) noexcept
    uint64_t fs_servable_batches_of(const fs_servable *servable, uint32_t queue, int log2_rows) noexcept


cdef extern from "executor.h" nogil:
    ctypedef struct fs_executors:
        pass

    ctypedef struct fs_executors_config:
        int32_t threads
        int32_t spin_us
        bint tensor_content
        bint compress_replies
        bint no_spread

    uint64_t fs_executors_system_allocs(const fs_executors *pool) noexcept
    int64_t fs_executors_cpu_us(const fs_executors *pool) noexcept


cdef extern from "figures.h" nogil:
    enum fs_outcome:
        FS_OUTCOME_OK
        FS_OUTCOME_FAILED
        FS_OUTCOME_REFUSED
        FS_OUTCOME_CANCELLED

    ctypedef struct fs_figures:
        pass

    uint64_t fs_figures_read(const fs_figures *figures, fs_outcome outcome) noexcept
    void fs_figures_latency(const fs_figures *figures, const double *quantiles, uint64_t *us, uint32_t n) noexcept


cdef extern from "route.h" nogil:
    enum fs_route_mode:
        FS_ROUTE_CANARY
        FS_ROUTE_SHADOW

    enum fs_side:
        FS_SIDE_STABLE
        FS_SIDE_FRESH
        FS_SIDES

    ctypedef struct fs_route_settings:
        fs_route_mode mode
        int64_t versions[2]
        double share
        fs_slice sticky_header
        double max_difference

    ctypedef struct fs_shadow_tally:
        uint64_t compared
        uint64_t rows
        uint64_t different_rows
        uint64_t missing_outputs
        uint64_t failed
        uint64_t dropped
        uint64_t skipped
        double largest_difference

    ctypedef struct fs_route:
        fs_route_mode mode
        int64_t versions[2]
        fs_shadow_tally shadow
        fs_figures figures[2]

    fs_route *fs_route_new(fs_slice model, const fs_route_settings *settings) noexcept
    void fs_route_unref(fs_route *route) noexcept


cdef extern from "log_sink.h" nogil:
    ctypedef struct fs_log_settings:
        double sampling_rate
        bint responses
        uint64_t max_file_bytes
        int64_t max_file_age_us
        uint32_t keep_files
        uint64_t max_records
        char path[4096]

    fs_log_settings *fs_log_settings_new(const fs_log_settings *settings, const fs_slice *tags,
                                         uint32_t n_tags) noexcept

    ctypedef struct fs_log_tally:
        uint64_t records
        uint64_t bytes
        uint64_t files
        uint64_t failed
        int error

    ctypedef struct fs_log_sink:
        fs_log_tally tally
        bint finished


cdef extern from "request_log.h" nogil:
    enum fs_log_sinks:
        FS_LOG_STANDING
        FS_LOG_RECORDING
        FS_LOG_SINKS

    ctypedef struct fs_request_log:
        void *user
        size_t buffered_bytes
        uint64_t sampled
        uint64_t dropped
        uint64_t skipped
        fs_log_sink sinks[2]

    fs_request_log *fs_request_log_new(fs_owner *home, void (*on_loss)(fs_mail *mail) noexcept,
                                       void *user) noexcept
    void fs_request_log_unref(fs_request_log *log) noexcept
    void fs_request_log_heard(fs_request_log *log) noexcept


cdef extern from "logger.h" nogil:
    ctypedef struct fs_logger:
        pass

    ctypedef struct fs_log_order:
        fs_mail mail
        fs_owner *home
        fs_request_log *log
        fs_log_sinks sink
        fs_log_settings *settings
        size_t max_buffer_bytes
        void (*deliver)(fs_mail *mail) noexcept

    void fs_logger_order(fs_logger *logger, fs_log_order *order) noexcept


cdef extern from "catalog.h" nogil:
    ctypedef struct fs_catalog:
        pass

    ctypedef struct fs_label:
        fs_slice name
        int64_t version

    const fs_sticky *fs_catalog_sticky(const fs_catalog *catalog) noexcept


cdef extern from "warm.h" nogil:
    ctypedef struct fs_warm:
        int iterations
        const char *requests
        size_t max_request_bytes
        int failures


cdef extern from "loader.h" nogil:
    enum fs_task_kind:
        FS_TASK_LOAD
        FS_TASK_PUBLISH
        FS_TASK_RETIRE
        FS_TASK_CLOSE
        FS_TASK_LABEL
        FS_TASK_CALL
        FS_TASK_ROUTE
        FS_TASK_LOG

    enum fs_stage:
        FS_STAGE_QUEUED
        FS_STAGE_OPEN
        FS_STAGE_WARM

    ctypedef struct fs_task:
        fs_mail mail
        fs_owner *home
        fs_task_kind kind
        fs_servable *servable
        fs_runtime runtime
        const char *model
        int64_t version
        const fs_model_spec *spec
        const fs_signature_plan *plans
        fs_batching batching
        fs_warm warm
        fs_servable *replaces
        const fs_label *labels
        uint32_t n_labels
        int (*call)(void *arg, fs_error *err) noexcept nogil
        void *arg
        fs_route *route
        fs_request_log *log
        int rc
        fs_error err
        int64_t took_us

    ctypedef struct fs_progress:
        fs_stage stage
        int done
        int total

    ctypedef struct fs_loader:
        pass

    ctypedef struct fs_loader_config:
        int32_t threads
        int32_t nice
        bint no_breaks
        bint no_loans
        bint close_on_poster

    void fs_loader_post(fs_loader *loader, fs_task *task) noexcept
    void fs_loader_give_way(fs_loader *loader) noexcept
    void fs_loader_hurry(fs_loader *loader) noexcept
    int fs_loader_nice(const fs_loader *loader) noexcept
    bint fs_loader_nice_limited(const fs_loader *loader) noexcept
    fs_progress fs_task_progress(const fs_task *task) noexcept


cdef extern from "resolve.h" nogil:
    int fs_resolve(fs_owner *owner, const fs_rpc *rpc, fs_slice spec, fs_model_ref *model, fs_error *err) noexcept


cdef extern from "metrics.h" nogil:
    ctypedef struct fs_metrics:
        pass

    int fs_metrics_open(int fd, fs_metrics **out) noexcept
    void fs_metrics_close(fs_metrics *metrics) noexcept


cdef extern from "engine.h" nogil:
    ctypedef struct fs_engine_config:
        fs_executors_config executors
        fs_loader_config loader
        size_t max_message_bytes
        size_t max_compressed_bytes
        int32_t named_run_threads
        fs_trace *trace
        bint check_method_names
        fs_metrics *metrics

    fs_engine *fs_engine_start(const fs_engine_config *config, const fs_policy *policy) noexcept
    void fs_engine_stop(fs_engine *engine) noexcept
    int fs_engine_join(fs_engine *engine, fs_owner *owner, fs_mailbox *box, fs_slab *slab,
                       void (*touch)(void *ctx, void *conn) noexcept, void *ctx) noexcept
