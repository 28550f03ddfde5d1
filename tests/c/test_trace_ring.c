/* trace_ring: events from a thread to a reader, in order; what was overwritten is counted; memory that is no trace. */
#include "trace_ring.h"

#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "clock.h"
#include "failmalloc.h"
#include "status.h"

/* Memory with room for so many tracks. */
static int memory(uint32_t tracks)
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    size_t bytes = sizeof(fs_trace_shared) + tracks * sizeof(fs_trace_ring);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

typedef struct world {
    int fd;
    fs_trace *trace;
    fs_trace_view view;
} world;

static world world_new(uint32_t tracks)
{
    world w = {.fd = memory(tracks)};
    REQUIRE((w.trace = fs_trace_open(w.fd, tracks)) != NULL);
    REQUIRE(fs_trace_map(w.fd, &w.view) == 0);
    return w;
}

static void world_free(world *w)
{
    fs_trace_unmap(&w->view);
    fs_trace_unmap(&w->view); /* again: nothing happens */
    fs_trace_close(w->trace);
    close(w->fd);
}

static void write_number(fs_track *track, int64_t number)
{
    fs_trace_event event = {.kind = FS_TRACE_BATCH, .begin_us = number, .rows = number * 3};
    fs_trace_put_model(&event, "ranker", 6);
    fs_track_write(track, &event);
}

static void test_what_is_written_is_read(void)
{
    world w = world_new(3);
    fs_track *one = fs_trace_track(w.trace, "fs-exec-0"), *two = fs_trace_track(w.trace, "loop");
    REQUIRE(one != NULL && two != NULL);
    CHECK_STR(fs_trace_track_name(&w.view, 0), "fs-exec-0");
    CHECK_STR(fs_trace_track_name(&w.view, 1), "loop");
    CHECK(fs_trace_track_name(&w.view, 2) == NULL);
    CHECK(fs_trace_track_name(&w.view, 3) == NULL);
    uint64_t at[2] = {0}, lost = 0;
    fs_trace_event event;
    CHECK(!fs_trace_read(&w.view, 0, &at[0], &event, &lost));
    for (int64_t i = 0; i < 100; i++) {
        write_number(one, i);
        write_number(two, i + 1000);
    }
    for (int64_t i = 0; i < 100; i++) {
        CHECK(fs_trace_read(&w.view, 0, &at[0], &event, &lost));
        CHECK_EQ(event.begin_us, i);
        CHECK_EQ(event.rows, i * 3);
        CHECK_EQ(event.model_len, 6);
        CHECK_MEM(event.model, "ranker", 6);
        CHECK(fs_trace_read(&w.view, 1, &at[1], &event, &lost));
        CHECK_EQ(event.begin_us, i + 1000);
    }
    CHECK(!fs_trace_read(&w.view, 0, &at[0], &event, &lost));
    CHECK_EQ(fs_trace_written(&w.view, 0), 100);
    CHECK_EQ(lost, 0);
    world_free(&w);
}

static void test_a_reader_that_is_late_knows_what_it_has_missed(void)
{
    world w = world_new(1);
    fs_track *track = fs_trace_track(w.trace, "t");
    enum { MORE = 100 };
    for (int64_t i = 0; i < FS_TRACE_SLOTS + MORE; i++)
        write_number(track, i);
    uint64_t at = 0, lost = 0;
    fs_trace_event event;
    for (int64_t i = MORE; i < FS_TRACE_SLOTS + MORE; i++) {
        CHECK(fs_trace_read(&w.view, 0, &at, &event, &lost));
        CHECK_EQ(event.begin_us, i);
    }
    CHECK(!fs_trace_read(&w.view, 0, &at, &event, &lost));
    CHECK_EQ(lost, MORE);
    world_free(&w);
}

/* One that the writer is in the middle of, or has just replaced. */
static void test_half_an_event_is_none(void)
{
    world w = world_new(1);
    fs_track *track = fs_trace_track(w.trace, "t");
    for (int64_t i = 0; i < 3; i++)
        write_number(track, i);
    uint64_t at = 0, lost = 0;
    fs_trace_event event;
    atomic_store(&track->ring->slots[0].turn, 0);
    atomic_store(&track->ring->slots[1].turn, FS_TRACE_SLOTS + 2);
    CHECK(fs_trace_read(&w.view, 0, &at, &event, &lost));
    CHECK_EQ(event.begin_us, 2);
    CHECK_EQ(lost, 2);
    world_free(&w);
}

static void test_what_is_wanted_is_told(void)
{
    world w = world_new(1);
    fs_track *track = fs_trace_track(w.trace, "t");
    CHECK_EQ(fs_trace_wanted(w.trace), 0);
    CHECK_EQ(fs_trace_wanted(NULL), 0);
    CHECK(!fs_track_wants(NULL, FS_TRACE_RECORDING | FS_TRACE_SPANS));
    fs_track_turn(track, FS_TURN_READ, 1, 5);
    fs_track_turn(NULL, FS_TURN_READ, 1, 5);
    CHECK_EQ(fs_trace_written(&w.view, 0), 0);
    fs_trace_want(&w.view, FS_TRACE_RECORDING, 17);
    CHECK_EQ(fs_trace_wanted(w.trace), FS_TRACE_RECORDING);
    CHECK(fs_track_wants(track, FS_TRACE_RECORDING) && !fs_track_wants(track, FS_TRACE_SPANS));
    CHECK_EQ(atomic_load(&track->shared->share), 17);
    int64_t before_us = fs_now_us();
    fs_track_turn(track, FS_TURN_READ, 1, 5);
    uint64_t at = 0, lost = 0;
    fs_trace_event event;
    CHECK(fs_trace_read(&w.view, 0, &at, &event, &lost));
    CHECK_EQ(event.kind, FS_TRACE_TURN);
    CHECK_EQ(event.begin_us, 1);
    CHECK_EQ(event.count, 5);
    CHECK(event.end_us >= before_us);
    world_free(&w);
}

static void test_names_are_cut_to_what_fits(void)
{
    char name[300];
    memset(name, 'n', sizeof name);
    fs_trace_event event = {0};
    fs_trace_put_model(&event, name, sizeof name);
    fs_trace_put_signature(&event, name, sizeof name);
    CHECK_EQ(event.model_len, FS_TRACE_MODEL_BYTES);
    CHECK_EQ(event.signature_len, FS_TRACE_SIGNATURE_BYTES);
    CHECK_MEM(event.model, name, FS_TRACE_MODEL_BYTES);
    fs_trace_put_model(&event, NULL, 0);
    CHECK_EQ(event.model_len, 0);
    world w = world_new(1);
    name[sizeof name - 1] = '\0';
    fs_trace_track(w.trace, name);
    CHECK_EQ(strlen(fs_trace_track_name(&w.view, 0)), FS_TRACE_NAME_BYTES - 1);
    world_free(&w);
}

static void test_there_are_as_many_tracks_as_fit(void)
{
    int fd = memory(2);
    fs_trace *trace = fs_trace_open(fd, 50);
    REQUIRE(trace != NULL);
    CHECK(fs_trace_track(trace, "a") != NULL && fs_trace_track(trace, "b") != NULL);
    CHECK(fs_trace_track(trace, "c") == NULL);
    CHECK(fs_trace_track(trace, "d") == NULL);
    CHECK(fs_trace_track(NULL, "e") == NULL);
    fs_track_write(NULL, &(fs_trace_event){0}); /* for who got none */
    fs_trace_view view;
    CHECK_OK(fs_trace_map(fd, &view));
    CHECK_EQ(view.tracks, 2);
    fs_trace_unmap(&view);
    fs_trace_close(trace);
    fs_trace_close(NULL);
    close(fd);
}

static void test_memory_that_is_no_trace(void)
{
    fs_trace_view view;
    int fd = memory(1);
    CHECK_EQ(fs_trace_map(fd, &view), -FS_UNAVAILABLE); /* not yet */
    CHECK(view.shared == NULL);
    fs_trace *trace = fs_trace_open(fd, 1);
    REQUIRE(trace != NULL);
    trace->shared->slots++;
    CHECK_EQ(fs_trace_map(fd, &view), -FS_FAILED_PRECONDITION);
    trace->shared->slots--;
    trace->shared->slot_bytes++;
    CHECK_EQ(fs_trace_map(fd, &view), -FS_FAILED_PRECONDITION);
    trace->shared->slot_bytes--;
    trace->shared->tracks = 2; /* than there is memory for */
    CHECK_EQ(fs_trace_map(fd, &view), -FS_FAILED_PRECONDITION);
    trace->shared->tracks = UINT32_MAX;
    CHECK_EQ(fs_trace_map(fd, &view), -FS_FAILED_PRECONDITION);
    trace->shared->tracks = 1;
    atomic_store(&trace->shared->magic, 1);
    CHECK_EQ(fs_trace_map(fd, &view), -FS_FAILED_PRECONDITION);
    fs_trace_close(trace);
    CHECK(fs_trace_open(fd, 0) == NULL);
    close(fd);
    CHECK(fs_trace_open(-1, 1) == NULL);
    CHECK_EQ(fs_trace_map(-1, &view), -FS_RESOURCE_EXHAUSTED);
    int small = memfd_create("small", MFD_CLOEXEC);
    CHECK(fs_trace_open(small, 1) == NULL);
    CHECK_EQ(fs_trace_map(small, &view), -FS_FAILED_PRECONDITION);
    close(small);
}

static void test_without_memory_there_is_no_trace(void)
{
    int fd = memory(1);
    failmalloc_after(1);
    CHECK(fs_trace_open(fd, 1) == NULL);
    failmalloc_after(-1);
    CHECK(failmalloc_fired());
    close(fd);
    int pipes[2];
    REQUIRE(pipe(pipes) == 0); /* nothing that can be mapped */
    CHECK(fs_trace_open(pipes[0], 1) == NULL);
    close(pipes[0]);
    close(pipes[1]);
}

int main(void)
{
    test_what_is_written_is_read();
    test_a_reader_that_is_late_knows_what_it_has_missed();
    test_half_an_event_is_none();
    test_what_is_wanted_is_told();
    test_names_are_cut_to_what_fits();
    test_there_are_as_many_tracks_as_fit();
    test_memory_that_is_no_trace();
    test_without_memory_there_is_no_trace();
    return check_done();
}
