/* route: see route.h. */
#include "route.h"

#include <stdlib.h>
#include <string.h>

#include "random.h"

/* A bijection in which every bit depends on every bit (MurmurHash3's last step). */
static uint32_t mix(uint32_t h)
{
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

fs_route *fs_route_new(fs_slice model, const fs_route_settings *settings)
{
    fs_route *route = aligned_alloc(64, sizeof *route);
    if (route == NULL)
        return NULL;
    memset(route, 0, sizeof *route);
    route->mode = settings->mode;
    memcpy(route->versions, settings->versions, sizeof route->versions);
    route->share = fs_random_share(settings->share);
    route->header = settings->sticky_header.len > 0 ? fs_sticky_header(settings->sticky_header) : 0;
    route->salt = mix(fs_sticky_value(model) ^ (uint32_t)settings->versions[FS_SIDE_FRESH]);
    route->max_difference = settings->max_difference;
    atomic_init(&route->refs, 1);
    return route;
}

fs_route *fs_route_ref(fs_route *route)
{
    /* relaxed: the caller's own reference, or its bracket, keeps it. */
    atomic_fetch_add_explicit(&route->refs, 1, memory_order_relaxed);
    return route;
}

void fs_route_unref(fs_route *route)
{
    /* acq_rel: who frees it must see every other use as over. */
    if (route != NULL && atomic_fetch_sub_explicit(&route->refs, 1, memory_order_acq_rel) == 1)
        free(route);
}

bool fs_route_takes(const fs_route *route, const fs_kept *kept, uint64_t *random)
{
    uint32_t value;
    if (route->header != 0 && kept != NULL && fs_kept_find(kept, route->header, &value))
        return mix(value ^ route->salt) < route->share;
    return fs_random_next(random) < route->share;
}
