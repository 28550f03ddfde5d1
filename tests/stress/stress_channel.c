/* Channels under threads: callers that wait, with deadlines and without, one that drives as an event loop
 * does, one that gives up other threads' calls, and one that makes servers fail, die, come back and change
 * places. Every call ends exactly once, and nothing is outstanding in the end.
 *
 * stress_channel [items]   a call for every 20 items */
#include "channel_rig.h"

enum { SERVERS = 3, WAITERS = 4, AT_ONCE = 40 };

typedef struct slot {
    pthread_mutex_t lock; /* held by who cancels, and while the call begins and ends */
    bool open;
    rig_call c;
} slot;

typedef struct scene {
    rig_server *servers[SERVERS];
    fs_channel *channel;
    slot slots[WAITERS];
    atomic_long left;   /* calls to make */
    atomic_bool quit;
    atomic_long ok, failed, late, cancelled;
} scene;

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static int64_t random_timeout(uint32_t *seed)
{
    switch (next_random(seed) % 4) {
    case 0:
        return 1 + next_random(seed) % 1000;
    case 1:
        return 1000 + next_random(seed) % 20000;
    default:
        return 2000000;
    }
}

static bool take_one(scene *sc)
{
    return atomic_fetch_sub_explicit(&sc->left, 1, memory_order_relaxed) > 0;
}

static void count(atomic_long *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* Looks at a call that is over. */
static void judge(scene *sc, rig_call *c, bool cancelled)
{
    int done = atomic_load_explicit(&c->done, memory_order_acquire);
    CHECK_EQ(done, cancelled ? 0 : 1);
    if (cancelled) {
        count(&sc->cancelled);
        return;
    }
    int code = c->call.code;
    CHECK(c->call.done);
    if (code == FS_OK)
        CHECK(rig_echoed(c));
    else
        CHECK_REPORT(code == FS_UNAVAILABLE || code == FS_DEADLINE_EXCEEDED || code == FS_CANCELLED, "%d: %s",
                     code, c->call.error.msg);
    count(code == FS_OK ? &sc->ok : code == FS_DEADLINE_EXCEEDED ? &sc->late : &sc->failed);
    fs_slab_free(c->call.reply);
}

typedef struct actor {
    scene *sc;
    int index;
} actor;

static void *wait_for_calls(void *user)
{
    actor *me = user;
    scene *sc = me->sc;
    slot *s = &sc->slots[me->index];
    uint32_t seed = (uint32_t)me->index * 77 + 1;
    uint64_t number = (uint64_t)me->index << 32;
    while (take_one(sc)) {
        pthread_mutex_lock(&s->lock);
        rig_call_set(&s->c, number++, random_timeout(&seed));
        s->c.call.no_retry = next_random(&seed) % 8 == 0;
        fs_channel_start(sc->channel, &s->c.call);
        s->open = true;
        pthread_mutex_unlock(&s->lock);
        bool done = false, cancelled = false;
        int64_t from_us = fs_now_us();
        while (!done && !cancelled) {
            int64_t until_us = fs_now_us() + next_random(&seed) % 3000;
            done = fs_channel_wait(sc->channel, &s->c.call, until_us);
            pthread_mutex_lock(&s->lock);
            cancelled = !s->open; /* by the other thread, which keeps it so */
            if (done)
                s->open = false;
            pthread_mutex_unlock(&s->lock);
            REQUIRE(fs_now_us() - from_us < RIG_PATIENCE_US);
            /* It may have been over when the other thread asked for it. */
            CHECK(!(done && cancelled));
            if (cancelled)
                break;
        }
        judge(sc, &s->c, cancelled);
    }
    return NULL;
}

static void *drive_calls(void *user)
{
    scene *sc = user;
    static rig_call calls[AT_ONCE];
    bool over[AT_ONCE];
    uint32_t seed = 5;
    uint64_t number = UINT64_C(1) << 60;
    bool more = true;
    while (more) {
        int n = 0;
        for (; n < AT_ONCE && (more = take_one(sc)); n++) {
            rig_call_set(&calls[n], number++, random_timeout(&seed));
            fs_channel_start(sc->channel, &calls[n].call);
            over[n] = false;
        }
        int left = n;
        int64_t from_us = fs_now_us();
        while (left > 0) {
            REQUIRE(fs_now_us() - from_us < RIG_PATIENCE_US);
            int64_t wait_us = fs_channel_due(sc->channel) - fs_now_us();
            struct pollfd fd = {.fd = fs_channel_fd(sc->channel), .events = POLLIN};
            poll(&fd, 1, wait_us <= 0 ? 0 : wait_us < 3000 ? (int)(wait_us / 1000) + 1 : 3);
            fs_channel_drive(sc->channel);
            for (int i = 0; i < n; i++) {
                bool cancelled = !over[i] && next_random(&seed) % 64 == 0 &&
                                 fs_channel_cancel(sc->channel, &calls[i].call);
                bool done = atomic_load_explicit(&calls[i].done, memory_order_acquire) != 0;
                if (over[i] || (!cancelled && !done))
                    continue;
                over[i] = true;
                left--;
                judge(sc, &calls[i], cancelled);
            }
        }
    }
    return NULL;
}

static void *cancel_calls(void *user)
{
    scene *sc = user;
    uint32_t seed = 9;
    while (!atomic_load_explicit(&sc->quit, memory_order_relaxed)) {
        rig_pause(next_random(&seed) % 500);
        slot *s = &sc->slots[next_random(&seed) % WAITERS];
        pthread_mutex_lock(&s->lock);
        if (s->open && fs_channel_cancel(sc->channel, &s->c.call))
            s->open = false;
        pthread_mutex_unlock(&s->lock);
    }
    return NULL;
}

static void *make_trouble(void *user)
{
    scene *sc = user;
    uint32_t seed = 3;
    while (!atomic_load_explicit(&sc->quit, memory_order_relaxed)) {
        rig_pause(1000 + next_random(&seed) % 5000);
        rig_server *s = sc->servers[next_random(&seed) % SERVERS];
        switch (next_random(&seed) % 6) {
        case 0:
            rig_stop(s);
            rig_pause(next_random(&seed) % 5000);
            rig_start(s);
            break;
        case 1:
            RIG_SET(s, fail_next, (int)(next_random(&seed) % 20));
            break;
        case 2:
            RIG_SET(s, delay_us, (int)(next_random(&seed) % 3000));
            break;
        case 3:
            RIG_SET(s, delay_us, 0);
            break;
        case 4:
            fs_io_drain(s->io, FS_IO_SHUTDOWN); /* for ever: it is restarted below */
            rig_pause(500);
            rig_stop(s);
            rig_start(s);
            break;
        default: {
            fs_endpoint endpoints[SERVERS];
            uint32_t n = 1 + next_random(&seed) % SERVERS, first = next_random(&seed) % SERVERS;
            for (uint32_t i = 0; i < n; i++)
                endpoints[i] = rig_endpoint(sc->servers[(first + i) % SERVERS]->port);
            CHECK_OK(fs_channel_update(sc->channel, endpoints, n));
            break;
        }
        }
    }
    return NULL;
}

static void run(long calls, enum fs_balance balance)
{
    static scene sc;
    memset(&sc, 0, sizeof sc);
    uint16_t ports[SERVERS];
    for (int i = 0; i < SERVERS; i++) {
        sc.servers[i] = rig_new();
        ports[i] = sc.servers[i]->port;
    }
    fs_channel_config config = rig_config();
    config.balance = balance;
    config.connections = 2;
    config.max_attempts = 4;
    config.retry_ratio = 0.5;
    config.retry_burst = 100;
    config.backoff_first_us = 500;
    config.reconnect_first_us = 1000;
    config.reconnect_max_us = 5000;
    config.hedge_percentile = 80;
    config.hedge_ratio = 0.5;
    config.eject_failures = 3;
    config.eject_us = 3000;
    config.keepalive_us = 5000;
    config.wait_for_ready = balance == FS_LEAST_OUTSTANDING;
    sc.channel = rig_channel(config, ports, SERVERS);
    atomic_init(&sc.left, calls);
    actor actors[WAITERS];
    pthread_t waiters[WAITERS], driver, canceller, trouble;
    for (int i = 0; i < WAITERS; i++) {
        pthread_mutex_init(&sc.slots[i].lock, NULL);
        actors[i] = (actor){&sc, i};
        REQUIRE(pthread_create(&waiters[i], NULL, wait_for_calls, &actors[i]) == 0);
    }
    REQUIRE(pthread_create(&driver, NULL, drive_calls, &sc) == 0);
    REQUIRE(pthread_create(&canceller, NULL, cancel_calls, &sc) == 0);
    REQUIRE(pthread_create(&trouble, NULL, make_trouble, &sc) == 0);
    for (int i = 0; i < WAITERS; i++)
        pthread_join(waiters[i], NULL);
    pthread_join(driver, NULL);
    atomic_store_explicit(&sc.quit, true, memory_order_relaxed);
    pthread_join(canceller, NULL);
    pthread_join(trouble, NULL);

    fs_channel_stats stats = fs_channel_read(sc.channel);
    long ok = RIG_GET(&sc, ok), failed = RIG_GET(&sc, failed), late = RIG_GET(&sc, late),
         cancelled = RIG_GET(&sc, cancelled);
    printf("%ld calls: %ld ok, %ld failed, %ld late, %ld cancelled; %" PRIu64 " retries, %" PRIu64
           " unprocessed, %" PRIu64 " hedges (%" PRIu64 " won)\n",
           calls, ok, failed, late, cancelled, stats.retries, stats.unprocessed, stats.hedges,
           stats.hedge_wins);
    CHECK_EQ(stats.calls, calls);
    CHECK_EQ(ok + failed + late + cancelled, calls);
    CHECK(ok > calls / 4);
    fs_endpoint_stats endpoints[SERVERS];
    uint32_t n = fs_channel_endpoints(sc.channel, endpoints, SERVERS);
    for (uint32_t i = 0; i < n; i++)
        CHECK_EQ(endpoints[i].outstanding, 0);
    fs_channel_free(sc.channel);
    for (int i = 0; i < SERVERS; i++)
        rig_free(sc.servers[i]);
    for (int i = 0; i < WAITERS; i++)
        pthread_mutex_destroy(&sc.slots[i].lock);
}

int main(int argc, char **argv)
{
    long items = argc > 1 ? atol(argv[1]) : 200000;
    long calls = items / 20 > 100 ? items / 20 : 100;
    run(calls / 2, FS_ROUND_ROBIN);
    run(calls / 2, FS_LEAST_OUTSTANDING);
    return check_done();
}
