/* refusals: peers that were turned away before there was a session: how many, and news of some for the log.
 *
 * Counted by the threads that own connections, told to the loop's by mail: the 1st, 2nd, 4th, 8th..., since whoever
 * may connect may do so all day. Knows no TLS and no log. */
#ifndef FS_REFUSALS_H
#define FS_REFUSALS_H

#include <sys/socket.h>

#include "owner.h"

typedef struct fs_refusals {
    atomic_uint_fast64_t n;
    fs_owner *loop;                /* who is told, */
    void (*tell)(fs_mail *mail);   /*   by an fs_refusal, which it frees with fs_slab_free */
    void *ctx;                     /* the teller's */
} fs_refusals;

typedef struct fs_refusal {
    fs_mail mail; /* first */
    fs_refusals *refusals;
    uint64_t n;   /* how many there had been with this one */
    char peer[64];
    char why[256];
} fs_refusal;

/* Counts `peer`. `slab` is the calling thread's; without memory nobody is told. Any thread that owns
 * connections. */
void fs_refusals_add(fs_refusals *refusals, fs_slab *slab, const struct sockaddr *peer, const char *why);

static inline uint64_t fs_refusals_read(const fs_refusals *refusals)
{
    return atomic_load_explicit(&refusals->n, memory_order_relaxed); /* relaxed: nothing hangs on it */
}

#endif
