/* access: see access.h. */
#include "access.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

typedef uint64_t words[FS_BEARER_WORDS];

typedef struct entry {
    char *model;
    size_t len;
    words *digests;
    uint32_t n;
} entry;

struct fs_access_table {
    uint32_t n;
    uint32_t mask;  /* of slots, a power of two at least twice n */
    int32_t *slots; /* index in entries, -1: empty */
    entry entries[];
};

typedef struct fs_access_table table;

static uint32_t hash(fs_slice text)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < text.len; i++)
        h = (h ^ text.data[i]) * 16777619u;
    return h;
}

static void table_free(table *t)
{
    if (t == NULL)
        return;
    for (uint32_t i = 0; i < t->n; i++) {
        free(t->entries[i].model);
        free(t->entries[i].digests);
    }
    free(t->slots);
    free(t);
}

/* false: out of memory; table_free cleans up. */
static bool fill(entry *e, const fs_grant *grant)
{
    e->model = malloc(grant->model.len + 1);
    e->digests = malloc((grant->n + (size_t)1) * sizeof *e->digests);
    if (e->model == NULL || e->digests == NULL)
        return false;
    memcpy(e->model, grant->model.data, grant->model.len);
    e->len = grant->model.len;
    for (uint32_t k = 0; k < grant->n; k++)
        fs_bearer_words(grant->digests + (size_t)k * FS_SHA256_BYTES, e->digests[k]);
    e->n = grant->n;
    return true;
}

static table *table_new(const fs_grant *grants, uint32_t n)
{
    uint32_t slots = 4;
    while (slots < 2 * n)
        slots *= 2;
    table *t = calloc(1, sizeof *t + n * sizeof *t->entries);
    if (t == NULL)
        return NULL;
    t->n = n;
    t->mask = slots - 1;
    t->slots = malloc(slots * sizeof *t->slots);
    if (t->slots == NULL) {
        table_free(t);
        return NULL;
    }
    memset(t->slots, -1, slots * sizeof *t->slots);
    for (uint32_t i = 0; i < n; i++) {
        if (!fill(&t->entries[i], &grants[i])) {
            table_free(t);
            return NULL;
        }
        uint32_t at = hash(grants[i].model);
        while (t->slots[at & t->mask] >= 0)
            at++;
        t->slots[at & t->mask] = (int32_t)i;
    }
    return t;
}

static const entry *find(const table *t, fs_slice model)
{
    for (uint32_t at = hash(model);; at++) {
        int32_t i = t->slots[at & t->mask];
        if (i < 0)
            return NULL;
        const entry *e = &t->entries[i];
        if (e->len == model.len && memcmp(e->model, model.data, model.len) == 0)
            return e;
    }
}

/* Every token is compared, whichever it is. */
static bool takes(const entry *e, const fs_bearer *bearer)
{
    unsigned found = 0;
    for (uint32_t k = 0; k < e->n; k++)
        found |= fs_bearer_same(e->digests[k], bearer->digest);
    return found != 0;
}

static int refuse(fs_error *err, enum fs_code code, const char *before, fs_slice model, const char *after)
{
    fs_text text = fs_text_begin(err, code);
    fs_text_put(&text, before);
    fs_text_put_slice(&text, model);
    fs_text_put(&text, after);
    return fs_text_end(&text);
}

int fs_access_ask(const table *t, fs_slice model, const fs_bearer *bearer, fs_error *err)
{
    const entry *e = model.len > 0 ? find(t, model) : NULL;
    if (e == NULL)
        return 0;
    if (bearer->kind == FS_BEARER_NONE)
        return refuse(err, FS_UNAUTHENTICATED, "model ", model,
                      " takes calls with a token only: \"authorization: Bearer TOKEN\" is missing");
    if (bearer->kind == FS_BEARER_OTHER)
        return refuse(err, FS_UNAUTHENTICATED, "model ", model,
                      " takes calls with a token only, and the authorization is not \"Bearer TOKEN\"");
    if (takes(e, bearer))
        return 0;
    bool another = false;
    for (uint32_t i = 0; i < t->n; i++)
        another = takes(&t->entries[i], bearer) || another;
    if (another)
        return refuse(err, FS_PERMISSION_DENIED, "the token is not for model ", model, "");
    return refuse(err, FS_UNAUTHENTICATED, "the token is none that model ", model, " takes");
}

/* ---- changes ------------------------------------------------------------------------------- */

void fs_access_init(fs_access *access, fs_epoch *epoch)
{
    access->epoch = epoch;
    atomic_init(&access->current, NULL);
}

void fs_access_clear(fs_access *access)
{
    table_free(atomic_exchange_explicit(&access->current, NULL, memory_order_acquire));
}

int fs_access_set(fs_access *access, const fs_grant *grants, uint32_t n)
{
    table *next = n == 0 ? NULL : table_new(grants, n);
    if (n > 0 && next == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    /* seq_cst: as fs_epoch_wait asks for. */
    table *before = atomic_exchange_explicit(&access->current, next, memory_order_seq_cst);
    if (before != NULL) {
        fs_epoch_wait(access->epoch);
        table_free(before);
    }
    return 0;
}
