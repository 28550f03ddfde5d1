/* load: a load generator: one thread that sends recorded requests to one server and times the answers.
 *
 * Used by the bindings: new, start, wait and read in turn, join, free, by one thread; stop by any. The
 * generator's own thread drives all connections on an epoll of its own, with a slab of its own; it takes no
 * lock, calls no Python, and in steady state allocates nothing. Times are nanoseconds on CLOCK_MONOTONIC.
 *
 * What is measured. A closed loop keeps `in_flight` requests on each connection; a request's time runs from
 * when it is handed to its connection, so a server that stalls is simply asked less. An open loop sends when
 * requests are due, whatever the answers do, and a request's time runs from when it was due: a stall is in
 * the latency of everything that was due meanwhile. Requests for which no connection has room wait here,
 * first come, first served, and their time runs on. Requests belong to the window by the time that theirs
 * runs from; throughput is what arrived in the window. */
#ifndef FS_LOAD_H
#define FS_LOAD_H

#include <sys/socket.h>

#include "h2_client.h"
#include "hist.h"
#include "tls.h"

typedef struct fs_load fs_load;

enum fs_load_kind {
    FS_LOAD_CLOSED,   /* in_flight on each connection */
    FS_LOAD_CONSTANT, /* open loop at `rate`, equal gaps */
    FS_LOAD_POISSON,  /* open loop at `rate`, exponential gaps */
    FS_LOAD_REPLAY,   /* open loop at times_us */
};

/* What replies of Predict must hold. Version v of the model has content v % n_contents: `expected` has, for
 * each content, the values of one float output for each body, one body after the other. */
typedef struct fs_load_check {
    fs_slice output;          /* its alias */
    uint32_t n_contents;
    uint32_t n_bodies;
    const uint64_t *first;    /* [n_bodies + 1]: where a body's values begin, within a content's */
    const float *expected;    /* [n_contents][first[n_bodies]] */
    float atol, rtol;         /* a value may be off by atol + rtol * |expected| */
} fs_load_check;

/* What became of one of the window's requests. */
typedef struct fs_load_record {
    int64_t due_ns;  /* what its time runs from, on CLOCK_MONOTONIC */
    int64_t took_ns;
    int32_t version; /* that the answer names, where replies are checked; -1: none, or beyond 32 bits */
    int32_t failure; /* 0, enum fs_code or fs_load_failure */
} fs_load_record;

/* What it points to outlives the fs_load. */
typedef struct fs_load_config {
    struct sockaddr_storage address;
    socklen_t address_len;
    bool http;                    /* HTTP/1.1, one request in flight on each connection; else gRPC */
    fs_tls_context *tls;          /* gRPC only; NULL: plain */
    const char *server_name;      /* with TLS */
    fs_slice path, authority;
    const fs_header *headers;
    uint32_t n_headers;
    const fs_slice *bodies;       /* messages without a prefix */
    uint32_t n_bodies;
    const int64_t *reply_bytes;   /* what a good reply to each has; -1: anything. NULL: anything for all */
    const fs_load_check *check;   /* gRPC only; NULL: replies are not looked at */
    const uint32_t *order;        /* which body each request takes, over and over; NULL: in turn */
    uint64_t n_order;

    uint32_t connections;
    enum fs_load_kind kind;
    uint32_t in_flight;           /* FS_LOAD_CLOSED */
    double rate;                  /* a second; FS_LOAD_CONSTANT, FS_LOAD_POISSON */
    uint64_t seed;
    const int64_t *times_us;      /* FS_LOAD_REPLAY: from the begin, rising */
    uint64_t n_times;

    int64_t warmup_ns;
    int64_t duration_ns;          /* of the window; 0: it ends */
    uint64_t requests;            /*   when so many were answered; 0 as well: with the recorded times */
    int64_t interval_ns;          /* 0: no intervals */
    int64_t timeout_us;           /* of a request, from when its time runs */
    bool send_deadline;           /* tell the server */
    int64_t connect_timeout_us;
    uint64_t max_outstanding;     /* open loop: more fail with FS_LOAD_FULL */
    int64_t spin_ns;              /* open loop: how long before a request is due it sleeps no more */
    int processor;                /* that the thread stays on; -1: any */
    uint64_t max_records;         /* what is kept of single requests; 0: nothing */
} fs_load_config;

/* Why a request failed: enum fs_code where the server said so, and these. */
enum fs_load_failure {
    FS_LOAD_LOST = 17,  /* the connection broke, was refused, or the server was leaving */
    FS_LOAD_TIMEOUT,
    FS_LOAD_REPLY_SIZE,
    FS_LOAD_FULL,       /* too many outstanding */
    FS_LOAD_BAD_HTTP,   /* the answer is not HTTP */
    FS_LOAD_BAD_REPLY,  /* it is no PredictResponse, or has not the output that is looked at */
    FS_LOAD_MISVERSIONED, /* it names no version, or its values are not of the version that it names */
    FS_LOAD_HTTP,       /* an HTTP status that is not 2xx; FS_LOAD_HTTP + status */
    FS_LOAD_FAILURES = FS_LOAD_HTTP + 1000,
};

typedef struct fs_load_interval {
    int64_t start_ns; /* from the window's begin */
    uint64_t sent, done, failed;
    uint64_t p50_ns, p90_ns, p99_ns, max_ns;
} fs_load_interval;

typedef struct fs_load_result {
    uint64_t sent, done, unanswered;       /* of the window's requests */
    uint64_t failed[FS_LOAD_FAILURES];     /* the same, by enum fs_code or fs_load_failure */
    uint64_t *done_by_body;
    int64_t window_ns;
    uint64_t arrived;                      /* good answers inside the window */
    fs_hist latency, behind;
    fs_load_interval *intervals;
    uint32_t n_intervals;
    int64_t cpu_ns;                        /* of the thread, inside the window, as are the bytes */
    uint64_t bytes_in, bytes_out;
    uint64_t reconnects;
    const fs_load_record *records;         /* of requests that have ended, in that order */
    uint64_t n_records, unrecorded;        /* unrecorded: for which there was no room */
    fs_error first_error;                  /* len 0: none */
    bool no_connection;                    /* nothing was sent: first_error says why */
} fs_load_result;

typedef struct fs_load_progress {
    int64_t elapsed_ns; /* since the connections were there; 0 before */
    bool measuring;
    uint64_t sent, done, failed, outstanding; /* in all */
} fs_load_progress;

/* NULL and err: out of memory or descriptors. Nothing is dialled yet. */
fs_load *fs_load_new(const fs_load_config *config, fs_error *err);

/* Starts the thread. 0, or negative and err (no such processor, no thread). */
int fs_load_start(fs_load *load, fs_error *err);

/* Sleeps until the run is over or so many milliseconds have passed. Whether it is over. */
bool fs_load_wait(fs_load *load, int timeout_ms);
fs_load_progress fs_load_read(const fs_load *load);

/* Ends the run soon, without waiting for answers. Any thread, between start and join. */
void fs_load_stop(fs_load *load);

/* Sends nothing more, and ends the run when all is answered, or late. As stop, otherwise. */
void fs_load_finish(fs_load *load);

/* Waits for the thread's end; the result lives until fs_load_free. */
const fs_load_result *fs_load_join(fs_load *load);

/* Stops and joins first where that is still to be done. NULL is fine. */
void fs_load_free(fs_load *load);

#endif
