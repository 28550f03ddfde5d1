/* channel_own: what the files of a channel share: its parts, and who of them calls whom.
 *
 *     channel.c        life, the lock, waiting and driving, events and timers
 *     channel_wires.c  endpoints and their connections: dialled, refused, lost, replaced
 *     channel_calls.c  calls: attempts, retries, hedges, deadlines, results
 *
 * All of it under the channel's lock. What a link reports (ended attempts) and what may follow from a change
 * (a connection to flush, a queue to serve) is only noted where it happens and done in fs_channel_settle, so
 * that no function of a link is entered while another of it is at work. */
#ifndef FS_CHANNEL_OWN_H
#define FS_CHANNEL_OWN_H

#include <pthread.h>
#include <stdatomic.h>

#include "channel.h"
#include "channel_pace.h"
#include "text.h"

enum {
    FS_CHANNEL_PATHS = 8,            /* of which latencies are kept; all others share the last */
    FS_CHANNEL_BUFFER_BYTES = 256 << 10,
    FS_CHANNEL_WHY_BYTES = 160,
    FS_CHANNEL_WAKES = 16,
};

enum fs_timer_kind { FS_TIMER_CALL, FS_TIMER_WIRE, FS_TIMER_ENDPOINT };

enum fs_call_state {
    FS_CALL_RESTING = 0, /* not started, or done */
    FS_CALL_QUEUED,      /* no connection takes it yet */
    FS_CALL_RUNNING,     /* one attempt, or two */
    FS_CALL_BACKING_OFF, /* until retry_us */
};

typedef struct fs_server fs_server;
typedef struct fs_wire fs_wire;

typedef struct fs_attempt {
    fs_exchange exchange; /* first */
    fs_channel_call *call; /* NULL: nobody wants it any more, it only has to be freed */
    fs_server *server;
    fs_wire *wire;
    struct fs_attempt *next_ended;
    int64_t started_us;
    bool hedge, probe, ended;
} fs_attempt;

/* A connection. Freed when it is closed and its attempts have been settled. */
struct fs_wire {
    fs_link link;
    fs_server *server;
    fs_wire *next;         /* of the server */
    fs_wire *next_touched, *next_dead;
    fs_timer timer;
    uint64_t key;          /* what epoll says: generation and place in the table */
    int64_t opened_us;     /* 0: not yet */
    uint32_t outstanding;  /* attempts */
    uint32_t events;       /* that epoll watches, */
    int watched;           /*   by this copy of the socket: after a fork a child may hold the socket, too, and
                                closing ours would not take it out of the epoll, nor could anything else */
    bool touched, more, answered, closed;
    bool blamed;           /* attempts on it were counted as the server's failures */
    bool ours;             /* we closed it, which blames nobody */
};

/* An endpoint and what is known of it. */
struct fs_server {
    fs_peer peer;          /* first */
    fs_endpoint endpoint;
    fs_link_config link;
    char authority[256], server_name[256];
    fs_wire *wires;
    fs_server *next_gone;  /* of those that an update took away and that still have calls */
    fs_timer timer;        /* when it may be dialled again, while calls wait */
    fs_pace *paces;        /* FS_CHANNEL_PATHS, NULL without hedging */
    int64_t rest_us;       /* the next back-off */
    uint64_t refusal;      /* the number of its last one; 0: it has answered since */
    uint32_t n_wires;      /* that are not on their way out */
    uint32_t index;        /* in the table */
    bool fresh;            /* not in the table yet */
    bool gone;
    char why[FS_CHANNEL_WHY_BYTES]; /* it refused */
    uint64_t attempts, failures, ejections;
};

/* A thread inside fs_channel_wait. On its stack. */
typedef struct fs_waiter {
    struct fs_waiter *prev, *next;
    _Atomic uint32_t word;  /* what it sleeps on */
    bool listed;
    bool over;              /* the call is done or cancelled: not to be touched any more */
    bool done;
} fs_waiter;

struct fs_channel {
    pthread_mutex_t lock;
    fs_channel_config config; /* endpoints, n_endpoints: not used */
    fs_slab *slab;
    int epoll, event;         /* event: wakes who drives */
    uint8_t *in, *out;
    int64_t now_us;
    fs_sock_moved moved;

    /* Servers and connections. */
    fs_h2_client_limits limits;
    fs_peer **peers;          /* fs_server, n of them */
    uint32_t n;
    fs_server *gone;
    uint64_t next_id, refusals; /* refusals: connections that came to nothing, counted */
    uint32_t turn;
    fs_wire **wires;          /* by the lower half of the key */
    uint32_t wires_room, generation, n_more;
    fs_wire *touched, *dead;

    /* Calls. */
    fs_channel_call *calls;
    fs_channel_call *queue_first, *queue_last;
    fs_attempt *ended, **ended_last;
    fs_timers timers;
    bool serve;               /* the queue may get on */
    uint64_t random;
    double retry_tokens, hedge_tokens;
    uint64_t paths[FS_CHANNEL_PATHS]; /* hashes; 0: free */
    int64_t hedge_delays_us[FS_CHANNEL_PATHS]; /* 0: not known */
    int64_t *scratch;         /* a value for each server */

    /* Who drives and who sleeps. */
    fs_waiter *driver;        /* in epoll_wait, without the lock; NULL: nobody */
    int64_t driver_until_us;
    fs_waiter *sleepers, *sleepers_last;
    int64_t driven_us;        /* when the sockets were last looked at */
    int64_t trimmed_us;
    _Atomic uint32_t *wakes[FS_CHANNEL_WAKES]; /* to be done once the lock is free */
    uint32_t n_wakes;
    bool poke;                /* and this: who drives has to look at its call */

    fs_channel_stats stats;
};

/* ---- channel.c ---------------------------------------------------------------------------------- */

/* Does what has been noted, until nothing is left to do. */
void fs_channel_settle(fs_channel *channel);
/* The call's waiter may go; `done` or cancelled. */
void fs_waiter_end(fs_channel *channel, fs_waiter *waiter, bool done);
/* A number from [0, 1). */
double fs_channel_random(fs_channel *channel);

/* ---- channel_wires.c ---------------------------------------------------------------------------- */

extern const fs_h2_client_handler fs_channel_handler;

fs_server *fs_server_new(fs_channel *channel, const fs_endpoint *endpoint); /* NULL when out of memory */
void fs_server_free(fs_channel *channel, fs_server *server);               /* it has no connections */
/* Nobody chooses it any more; freed with its last call. */
void fs_server_retire(fs_channel *channel, fs_server *server);
/* Its least busy connection that takes calls, NULL for none; one more is dialled when all are busy. */
fs_wire *fs_server_wire(fs_channel *channel, fs_server *server);
void fs_server_dial(fs_channel *channel, fs_server *server);
/* Its connections may have changed. */
void fs_server_look(fs_channel *channel, fs_server *server);
/* The attempt counts as the server's failure. */
void fs_server_failed(fs_channel *channel, fs_server *server, bool probe);

fs_wire *fs_wire_find(fs_channel *channel, uint64_t key);
/* To be flushed and looked at before the lock is given back. */
void fs_wire_touch(fs_channel *channel, fs_wire *wire);
/* Flushes, then draws the conclusions from the state. */
void fs_wire_turn(fs_channel *channel, fs_wire *wire);
void fs_wires_reap(fs_channel *channel);
/* When each server may be dialled again, for calls that wait. */
void fs_servers_watch(fs_channel *channel);

/* ---- channel_calls.c ---------------------------------------------------------------------------- */

void fs_call_begin(fs_channel *channel, fs_channel_call *call);
void fs_call_due(fs_channel *channel, fs_channel_call *call); /* its timer */
void fs_call_cancel(fs_channel *channel, fs_channel_call *call);
void fs_call_fail(fs_channel *channel, fs_channel_call *call, enum fs_code code, const char *text);
void fs_queue_serve(fs_channel *channel);
void fs_attempt_settle(fs_channel *channel, fs_attempt *attempt);

static inline fs_server *fs_server_of(fs_peer *peer)
{
    return (fs_server *)(void *)peer;
}

static inline fs_slice fs_slice_cut(const char *text, size_t len, size_t most)
{
    return (fs_slice){(const uint8_t *)text, len < most ? len : most};
}

#endif
