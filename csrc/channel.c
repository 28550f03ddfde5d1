/* channel: see channel.h; which file does what stands in channel_own.h. This one: life, the lock, waiting. */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "channel_own.h"
#include "clock.h"

enum {
    EVENTS = 64,
    SLAB_CACHE_BYTES = 64 << 20,
    KEEP_BYTES = 4 << 20,        /* of what is cached and not needed */
    TRIM_US = 5000000,
    WINDOW_BYTES = 8 << 20,
    HEADER_BYTES = 64 << 10,
    /* When nobody has looked at the sockets for so long, a call that starts looks first: a server may have
     * hung up meanwhile. */
    STALE_US = 2000,
};

/* What epoll says for the event; a wire's key is never 0, since generations begin at 1. */
#define EVENT_KEY UINT64_C(0)

/* What a waiter sleeps on. */
enum { ASLEEP = 0, TURN = 1, OVER = 2 };

/* ---- the lock ----------------------------------------------------------------------------------- */

static void enter(fs_channel *channel)
{
    pthread_mutex_lock(&channel->lock);
    fs_slab_own(channel->slab);
    channel->now_us = fs_now_us();
}

static void futex_wake(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, NULL, NULL, 0);
}

/* A waiter is to look again. What it sleeps on may be gone when the wake comes: then it wakes nobody. */
static void wake(fs_channel *channel, _Atomic uint32_t *word)
{
    if (channel->n_wakes < FS_CHANNEL_WAKES)
        channel->wakes[channel->n_wakes++] = word;
    else
        futex_wake(word);
}

static void unlist(fs_channel *channel, fs_waiter *waiter)
{
    if (!waiter->listed)
        return;
    waiter->listed = false;
    *(waiter->prev != NULL ? &waiter->prev->next : &channel->sleepers) = waiter->next;
    *(waiter->next != NULL ? &waiter->next->prev : &channel->sleepers_last) = waiter->prev;
}

void fs_waiter_end(fs_channel *channel, fs_waiter *waiter, bool done)
{
    waiter->over = true;
    waiter->done = done;
    if (waiter == channel->driver) {
        channel->poke = true;
    } else if (waiter->listed) {
        unlist(channel, waiter);
        _Atomic uint32_t *word = &waiter->word;
        /* release: pairs with the acquire in sleep_for; from here on the waiter may be gone. */
        atomic_store_explicit(word, OVER, memory_order_release);
        wake(channel, word);
    }
}

/* Gives the lock back, and then wakes whom it woke while it had it. */
static void leave(fs_channel *channel)
{
    channel->stats.bytes_in += channel->moved.in;
    channel->stats.bytes_out += channel->moved.out;
    channel->moved = (fs_sock_moved){0};
    _Atomic uint32_t *wakes[FS_CHANNEL_WAKES];
    uint32_t n_wakes = channel->n_wakes;
    memcpy(wakes, channel->wakes, n_wakes * sizeof *wakes);
    channel->n_wakes = 0;
    bool late = channel->driver != NULL && fs_timers_due(&channel->timers) < channel->driver_until_us;
    bool poke = channel->poke || late;
    if (poke)
        channel->driver_until_us = 0; /* once is enough */
    channel->poke = false;
    int event = channel->event;
    fs_slab_disown(channel->slab);
    pthread_mutex_unlock(&channel->lock);
    for (uint32_t i = 0; i < n_wakes; i++)
        futex_wake(wakes[i]);
    uint64_t one = 1;
    if (poke && write(event, &one, sizeof one) < 0) {
        /* EAGAIN: it is readable already. */
    }
}

double fs_channel_random(fs_channel *channel)
{
    uint64_t x = channel->random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    channel->random = x;
    return (double)(x >> 11) / (double)(UINT64_C(1) << 53);
}

/* ---- a round of work ---------------------------------------------------------------------------- */

void fs_channel_settle(fs_channel *channel)
{
    for (;;) {
        if (channel->ended != NULL) {
            fs_attempt *attempt = channel->ended;
            channel->ended = attempt->next_ended;
            if (channel->ended == NULL)
                channel->ended_last = &channel->ended;
            fs_attempt_settle(channel, attempt);
        } else if (channel->touched != NULL) {
            fs_wire *wire = channel->touched;
            channel->touched = wire->next_touched;
            fs_wire_turn(channel, wire);
        } else if (channel->serve) {
            channel->serve = false;
            fs_queue_serve(channel);
        } else {
            break;
        }
    }
    if (channel->dead != NULL || channel->gone != NULL)
        fs_wires_reap(channel);
}

static void read_wire(fs_channel *channel, fs_wire *wire)
{
    fs_link *link = &wire->link;
    bool more = link->state != FS_LINK_CLOSED &&
                fs_link_read(link, channel->in, FS_CHANNEL_BUFFER_BYTES, channel->now_us, &channel->moved);
    channel->n_more += (uint32_t)more - (uint32_t)wire->more;
    wire->more = more;
    fs_wire_touch(channel, wire);
}

static void ring(fs_channel *channel, fs_timer *timer)
{
    switch ((enum fs_timer_kind)timer->kind) {
    case FS_TIMER_CALL:
        fs_call_due(channel, (fs_channel_call *)((char *)timer - offsetof(fs_channel_call, timer)));
        break;
    case FS_TIMER_WIRE:
        fs_wire_touch(channel, (fs_wire *)((char *)timer - offsetof(fs_wire, timer)));
        break;
    case FS_TIMER_ENDPOINT:
        channel->serve = true;
        break;
    }
}

/* What the sockets said, and what is due by now. */
static void turn(fs_channel *channel, const struct epoll_event *events, int n)
{
    for (int i = 0; i < n; i++) {
        if (events[i].data.u64 == EVENT_KEY) {
            uint64_t count;
            if (read(channel->event, &count, sizeof count) < 0) {
                /* EAGAIN: another thread has read it. */
            }
            continue;
        }
        fs_wire *wire = fs_wire_find(channel, events[i].data.u64);
        if (wire == NULL)
            continue; /* closed by another thread since epoll said so */
        /* EPOLLERR and EPOLLHUP come unasked; reading tells what they are. */
        if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0)
            read_wire(channel, wire);
        else
            fs_wire_touch(channel, wire);
    }
    for (uint32_t i = 0; channel->n_more > 0 && i < channel->wires_room; i++) {
        fs_wire *wire = channel->wires[i];
        if (wire != NULL && wire->more)
            read_wire(channel, wire);
    }
    fs_channel_settle(channel);
    fs_timer *timer;
    while ((timer = fs_timers_take(&channel->timers, channel->now_us)) != NULL) {
        ring(channel, timer);
        fs_channel_settle(channel);
    }
    if (channel->now_us - channel->trimmed_us >= TRIM_US) {
        channel->trimmed_us = channel->now_us;
        fs_slab_trim(channel->slab, KEEP_BYTES);
    }
}

/* Looks at the sockets without waiting. */
static void look(fs_channel *channel)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(channel->epoll, events, EVENTS, 0);
    channel->driven_us = channel->now_us;
    turn(channel, events, n);
}

/* Sleeps until a socket says something or the clock says `until_us`. Without the lock. */
static int sleep_on(int epoll, struct epoll_event *events, int64_t now_us, int64_t until_us)
{
    if (until_us == INT64_MAX)
        return epoll_wait(epoll, events, EVENTS, -1);
    int64_t us = until_us > now_us ? until_us - now_us : 0;
#ifdef SYS_epoll_pwait2
    /* Hedges and pauses may be shorter than the millisecond that epoll_wait counts in. */
    if (us % 1000 != 0 && us < 50000) {
        struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
        long n = syscall(SYS_epoll_pwait2, epoll, events, EVENTS, &t, NULL, 0);
        if (n >= 0 || errno != ENOSYS)
            return (int)n;
    }
#endif
    int64_t ms = (us + 999) / 1000;
    return epoll_wait(epoll, events, EVENTS, ms < INT_MAX ? (int)ms : INT_MAX);
}

/* ---- waiting ------------------------------------------------------------------------------------ */

/* Drives once: with the lock before and after, not while it sleeps. */
static void drive(fs_channel *channel, fs_waiter *waiter, int64_t until_us)
{
    struct epoll_event events[EVENTS];
    int64_t due_us = fs_timers_due(&channel->timers);
    until_us = channel->n_more > 0 ? 0 : due_us < until_us ? due_us : until_us;
    int64_t now_us = channel->now_us;
    channel->driver = waiter;
    channel->driver_until_us = until_us;
    leave(channel);
    int n = sleep_on(channel->epoll, events, now_us, until_us);
    enter(channel);
    channel->driver = NULL;
    channel->driven_us = channel->now_us;
    turn(channel, events, n);
}

/* Sleeps until somebody else says that it is over, or this thread's turn to drive. True when it is over, and
 * then without the lock; else with it, as before. */
static bool sleep_for(fs_channel *channel, fs_waiter *waiter, int64_t until_us)
{
    waiter->listed = true;
    waiter->next = NULL;
    waiter->prev = channel->sleepers_last;
    *(channel->sleepers_last != NULL ? &channel->sleepers_last->next : &channel->sleepers) = waiter;
    channel->sleepers_last = waiter;
    atomic_store_explicit(&waiter->word, ASLEEP, memory_order_relaxed); /* published by the lock */
    leave(channel);
    struct timespec t = {.tv_sec = until_us / 1000000, .tv_nsec = until_us % 1000000 * 1000};
    /* FUTEX_WAIT_BITSET takes a time on the monotonic clock, not a length. EINTR and the like only make it
     * look at the clock again. */
    syscall(SYS_futex, &waiter->word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, ASLEEP,
            until_us == INT64_MAX ? NULL : &t, NULL, FUTEX_BITSET_MATCH_ANY);
    /* acquire: pairs with the release in fs_waiter_end. */
    if (atomic_load_explicit(&waiter->word, memory_order_acquire) == OVER)
        return true;
    enter(channel);
    unlist(channel, waiter);
    return false;
}

/* Somebody has to drive while there are calls that are waited for. */
static void hand_on(fs_channel *channel)
{
    if (channel->driver != NULL || channel->sleepers == NULL)
        return;
    fs_waiter *next = channel->sleepers;
    unlist(channel, next);
    _Atomic uint32_t *word = &next->word;
    /* It takes the lock before it looks at anything else: relaxed is enough. */
    atomic_store_explicit(word, TURN, memory_order_relaxed);
    wake(channel, word);
}

bool fs_channel_wait(fs_channel *channel, fs_channel_call *call, int64_t until_us)
{
    enter(channel);
    if (call->state == FS_CALL_RESTING) { /* done, or given up */
        bool done = call->done;
        leave(channel);
        return done;
    }
    fs_waiter waiter = {0};
    call->waiter = &waiter;
    do {
        if (channel->driver == NULL)
            drive(channel, &waiter, until_us);
        else if (sleep_for(channel, &waiter, until_us))
            return waiter.done;
    } while (!waiter.over && channel->now_us < until_us);
    if (!waiter.over)
        call->waiter = NULL;
    hand_on(channel);
    bool done = waiter.over && waiter.done;
    leave(channel);
    return done;
}

int fs_channel_fd(const fs_channel *channel)
{
    return channel->epoll;
}

int64_t fs_channel_drive(fs_channel *channel)
{
    enter(channel);
    look(channel);
    int64_t due_us = channel->n_more > 0 ? 0 : fs_timers_due(&channel->timers);
    leave(channel);
    return due_us;
}

int64_t fs_channel_due(fs_channel *channel)
{
    enter(channel);
    int64_t due_us = channel->n_more > 0 ? 0 : fs_timers_due(&channel->timers);
    leave(channel);
    return due_us;
}

/* ---- calls -------------------------------------------------------------------------------------- */

void fs_channel_start(fs_channel *channel, fs_channel_call *call)
{
    enter(channel);
    if (channel->driver == NULL && channel->now_us - channel->driven_us > STALE_US)
        look(channel);
    fs_call_begin(channel, call);
    fs_channel_settle(channel);
    leave(channel);
}

bool fs_channel_cancel(fs_channel *channel, fs_channel_call *call)
{
    enter(channel);
    bool open = call->state != FS_CALL_RESTING;
    if (open) {
        fs_call_cancel(channel, call);
        fs_channel_settle(channel);
    }
    leave(channel);
    return open;
}

/* ---- life --------------------------------------------------------------------------------------- */

static bool same(const fs_endpoint *a, const fs_endpoint *b)
{
    return a->address_len == b->address_len && memcmp(&a->address, &b->address, a->address_len) == 0 &&
           strcmp(a->name, b->name) == 0;
}

/* The table for these endpoints, from servers that are there and new ones. When it fails nothing has changed.
 * */
static int renew(fs_channel *channel, const fs_endpoint *endpoints, uint32_t n)
{
    fs_peer **peers = calloc((size_t)n + 1, sizeof *peers);
    int64_t *scratch = calloc((size_t)n + 1, sizeof *scratch);
    bool *stays = calloc((size_t)channel->n + 1, sizeof *stays);
    bool failed = peers == NULL || scratch == NULL || stays == NULL;
    uint32_t made = 0;
    for (uint32_t i = 0; i < n && !failed; i++) {
        for (uint32_t j = 0; j < channel->n && peers[i] == NULL; j++) {
            if (!stays[j] && same(&fs_server_of(channel->peers[j])->endpoint, &endpoints[i])) {
                stays[j] = true;
                peers[i] = channel->peers[j];
            }
        }
        if (peers[i] != NULL)
            continue;
        fs_server *server = fs_server_new(channel, &endpoints[i]);
        failed = server == NULL;
        if (failed)
            break;
        peers[i] = &server->peer;
        made++;
    }
    if (failed) {
        for (uint32_t i = 0; i < n && made > 0 && peers != NULL; i++) {
            fs_server *server = peers[i] != NULL ? fs_server_of(peers[i]) : NULL;
            if (server != NULL && server->fresh) {
                fs_server_free(channel, server);
                made--;
            }
        }
        free(peers);
        free(scratch);
        free(stays);
        return -FS_RESOURCE_EXHAUSTED;
    }
    for (uint32_t j = 0; j < channel->n; j++) {
        if (!stays[j])
            fs_server_retire(channel, fs_server_of(channel->peers[j]));
    }
    for (uint32_t i = 0; i < n; i++) {
        fs_server_of(peers[i])->index = i;
        fs_server_of(peers[i])->fresh = false;
    }
    free(channel->peers);
    free(channel->scratch);
    free(stays);
    channel->peers = peers;
    channel->scratch = scratch;
    channel->n = n;
    channel->serve = true;
    return 0;
}

int fs_channel_update(fs_channel *channel, const fs_endpoint *endpoints, uint32_t n)
{
    enter(channel);
    int rc = renew(channel, endpoints, n);
    fs_channel_settle(channel);
    leave(channel);
    return rc;
}

fs_channel *fs_channel_new(const fs_channel_config *config, fs_error *err)
{
    fs_channel *channel = calloc(1, sizeof *channel);
    if (channel == NULL) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&channel->lock, NULL);
    channel->config = *config;
    channel->config.endpoints = NULL;
    channel->ended_last = &channel->ended;
    channel->retry_tokens = config->retry_burst;
    channel->hedge_tokens = config->hedge_burst;
    channel->limits = (fs_h2_client_limits){.max_reply_bytes = config->max_reply_bytes,
                                            .max_header_bytes = HEADER_BYTES,
                                            .window_bytes = WINDOW_BYTES,
                                            .keepalive_us = config->keepalive_us,
                                            .keepalive_timeout_us = config->keepalive_timeout_us};
    if (config->tls != NULL)
        fs_tls_context_ref(config->tls);
    channel->now_us = fs_now_us();
    channel->driven_us = channel->now_us;
    channel->trimmed_us = channel->now_us;
    channel->random = ((uint64_t)channel->now_us << 16 ^ (uint64_t)(uintptr_t)channel) | 1;
    channel->slab = fs_slab_new(SLAB_CACHE_BYTES);
    channel->in = malloc(FS_CHANNEL_BUFFER_BYTES);
    channel->out = malloc(FS_CHANNEL_BUFFER_BYTES);
    channel->epoll = epoll_create1(EPOLL_CLOEXEC);
    channel->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = EVENT_KEY};
    if (channel->epoll < 0 || channel->event < 0 ||
        epoll_ctl(channel->epoll, EPOLL_CTL_ADD, channel->event, &event) != 0) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "epoll or eventfd: %s", strerror(errno));
        fs_channel_free(channel);
        return NULL;
    }
    if (channel->slab == NULL || channel->in == NULL || channel->out == NULL ||
        renew(channel, config->endpoints, config->n_endpoints) != 0) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        fs_channel_free(channel);
        return NULL;
    }
    return channel;
}

void fs_channel_free(fs_channel *channel)
{
    if (channel == NULL)
        return;
    if (channel->slab != NULL)
        fs_slab_own(channel->slab);
    while (channel->calls != NULL)
        fs_call_fail(channel, channel->calls, FS_CANCELLED, "the channel was closed");
    for (uint32_t i = 0; i < channel->n; i++)
        fs_server_retire(channel, fs_server_of(channel->peers[i]));
    channel->n = 0;
    fs_channel_settle(channel); /* says RST_STREAM where it still can, then closes */
    free(channel->peers);
    free(channel->scratch);
    free(channel->wires);
    fs_timers_free(&channel->timers);
    if (channel->epoll >= 0)
        close(channel->epoll);
    if (channel->event >= 0)
        close(channel->event);
    free(channel->in);
    free(channel->out);
    fs_slab_release(channel->slab);
    fs_tls_context_unref(channel->config.tls);
    pthread_mutex_destroy(&channel->lock);
    free(channel);
}

/* ---- numbers ------------------------------------------------------------------------------------ */

fs_channel_stats fs_channel_read(fs_channel *channel)
{
    enter(channel);
    fs_channel_stats stats = channel->stats;
    leave(channel);
    return stats;
}

uint32_t fs_channel_endpoints(fs_channel *channel, fs_endpoint_stats *stats, uint32_t room)
{
    enter(channel);
    uint32_t n = channel->n;
    for (uint32_t i = 0; i < n && i < room; i++) {
        const fs_server *server = fs_server_of(channel->peers[i]);
        stats[i] = (fs_endpoint_stats){
            .attempts = server->attempts,
            .failures = server->failures,
            .ejections = server->ejections,
            .outstanding = server->peer.outstanding,
            .connections = server->n_wires,
            .ejected = server->peer.out,
        };
    }
    leave(channel);
    return n;
}
