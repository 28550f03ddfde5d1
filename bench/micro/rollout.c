/* What a rollout costs on the threads that serve: nanoseconds for each call that a route decides on, and for each
 * shadow that is made of one.
 *
 *     make -C tests/c bench && build/c/plain/bench/micro/rollout [items] */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "catalog.h"
#include "clock.h"
#include "text.h"

enum { THREADS = 2, ROUNDS = 5 };

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

typedef struct counting {
    fs_route *route;
    long items;
} counting;

/* What a call costs from the route's decision to its being counted. */
static void *divide(void *arg)
{
    const counting *c = arg;
    uint64_t random = 7;
    for (long i = 0; i < c->items; i++) {
        fs_route *route = fs_route_ref(c->route);
        enum fs_side side = fs_route_takes(route, NULL, &random) ? FS_SIDE_FRESH : FS_SIDE_STABLE;
        fs_figures_count(&route->figures[side], FS_OK, true, 500 + (i & 1023));
        fs_route_unref(route);
    }
    return NULL;
}

static double between_threads(fs_route *route, long items, int threads)
{
    pthread_t ids[THREADS];
    counting c = {route, items};
    double start = now_ns();
    for (int i = 0; i < threads; i++) {
        if (pthread_create(&ids[i], NULL, divide, &c) != 0)
            exit(1);
    }
    for (int i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    return (now_ns() - start) / (double)items;
}

/* One header of a request, with and without a route that wants it. */
static double headers(const fs_sticky *sticky, const char *name, long items)
{
    fs_slice header = fs_slice_of(name), value = fs_slice_of("5f3a9c1e-7d42-4b8a");
    uint32_t sink = 0;
    double start = now_ns();
    for (long i = 0; i < items; i++) {
        fs_kept kept = {0};
        fs_sticky_keep(sticky, header, value, &kept);
        sink += kept.of[0].value;
    }
    double ns = (now_ns() - start) / (double)items;
    return sink == 1 ? 0 : ns; /* so that it is not optimised away */
}

/* Finding a servable, by a catalog whose model has a route or none. */
static double lookups(fs_catalog *catalog, fs_turn *turn, long items)
{
    fs_model_ref ref = {.present = true, .name = fs_slice_of("m")};
    double start = now_ns();
    for (long i = 0; i < items; i++) {
        fs_servable *found = fs_catalog_find(catalog, &ref, turn, NULL);
        fs_route_unref(turn->route);
        turn->route = NULL;
        fs_servable_unpin(found, 1);
    }
    return (now_ns() - start) / (double)items;
}

/* What the thread that answers copies for a shadow: the reply. */
static double copies(size_t bytes, long items)
{
    fs_slab *slab = fs_slab_new(8 << 20);
    uint8_t *reply = calloc(bytes, 1);
    if (slab == NULL || reply == NULL)
        exit(1);
    double start = now_ns();
    for (long i = 0; i < items; i++) {
        uint8_t *copy = fs_slab_alloc(slab, bytes);
        if (copy == NULL)
            exit(1);
        memcpy(copy, reply, bytes);
        fs_slab_free(copy);
    }
    double ns = (now_ns() - start) / (double)items;
    free(reply);
    fs_slab_release(slab);
    return ns;
}

static void never(fs_servable *servable)
{
    (void)servable;
}

int main(int argc, char **argv)
{
    long items = argc > 1 ? strtol(argv[1], NULL, 10) : 5000000;
    fs_epoch *epoch = aligned_alloc(64, sizeof *epoch);
    fs_servable *v[2] = {aligned_alloc(64, sizeof **v), aligned_alloc(64, sizeof **v)};
    fs_route_settings settings = {.versions = {1, 2}, .share = 0.1, .sticky_header = fs_slice_of("x-user-id")};
    fs_route *route = fs_route_new(fs_slice_of("m"), &settings);
    if (epoch == NULL || v[0] == NULL || v[1] == NULL || route == NULL)
        return 1;
    fs_epoch_init(epoch);
    fs_catalog *catalog = fs_catalog_new(epoch);
    for (int i = 0; i < 2; i++) {
        memset(v[i], 0, sizeof **v);
        v[i]->model = (char *)(uintptr_t)"m";
        v[i]->version = i + 1;
        v[i]->unpinned = never;
        atomic_init(&v[i]->pins, 1);
        fs_catalog_publish(catalog, v[i]);
    }
    uint64_t random = 1;
    fs_turn turn = {.random = &random};
    const fs_sticky *sticky = fs_catalog_sticky(catalog);
    printf("a header, no route            %6.1f ns\n", headers(sticky, "x-user-id", items));
    printf("a look-up, no route           %6.1f ns\n", lookups(catalog, &turn, items));
    fs_catalog_route(catalog, "m", route);
    printf("a header that a route wants   %6.1f ns\n", headers(sticky, "x-user-id", items));
    printf("another header meanwhile      %6.1f ns\n", headers(sticky, "user-agent", items));
    printf("a look-up, a route            %6.1f ns\n", lookups(catalog, &turn, items));
    for (int threads = 1; threads <= THREADS; threads++)
        printf("decided and counted, %d thread%s %6.1f ns\n", threads, threads == 1 ? " " : "s",
               between_threads(route, items, threads));
    for (size_t bytes = 256; bytes <= 1 << 20; bytes *= 16)
        printf("a reply of %7zu bytes copied %8.1f ns\n", bytes, copies(bytes, items / 50));
    fs_catalog_free(catalog);
    fs_route_unref(route);
    free(v[0]);
    free(v[1]);
    free(epoch);
    return 0;
}
