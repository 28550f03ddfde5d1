/* access: which callers may use which model: the tokens of models that ask for one.
 *
 * Asked on the threads that own connections, inside an epoch bracket, before a call is looked at any closer;
 * changed as a whole by a loader thread. A model that is not named is open to all. Knows digests, no tokens. */
#ifndef FS_ACCESS_H
#define FS_ACCESS_H

#include <stdatomic.h>

#include "bearer.h"
#include "epoch.h"

struct fs_access_table;

typedef struct fs_access {
    fs_epoch *epoch;
    _Atomic(struct fs_access_table *) current; /* NULL: every model is open */
} fs_access;

/* A model and the SHA-256 of each token that it takes, one after the other. */
typedef struct fs_grant {
    fs_slice model;
    const uint8_t *digests;
    uint32_t n;
} fs_grant;

void fs_access_init(fs_access *access, fs_epoch *epoch);
void fs_access_clear(fs_access *access); /* nobody asks any more */

/* Replaces everything; grants are copied, each model is there once. Returns when no reader can hold what was
 * before. 0, or -FS_RESOURCE_EXHAUSTED. One loader thread at a time. */
int fs_access_set(fs_access *access, const fs_grant *grants, uint32_t n);

int fs_access_ask(const struct fs_access_table *table, fs_slice model, const fs_bearer *bearer, fs_error *err);

/* 0 when the caller may use `model`. -FS_UNAUTHENTICATED: it shows no token, or one that nobody has;
 * -FS_PERMISSION_DENIED: its token is another model's. Inside a bracket. */
static inline int fs_access_check(const fs_access *access, fs_slice model, const fs_bearer *bearer,
                                  fs_error *err)
{
    /* seq_cst: as fs_epoch_wait asks for. */
    const struct fs_access_table *table = atomic_load_explicit(&access->current, memory_order_seq_cst);
    return table == NULL ? 0 : fs_access_ask(table, model, bearer, err);
}

#endif
