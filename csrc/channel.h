/* channel: calls to a set of servers: over which connection, when once more, and what the caller gets.
 *
 * Has no thread of its own. Whoever waits for a call drives all connections meanwhile (one of the waiting
 * threads at a time; the others sleep on a futex or condition until their call is over or it is their turn),
 * or an event loop does, by watching fs_channel_fd. So a call's bytes are sent and received by the thread
 * that wants them. Knows links; knows no message's meaning. All functions may be called from any thread,
 * except where they say otherwise; one mutex guards everything and is never held while sleeping.
 *
 * What a call may go through: a connection is chosen (the balance's next, or the one with the least
 * outstanding calls, among endpoints that are not ejected); an attempt is made there; an attempt that no
 * server has looked at is made again at once elsewhere, as often as needed before the deadline; one that
 * failed with a retryable code is made again after a back-off, while attempts and the budget last; one that
 * takes longer than the hedge's percentile of recent calls gets a second at another endpoint, while the
 * hedges' budget lasts, and the first answer counts: the other attempt is cancelled. */
#ifndef FS_CHANNEL_H
#define FS_CHANNEL_H

#include "balance.h"
#include "channel_timers.h"
#include "link.h"

typedef struct fs_channel fs_channel;

typedef struct fs_endpoint {
    struct sockaddr_storage address;
    socklen_t address_len;
    char name[128];            /* "10.0.0.1:8500", for messages */
} fs_endpoint;

typedef struct fs_channel_config {
    const fs_endpoint *endpoints; /* copied */
    uint32_t n_endpoints;
    uint32_t connections;         /* to each endpoint, opened when calls need them */
    enum fs_balance balance;

    fs_tls_context *tls;          /* NULL: plain; the channel takes a reference */
    char server_name[256];
    char authority[256];

    size_t max_reply_bytes;
    int64_t connect_timeout_us;
    int64_t stall_timeout_us;
    int64_t keepalive_us;         /* PING on connections with calls open, 0: never */
    int64_t keepalive_timeout_us;
    int64_t reconnect_first_us, reconnect_max_us; /* between dials of one endpoint, doubling, with jitter */

    /* Retries. */
    uint32_t max_attempts;        /* of one call in all, 1: no retries. Unprocessed attempts do not count */
    uint32_t retry_codes;         /* bit mask of 1 << enum fs_code */
    int64_t backoff_first_us, backoff_max_us; /* doubling, with jitter of plus or minus a half */
    double retry_ratio;           /* each call adds so much of a retry to the budget, */
    double retry_burst;           /*   which holds so many at most, and is full at first */

    /* Hedging. */
    double hedge_percentile;      /* 0: off; 95: the slowest twentieth gets a second attempt */
    int64_t hedge_min_us;         /* never sooner than this */
    double hedge_ratio, hedge_burst; /* a budget as for retries */

    /* Ejection of endpoints that fail: */
    uint32_t eject_failures;      /* failed attempts in a row (connection lost or refused, UNAVAILABLE,
                                     deadline passed without an answer); 0: never */
    int64_t eject_us;             /* out for so long, doubled each time up to 16-fold; then one call tries */
    double eject_at_most;         /* share of the endpoints that may be out at once; the last is never */
    bool wait_for_ready;          /* calls wait for a connection until their deadline instead of failing with
                                     UNAVAILABLE when every endpoint has refused once */
} fs_channel_config;

/* A call. The caller's memory, at rest until done. */
typedef struct fs_channel_call {
    /* Set by the caller. */
    fs_slice path;
    const fs_slice *pieces;
    uint32_t n_pieces;
    size_t message_bytes;
    uint8_t encoding;
    const fs_header *headers;
    uint32_t n_headers;
    int64_t deadline_us;          /* on the clock of fs_now_us; INT64_MAX: none */
    bool no_retry;                /* not idempotent: made again only if no server has looked at it */
    void (*on_done)(struct fs_channel_call *call); /* may be NULL. Under the lock, on whichever thread drives,
                                     or from inside fs_channel_start: must be short and must not call the
                                     channel. The call's memory is the caller's again */
    void *user;

    /* The result, once done. */
    bool done;                    /* read by fs_channel_wait and on_done; others under no lock may not look */
    int code;
    fs_error error;               /* names the endpoint and the attempts: "10.0.0.1:8500: ... (3 attempts)" */
    uint8_t *reply;               /* a slab block, the caller's to free, as in h2_client.h */
    size_t reply_bytes;
    uint8_t reply_encoding;
    uint16_t attempts, hedges;    /* made in all */
    int16_t endpoint;             /* whose answer it is, -1: nobody's */

    /* The channel's own, until done. */
    struct fs_channel_call *prev, *next;           /* of all that are open */
    struct fs_channel_call *queue_prev, *queue_next; /* of those that wait for a connection */
    fs_timer timer;
    struct fs_attempt *tries[2];  /* under way: [1] is the hedge */
    struct fs_waiter *waiter;     /* who sleeps for it, NULL: nobody */
    uint64_t avoid;               /* the endpoint that the last attempt failed at */
    int64_t started_us, retry_us, hedge_us;
    uint64_t refusals;            /* the channel's when it began to wait for a connection */
    uint32_t unprocessed;         /* attempts that no server has looked at */
    uint16_t failures;            /* attempts that failed and count against max_attempts */
    uint8_t state;
    uint8_t pace;                 /* which of the channel's paths, for hedging */
} fs_channel_call;

typedef struct fs_endpoint_stats {
    uint64_t attempts, failures, ejections;
    uint32_t outstanding, connections;
    bool ejected;
} fs_endpoint_stats;

typedef struct fs_channel_stats {
    uint64_t calls, retries, unprocessed, hedges, hedge_wins, budget_refusals;
    uint64_t bytes_in, bytes_out;
} fs_channel_stats;

/* NULL and err when out of memory or descriptors. Nothing is dialled yet. */
fs_channel *fs_channel_new(const fs_channel_config *config, fs_error *err);

/* Ends what is still open with CANCELLED, and frees all. Nobody may be inside any other function. */
void fs_channel_free(fs_channel *channel);

/* Starts a call and sends what can be sent at once. It always ends in `done`, except when cancelled. */
void fs_channel_start(fs_channel *channel, fs_channel_call *call);

/* Sleeps, or drives, until the call is done or the clock says `until_us`. Whether it is done. One thread at a
 * time for one call. */
bool fs_channel_wait(fs_channel *channel, fs_channel_call *call, int64_t until_us);

/* Gives a call up; its memory is the caller's again. on_done is not called. False when it was done already.
 * A thread that waits for the call returns from fs_channel_wait at once, with false. */
bool fs_channel_cancel(fs_channel *channel, fs_channel_call *call);

/* For event loops: readable when fs_channel_drive has something to do. Drive returns when to drive next at
 * the latest (INT64_MAX: only when readable); after fs_channel_start the time may be sooner: ask
 * fs_channel_due. */
int fs_channel_fd(const fs_channel *channel);
int64_t fs_channel_drive(fs_channel *channel);
int64_t fs_channel_due(fs_channel *channel);

/* Replaces the endpoints (a name was resolved again): those that stay keep their connections, calls on those
 * that go are finished there. 0, or -FS_RESOURCE_EXHAUSTED. */
int fs_channel_update(fs_channel *channel, const fs_endpoint *endpoints, uint32_t n);

fs_channel_stats fs_channel_read(fs_channel *channel);
/* Fills up to `room`, returns how many endpoints there are. */
uint32_t fs_channel_endpoints(fs_channel *channel, fs_endpoint_stats *stats, uint32_t room);

#endif
