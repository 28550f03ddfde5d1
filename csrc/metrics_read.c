/* metrics_read: see metrics_read.h. */
#include "metrics_read.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "status.h"

_Static_assert(offsetof(fs_meter, latency) <= 4096, "all but the histograms is one page, which every block has");
_Static_assert(offsetof(fs_meter, padding) % sizeof(fs_padding) == 0 && 4096 % sizeof(fs_padding) == 0,
               "a place of padding is in one page");
_Static_assert(sizeof(fs_metrics_head) <= FS_METRICS_UNIT, "the head ends before the first block");

int fs_metrics_view_open(int fd, fs_metrics_view *view)
{
    struct stat st;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &st) != 0 ||
        (size_t)st.st_size < FS_METRICS_UNIT + FS_METER_BYTES)
        return -FS_INVALID_ARGUMENT;
    *view = (fs_metrics_view){.bytes = (size_t)st.st_size, .page = (size_t)sysconf(_SC_PAGESIZE)};
    view->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (view->fd < 0)
        return -FS_RESOURCE_EXHAUSTED;
    void *at = mmap(NULL, view->bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, view->fd, 0);
    if (at == MAP_FAILED) {
        close(view->fd);
        return -FS_RESOURCE_EXHAUSTED;
    }
    view->at = at;
    return 0;
}

void fs_metrics_view_close(fs_metrics_view *view)
{
    munmap((void *)(uintptr_t)view->at, view->bytes);
    close(view->fd);
}

/* From where on, at `offset` or behind, there is something: `offset` itself when its page is there. */
static size_t next_data(fs_metrics_view *view, size_t offset)
{
    if (offset >= view->hole_from && offset < view->data_from)
        return view->data_from;
    if (offset >= view->data_from && offset < view->data_to)
        return offset;
    off_t from = lseek(view->fd, (off_t)offset, SEEK_DATA);
    off_t to = from < 0 ? from : lseek(view->fd, from, SEEK_HOLE);
    view->hole_from = offset;
    view->data_from = from < 0 ? view->bytes : (size_t)from; /* ENXIO: nothing more */
    view->data_to = to < 0 ? view->bytes : (size_t)to;
    return view->data_from;
}

int fs_metrics_view_begin(fs_metrics_view *view)
{
    view->n = 0;
    view->hole_from = view->data_from = view->data_to = 0;
    if (next_data(view, 0) != 0)
        return 0;
    const fs_metrics_head *head = fs_metrics_view_head(view);
    /* acquire: pairs with the release of fs_metrics_open. */
    uint64_t magic = atomic_load_explicit(&head->magic, memory_order_acquire);
    if (magic == 0)
        return 0;
    uint64_t fit = (view->bytes - FS_METRICS_UNIT) / FS_METER_BYTES;
    if (magic != FS_METRICS_MAGIC || head->layout != FS_METRICS_LAYOUT ||
        head->meter_bytes != FS_METER_BYTES || head->n_meters > fit)
        return -FS_INVALID_ARGUMENT;
    view->n = (uint32_t)head->n_meters;
    return 0;
}

static bool copy_name(const fs_meter *meter, fs_meter_name *name)
{
    /* acquire: pairs with the release of who opened it. */
    unsigned state = atomic_load_explicit(&meter->state, memory_order_acquire);
    if (state != FS_METER_OPEN && state != FS_METER_CLOSED)
        return false;
    name->closed = state == FS_METER_CLOSED;
    name->serial = fs_tick_read(&meter->serial);
    name->version = meter->version;
    name->model_len = meter->model_len;
    name->signature_len = meter->signature_len;
    if (name->serial == 0 || name->model_len > FS_METRICS_NAME || name->signature_len > FS_METRICS_NAME)
        return false;
    memcpy(name->model, meter->model, name->model_len);
    memcpy(name->signature, meter->signature, name->signature_len);
    return true;
}

const fs_meter *fs_metrics_view_next(fs_metrics_view *view, uint32_t *i, fs_meter_name *name)
{
    while (*i < view->n) {
        size_t at = FS_METRICS_UNIT + (size_t)*i * FS_METER_BYTES;
        size_t data = next_data(view, at);
        const fs_meter *meter = (const fs_meter *)(const void *)(view->at + at);
        if (data == at && copy_name(meter, name))
            return meter;
        if (data > at + FS_METER_BYTES)
            *i = (uint32_t)((data - FS_METRICS_UNIT) / FS_METER_BYTES);
        else
            ++*i;
    }
    return NULL;
}

bool fs_metrics_view_same(const fs_meter *meter, const fs_meter_name *name)
{
    /* acquire: what was read before is not read after this. A block that was given back meanwhile has another state, or
     * has come to another series since, with a serial of its own. */
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&meter->state, memory_order_relaxed) != FS_METER_FREE &&
           fs_tick_read(&meter->serial) == name->serial;
}

uint32_t fs_metrics_view_tally(fs_metrics_view *view, const fs_tally *tally, fs_tally_pair *pairs)
{
    uint32_t n = 0;
    size_t base = (size_t)((const uint8_t *)tally - view->at);
    for (uint32_t slot = 0; slot < FS_TALLY_SLOTS;) {
        size_t at = base + slot * sizeof tally->slots[0];
        size_t data = next_data(view, at);
        if (data > at) { /* pages begin with a slot: they and slots are powers of two */
            if (data >= base + sizeof *tally)
                break;
            slot = (uint32_t)((data - base) / sizeof tally->slots[0]);
            continue;
        }
        size_t end = (at / view->page + 1) * view->page;
        uint32_t stop = (uint32_t)((end - base) / sizeof tally->slots[0]);
        for (; slot < stop && slot < FS_TALLY_SLOTS; slot++) {
            uint64_t count = fs_tick_read(&tally->slots[slot]);
            if (count > 0)
                pairs[n++] = (fs_tally_pair){slot, count};
        }
    }
    return n;
}

bool fs_metrics_view_padding(fs_metrics_view *view, const fs_meter *meter, uint32_t i, fs_padding *out)
{
    const fs_padding *place = &meter->padding[i];
    size_t at = (size_t)((const uint8_t *)place - view->at);
    if (next_data(view, at) > at)
        return false;
    uint64_t n = 0;
    *out = (fs_padding){.size = fs_tick_read(&place->size), .sum = fs_tick_read(&place->sum)};
    for (uint32_t k = 0; k < FS_METRICS_DOUBLINGS + 2; k++) {
        out->batches[k] = fs_tick_read(&place->batches[k]);
        n += out->batches[k];
    }
    return n > 0;
}
