/* What counting costs: nanoseconds for each request and each batch, on one thread and between threads that share a
 * meter, and microseconds for a reader of 20 signatures with traffic.
 *
 *     make -C tests/c bench && build/c/plain/bench/micro/metrics [items] */
#include "metrics.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "metrics_read.h"

enum { SERIES = 20, READS = 200 };

typedef struct counter {
    fs_meter *meter;
    long items;
    bool batches;
} counter;

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* Times of 0.3 to 1.3 ms, to the microsecond. */
static int64_t some_ns(long i)
{
    return 300000 + i * 7919 % 1000 * 1000;
}

/* What the owner of a call counts from its push to its end. */
static void count_request(fs_meter *meter, long i)
{
    fs_meter_pushed(meter, 1);
    fs_endings_add(&meter->requests, 0, 0, 0);
    fs_meter_time(&meter->queue, &meter->queue_sum, some_ns(i) / 2);
    fs_meter_time(&meter->latency[0][0], &meter->latency_sum[0][0], some_ns(i));
    fs_meter_request(meter, 0, 16);
    fs_meter_finished(meter);
}

/* What an executor counts of a batch. */
static void count_batch(fs_meter *meter, long i)
{
    fs_meter_left(meter, 16, 16);
    fs_meter_time(&meter->formation, &meter->formation_sum, some_ns(i) / 16);
    fs_meter_time(&meter->compute, &meter->compute_sum, some_ns(i));
    fs_meter_time(&meter->encode, &meter->encode_sum, some_ns(i) / 32);
    fs_tally_add(&meter->rows, 16, &meter->rows_sum);
    fs_meter_padding(meter, 16, 0);
}

static void *count(void *arg)
{
    const counter *c = arg;
    for (long i = 0; i < c->items; i++) {
        if (c->batches)
            count_batch(c->meter, i);
        else
            count_request(c->meter, i);
    }
    return NULL;
}

static double ns_each(counter c, int threads)
{
    pthread_t running[8];
    double start = now_ns();
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&running[i], NULL, count, &c) != 0) {
            perror("pthread_create");
            exit(1);
        }
    }
    for (int i = 0; i < threads; i++)
        pthread_join(running[i], NULL);
    return (now_ns() - start) / (double)c.items;
}

static double read_us(fs_metrics_view *view)
{
    static fs_tally_pair pairs[FS_TALLY_SLOTS];
    double start = now_ns();
    for (int n = 0; n < READS; n++) {
        fs_meter_name name;
        const fs_meter *meter;
        if (fs_metrics_view_begin(view) != 0)
            exit(1);
        for (uint32_t i = 0; (meter = fs_metrics_view_next(view, &i, &name)) != NULL; i++) {
            for (int k = 0; k < FS_METRICS_METHODS * FS_METRICS_TRANSPORTS; k++)
                fs_metrics_view_tally(view, &meter->latency[0][0] + k, pairs);
            fs_metrics_view_tally(view, &meter->queue, pairs);
            for (int k = 0; k < FS_METRICS_METHODS; k++)
                fs_metrics_view_tally(view, &meter->request_rows[k], pairs);
            const fs_tally *const rest[] = {&meter->formation, &meter->compute, &meter->encode, &meter->rows};
            for (int k = 0; k < 4; k++)
                fs_metrics_view_tally(view, rest[k], pairs);
            fs_padding padding;
            for (uint32_t k = 0; k < FS_METRICS_SIZES; k++)
                fs_metrics_view_padding(view, meter, k, &padding);
        }
    }
    return (now_ns() - start) / READS / 1000;
}

int main(int argc, char **argv)
{
    long items = argc > 1 ? strtol(argv[1], NULL, 10) : 5000000;
    int fd = memfd_create("metrics", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fs_metrics *metrics;
    fs_metrics_view view;
    if (fd < 0 || ftruncate(fd, 64 << 20) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0 ||
        fs_metrics_open(fd, &metrics) != 0 || fs_metrics_view_open(fd, &view) != 0) {
        perror("a memory to count in");
        return 1;
    }
    counter request = {.meter = fs_metrics_give(metrics, "m", 1, "s"), .items = items};
    counter batch = {.meter = request.meter, .items = items, .batches = true};
    printf("a request, one thread       %8.1f ns\n", ns_each(request, 1));
    printf("a request, two threads      %8.1f ns each\n", ns_each(request, 2));
    printf("a batch, one thread         %8.1f ns\n", ns_each(batch, 1));
    for (int i = 1; i < SERIES; i++) {
        counter more = {.meter = fs_metrics_give(metrics, "m", i + 1, "s"), .items = 10000};
        count(&more);
        more.batches = true;
        count(&more);
    }
    printf("reading %d signatures       %8.1f us\n", SERIES, read_us(&view));
    fs_metrics_view_close(&view);
    fs_metrics_close(metrics);
    close(fd);
    return 0;
}
