/* metrics_rig: the memory that a core counts in, made and read by a test. */
#ifndef FS_METRICS_RIG_H
#define FS_METRICS_RIG_H

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "metrics_read.h"

typedef struct ledger {
    int fd;
    fs_metrics *metrics;
    fs_metrics_view view;
} ledger;

static inline int ledger_file(size_t bytes)
{
    int fd = memfd_create("metrics", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    REQUIRE(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    return fd;
}

/* With room for so many blocks besides the one that is shared. */
static inline ledger ledger_open(uint32_t blocks)
{
    ledger l = {.fd = ledger_file(FS_METRICS_UNIT + (1 + (size_t)blocks) * FS_METER_BYTES)};
    REQUIRE(fs_metrics_view_open(l.fd, &l.view) == 0);
    REQUIRE(fs_metrics_open(l.fd, &l.metrics) == 0);
    return l;
}

static inline void ledger_close(ledger *l)
{
    fs_metrics_view_close(&l->view);
    fs_metrics_close(l->metrics);
    close(l->fd);
}

static inline bool ledger_is(const char *data, uint32_t len, const char *text)
{
    return len == strlen(text) && memcmp(data, text, len) == 0;
}

/* The only block of that name that is open, or closed; NULL when there is none. */
static inline const fs_meter *ledger_find(ledger *l, const char *model, int64_t version, const char *signature,
                                          bool closed)
{
    const fs_meter *found = NULL, *meter;
    fs_meter_name name;
    REQUIRE(fs_metrics_view_begin(&l->view) == 0);
    for (uint32_t i = 0; (meter = fs_metrics_view_next(&l->view, &i, &name)) != NULL; i++) {
        if (!ledger_is(name.model, name.model_len, model) || name.version != version || name.closed != closed ||
            !ledger_is(name.signature, name.signature_len, signature))
            continue;
        CHECK(found == NULL && fs_metrics_view_same(meter, &name));
        found = meter;
    }
    return found;
}

/* How many values a histogram of a block has. */
static inline uint64_t ledger_count(ledger *l, const fs_tally *tally)
{
    static _Thread_local fs_tally_pair pairs[FS_TALLY_SLOTS];
    uint64_t n = 0;
    uint32_t slots = fs_metrics_view_tally(&l->view, tally, pairs);
    for (uint32_t i = 0; i < slots; i++)
        n += pairs[i].n;
    return n;
}

static inline uint64_t ledger_requests(const fs_endings *endings, int method, int transport, int code)
{
    return fs_tick_read(&endings->count[method][transport][code]);
}

/* All of them. */
static inline uint64_t ledger_sum(const fs_endings *endings)
{
    uint64_t n = 0;
    for (int m = 0; m < FS_METRICS_METHODS; m++) {
        for (int t = 0; t < FS_METRICS_TRANSPORTS; t++) {
            for (int c = 0; c < FS_METRICS_CODES; c++)
                n += ledger_requests(endings, m, t, c);
        }
    }
    return n;
}

static inline uint64_t ledger_unresolved(ledger *l, int method, int transport, int code)
{
    return ledger_requests(&fs_metrics_view_head(&l->view)->unresolved, method, transport, code);
}

/* Bytes that the memory takes. */
static inline size_t ledger_resident(const ledger *l)
{
    struct stat st;
    REQUIRE(fstat(l->fd, &st) == 0);
    return (size_t)st.st_blocks * 512;
}

#endif
