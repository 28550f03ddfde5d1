/* Threads against the logger: owners that hand over answered calls, some of which a shadow needs as well, while
 * settings change, recordings begin and end and the room is narrow. For ThreadSanitizer; and every call that was
 * sampled must be in a file, whole and once, or counted as lost.
 *
 * stress_logger [items]   a call for each item */
#include "logger.h"

#include <poll.h>

#include "engine_rig.h"
#include "log_rig.h"

enum { OWNERS = 3, LOGS = 2 };

typedef struct sender {
    pthread_t thread;
    fs_owner owner;
    fs_slab *slab;
    fs_logger *logger;
    fs_request_log **logs;
    unsigned self;
    long calls;
    uint32_t seed;
    uint64_t posted;
} sender;

static atomic_int senders_left;

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* A request that says who sent it, and a reply that says the same; both as long as the number wants. */
static void fill(uint8_t *data, size_t len, unsigned self, long number)
{
    memset(data, (int)(number & 0x7f), len);
    memcpy(data, &self, sizeof self);
    memcpy(data + sizeof self, &number, sizeof number);
}

static void *send_calls(void *arg)
{
    sender *s = arg;
    uint64_t random = s->self;
    for (long i = 0; i < s->calls; i++) {
        fs_request_log *log = s->logs[next_random(&s->seed) % LOGS];
        uint8_t sinks = fs_request_log_draw(log, &random);
        if (sinks == 0) { /* it is off: until somebody turns it on again */
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
            continue;
        }
        size_t len = 16 + next_random(&s->seed) % (i % 64 == 0 ? 60000 : 200);
        fs_rpc rpc = {.message_len = len};
        fs_call call = {.rpc = &rpc, .owner = &s->owner, .log = fs_request_log_ref(log), .log_sinks = sinks,
                        .shadowed = i % 5 == 0};
        rpc.message = fs_slab_alloc(s->slab, len);
        call.reply_len = FS_GRPC_PREFIX_BYTES + len;
        call.reply = fs_slab_alloc(s->slab, call.reply_len);
        REQUIRE(rpc.message != NULL && call.reply != NULL);
        fill(rpc.message, len, s->self, i);
        fs_grpc_prefix_write(call.reply, false, (uint32_t)len);
        fill((uint8_t *)call.reply + FS_GRPC_PREFIX_BYTES, len, s->self, i);
        fs_log_entry *entry = fs_log_entry_of(&call);
        CHECK_EQ(rpc.message == NULL, entry != NULL && !call.shadowed);
        CHECK_EQ(call.log == NULL, entry != NULL);
        fs_slab_free(rpc.message); /* as the session does */
        fs_slab_free(call.reply);
        fs_request_log_unref(call.log);
        if (entry != NULL) {
            s->posted++;
            fs_logger_post(s->logger, entry);
        }
        if (next_random(&s->seed) % 16 == 0)
            nanosleep(&(struct timespec){.tv_nsec = next_random(&s->seed) % 100000}, NULL);
    }
    atomic_fetch_sub_explicit(&senders_left, 1, memory_order_release);
    return NULL;
}

typedef struct order {
    fs_log_order order; /* first */
    bool done;
} order;

static void ordered(fs_mail *mail)
{
    ((order *)mail)->done = true;
}

static long losses;

static void on_loss(fs_mail *mail)
{
    losses++;
    fs_request_log_heard((fs_request_log *)mail);
}

static void give(fs_logger *logger, fs_owner *home, fs_request_log *log, enum fs_log_sinks sink,
                 fs_log_settings *settings, size_t room)
{
    order o = {.order = {.home = home, .log = log, .sink = sink, .settings = settings, .max_buffer_bytes = room,
                         .deliver = ordered}};
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    fs_logger_order(logger, &o.order);
    while (!o.done) {
        REQUIRE(fs_now_us() < until_us);
        struct pollfd p = {.fd = home->box->fd, .events = POLLIN};
        poll(&p, 1, 100);
        fs_owner_deliver(home);
    }
}

static fs_log_settings *settings(const folder *f, const char *name, uint32_t *seed)
{
    static const double rates[] = {1, 1, 0.5, 0};
    fs_log_settings s = {.sampling_rate = rates[next_random(seed) % 4], .responses = next_random(seed) % 3 != 0,
                         .max_file_bytes = 20000 + next_random(seed) % 200000,
                         .max_file_age_us = next_random(seed) % 2 ? INT64_MAX : 1000};
    snprintf(s.path, sizeof s.path, "%s/%s-%u", f->path, name, next_random(seed) % 2);
    fs_log_settings *made = fs_log_settings_new(&s, NULL, 0);
    REQUIRE(made != NULL);
    return made;
}

/* What the files have: how many records, and that each is one that a sender made. */
typedef struct found {
    uint64_t standing, recorded;
} found;

static fs_slice field(fs_slice message, uint32_t number)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    fs_slice bytes = {0};
    uint32_t tag;
    while (w.at < w.end) {
        REQUIRE(fs_wire_read_tag(&w, &tag));
        if (tag == FS_WIRE_TAG(number, FS_WIRE_BYTES)) {
            REQUIRE(fs_wire_read_bytes(&w, &bytes));
            return bytes;
        }
        REQUIRE(fs_wire_skip(&w, tag, 10));
    }
    return (fs_slice){0};
}

static void check_one(fs_slice bytes)
{
    unsigned self;
    long number;
    REQUIRE(bytes.len >= sizeof self + sizeof number);
    memcpy(&self, bytes.data, sizeof self);
    memcpy(&number, bytes.data + sizeof self, sizeof number);
    CHECK(self < OWNERS);
    for (size_t i = sizeof self + sizeof number; i < bytes.len; i++) {
        if (bytes.data[i] != (number & 0x7f)) {
            CHECK_EQ(bytes.data[i], number & 0x7f);
            break;
        }
    }
}

static void look(const char *path, void *arg)
{
    found *f = arg;
    static records r;
    records_free(&r);
    records_add(path, &r);
    CHECK_EQ(r.torn, 0);
    for (int i = 0; i < r.n; i++) {
        fs_slice predict = field((fs_slice){r.data[i], r.len[i]}, 6);
        fs_slice request = field(predict, 1), response = field(predict, 2);
        check_one(request);
        if (response.len > 0) {
            CHECK_EQ(response.len, request.len);
            CHECK_MEM(response.data, request.data, request.len);
        }
    }
    if (strstr(path, "taken") != NULL)
        f->recorded += (uint64_t)r.n;
    else
        f->standing += (uint64_t)r.n;
    records_free(&r);
    unlink(path);
}

int main(int argc, char **argv)
{
    long items = argc > 1 ? strtol(argv[1], NULL, 10) : 100000;
    folder f = folder_make();
    fs_mailbox box;
    fs_owner home = {.box = &box};
    REQUIRE(fs_mailbox_open(&box) == 0);
    fs_logger *logger = fs_logger_start();
    fs_request_log *logs[LOGS];
    REQUIRE(logger != NULL);
    uint32_t seed = 42;
    for (int i = 0; i < LOGS; i++) {
        REQUIRE((logs[i] = fs_request_log_new(&home, on_loss, NULL)) != NULL);
        give(logger, &home, logs[i], FS_LOG_STANDING, settings(&f, i == 0 ? "a" : "b", &seed), 0);
    }

    static sender senders[OWNERS];
    atomic_init(&senders_left, OWNERS);
    for (unsigned i = 0; i < OWNERS; i++) {
        senders[i] = (sender){.logger = logger, .logs = logs, .self = i, .calls = items / OWNERS + 1,
                              .seed = 100 + i};
        REQUIRE((senders[i].slab = fs_slab_new(4 << 20)) != NULL);
        senders[i].owner = (fs_owner){.slab = senders[i].slab};
        REQUIRE(pthread_create(&senders[i].thread, NULL, send_calls, &senders[i]) == 0);
    }
    long changes = 0;
    found seen = {0};
    uint64_t recorded = 0;
    while (atomic_load_explicit(&senders_left, memory_order_acquire) > 0) {
        fs_request_log *log = logs[next_random(&seed) % LOGS];
        const char *name = log == logs[0] ? "a" : "b";
        uint32_t what = next_random(&seed) % 8;
        if (what < 5) {
            give(logger, &home, log, FS_LOG_STANDING, settings(&f, name, &seed),
                 what == 0 ? 20000 : 1 << 20);
        } else if (what == 5) {
            give(logger, &home, log, FS_LOG_STANDING, NULL, 0);
        } else {
            fs_log_settings *recording = settings(&f, "taken", &seed);
            recording->sampling_rate = 1;
            recording->max_records = 1 + next_random(&seed) % 50;
            snprintf(recording->path, sizeof recording->path, "%s/taken-%ld", f.path, changes);
            give(logger, &home, log, FS_LOG_RECORDING, recording, 0);
            nanosleep(&(struct timespec){.tv_nsec = next_random(&seed) % 2000000}, NULL);
            give(logger, &home, log, FS_LOG_RECORDING, NULL, 0);
            recorded += atomic_load(&log->sinks[FS_LOG_RECORDING].tally.records);
        }
        changes++;
        if (next_random(&seed) % 16 == 0)
            give(logger, &home, NULL, FS_LOG_STANDING, NULL, 0);
    }
    uint64_t posted = 0;
    for (int i = 0; i < OWNERS; i++) {
        REQUIRE(pthread_join(senders[i].thread, NULL) == 0);
        posted += senders[i].posted;
    }
    fs_logger_stop(logger);
    fs_owner_deliver(&home);
    uint64_t written = 0, dropped = 0, sampled = 0;
    for (int i = 0; i < LOGS; i++) {
        CHECK_EQ(atomic_load(&logs[i]->refs), 1);
        CHECK_EQ(atomic_load(&logs[i]->buffered_bytes), 0);
        CHECK_EQ(atomic_load(&logs[i]->skipped), 0);
        CHECK_EQ(atomic_load(&logs[i]->sinks[FS_LOG_STANDING].tally.failed), 0);
        written += atomic_load(&logs[i]->sinks[FS_LOG_STANDING].tally.records);
        dropped += atomic_load(&logs[i]->dropped);
        sampled += atomic_load(&logs[i]->sampled);
        fs_request_log_unref(logs[i]);
    }
    folder_walk(f.path, look, &seen);
    printf("%llu calls handed over of %llu, %llu dropped, %ld times told; %llu in logs and %llu recorded under %ld "
           "changes\n", (unsigned long long)posted, (unsigned long long)sampled, (unsigned long long)dropped, losses,
           (unsigned long long)seen.standing, (unsigned long long)seen.recorded, changes);
    CHECK_EQ(posted + dropped, sampled);
    CHECK_EQ(seen.standing, written);
    CHECK_EQ(seen.recorded, recorded);
    CHECK(written > 0 && changes > 0);
    for (int i = 0; i < OWNERS; i++)
        fs_slab_release(senders[i].slab);
    fs_mailbox_close(&box);
    folder_remove(&f);
    return check_done();
}
