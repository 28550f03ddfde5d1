/* refusals: see refusals.h. */
#include "refusals.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

/* "127.0.0.1:4711", "[::1]:4711", "a unix socket", or "unknown": it is gone. */
static void name_peer(int fd, char *name, size_t room)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage whole;
    } at = {.any.sa_family = AF_UNSPEC};
    socklen_t len = sizeof at;
    char host[INET6_ADDRSTRLEN];
    if (getpeername(fd, &at.any, &len) != 0)
        snprintf(name, room, "unknown");
    else if (at.any.sa_family == AF_INET && inet_ntop(AF_INET, &at.v4.sin_addr, host, sizeof host) != NULL)
        snprintf(name, room, "%s:%u", host, ntohs(at.v4.sin_port));
    else if (at.any.sa_family == AF_INET6 && inet_ntop(AF_INET6, &at.v6.sin6_addr, host, sizeof host) != NULL)
        snprintf(name, room, "[%s]:%u", host, ntohs(at.v6.sin6_port));
    else
        snprintf(name, room, "a unix socket");
}

void fs_refusals_add(fs_refusals *refusals, fs_slab *slab, int fd, const char *why)
{
    /* relaxed: only the number counts. */
    uint64_t n = atomic_fetch_add_explicit(&refusals->n, 1, memory_order_relaxed) + 1;
    if ((n & (n - 1)) != 0)
        return;
    fs_refusal *refusal = fs_slab_alloc(slab, sizeof *refusal);
    if (refusal == NULL)
        return;
    *refusal = (fs_refusal){.mail.deliver = refusals->tell, .refusals = refusals, .n = n};
    name_peer(fd, refusal->peer, sizeof refusal->peer);
    snprintf(refusal->why, sizeof refusal->why, "%s", why);
    fs_owner_post(refusals->loop, &refusal->mail);
}
