/* What telling costs: nanoseconds for a look at what is wanted, with nothing wanted, and for an event that is told.
 *
 *     make -C tests/c bench && build/c/plain/bench/micro/trace [events]
 *
 * The look is what a thread pays for each batch, and each read of a connection, when nobody traces. */
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "trace_ring.h"

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? strtol(argv[1], NULL, 10) : 10000000, asked = 0;
    int fd = memfd_create("trace", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && ftruncate(fd, sizeof(fs_trace_shared) + sizeof(fs_trace_ring)) == 0);
    fs_trace *trace = fs_trace_open(fd, 1);
    fs_trace_view view;
    REQUIRE(trace != NULL && fs_trace_map(fd, &view) == 0);
    fs_track *track = fs_trace_track(trace, "bench");

    double from = now_ns();
    for (long i = 0; i < n; i++)
        asked += fs_track_wants(track, FS_TRACE_RECORDING);
    printf("a look with nothing wanted %8.2f ns\n", (now_ns() - from) / (double)n);
    CHECK_EQ(asked, 0);

    fs_trace_event event = {.kind = FS_TRACE_BATCH};
    fs_trace_put_model(&event, "ranker", 6);
    from = now_ns();
    for (long i = 0; i < n / 10; i++) {
        event.begin_us = i;
        fs_track_write(track, &event);
    }
    printf("an event that is told      %8.2f ns\n", (now_ns() - from) / (double)(n / 10));

    uint64_t at = 0, lost = 0;
    long got = 0;
    from = now_ns();
    while (fs_trace_read(&view, 0, &at, &event, &lost))
        got++;
    printf("an event that is read      %8.2f ns\n", (now_ns() - from) / (double)got);
    CHECK_EQ(got + (long)lost, n / 10);
    fs_trace_unmap(&view);
    fs_trace_close(trace);
    close(fd);
    return check_done();
}
