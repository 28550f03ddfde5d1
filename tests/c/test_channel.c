/* channel: calls against servers on loopback that answer, fail, die, stand still or lie (channel_rig.h).
 *
 * What the servers saw is counted on their side. Each wait has a limit; where time matters, the bounds are
 * several times what a quiet machine needs. */
#include <signal.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "channel_rig.h"
#include "failmalloc.h"

#define PORTS(...) (uint16_t[]){__VA_ARGS__}

static fs_endpoint_stats endpoint(fs_channel *channel, uint32_t i)
{
    fs_endpoint_stats stats[16];
    REQUIRE(fs_channel_endpoints(channel, stats, 16) > i);
    return stats[i];
}

/* Makes calls until each of the servers answers. */
static void settle(fs_channel *channel, uint32_t n)
{
    rig_call c;
    uint32_t seen = 0;
    int64_t until_us = fs_now_us() + RIG_PATIENCE_US;
    while (seen != (1u << n) - 1 && fs_now_us() < until_us) {
        if (rig_make(channel, &c, 0) == FS_OK && c.call.endpoint >= 0)
            seen |= 1u << c.call.endpoint;
    }
    CHECK_EQ(seen, (1u << n) - 1);
}

/* Waits for a call that was started. */
static int finish(fs_channel *channel, rig_call *c)
{
    bool done = fs_channel_wait(channel, &c->call, fs_now_us() + RIG_PATIENCE_US);
    CHECK(done);
    return done ? rig_end(c) : -1;
}

static void start(fs_channel *channel, rig_call *c, int64_t timeout_us)
{
    rig_call_set(c, 7, timeout_us);
    fs_channel_start(channel, &c->call);
}

/* Two servers in a process of their own, which may be killed, and whose memory does not run out with ours. */
static pid_t server_apart(uint16_t *ports)
{
    int fds[2];
    REQUIRE(pipe(fds) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        uint16_t mine[2] = {rig_new()->port, rig_new()->port};
        if (write(fds[1], mine, sizeof mine) != sizeof mine)
            _exit(1);
        close(fds[1]);
        alarm(200);
        for (;;)
            pause();
    }
    close(fds[1]);
    REQUIRE(read(fds[0], ports, 2 * sizeof *ports) == 2 * sizeof *ports);
    close(fds[0]);
    return child;
}

static void end_process(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- one server --------------------------------------------------------------------------------- */

static void test_calls_are_answered(void)
{
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call c;
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        CHECK_EQ(c.call.attempts, 1);
        CHECK_EQ(c.call.hedges, 0);
        CHECK_EQ(c.call.endpoint, 0);
    }
    CHECK_EQ(RIG_GET(s, seen), 100);
    CHECK_EQ(RIG_GET(s, accepted), 1);
    fs_channel_stats stats = fs_channel_read(channel);
    CHECK_EQ(stats.calls, 100);
    CHECK_EQ(stats.retries + stats.unprocessed + stats.hedges, 0);
    CHECK(stats.bytes_out > 1600 && stats.bytes_in > 1600);
    CHECK_EQ(endpoint(channel, 0).attempts, 100);
    CHECK_EQ(endpoint(channel, 0).outstanding, 0);
    CHECK_EQ(endpoint(channel, 0).connections, 1);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_large_messages(void)
{
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    size_t len = 5000000;
    uint8_t *data = malloc(len);
    REQUIRE(data != NULL);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(i * 7 + i / 1000);
    for (int i = 0; i < 3; i++) {
        rig_call c;
        rig_call_set(&c, 0, 0);
        c.pieces[0] = (fs_slice){data, 1234567};
        c.pieces[1] = (fs_slice){data + 1234567, len - 1234567};
        c.call.message_bytes = len;
        fs_channel_start(channel, &c.call);
        CHECK(fs_channel_wait(channel, &c.call, fs_now_us() + RIG_PATIENCE_US));
        CHECK_EQ(c.call.code, FS_OK);
        CHECK_EQ(c.call.reply_bytes, len);
        CHECK(c.call.reply_bytes == len && memcmp(c.call.reply, data, len) == 0);
        fs_slab_free(c.call.reply);
    }
    free(data);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_many_calls_at_once_by_one_thread(void)
{
    enum { N = 3000 }; /* more than the server allows at once */
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call *calls = calloc(N, sizeof *calls);
    REQUIRE(calls != NULL);
    for (int i = 0; i < N; i++) {
        rig_call_set(&calls[i], (uint64_t)i, i % 2 == 0 ? 0 : RIG_PATIENCE_US);
        fs_channel_start(channel, &calls[i].call);
    }
    for (int i = N - 1; i >= 0; i--)
        CHECK_EQ(finish(channel, &calls[i]), FS_OK);
    CHECK_EQ(RIG_GET(s, seen), N);
    free(calls);
    fs_channel_free(channel);
    rig_free(s);
}

typedef struct caller {
    fs_channel *channel;
    int n, ok, other;
    int64_t timeout_us;
    atomic_int *stop;
} caller;

static void *call_in_turn(void *user)
{
    caller *me = user;
    rig_call c;
    for (int i = 0; i < me->n; i++) {
        if (me->stop != NULL && atomic_load_explicit(me->stop, memory_order_relaxed))
            break;
        if (rig_make(me->channel, &c, me->timeout_us) == FS_OK)
            me->ok++;
        else if (me->other++ == 0)
            fprintf(stderr, "  %s\n", c.call.error.msg);
    }
    return NULL;
}

static void test_eight_threads(void)
{
    enum { THREADS = 8, CALLS = 400 };
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.connections = 2;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    caller callers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (caller){.channel = channel, .n = CALLS, .timeout_us = i % 2 == 0 ? 0 : RIG_PATIENCE_US};
        REQUIRE(pthread_create(&threads[i], NULL, call_in_turn, &callers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(callers[i].ok, CALLS);
    }
    CHECK_EQ(RIG_GET(s, seen), THREADS * CALLS);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_an_event_loop_drives(void)
{
    enum { N = 50 };
    rig_server *s = rig_new();
    RIG_SET(s, delay_us, 2000);
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call calls[N], late;
    for (int i = 0; i < N; i++)
        start(channel, &calls[i], 0);
    CHECK_EQ(fs_channel_due(channel) == INT64_MAX, false); /* the dial's time-out at least */
    int done = 0;
    int64_t until_us = fs_now_us() + RIG_PATIENCE_US, due_us = fs_channel_due(channel);
    while (done < N && fs_now_us() < until_us) {
        int64_t wait_us = due_us == INT64_MAX ? 1000000 : due_us - fs_now_us();
        struct pollfd fd = {.fd = fs_channel_fd(channel), .events = POLLIN};
        poll(&fd, 1, wait_us <= 0 ? 0 : wait_us > 1000000 ? 1000 : (int)(wait_us / 1000 + 1));
        due_us = fs_channel_drive(channel);
        done = 0;
        for (int i = 0; i < N; i++)
            done += atomic_load_explicit(&calls[i].done, memory_order_acquire);
    }
    for (int i = 0; i < N; i++)
        CHECK_EQ(rig_end(&calls[i]), FS_OK);

    /* A deadline is due although no socket says anything. */
    RIG_SET(s, delay_us, INT32_MAX);
    start(channel, &late, 30000);
    due_us = fs_channel_due(channel);
    CHECK(due_us <= late.call.deadline_us);
    while (atomic_load_explicit(&late.done, memory_order_acquire) == 0 && fs_now_us() < until_us) {
        rig_pause(1000);
        if (fs_now_us() >= due_us)
            due_us = fs_channel_drive(channel);
    }
    CHECK_EQ(rig_end(&late), FS_DEADLINE_EXCEEDED);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_loop_and_threads_share_a_channel(void)
{
    enum { N = 300 };
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    caller callers[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        callers[i] = (caller){.channel = channel, .n = N};
        REQUIRE(pthread_create(&threads[i], NULL, call_in_turn, &callers[i]) == 0);
    }
    int64_t until_us = fs_now_us() + RIG_PATIENCE_US;
    for (int i = 0; i < N; i++) {
        rig_call c;
        start(channel, &c, 0);
        while (atomic_load_explicit(&c.done, memory_order_acquire) == 0 && fs_now_us() < until_us) {
            struct pollfd fd = {.fd = fs_channel_fd(channel), .events = POLLIN};
            poll(&fd, 1, 10);
            fs_channel_drive(channel);
        }
        CHECK_EQ(rig_end(&c), FS_OK);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(callers[i].ok, N);
    }
    fs_channel_free(channel);
    rig_free(s);
}

static void test_connections_are_opened_when_calls_need_them(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.connections = 3;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    rig_call c, held[6];
    for (int i = 0; i < 20; i++)
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    CHECK_EQ(RIG_GET(s, accepted), 1);
    RIG_SET(s, delay_us, INT32_MAX);
    /* The first is free for the first, which is busy then: another is dialled, and so on. */
    static const long dialled[] = {1, 2, 2, 3, 3, 3};
    for (int i = 0; i < 6; i++) {
        start(channel, &held[i], 0);
        RIG_WAIT((fs_channel_drive(channel), rig_kept(s) == i + 1 && RIG_GET(s, accepted) == dialled[i]));
        rig_pause(20000); /* its SETTINGS come */
        fs_channel_drive(channel);
    }
    CHECK_EQ(RIG_GET(s, accepted), 3);
    CHECK_EQ(endpoint(channel, 0).connections, 3);
    rig_release(s);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(finish(channel, &held[i]), FS_OK);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_channel_may_end_with_calls_open(void)
{
    rig_server *s = rig_new();
    RIG_SET(s, delay_us, INT32_MAX);
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call running, fresh;
    start(channel, &running, 0);
    RIG_WAIT((fs_channel_drive(channel), rig_kept(s) == 1));
    start(channel, &fresh, 0);
    fs_channel_free(channel);
    CHECK_EQ(rig_end(&running), FS_CANCELLED);
    CHECK_EQ(rig_end(&fresh), FS_CANCELLED);
    RIG_WAIT(RIG_GET(s, cancelled) >= 1);
    rig_free(s);

    channel = rig_channel(rig_config(), PORTS(rig_no_port()), 1); /* one that was never used */
    fs_channel_free(channel);
}

/* ---- several servers ---------------------------------------------------------------------------- */

static void test_turns(void)
{
    rig_server *s[3] = {rig_new(), rig_new(), rig_new()};
    fs_channel *channel = rig_channel(rig_config(), PORTS(s[0]->port, s[1]->port, s[2]->port), 3);
    rig_call c;
    settle(channel, 3);
    int got[3] = {0};
    for (int i = 0; i < 300; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        got[c.call.endpoint]++;
    }
    for (int i = 0; i < 3; i++)
        CHECK_EQ(got[i], 100);
    fs_channel_free(channel);
    for (int i = 0; i < 3; i++)
        rig_free(s[i]);
}

static void test_the_least_busy_gets_the_call(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.balance = FS_LEAST_OUTSTANDING;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    rig_call c, held[4];
    settle(channel, 2);
    RIG_SET(s[0], delay_us, INT32_MAX);
    RIG_SET(s[1], delay_us, INT32_MAX);
    for (int i = 0; i < 4; i++)
        start(channel, &held[i], 0);
    RIG_WAIT((fs_channel_drive(channel), rig_kept(s[0]) == 2 && rig_kept(s[1]) == 2));
    RIG_SET(s[1], delay_us, 0);
    rig_release(s[1]);
    RIG_WAIT((fs_channel_drive(channel), endpoint(channel, 1).outstanding == 0));
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        CHECK_EQ(c.call.endpoint, 1); /* two are still outstanding at the other */
    }
    rig_release(s[0]);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(finish(channel, &held[i]), FS_OK);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

static void test_a_server_that_is_not_there_is_passed_over(void)
{
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(rig_no_port(), s->port), 2);
    rig_call c;
    for (int i = 0; i < 50; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        CHECK_EQ(c.call.endpoint, 1);
    }
    CHECK(endpoint(channel, 0).failures >= 1);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_all_refuse(void)
{
    uint16_t ports[] = {rig_no_port(), rig_no_port()};
    fs_channel *channel = rig_channel(rig_config(), ports, 2);
    rig_call c;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
        char name[40];
        for (int j = 0; j < 2; j++) {
            snprintf(name, sizeof name, "127.0.0.1:%u: ", (unsigned)ports[j]);
            CHECK(rig_says(&c, name));
        }
        CHECK(rig_says(&c, "Connection refused"));
        CHECK_EQ(c.call.endpoint, -1);
    }
    fs_channel_free(channel);

    fs_channel_config config = rig_config();
    channel = rig_channel(config, ports, 0);
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK(rig_says(&c, "no endpoint"));
    fs_channel_free(channel);
}

static void test_wait_for_ready(void)
{
    rig_server *s = rig_new();
    rig_stop(s);
    fs_channel_config config = rig_config();
    config.wait_for_ready = true;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    rig_call c;
    CHECK_EQ(rig_make(channel, &c, 60000), FS_DEADLINE_EXCEEDED);
    CHECK(rig_says(&c, "deadline exceeded after 60 ms (last attempt: 127.0.0.1:"));
    CHECK(rig_says(&c, "Connection refused)"));
    start(channel, &c, 0);
    CHECK(!fs_channel_wait(channel, &c.call, fs_now_us() + 30000));
    rig_start(s);
    CHECK_EQ(finish(channel, &c), FS_OK);
    CHECK_EQ(c.call.attempts, 1);
    fs_channel_free(channel);

    /* One refuses while nobody waits for it: who does later still hears when it may be dialled again. */
    rig_server *other = rig_new();
    rig_stop(s);
    config.reconnect_first_us = 200000;
    channel = rig_channel(config, PORTS(other->port), 1);
    settle(channel, 1);
    fs_endpoint there[2] = {rig_endpoint(other->port), rig_endpoint(s->port)};
    CHECK_OK(fs_channel_update(channel, there, 2));
    RIG_WAIT((rig_make(channel, &c, 0), endpoint(channel, 1).failures == 1));
    CHECK_OK(fs_channel_update(channel, there + 1, 1));
    start(channel, &c, 0);
    rig_start(s);
    CHECK_EQ(finish(channel, &c), FS_OK);
    fs_channel_free(channel);
    rig_free(other);
    rig_free(s);
}

static void test_unix_sockets(void)
{
    rig_server *s = rig_new();
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path + 1, sizeof addr.sun_path - 1, "fastserve-test-%d", (int)getpid()); /* abstract */
    fs_endpoint there = {.address_len = sizeof addr};
    memcpy(&there.address, &addr, sizeof addr);
    snprintf(there.name, sizeof there.name, "unix:%s", addr.sun_path + 1);
    fs_channel_config config = rig_config();
    config.endpoints = &there;
    config.n_endpoints = 1;
    config.reconnect_first_us = 0;
    config.reconnect_max_us = 0;
    fs_error err;
    fs_channel *channel = fs_channel_new(&config, &err);
    REQUIRE(channel != NULL);

    /* Nobody listens, which connect(2) says at once. */
    rig_call c;
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK(rig_says(&c, "no connection: unix:fastserve-test-"));
    CHECK(rig_says(&c, "connect: Connection refused"));
    config.wait_for_ready = true;
    fs_channel *patient = fs_channel_new(&config, &err);
    REQUIRE(patient != NULL);
    CHECK_EQ(rig_make(patient, &c, 30000), FS_DEADLINE_EXCEEDED);
    fs_channel_free(patient);

    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *)&addr, sizeof addr) == 0 &&
            listen(listener, 4) == 0);
    rig_pause(5000); /* it rests after it refused */
    start(channel, &c, 0);
    int fd = accept(listener, NULL, NULL);
    REQUIRE(fd >= 0 && fs_io_adopt(s->io, fd, NULL, NULL) == 0);
    CHECK_EQ(finish(channel, &c), FS_OK);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    close(listener);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_servers_that_speak_something_else(void)
{
    static const enum rig_manner manners[] = {RIG_HANG_UP, RIG_GARBAGE};
    for (int i = 0; i < 2; i++) {
        rig_raw *r = rig_raw_new(manners[i]);
        rig_server *s = rig_new();
        fs_channel *channel = rig_channel(rig_config(), PORTS(r->port), 1);
        rig_call c;
        for (int j = 0; j < 3; j++)
            CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
        fs_channel_free(channel);

        /* Beside one that is well they cost nothing once that one is there. */
        fs_channel_config config = rig_config();
        config.max_attempts = 2;
        channel = rig_channel(config, PORTS(r->port, s->port), 2);
        for (int j = 0; j < 20; j++)
            CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        fs_channel_free(channel);
        rig_free(s);
        rig_raw_free(r);
    }
}

static void test_a_server_that_never_says_a_word(void)
{
    rig_raw *r = rig_raw_new(RIG_SILENT);
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.connect_timeout_us = 50000;
    fs_channel *channel = rig_channel(config, PORTS(r->port), 1);
    rig_call c;
    int64_t from_us = fs_now_us();
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE); /* and not never */
    CHECK(fs_now_us() - from_us < 5000000);
    CHECK(rig_says(&c, "timed out after 50 ms"));
    fs_channel_free(channel);

    config.connect_timeout_us = 5000000;
    channel = rig_channel(config, PORTS(r->port), 1);
    CHECK_EQ(rig_make(channel, &c, 20000), FS_DEADLINE_EXCEEDED);
    CHECK(rig_says(&c, "deadline exceeded after 20 ms (still connecting to 127.0.0.1:"));
    fs_channel_free(channel);
    config.connect_timeout_us = 50000;

    /* It gets no calls while there is another. */
    channel = rig_channel(config, PORTS(s->port, r->port), 2);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    for (int i = 0; i < 20; i++)
        CHECK_EQ(rig_make(channel, &c, 2000000), FS_OK);
    fs_channel_free(channel);
    rig_free(s);
    rig_raw_free(r);
}

/* ---- made again --------------------------------------------------------------------------------- */

static void test_what_no_server_looked_at_is_made_again_at_once(void)
{
    rig_raw *refuser = rig_raw_new(RIG_REFUSE);
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.max_attempts = 1;
    config.retry_codes = 0;
    config.backoff_first_us = 100000; /* waiting for it would show */
    config.backoff_max_us = 100000;
    fs_channel *channel = rig_channel(config, PORTS(refuser->port, s->port), 2);
    rig_call c;
    /* Until both are there, only the refuser may be: then pauses come between. */
    do {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    } while (fs_channel_read(channel).unprocessed == 0);
    long seen = RIG_GET(s, seen);
    int before_unprocessed = (int)fs_channel_read(channel).unprocessed, twice = 0;
    int64_t from_us = fs_now_us();
    for (int i = 0; i < 40; i++) {
        rig_call_set(&c, 1, 0);
        c.call.no_retry = true; /* even so */
        fs_channel_start(channel, &c.call);
        CHECK_EQ(finish(channel, &c), FS_OK);
        CHECK(c.call.attempts <= 2);
        CHECK_EQ(c.call.endpoint, 1);
        twice += c.call.attempts == 2;
    }
    CHECK(fs_now_us() - from_us < 500000); /* 20 pauses would take a second at least */
    CHECK(twice >= 10);
    CHECK_EQ(RIG_GET(s, seen) - seen, 40);
    CHECK_EQ(fs_channel_read(channel).unprocessed, before_unprocessed + twice);
    CHECK_EQ(fs_channel_read(channel).retries, 0);
    fs_channel_free(channel);

    /* Where nobody else is, pauses come between, until the deadline. */
    config.backoff_first_us = 5000;
    config.backoff_max_us = 5000;
    channel = rig_channel(config, PORTS(refuser->port), 1);
    long before = RIG_GET(refuser, seen);
    from_us = fs_now_us();
    int code = rig_make(channel, &c, 100000);
    CHECK(code == FS_UNAVAILABLE || code == FS_DEADLINE_EXCEEDED);
    CHECK(fs_now_us() - from_us < 2000000);
    CHECK(RIG_GET(refuser, seen) - before >= 2);
    CHECK(RIG_GET(refuser, seen) - before <= 45); /* a pause is 2.5 ms at least */
    fs_channel_free(channel);
    rig_raw_free(refuser);
    rig_free(s);
}

static void test_retries(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.max_attempts = 3;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    rig_call c;

    RIG_SET(s, fail_next, 2);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    CHECK_EQ(c.call.attempts, 3);
    CHECK_EQ(RIG_GET(s, seen), 3);
    CHECK_EQ(fs_channel_read(channel).retries, 2);

    RIG_SET(s, fail_next, 3);
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK_EQ(c.call.attempts, 3);
    CHECK_EQ(RIG_GET(s, seen), 6);
    CHECK(rig_says(&c, "127.0.0.1:"));
    CHECK(rig_says(&c, ": told to (3 attempts)"));
    CHECK_EQ(c.call.endpoint, 0);

    /* Not by a call that must not be made twice, */
    RIG_SET(s, fail_next, 1);
    rig_call_set(&c, 1, 0);
    c.call.no_retry = true;
    fs_channel_start(channel, &c.call);
    CHECK_EQ(finish(channel, &c), FS_UNAVAILABLE);
    CHECK_EQ(RIG_GET(s, seen), 7);
    CHECK(strstr(c.call.error.msg, "attempts") == NULL);

    /* nor with a code that is not on the list. */
    RIG_SET(s, fail_code, FS_INVALID_ARGUMENT);
    RIG_SET(s, fail_next, 1);
    CHECK_EQ(rig_make(channel, &c, 0), FS_INVALID_ARGUMENT);
    CHECK_EQ(RIG_GET(s, seen), 8);
    CHECK(rig_says(&c, ": told to"));
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_retry_goes_elsewhere(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.max_attempts = 2;
    config.retry_ratio = 1;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    rig_call c;
    settle(channel, 2);
    RIG_SET(s[0], fail_next, INT32_MAX);
    for (int i = 0; i < 40; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        CHECK_EQ(c.call.endpoint, 1);
    }
    fs_channel_free(channel);

    /* Although the other is busier. */
    RIG_SET(s[0], fail_next, 0);
    config.balance = FS_LEAST_OUTSTANDING;
    channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    RIG_SET(s[0], delay_us, INT32_MAX);
    RIG_SET(s[1], delay_us, INT32_MAX);
    rig_call held[2];
    start(channel, &held[0], 0);
    start(channel, &held[1], 0);
    RIG_WAIT(rig_kept(s[0]) == 1 && rig_kept(s[1]) == 1);
    rig_release(s[0]);
    RIG_WAIT((fs_channel_drive(channel), endpoint(channel, 0).outstanding == 0));
    RIG_SET(s[0], fail_next, INT32_MAX);
    RIG_SET(s[1], delay_us, 0);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        CHECK_EQ(c.call.attempts, 2);
        CHECK_EQ(c.call.endpoint, 1);
    }
    rig_release(s[1]);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(finish(channel, &held[i]), FS_OK);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

static void test_the_budget_bounds_retries(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.max_attempts = 10;
    config.backoff_first_us = 100;
    config.backoff_max_us = 100;
    config.retry_ratio = 0.1;
    config.retry_burst = 5;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    RIG_SET(s, fail_next, INT32_MAX);
    rig_call c;
    for (int i = 0; i < 200; i++)
        CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK(RIG_GET(s, seen) <= 200 + 5 + 20);
    CHECK(RIG_GET(s, seen) >= 200 + 5 + 19);
    fs_channel_stats stats = fs_channel_read(channel);
    CHECK_EQ(stats.retries, RIG_GET(s, seen) - 200);
    CHECK(stats.budget_refusals >= 150);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_server_is_killed_and_restarted(void)
{
    enum { THREADS = 3 };
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.wait_for_ready = true;
    config.max_attempts = 10;
    config.retry_burst = 100;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    atomic_int stop = 0;
    caller callers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        callers[i] = (caller){.channel = channel, .n = INT32_MAX, .timeout_us = 10000000, .stop = &stop};
        REQUIRE(pthread_create(&threads[i], NULL, call_in_turn, &callers[i]) == 0);
    }
    for (int i = 0; i < 4; i++) {
        long seen = RIG_GET(s, seen);
        RIG_WAIT(RIG_GET(s, seen) > seen + 50);
        rig_stop(s);
        rig_pause(20000);
        rig_start(s);
    }
    long seen = RIG_GET(s, seen);
    RIG_WAIT(RIG_GET(s, seen) > seen + 50);
    atomic_store_explicit(&stop, 1, memory_order_relaxed);
    long ok = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(callers[i].other, 0);
        ok += callers[i].ok;
    }
    /* No duplicates but the retries. */
    CHECK(RIG_GET(s, seen) <= ok + (long)fs_channel_read(channel).retries);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_drain_costs_nobody_a_call(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel *channel = rig_channel(rig_config(), PORTS(s[0]->port, s[1]->port), 2); /* no retries */
    atomic_int stop = 0;
    caller callers[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        callers[i] = (caller){.channel = channel, .n = INT32_MAX, .timeout_us = 10000000, .stop = &stop};
        REQUIRE(pthread_create(&threads[i], NULL, call_in_turn, &callers[i]) == 0);
    }
    for (int i = 0; i < 6; i++) {
        rig_server *old = s[i % 2];
        long seen = RIG_GET(old, seen), other = RIG_GET(s[1 - i % 2], seen);
        RIG_WAIT(RIG_GET(old, seen) > seen + 20 && RIG_GET(s[1 - i % 2], seen) > other + 20);
        CHECK_OK(fs_io_drain(old->io, FS_IO_NOTICE));
        rig_pause(2000);
        CHECK_OK(fs_io_drain(old->io, FS_IO_SHUTDOWN));
        RIG_WAIT(fs_io_read(old->io).connections == 0 || fs_io_read(old->io).calls == 0);
        rig_pause(5000);
        rig_stop(old);
        rig_start(old);
    }
    atomic_store_explicit(&stop, 1, memory_order_relaxed);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK_EQ(callers[i].other, 0);
    }
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

static void test_a_connection_that_ended_while_nobody_looked(void)
{
    rig_server *s = rig_new();
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1); /* no retries */
    rig_call c;
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        rig_stop(s);
        rig_start(s);
        rig_pause(10000);
        rig_call_set(&c, 1, 0);
        c.call.no_retry = true;
        fs_channel_start(channel, &c.call);
        CHECK_EQ(finish(channel, &c), FS_OK);
        CHECK_EQ(c.call.attempts, 1);
    }
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_child_that_holds_the_socket_keeps_nobody_busy(uint16_t port, pid_t server)
{
    fs_channel *channel = rig_channel(rig_config(), PORTS(port), 1);
    rig_call c;
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        for (;;)
            pause();
    }
    end_process(server);
    RIG_WAIT((fs_channel_drive(channel), endpoint(channel, 0).connections == 0));
    struct pollfd fd = {.fd = fs_channel_fd(channel), .events = POLLIN};
    CHECK_EQ(poll(&fd, 1, 20), 0);
    end_process(child);
    fs_channel_free(channel);
}

static void test_a_half_open_connection(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.keepalive_us = 30000;
    config.keepalive_timeout_us = 30000;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port), 1);
    rig_call c;
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    RIG_SET(s[0], frozen, true);
    int64_t from_us = fs_now_us();
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK(fs_now_us() - from_us >= 50000);
    CHECK(fs_now_us() - from_us < 5000000);
    RIG_SET(s[0], frozen, false);
    fs_channel_free(channel);

    /* With retries and another server the call is not lost. */
    config.max_attempts = 2;
    channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    RIG_SET(s[0], frozen, true);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    RIG_SET(s[0], frozen, false);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

/* ---- hedges ------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Makes `n` calls; the time that all but `slowest` of them take. */
static int64_t time_calls(fs_channel *channel, int n, int slowest)
{
    int64_t *took_us = calloc((size_t)n, sizeof *took_us);
    REQUIRE(took_us != NULL);
    rig_call c;
    for (int i = 0; i < n; i++) {
        int64_t from_us = fs_now_us();
        CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
        took_us[i] = fs_now_us() - from_us;
    }
    qsort(took_us, (size_t)n, sizeof *took_us, compare);
    int64_t us = took_us[n - 1 - slowest];
    free(took_us);
    return us;
}

static void test_hedges_keep_the_tail_short(void)
{
    enum { SLOW_US = 200000 };
    rig_server *s[3] = {rig_new(), rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.hedge_percentile = 95;
    config.hedge_min_us = 5000;
    config.hedge_ratio = 0.5;
    config.hedge_burst = 20;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port, s[2]->port), 3);
    settle(channel, 3);
    time_calls(channel, 300, 0); /* it learns how long they take */
    RIG_SET(s[1], delay_us, SLOW_US);
    int64_t us = time_calls(channel, 90, 2);
    CHECK_REPORT(us < SLOW_US / 2, "calls take up to %lld ms", (long long)us / 1000);
    fs_channel_stats stats = fs_channel_read(channel);
    CHECK(stats.hedges >= 28);
    CHECK(stats.hedge_wins >= 25);
    CHECK(stats.hedge_wins <= stats.hedges);
    RIG_WAIT(RIG_GET(s[1], cancelled) >= 25); /* the others are given up */
    CHECK(endpoint(channel, 1).outstanding <= 3);
    RIG_SET(s[1], delay_us, 0);
    fs_channel_free(channel);
    for (int i = 0; i < 3; i++)
        rig_free(s[i]);
}

static void test_the_budget_bounds_hedges(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.hedge_percentile = 90;
    config.hedge_ratio = 0.02;
    config.hedge_burst = 3;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    time_calls(channel, 200, 0);
    uint64_t before = fs_channel_read(channel).hedges;
    CHECK(before <= 3 + 4);
    RIG_SET(s[0], delay_us, 3000);
    RIG_SET(s[1], delay_us, 3000);
    time_calls(channel, 100, 0);
    fs_channel_stats stats = fs_channel_read(channel);
    CHECK(stats.hedges - before <= 3 + 2 + 1);
    CHECK(stats.budget_refusals > 0);
    /* What the servers saw is what the budget allowed. */
    CHECK_EQ(RIG_GET(s[0], seen) + RIG_GET(s[1], seen), stats.calls + stats.hedges);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

static void test_calls_that_must_not_be_made_twice_are_not_hedged(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.hedge_percentile = 90;
    config.hedge_ratio = 1;
    config.hedge_min_us = 1000;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    time_calls(channel, 200, 0);
    uint64_t before = fs_channel_read(channel).hedges;
    RIG_SET(s[0], delay_us, 200000);
    RIG_SET(s[1], delay_us, 200000);
    rig_call c;
    rig_call_set(&c, 1, 0);
    c.call.no_retry = true;
    fs_channel_start(channel, &c.call);
    CHECK_EQ(finish(channel, &c), FS_OK);
    CHECK_EQ(c.call.attempts, 1);
    CHECK_EQ(fs_channel_read(channel).hedges, before);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK); /* another is */
    CHECK_EQ(c.call.attempts, 2);
    CHECK_EQ(c.call.hedges, 1);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

static void test_the_first_answer_counts_but_a_failure_that_may_be_retried_does_not(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.hedge_percentile = 90;
    config.hedge_ratio = 1;
    config.hedge_min_us = 2000;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    time_calls(channel, 200, 0);
    /* Both are slow; while the first attempt is under way the other server fails. */
    for (int i = 0; i < 2; i++) {
        RIG_SET(s[0], delay_us, 200000);
        RIG_SET(s[1], delay_us, 200000);
        rig_call c;
        start(channel, &c, 0);
        RIG_WAIT(rig_kept(s[0]) + rig_kept(s[1]) == 1);
        rig_server *other = rig_kept(s[0]) == 1 ? s[1] : s[0];
        RIG_SET(other, fail_code, i == 0 ? FS_UNAVAILABLE : FS_NOT_FOUND);
        RIG_SET(other, fail_next, 1);
        int code = finish(channel, &c);
        CHECK_EQ(c.call.hedges, 1);
        CHECK_EQ(code, i == 0 ? FS_OK : FS_NOT_FOUND);
        RIG_SET(s[0], delay_us, 0);
        RIG_SET(s[1], delay_us, 0);
        RIG_WAIT(rig_kept(s[0]) + rig_kept(s[1]) == 0);
    }
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

/* ---- ejection ----------------------------------------------------------------------------------- */

static void test_a_server_that_fails_is_left_alone_and_comes_back(void)
{
    rig_server *s[3] = {rig_new(), rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.eject_failures = 3;
    config.eject_us = 100000;
    config.eject_at_most = 0.4;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port, s[2]->port), 3);
    settle(channel, 3);
    RIG_SET(s[0], fail_next, INT32_MAX);
    rig_call c;
    int failed = 0;
    for (int i = 0; i < 60; i++)
        failed += rig_make(channel, &c, 0) != FS_OK;
    CHECK(failed >= 3);
    CHECK(failed <= 5); /* one more for each probe that falls into this time */
    CHECK(endpoint(channel, 0).ejected);
    CHECK(endpoint(channel, 0).ejections >= 1);
    /* Another one fails, too, but only one of three may be out. */
    RIG_SET(s[1], fail_next, 10);
    for (int i = 0; i < 15; i++)
        rig_make(channel, &c, 0);
    CHECK(!endpoint(channel, 1).ejected);
    RIG_SET(s[1], fail_next, 0);
    RIG_SET(s[0], fail_next, 0);
    RIG_WAIT((rig_make(channel, &c, 0), !endpoint(channel, 0).ejected));
    long seen = RIG_GET(s[0], seen);
    time_calls(channel, 30, 0);
    CHECK(RIG_GET(s[0], seen) >= seen + 9);
    fs_channel_free(channel);
    for (int i = 0; i < 3; i++)
        rig_free(s[i]);
}

static void test_the_only_server_is_never_ejected(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.eject_failures = 1;
    config.eject_at_most = 1;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    RIG_SET(s, fail_next, 20);
    rig_call c;
    for (int i = 0; i < 20; i++)
        CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK(!endpoint(channel, 0).ejected);
    CHECK_EQ(endpoint(channel, 0).failures, 20);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_deadlines_count_as_failures(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.eject_failures = 2;
    config.eject_us = 10000000;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    RIG_SET(s[1], delay_us, INT32_MAX);
    rig_call c;
    int late = 0;
    for (int i = 0; i < 10; i++)
        late += rig_make(channel, &c, 200000) == FS_DEADLINE_EXCEEDED;
    CHECK_EQ(late, 2);
    CHECK(endpoint(channel, 1).ejected);
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

/* ---- deadlines, cancelling ------------------------------------------------------------------------ */

static void test_deadlines(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.max_attempts = 5;
    config.retry_burst = 100;
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    rig_call c;
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    RIG_SET(s, delay_us, INT32_MAX);
    int64_t from_us = fs_now_us();
    CHECK_EQ(rig_make(channel, &c, 50000), FS_DEADLINE_EXCEEDED);
    int64_t took_us = fs_now_us() - from_us;
    CHECK(took_us >= 49000 && took_us < 1000000);
    CHECK(rig_says(&c, "deadline exceeded after 50 ms (127.0.0.1:"));
    CHECK(rig_says(&c, " has not answered)"));
    CHECK_EQ(c.call.attempts, 1);
    CHECK_EQ(c.call.endpoint, -1);
    RIG_WAIT(RIG_GET(s, cancelled) == 1); /* the server is told */
    RIG_SET(s, delay_us, 0);
    rig_release(s);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);

    /* Retries end with it: one whose pause would be longer than what is left is not made. */
    config.backoff_first_us = 40000;
    config.backoff_max_us = 40000;
    fs_channel *patient = rig_channel(config, PORTS(s->port), 1);
    RIG_SET(s, fail_next, INT32_MAX);
    from_us = fs_now_us();
    CHECK_EQ(rig_make(patient, &c, 100000), FS_UNAVAILABLE);
    CHECK(fs_now_us() - from_us < 1000000);
    CHECK(c.call.attempts >= 2 && c.call.attempts <= 5);
    RIG_SET(s, fail_next, 0);

    /* What failed before is told. */
    RIG_SET(s, fail_next, 1);
    RIG_SET(s, delay_us, INT32_MAX);
    CHECK_EQ(rig_make(patient, &c, 150000), FS_DEADLINE_EXCEEDED);
    CHECK(rig_says(&c, "deadline exceeded after 150 ms (last attempt: 127.0.0.1:"));
    CHECK(rig_says(&c, ": told to) (2 attempts)"));

    /* One that has passed already makes no attempt. */
    long seen = RIG_GET(s, seen);
    rig_call_set(&c, 1, 0);
    c.call.deadline_us = fs_now_us() - 1;
    fs_channel_start(channel, &c.call);
    CHECK(c.call.done);
    CHECK_EQ(rig_end(&c), FS_DEADLINE_EXCEEDED);
    CHECK_EQ(RIG_GET(s, seen), seen);
    fs_channel_free(patient);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_a_shorter_deadline_wakes_who_sleeps_for_a_longer_one(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.connect_timeout_us = 60000000; /* or its timer would wake it, too */
    fs_channel *channel = rig_channel(config, PORTS(s->port), 1);
    rig_call c, early;
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    RIG_SET(s, delay_us, INT32_MAX);
    caller sleeper = {.channel = channel, .n = 1};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, call_in_turn, &sleeper) == 0); /* drives, without a limit */
    RIG_WAIT(rig_kept(s) == 1);
    rig_pause(5000);
    RIG_SET(s, frozen, true); /* not a byte comes from it that could wake anybody */
    start(channel, &early, 30000); /* nobody waits for this one */
    int64_t from_us = fs_now_us();
    RIG_WAIT(atomic_load_explicit(&early.done, memory_order_acquire) == 1);
    CHECK(fs_now_us() - from_us < 5000000);
    RIG_SET(s, frozen, false);
    CHECK_EQ(rig_end(&early), FS_DEADLINE_EXCEEDED);
    rig_release(s);
    pthread_join(thread, NULL);
    CHECK_EQ(sleeper.ok, 1);
    fs_channel_free(channel);
    rig_free(s);
}

static void test_waiting_may_be_interrupted(void)
{
    rig_server *s = rig_new();
    RIG_SET(s, delay_us, 50000);
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call c;
    start(channel, &c, 0);
    int rounds = 0;
    int64_t until_us = fs_now_us() + RIG_PATIENCE_US;
    while (!fs_channel_wait(channel, &c.call, fs_now_us() + 5000) && fs_now_us() < until_us)
        rounds++;
    CHECK(rounds >= 5 && rounds <= 11);
    CHECK_EQ(rig_end(&c), FS_OK);
    CHECK(fs_channel_wait(channel, &c.call, 0)); /* it stays done */
    fs_channel_free(channel);
    rig_free(s);
}

typedef struct victim {
    fs_channel *channel;
    rig_call c;
    bool done;
    atomic_bool over;
} victim;

static void *wait_for_it(void *user)
{
    victim *v = user;
    v->done = fs_channel_wait(v->channel, &v->c.call, INT64_MAX);
    atomic_store_explicit(&v->over, true, memory_order_release);
    return NULL;
}

static void test_cancelling(void)
{
    rig_server *s = rig_new();
    rig_raw *silent = rig_raw_new(RIG_SILENT);
    fs_channel *channel = rig_channel(rig_config(), PORTS(s->port), 1);
    rig_call c;

    /* While it is being dialled for, */
    start(channel, &c, 0);
    CHECK(fs_channel_cancel(channel, &c.call));
    CHECK_EQ(RIG_GET(&c, done), 0);

    /* while it is under way, by one thread that waits and by others, */
    RIG_SET(s, delay_us, INT32_MAX);
    victim victims[3];
    pthread_t threads[3];
    memset(victims, 0, sizeof victims);
    for (int i = 0; i < 3; i++) {
        victims[i].channel = channel;
        start(channel, &victims[i].c, 0);
        REQUIRE(pthread_create(&threads[i], NULL, wait_for_it, &victims[i]) == 0);
    }
    RIG_WAIT(rig_kept(s) == 3);
    rig_pause(5000);
    for (int i = 0; i < 3; i++) {
        CHECK(!atomic_load_explicit(&victims[i].over, memory_order_acquire));
        CHECK(fs_channel_cancel(channel, &victims[i].c.call));
        RIG_WAIT(atomic_load_explicit(&victims[i].over, memory_order_acquire));
        pthread_join(threads[i], NULL);
        CHECK(!victims[i].done);
        CHECK_EQ(RIG_GET(&victims[i].c, done), 0);
    }
    RIG_WAIT(RIG_GET(s, cancelled) == 3);
    RIG_SET(s, delay_us, 0);
    rig_release(s);

    /* when it is done, */
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    CHECK(!fs_channel_cancel(channel, &c.call));
    CHECK(fs_channel_wait(channel, &c.call, 0));

    /* a second time, */
    start(channel, &c, 0);
    CHECK(fs_channel_cancel(channel, &c.call));
    CHECK(!fs_channel_cancel(channel, &c.call));
    CHECK(!fs_channel_wait(channel, &c.call, INT64_MAX));
    fs_channel_free(channel);

    /* between two attempts, */
    fs_channel_config config = rig_config();
    config.max_attempts = 3;
    config.backoff_first_us = 5000000;
    config.backoff_max_us = 5000000;
    channel = rig_channel(config, PORTS(s->port), 1);
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);
    RIG_SET(s, fail_next, 1);
    start(channel, &c, 0);
    CHECK(!fs_channel_wait(channel, &c.call, fs_now_us() + 100000));
    CHECK_EQ(fs_channel_read(channel).retries, 1);
    CHECK(fs_channel_cancel(channel, &c.call));
    fs_channel_free(channel);

    /* and where no connection comes to be. */
    channel = rig_channel(rig_config(), PORTS(silent->port), 1);
    start(channel, &c, 0);
    CHECK(!fs_channel_wait(channel, &c.call, fs_now_us() + 5000));
    CHECK(fs_channel_cancel(channel, &c.call));
    fs_channel_free(channel);
    rig_free(s);
    rig_raw_free(silent);
}

static void test_cancelling_with_a_hedge_under_way(void)
{
    rig_server *s[2] = {rig_new(), rig_new()};
    fs_channel_config config = rig_config();
    config.hedge_percentile = 90;
    config.hedge_ratio = 1;
    config.hedge_min_us = 1000;
    fs_channel *channel = rig_channel(config, PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    time_calls(channel, 200, 0);
    RIG_SET(s[0], delay_us, INT32_MAX);
    RIG_SET(s[1], delay_us, INT32_MAX);
    rig_call c, between;
    start(channel, &c, 0);
    rig_call_set(&between, 1, 0); /* after which it would be the same server's turn again */
    between.call.no_retry = true;
    fs_channel_start(channel, &between.call);
    RIG_WAIT((fs_channel_drive(channel), rig_kept(s[0]) + rig_kept(s[1]) == 3));
    long before = RIG_GET(s[0], cancelled) + RIG_GET(s[1], cancelled);
    CHECK(fs_channel_cancel(channel, &c.call));
    RIG_WAIT(RIG_GET(s[0], cancelled) + RIG_GET(s[1], cancelled) == before + 2);
    CHECK_EQ(endpoint(channel, 0).outstanding + endpoint(channel, 1).outstanding, 1);
    CHECK(fs_channel_cancel(channel, &between.call));
    fs_channel_free(channel);
    rig_free(s[0]);
    rig_free(s[1]);
}

/* ---- other endpoints ------------------------------------------------------------------------------ */

static void test_endpoints_may_be_replaced(void)
{
    rig_server *s[3] = {rig_new(), rig_new(), rig_new()};
    fs_channel *channel = rig_channel(rig_config(), PORTS(s[0]->port, s[1]->port), 2);
    settle(channel, 2);
    RIG_SET(s[0], delay_us, INT32_MAX);
    RIG_SET(s[1], delay_us, INT32_MAX);
    rig_call held[2], c;
    start(channel, &held[0], 0);
    start(channel, &held[1], 0);
    RIG_WAIT(rig_kept(s[0]) == 1 && rig_kept(s[1]) == 1);
    RIG_SET(s[0], delay_us, 0);
    RIG_SET(s[1], delay_us, 0);

    /* The second stays, the first goes, a third comes. */
    fs_endpoint next[2] = {rig_endpoint(s[1]->port), rig_endpoint(s[2]->port)};
    CHECK_OK(fs_channel_update(channel, next, 2));
    long seen = RIG_GET(s[0], seen), accepted = RIG_GET(s[1], accepted);
    settle(channel, 2);
    CHECK(RIG_GET(s[2], seen) > 0);
    CHECK_EQ(RIG_GET(s[0], seen), seen);
    CHECK_EQ(RIG_GET(s[1], accepted), accepted); /* it kept its connection */
    CHECK_EQ(endpoint(channel, 0).outstanding, 1);

    /* What was under way at the first is finished there, and then its connection is closed. */
    rig_release(s[0]);
    rig_release(s[1]);
    CHECK_EQ(finish(channel, &held[0]), FS_OK);
    CHECK_EQ(finish(channel, &held[1]), FS_OK);
    RIG_WAIT((fs_channel_drive(channel), fs_io_read(s[0]->io).connections == 0));

    /* None at all, and then one again, for calls that wait. */
    CHECK_OK(fs_channel_update(channel, NULL, 0));
    CHECK_EQ(fs_channel_endpoints(channel, NULL, 0), 0);
    CHECK_EQ(rig_make(channel, &c, 0), FS_UNAVAILABLE);
    CHECK_OK(fs_channel_update(channel, next, 1));
    CHECK_EQ(rig_make(channel, &c, 0), FS_OK);

    fs_channel_free(channel);
    for (int i = 0; i < 3; i++)
        rig_free(s[i]);
}

static void test_calls_that_wait_see_new_endpoints(void)
{
    rig_server *s = rig_new();
    fs_channel_config config = rig_config();
    config.wait_for_ready = true;
    fs_channel *channel = rig_channel(config, PORTS(rig_no_port()), 1);
    rig_call c;
    start(channel, &c, 0);
    CHECK(!fs_channel_wait(channel, &c.call, fs_now_us() + 20000));
    fs_endpoint there = rig_endpoint(s->port);
    CHECK_OK(fs_channel_update(channel, &there, 1));
    CHECK_EQ(finish(channel, &c), FS_OK);
    fs_channel_free(channel);
    rig_free(s);
}

/* ---- out of memory ------------------------------------------------------------------------------ */

static void test_every_allocation_may_fail(const uint16_t *ports)
{
    fs_endpoint endpoints[2] = {rig_endpoint(ports[0]), rig_endpoint(ports[1])};
    fs_channel_config config = rig_config();
    config.endpoints = endpoints;
    config.n_endpoints = 2;
    config.connections = 2;
    config.hedge_percentile = 50;
    config.max_attempts = 3;
    long n = 1;
    for (;; n++) {
        failmalloc_after(n);
        fs_error err;
        fs_channel *channel = fs_channel_new(&config, &err);
        int code = FS_OK;
        if (channel == NULL) {
            failmalloc_after(-1);
            CHECK_EQ(err.code, FS_RESOURCE_EXHAUSTED);
            continue;
        }
        rig_call calls[4];
        for (int i = 0; i < 4; i++)
            start(channel, &calls[i], 5000000);
        int updated = fs_channel_update(channel, endpoints + 1, 1);
        CHECK(updated == 0 || updated == -FS_RESOURCE_EXHAUSTED);
        for (int i = 0; i < 4; i++) {
            bool done = fs_channel_wait(channel, &calls[i].call, fs_now_us() + RIG_PATIENCE_US);
            CHECK(done);
            if (!done)
                continue;
            int one = rig_end(&calls[i]);
            code = one != FS_OK ? one : code;
            bool fits = one == FS_OK || one == FS_RESOURCE_EXHAUSTED || one == FS_UNAVAILABLE;
            CHECK_REPORT(fits, "allocation %ld: %s", n, calls[i].call.error.msg);
        }
        failmalloc_after(-1);
        fs_channel_free(channel);
        if (!failmalloc_fired()) {
            CHECK_EQ(code, FS_OK);
            break;
        }
    }
    CHECK(n > 20);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    uint16_t ports[2], mortal[2];
    pid_t other = server_apart(ports), victim = server_apart(mortal); /* before there are threads */
    test_calls_are_answered();
    test_large_messages();
    test_many_calls_at_once_by_one_thread();
    test_eight_threads();
    test_an_event_loop_drives();
    test_a_loop_and_threads_share_a_channel();
    test_connections_are_opened_when_calls_need_them();
    test_a_channel_may_end_with_calls_open();
    test_turns();
    test_the_least_busy_gets_the_call();
    test_a_server_that_is_not_there_is_passed_over();
    test_all_refuse();
    test_wait_for_ready();
    test_unix_sockets();
    test_servers_that_speak_something_else();
    test_a_server_that_never_says_a_word();
    test_what_no_server_looked_at_is_made_again_at_once();
    test_retries();
    test_a_retry_goes_elsewhere();
    test_the_budget_bounds_retries();
    test_a_server_is_killed_and_restarted();
    test_a_drain_costs_nobody_a_call();
    test_a_connection_that_ended_while_nobody_looked();
    test_a_child_that_holds_the_socket_keeps_nobody_busy(mortal[0], victim);
    test_a_half_open_connection();
    test_hedges_keep_the_tail_short();
    test_the_budget_bounds_hedges();
    test_calls_that_must_not_be_made_twice_are_not_hedged();
    test_the_first_answer_counts_but_a_failure_that_may_be_retried_does_not();
    test_a_server_that_fails_is_left_alone_and_comes_back();
    test_the_only_server_is_never_ejected();
    test_deadlines_count_as_failures();
    test_deadlines();
    test_a_shorter_deadline_wakes_who_sleeps_for_a_longer_one();
    test_waiting_may_be_interrupted();
    test_cancelling();
    test_cancelling_with_a_hedge_under_way();
    test_endpoints_may_be_replaced();
    test_calls_that_wait_see_new_endpoints();
    test_every_allocation_may_fail(ports);
    end_process(other);
    return check_done();
}
