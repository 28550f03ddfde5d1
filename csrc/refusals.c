/* refusals: see refusals.h. */
#include "refusals.h"

#include <arpa/inet.h>
#include <stdio.h>

/* "127.0.0.1:4711", "[::1]:4711", "a unix socket", or "unknown". */
static void name_peer(const struct sockaddr *peer, char *name, size_t room)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)peer;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)peer;
    char host[INET6_ADDRSTRLEN];
    if (peer->sa_family == AF_INET && inet_ntop(AF_INET, &v4->sin_addr, host, sizeof host) != NULL)
        snprintf(name, room, "%s:%u", host, ntohs(v4->sin_port));
    else if (peer->sa_family == AF_INET6 && inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof host) != NULL)
        snprintf(name, room, "[%s]:%u", host, ntohs(v6->sin6_port));
    else
        snprintf(name, room, "%s", peer->sa_family == AF_UNIX ? "a unix socket" : "unknown");
}

void fs_refusals_add(fs_refusals *refusals, fs_slab *slab, const struct sockaddr *peer, const char *why)
{
    /* relaxed: only the number counts. */
    uint64_t n = atomic_fetch_add_explicit(&refusals->n, 1, memory_order_relaxed) + 1;
    if ((n & (n - 1)) != 0)
        return;
    fs_refusal *refusal = fs_slab_alloc(slab, sizeof *refusal);
    if (refusal == NULL)
        return;
    *refusal = (fs_refusal){.mail.deliver = refusals->tell, .refusals = refusals, .n = n};
    name_peer(peer, refusal->peer, sizeof refusal->peer);
    snprintf(refusal->why, sizeof refusal->why, "%s", why);
    fs_owner_post(refusals->loop, &refusal->mail);
}
