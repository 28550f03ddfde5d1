/* Threads against csrc/trace_ring.c: what a reader gets is whole, in order, and with the lost ones all there is.
 *
 * Writers fill every word of an event with its number; readers, each with a view of its own as another process would
 * have, some in a hurry and some always late, check every word. Under ThreadSanitizer this also checks that reading
 * beside a writer is no race.
 *
 * stress_trace_ring [events per writer] */
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "trace_ring.h"

enum { WRITERS = 2, READERS = 3 };

typedef struct field {
    int fd;
    fs_trace *trace;
    unsigned long per_writer;
    atomic_int writing;
} field;

typedef struct reader {
    field *field;
    bool late;
    uint64_t got, lost, passes;
} reader;

static void *write_all(void *arg)
{
    field *f = arg;
    fs_track *track = fs_trace_track(f->trace, "writer");
    REQUIRE(track != NULL);
    for (uint64_t n = 1; n <= f->per_writer; n++) {
        uint64_t words[FS_TRACE_WORDS];
        for (size_t i = 0; i < FS_TRACE_WORDS; i++)
            words[i] = n * 31 + i;
        fs_trace_event event;
        memcpy(&event, words, sizeof event);
        fs_track_write(track, &event);
        if (n % 1024 == 0)
            sched_yield();
    }
    atomic_fetch_sub_explicit(&f->writing, 1, memory_order_release);
    return NULL;
}

static void take(const fs_trace_view *view, uint32_t track, uint64_t *at, uint64_t *last, reader *r)
{
    fs_trace_event event;
    uint64_t words[FS_TRACE_WORDS], lost = 0;
    while (fs_trace_read(view, track, at, &event, &lost)) {
        memcpy(words, &event, sizeof words);
        REQUIRE(words[0] % 31 == 0 && words[0] / 31 == *at); /* the number is its place */
        REQUIRE(*at > *last);
        for (size_t i = 1; i < FS_TRACE_WORDS; i++)
            REQUIRE(words[i] == words[0] + i);
        *last = *at;
        r->got++;
        if (r->late && r->got % 64 == 0)
            sched_yield();
    }
    r->lost += lost;
}

static void *read_all(void *arg)
{
    reader *r = arg;
    field *f = r->field;
    fs_trace_view view;
    REQUIRE(fs_trace_map(f->fd, &view) == 0);
    uint64_t at[WRITERS] = {0}, last[WRITERS] = {0};
    bool more = true;
    while (more) {
        /* acquire: pairs with the release above, so that the last pass sees everything. */
        more = atomic_load_explicit(&f->writing, memory_order_acquire) > 0;
        for (uint32_t i = 0; i < WRITERS; i++) {
            if (fs_trace_track_name(&view, i) != NULL)
                take(&view, i, &at[i], &last[i], r);
        }
        r->passes++;
        if (r->late)
            usleep(500);
    }
    for (uint32_t i = 0; i < WRITERS; i++)
        CHECK_EQ(at[i], f->per_writer);
    fs_trace_unmap(&view);
    return NULL;
}

int main(int argc, char **argv)
{
    field f = {.per_writer = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000, .writing = WRITERS};
    f.fd = memfd_create("trace", MFD_CLOEXEC);
    REQUIRE(f.fd >= 0);
    REQUIRE(ftruncate(f.fd, (off_t)(sizeof(fs_trace_shared) + WRITERS * sizeof(fs_trace_ring))) == 0);
    REQUIRE((f.trace = fs_trace_open(f.fd, WRITERS)) != NULL);
    reader readers[READERS];
    pthread_t threads[WRITERS + READERS];
    for (int i = 0; i < READERS; i++) {
        readers[i] = (reader){.field = &f, .late = i == 0};
        REQUIRE(pthread_create(&threads[WRITERS + i], NULL, read_all, &readers[i]) == 0);
    }
    for (int i = 0; i < WRITERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, write_all, &f) == 0);
    for (int i = 0; i < WRITERS + READERS; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < READERS; i++) {
        CHECK_EQ(readers[i].got + readers[i].lost, WRITERS * f.per_writer);
        CHECK(readers[i].got > 0);
        printf("%s: %" PRIu64 " read, %" PRIu64 " lost, %" PRIu64 " passes\n", readers[i].late ? "late" : "quick",
               readers[i].got, readers[i].lost, readers[i].passes);
    }
    fs_trace_close(f.trace);
    close(f.fd);
    return check_done();
}
