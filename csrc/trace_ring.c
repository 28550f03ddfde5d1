/* trace_ring: see trace_ring.h.
 *
 * A slot is a seqlock with one writer. The writer sets turn to 0, stores the event word by word with release, and
 * then the turn, with release. A reader that sees any word of a newer event has with it (acquire) the 0 or a later
 * turn, so the turn that it looks at afterwards differs from the one before, and it drops what it has read. Every
 * word is atomic, so there is no race to be had; on x86 none of it costs more than a plain move. */
#include "trace_ring.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "clock.h"
#include "status.h"

_Static_assert(sizeof(fs_trace_event) == 248 && sizeof(fs_trace_slot) == 256, "as fastserve/trace_events.py reads it");

static size_t size_for(uint32_t tracks)
{
    return sizeof(fs_trace_shared) + (size_t)tracks * sizeof(fs_trace_ring);
}

/* ---- writing ------------------------------------------------------------------------------------ */

fs_trace *fs_trace_open(int fd, uint32_t tracks)
{
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return NULL;
    tracks = tracks < FS_TRACE_MAX_TRACKS ? tracks : FS_TRACE_MAX_TRACKS;
    while (tracks > 0 && size_for(tracks) > (size_t)stat.st_size)
        tracks--;
    if (tracks == 0)
        return NULL;
    size_t bytes = (sizeof(fs_trace) + tracks * sizeof(fs_track) + 63) & ~(size_t)63;
    fs_trace *trace = aligned_alloc(_Alignof(fs_track), bytes);
    if (trace == NULL)
        return NULL;
    memset(trace, 0, bytes);
    trace->bytes = size_for(tracks);
    trace->room = tracks;
    void *memory = mmap(NULL, trace->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        free(trace);
        return NULL;
    }
    trace->shared = memory;
    trace->shared->slot_bytes = sizeof(fs_trace_slot);
    trace->shared->slots = FS_TRACE_SLOTS;
    trace->shared->tracks = tracks;
    /* release: pairs with the acquire of fs_trace_map. */
    atomic_store_explicit(&trace->shared->magic, FS_TRACE_MAGIC, memory_order_release);
    return trace;
}

void fs_trace_close(fs_trace *trace)
{
    if (trace == NULL)
        return;
    munmap(trace->shared, trace->bytes);
    free(trace);
}

fs_track *fs_trace_track(fs_trace *trace, const char *name)
{
    if (trace == NULL)
        return NULL;
    /* relaxed: a ticket. */
    uint32_t i = atomic_fetch_add_explicit(&trace->taken, 1, memory_order_relaxed);
    if (i >= trace->room) {
        atomic_fetch_sub_explicit(&trace->taken, 1, memory_order_relaxed);
        return NULL;
    }
    fs_track *track = &trace->tracks[i];
    track->shared = trace->shared;
    track->ring = &trace->shared->rings[i];
    size_t len = strnlen(name, FS_TRACE_NAME_BYTES - 1);
    memcpy(track->ring->name, name, len); /* zeros follow: the memory is new */
    /* release: pairs with the acquire of fs_trace_track_name. */
    atomic_store_explicit(&track->ring->taken, 1, memory_order_release);
    return track;
}

void fs_track_write(fs_track *track, const fs_trace_event *event)
{
    if (track == NULL)
        return;
    uint64_t words[FS_TRACE_WORDS];
    memcpy(words, event, sizeof words);
    fs_trace_slot *slot = &track->ring->slots[track->written % FS_TRACE_SLOTS];
    track->written++;
    /* relaxed: the releases of the words come after it. */
    atomic_store_explicit(&slot->turn, 0, memory_order_relaxed);
    for (size_t i = 0; i < FS_TRACE_WORDS; i++)
        atomic_store_explicit(&slot->words[i], words[i], memory_order_release);
    /* release, both: pair with the acquires of fs_trace_read. */
    atomic_store_explicit(&slot->turn, track->written, memory_order_release);
    atomic_store_explicit(&track->ring->written, track->written, memory_order_release);
}

void fs_track_write_turn(fs_track *track, enum fs_trace_turn what, int64_t begin_us, int64_t count)
{
    fs_trace_event event = {.kind = FS_TRACE_TURN, .detail = (uint8_t)what, .begin_us = begin_us,
                            .end_us = fs_now_us(), .count = count};
    fs_track_write(track, &event);
}

void fs_trace_put_model(fs_trace_event *event, const void *name, size_t len)
{
    event->model_len = (uint8_t)(len < sizeof event->model ? len : sizeof event->model);
    if (event->model_len > 0)
        memcpy(event->model, name, event->model_len);
}

void fs_trace_put_signature(fs_trace_event *event, const void *name, size_t len)
{
    event->signature_len = (uint8_t)(len < sizeof event->signature ? len : sizeof event->signature);
    if (event->signature_len > 0)
        memcpy(event->signature, name, event->signature_len);
}

/* ---- reading ------------------------------------------------------------------------------------ */

int fs_trace_map(int fd, fs_trace_view *view)
{
    *view = (fs_trace_view){0};
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return -FS_RESOURCE_EXHAUSTED;
    size_t bytes = (size_t)stat.st_size;
    if (bytes < sizeof(fs_trace_shared))
        return -FS_FAILED_PRECONDITION;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -FS_RESOURCE_EXHAUSTED;
    *view = (fs_trace_view){.shared = memory, .bytes = bytes};
    /* acquire: pairs with the release of fs_trace_open. */
    uint64_t magic = atomic_load_explicit(&view->shared->magic, memory_order_acquire);
    const fs_trace_shared *shared = view->shared;
    if (magic == FS_TRACE_MAGIC && shared->slot_bytes == sizeof(fs_trace_slot) && shared->slots == FS_TRACE_SLOTS &&
        shared->tracks <= FS_TRACE_MAX_TRACKS && size_for(shared->tracks) <= bytes) {
        view->tracks = shared->tracks;
        return 0;
    }
    fs_trace_unmap(view);
    return magic == 0 ? -FS_UNAVAILABLE : -FS_FAILED_PRECONDITION;
}

void fs_trace_unmap(fs_trace_view *view)
{
    if (view->shared != NULL)
        munmap(view->shared, view->bytes);
    *view = (fs_trace_view){0};
}

void fs_trace_want(const fs_trace_view *view, uint32_t wanted, uint64_t share)
{
    /* relaxed: the core may see either a little later. */
    atomic_store_explicit(&view->shared->share, share, memory_order_relaxed);
    atomic_store_explicit(&view->shared->wanted, wanted, memory_order_relaxed);
}

const char *fs_trace_track_name(const fs_trace_view *view, uint32_t i)
{
    if (i >= view->tracks)
        return NULL;
    const fs_trace_ring *ring = &view->shared->rings[i];
    /* acquire: pairs with the release of fs_trace_track. */
    return atomic_load_explicit(&ring->taken, memory_order_acquire) != 0 ? ring->name : NULL;
}

uint64_t fs_trace_written(const fs_trace_view *view, uint32_t i)
{
    return atomic_load_explicit(&view->shared->rings[i].written, memory_order_acquire);
}

bool fs_trace_read(const fs_trace_view *view, uint32_t i, uint64_t *at, fs_trace_event *event, uint64_t *lost)
{
    const fs_trace_ring *ring = &view->shared->rings[i];
    for (;;) {
        /* acquire, all: pair with the releases of fs_track_write; see the head of this file. */
        uint64_t written = atomic_load_explicit(&ring->written, memory_order_acquire);
        if (*at >= written)
            return false;
        if (written - *at > FS_TRACE_SLOTS) {
            *lost += written - FS_TRACE_SLOTS - *at;
            *at = written - FS_TRACE_SLOTS;
        }
        const fs_trace_slot *slot = &ring->slots[*at % FS_TRACE_SLOTS];
        uint64_t turn = ++*at;
        if (atomic_load_explicit(&slot->turn, memory_order_acquire) == turn) {
            uint64_t words[FS_TRACE_WORDS];
            for (size_t w = 0; w < FS_TRACE_WORDS; w++)
                words[w] = atomic_load_explicit(&slot->words[w], memory_order_acquire);
            /* relaxed: the acquires of the words come before it. */
            if (atomic_load_explicit(&slot->turn, memory_order_relaxed) == turn) {
                memcpy(event, words, sizeof *event);
                return true;
            }
        }
        (*lost)++;
    }
}
