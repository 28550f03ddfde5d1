/* catalog: see catalog.h. */
#include "catalog.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct label {
    char *name;
    int64_t version;
} label;

typedef struct model {
    char *name;
    fs_servable **versions; /* increasing */
    uint32_t n_versions;
    label *labels;
    uint32_t n_labels;
    fs_route *route;               /* a reference, or NULL */
    fs_servable *sides[FS_SIDES];  /* of the route's versions those that are published, or NULL */
    fs_request_log *log;           /* a reference, or NULL */
} model;

typedef struct table {
    uint32_t n_models;
    uint32_t mask;      /* of slots, a power of two at least twice n_models */
    model *models;
    int32_t *slots;     /* index in models, -1: empty */
} table;

struct fs_catalog {
    fs_epoch *epoch;
    _Atomic(table *) current;
    fs_sticky sticky;
    pthread_mutex_t change;
};

static uint32_t hash(const uint8_t *data, size_t len)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++)
        h = (h ^ data[i]) * 16777619u;
    return h;
}

static bool same(const char *name, fs_slice slice)
{
    return strlen(name) == slice.len && memcmp(name, slice.data, slice.len) == 0;
}

static char *copy_text(const uint8_t *data, size_t len)
{
    char *s = malloc(len + 1);
    if (s != NULL) {
        memcpy(s, data, len);
        s[len] = '\0';
    }
    return s;
}

static void table_free(table *t)
{
    if (t == NULL)
        return;
    for (uint32_t i = 0; i < t->n_models; i++) {
        model *m = &t->models[i];
        for (uint32_t k = 0; k < m->n_labels; k++)
            free(m->labels[k].name);
        free(m->labels);
        fs_route_unref(m->route);
        fs_request_log_unref(m->log);
        free(m->versions);
        free(m->name);
    }
    free(t->models);
    free(t->slots);
    free(t);
}

/* A table with room for `n` models, none in it. */
static table *table_new(uint32_t n)
{
    uint32_t slots = 4;
    while (slots < 2 * n)
        slots *= 2;
    table *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->mask = slots - 1;
    t->models = calloc(n + 1, sizeof *t->models);
    t->slots = malloc(slots * sizeof *t->slots);
    if (t->models == NULL || t->slots == NULL) {
        table_free(t);
        return NULL;
    }
    memset(t->slots, -1, slots * sizeof *t->slots);
    return t;
}

static model *table_find(const table *t, fs_slice name)
{
    if (t == NULL)
        return NULL;
    for (uint32_t i = hash(name.data, name.len);; i++) {
        int32_t at = t->slots[i & t->mask];
        if (at < 0)
            return NULL;
        if (same(t->models[at].name, name))
            return &t->models[at];
    }
}

static int model_copy_labels(model *to, const label *labels, uint32_t n)
{
    to->labels = calloc(n + 1, sizeof *to->labels);
    if (to->labels == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    for (uint32_t k = 0; k < n; k++) {
        to->labels[k].name = copy_text((const uint8_t *)labels[k].name, strlen(labels[k].name));
        if (to->labels[k].name == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        to->labels[k].version = labels[k].version;
        to->n_labels++;
    }
    return 0;
}

/* Adds a model with all of `from` (may be NULL) and room for one version more. NULL: out of memory. */
static model *table_add(table *t, const char *name, const model *from)
{
    model *m = &t->models[t->n_models];
    *m = (model){.name = copy_text((const uint8_t *)name, strlen(name))};
    uint32_t n = from == NULL ? 0 : from->n_versions;
    m->versions = calloc(n + 1, sizeof *m->versions);
    t->n_models++; /* counted before it is whole: table_free cleans up */
    if (m->name == NULL || m->versions == NULL)
        return NULL;
    if (from != NULL) {
        memcpy(m->versions, from->versions, n * sizeof *m->versions);
        m->n_versions = n;
        if (model_copy_labels(m, from->labels, from->n_labels) != 0)
            return NULL;
        m->route = from->route == NULL ? NULL : fs_route_ref(from->route);
        memcpy(m->sides, from->sides, sizeof m->sides);
        m->log = from->log == NULL ? NULL : fs_request_log_ref(from->log);
    }
    uint32_t i = hash((const uint8_t *)name, strlen(name));
    while (t->slots[i & t->mask] >= 0)
        i++;
    t->slots[i & t->mask] = (int32_t)(t->n_models - 1);
    return m;
}

/* The next table: a copy of the current one in which *changed is `name`'s entry, made when missing. */
static table *table_next(const table *now, const char *name, model **changed)
{
    uint32_t n = now == NULL ? 0 : now->n_models;
    table *t = table_new(n + 1);
    if (t == NULL)
        return NULL;
    *changed = NULL;
    for (uint32_t i = 0; i < n; i++) {
        model *m = table_add(t, now->models[i].name, &now->models[i]);
        if (m == NULL) {
            table_free(t);
            return NULL;
        }
        if (strcmp(m->name, name) == 0)
            *changed = m;
    }
    if (*changed == NULL && (*changed = table_add(t, name, NULL)) == NULL) {
        table_free(t);
        return NULL;
    }
    return t;
}

static fs_servable *find_version(const model *m, int64_t version)
{
    for (uint32_t i = m->n_versions; i > 0; i--) {
        if (m->versions[i - 1]->version == version)
            return m->versions[i - 1];
    }
    return NULL;
}

/* What the route's versions are now, and which version only has shadows to run. */
static void link_route(model *m)
{
    const fs_route *route = m->route;
    for (int side = 0; side < FS_SIDES; side++)
        m->sides[side] = route == NULL ? NULL : find_version(m, route->versions[side]);
    for (uint32_t i = 0; i < m->n_versions; i++) {
        bool background = route != NULL && route->mode == FS_ROUTE_SHADOW &&
                          m->sides[FS_SIDE_STABLE] != NULL && m->versions[i] == m->sides[FS_SIDE_FRESH];
        /* relaxed: how soon executors see it does not matter. */
        atomic_store_explicit(&m->versions[i]->background, background, memory_order_relaxed);
    }
}

/* Swaps the table in, in which `changed` differs, and frees the one before when nobody can see it. Under the
 * mutex. */
static void install(fs_catalog *catalog, table *next, model *changed)
{
    link_route(changed);
    /* seq_cst: as fs_epoch_wait asks for. */
    table *before = atomic_exchange_explicit(&catalog->current, next, memory_order_seq_cst);
    fs_epoch_wait(catalog->epoch);
    table_free(before);
}

fs_catalog *fs_catalog_new(fs_epoch *epoch)
{
    fs_catalog *catalog = calloc(1, sizeof *catalog);
    if (catalog == NULL)
        return NULL;
    catalog->epoch = epoch;
    atomic_init(&catalog->current, NULL);
    pthread_mutex_init(&catalog->change, NULL);
    return catalog;
}

void fs_catalog_free(fs_catalog *catalog)
{
    if (catalog == NULL)
        return;
    table_free(atomic_load_explicit(&catalog->current, memory_order_acquire));
    pthread_mutex_destroy(&catalog->change);
    free(catalog);
}

int fs_catalog_publish(fs_catalog *catalog, fs_servable *servable)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), servable->model, &m);
    int rc = -FS_RESOURCE_EXHAUSTED;
    if (t != NULL) {
        uint32_t at = m->n_versions;
        while (at > 0 && m->versions[at - 1]->version > servable->version)
            at--;
        if (at > 0 && m->versions[at - 1]->version == servable->version) {
            table_free(t);
            rc = -FS_ALREADY_EXISTS;
        } else {
            memmove(&m->versions[at + 1], &m->versions[at], (m->n_versions - at) * sizeof *m->versions);
            m->versions[at] = servable;
            m->n_versions++;
            install(catalog, t, m);
            rc = 0;
        }
    }
    pthread_mutex_unlock(&catalog->change);
    return rc;
}

int fs_catalog_replace(fs_catalog *catalog, const fs_servable *before, fs_servable *servable)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), servable->model, &m);
    int rc = t == NULL ? -FS_RESOURCE_EXHAUSTED : -FS_NOT_FOUND;
    for (uint32_t i = 0; t != NULL && i < m->n_versions; i++) {
        if (m->versions[i] == before) {
            m->versions[i] = servable;
            rc = 0;
        }
    }
    if (rc == 0)
        install(catalog, t, m);
    else
        table_free(t);
    pthread_mutex_unlock(&catalog->change);
    return rc;
}

int fs_catalog_withdraw(fs_catalog *catalog, fs_servable *servable)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), servable->model, &m);
    int rc = -FS_RESOURCE_EXHAUSTED;
    if (t != NULL) {
        rc = -FS_NOT_FOUND;
        for (uint32_t i = 0; i < m->n_versions; i++) {
            if (m->versions[i] == servable) {
                memmove(&m->versions[i], &m->versions[i + 1], (m->n_versions - i - 1) * sizeof *m->versions);
                m->n_versions--;
                rc = 0;
                break;
            }
        }
        if (rc == 0) {
            /* relaxed: as in link_route, which does not see it any more. */
            atomic_store_explicit(&servable->background, false, memory_order_relaxed);
            install(catalog, t, m);
        } else {
            table_free(t);
        }
    }
    pthread_mutex_unlock(&catalog->change);
    return rc;
}

int fs_catalog_label(fs_catalog *catalog, const char *name, const fs_label *labels, uint32_t n)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), name, &m);
    int rc = t == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
    if (rc == 0) {
        for (uint32_t k = 0; k < m->n_labels; k++)
            free(m->labels[k].name);
        free(m->labels);
        m->n_labels = 0;
        m->labels = calloc(n + 1, sizeof *m->labels);
        for (uint32_t k = 0; m->labels != NULL && k < n; k++) {
            m->labels[k].name = copy_text(labels[k].name.data, labels[k].name.len);
            if (m->labels[k].name == NULL)
                break;
            m->labels[k].version = labels[k].version;
            m->n_labels++;
        }
        if (m->labels == NULL || m->n_labels < n) {
            rc = -FS_RESOURCE_EXHAUSTED;
            table_free(t);
        } else {
            install(catalog, t, m);
        }
    }
    pthread_mutex_unlock(&catalog->change);
    return rc;
}

/* The different headers that a table's routes want. Their number, or FS_STICKY_HEADERS + 1: too many. */
static uint32_t wanted_headers(const table *t, uint32_t headers[FS_STICKY_HEADERS])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_models; i++) {
        uint32_t header = t->models[i].route == NULL ? 0 : t->models[i].route->header;
        uint32_t k = 0;
        while (k < n && headers[k] != header)
            k++;
        if (header == 0 || k < n)
            continue;
        if (n == FS_STICKY_HEADERS)
            return n + 1;
        headers[n++] = header;
    }
    return n;
}

int fs_catalog_route(fs_catalog *catalog, const char *name, fs_route *route)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), name, &m);
    int rc = t == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
    if (rc == 0) {
        fs_route_unref(m->route);
        m->route = route == NULL ? NULL : fs_route_ref(route);
        uint32_t headers[FS_STICKY_HEADERS];
        uint32_t n = wanted_headers(t, headers);
        if (n > FS_STICKY_HEADERS) {
            rc = -FS_FAILED_PRECONDITION;
            table_free(t);
        } else {
            fs_sticky_want(&catalog->sticky, headers, n);
            install(catalog, t, m);
        }
    }
    pthread_mutex_unlock(&catalog->change);
    return rc;
}

int fs_catalog_log(fs_catalog *catalog, const char *name, fs_request_log *log)
{
    pthread_mutex_lock(&catalog->change);
    model *m;
    table *t = table_next(atomic_load_explicit(&catalog->current, memory_order_relaxed), name, &m);
    if (t != NULL) {
        fs_request_log_unref(m->log);
        m->log = log == NULL ? NULL : fs_request_log_ref(log);
        install(catalog, t, m);
    }
    pthread_mutex_unlock(&catalog->change);
    return t == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
}

const fs_sticky *fs_catalog_sticky(const fs_catalog *catalog)
{
    return &catalog->sticky;
}

/* The version for a request that names none. */
static fs_servable *choose(const model *m, fs_turn *turn)
{
    fs_servable *stable = m->sides[FS_SIDE_STABLE], *fresh = m->sides[FS_SIDE_FRESH];
    if (m->route == NULL || turn == NULL || (stable == NULL && fresh == NULL))
        return m->versions[m->n_versions - 1];
    bool taken = fresh != NULL && fs_route_takes(m->route, turn->kept, turn->random);
    bool answers = stable == NULL || (taken && m->route->mode == FS_ROUTE_CANARY);
    turn->route = fs_route_ref(m->route);
    turn->side = answers ? FS_SIDE_FRESH : FS_SIDE_STABLE;
    turn->shadowed = taken && !answers;
    return answers ? fresh : stable;
}

static void choose_sinks(fs_request_log *log, fs_turn *turn)
{
    turn->log_sinks = fs_request_log_draw(log, turn->random);
    if (turn->log_sinks != 0)
        turn->log = fs_request_log_ref(log);
}

fs_servable *fs_catalog_find(fs_catalog *catalog, const fs_model_ref *ref, fs_turn *turn, fs_error *err)
{
    if (!ref->present) {
        fs_fail(err, FS_INVALID_ARGUMENT, "Missing ModelSpec");
        return NULL;
    }
    if (ref->name.len == 0) {
        fs_fail(err, FS_INVALID_ARGUMENT, "ModelSpec has no name specified.");
        return NULL;
    }
    const table *t = atomic_load_explicit(&catalog->current, memory_order_seq_cst);
    const model *m = table_find(t, ref->name);
    int64_t version = ref->version;
    fs_servable *servable = NULL;

    if (ref->choice == FS_VERSION_LABEL) {
        bool known = false;
        for (uint32_t k = 0; m != NULL && k < m->n_labels; k++) {
            if (same(m->labels[k].name, ref->label)) {
                version = m->labels[k].version;
                known = true;
                break;
            }
        }
        if (!known) {
            fs_fail(err, FS_INVALID_ARGUMENT, "Unrecognized servable version label: %.*s",
                    (int)(ref->label.len > FS_MESSAGE_MAX ? FS_MESSAGE_MAX : ref->label.len),
                    (const char *)ref->label.data);
            return NULL;
        }
    }
    if (m != NULL && m->n_versions > 0)
        servable = ref->choice == FS_VERSION_LATEST ? choose(m, turn) : find_version(m, version);
    if (servable == NULL) {
        int len = (int)(ref->name.len > FS_MESSAGE_MAX ? FS_MESSAGE_MAX : ref->name.len);
        if (ref->choice == FS_VERSION_LATEST)
            fs_fail(err, FS_NOT_FOUND, "Servable not found for request: Latest(%.*s)", len,
                    (const char *)ref->name.data);
        else
            fs_fail(err, FS_NOT_FOUND, "Servable not found for request: Specific(%.*s, %" PRId64 ")", len,
                    (const char *)ref->name.data, version);
        return NULL;
    }
    fs_servable_pin(servable, 1);
    if (m->log != NULL && turn != NULL)
        choose_sinks(m->log, turn);
    return servable;
}
