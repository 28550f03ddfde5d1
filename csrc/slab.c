/* slab: see slab.h.
 *
 * Size classes are four to each power of two, so at most a fifth of a block is wasted. The 16 bytes
 * before a payload tell its class and slab, so a block can be freed without knowing either.
 *
 * The return list is a stack that foreign threads push on with compare-and-swap and that the owner takes
 * whole with one exchange. Nobody ever pops a single node from it, hence no ABA. */
#include "slab.h"

#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#endif
#endif
#ifndef ASAN_POISON_MEMORY_REGION
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

enum {
    STEPS = 4,      /* classes to each doubling */
    MIN_SHIFT = 6,  /* the smallest class: 64 bytes, head included */
    MAX_SHIFT = 21, /* the largest holds FS_SLAB_MAX_BLOCK and its head */
    CLASSES = (MAX_SHIFT - MIN_SHIFT) * STEPS + 1,
    LARGE = 0xffff,
    ALIGNED_FROM = 1024, /* payloads from this size on are 64-byte aligned */
    TRIM_BYTES = 16 << 20, /* at once: freeing takes time */
    PAGES_FROM = 1 << 20,  /* so much trimmed is worth asking malloc for its empty pages */
};

/* Stands right before the payload. 16 bytes, so that small payloads keep malloc's alignment. */
typedef struct head {
    union {
        fs_slab *slab; /* of a block that belongs to a class */
        size_t size;   /* payload of a LARGE one */
    };
    uint32_t offset; /* from the start of the system's block to the payload */
    uint32_t cls;
} head;

/* What the payload of a free block holds. */
typedef struct free_block {
    struct free_block *next;
} free_block;

struct fs_slab {
    /* The owner's. */
    free_block *lists[CLASSES];
    uint32_t n_free[CLASSES];     /* in each list, */
    uint32_t least_free[CLASSES]; /*   and the least there were since the last trim */
    size_t cache_limit;
    long out; /* blocks of a class that are in use, or on the return list */

    /* Written by the owner, read by anyone (relaxed). */
    atomic_size_t cached;
    atomic_uint_fast64_t system_allocs;
    atomic_uint_fast64_t large_allocs;
    _Atomic(pthread_t) owner; /* the thread that allocated last; 0 after release or disown */

    /* Foreign threads write here: on a line apart from what the owner reads all the time. */
    _Alignas(64) _Atomic(free_block *) returned; /* CLOSED after release */
    atomic_long remaining; /* after release: blocks still out; who brings it to 0 frees the slab */
};

/* A number, not the address of an object: several shared objects carry a copy of this file, and a block
 * from one may be freed in another. No block lies at 1. */
#define CLOSED ((free_block *)(uintptr_t)1)

static head *head_of(const void *block)
{
    return (head *)(uintptr_t)block - 1;
}

static size_t class_size(unsigned cls)
{
    return ((size_t)STEPS + cls % STEPS) << (MIN_SHIFT - 2 + cls / STEPS);
}

/* The smallest class that holds `total` bytes. */
static unsigned class_of(size_t total)
{
    if (total <= (size_t)1 << MIN_SHIFT)
        return 0;
    unsigned shift = 63 - (unsigned)__builtin_clzl(total - 1);
    unsigned step = (unsigned)((total - 1) >> (shift - 2)) - STEPS;
    return (shift - MIN_SHIFT) * STEPS + step + 1;
}

static size_t payload_offset(size_t size)
{
    return size >= ALIGNED_FROM ? 64 : sizeof(head);
}

static void system_free(void *block)
{
    head *h = head_of(block);
    uint8_t *base = (uint8_t *)block - h->offset;
    ASAN_UNPOISON_MEMORY_REGION(block, fs_slab_usable(block));
    free(base);
}

fs_slab *fs_slab_new(size_t cache_bytes)
{
    fs_slab *slab = aligned_alloc(64, sizeof *slab);
    if (slab == NULL)
        return NULL;
    memset(slab, 0, sizeof *slab);
    slab->cache_limit = cache_bytes;
    return slab;
}

/* Counters have one writer, so a plain add between relaxed accesses is enough. */
static void cached_add(fs_slab *slab, size_t delta)
{
    size_t now = atomic_load_explicit(&slab->cached, memory_order_relaxed) + delta;
    atomic_store_explicit(&slab->cached, now, memory_order_relaxed);
}

static void count(atomic_uint_fast64_t *counter)
{
    uint_fast64_t now = atomic_load_explicit(counter, memory_order_relaxed) + 1;
    atomic_store_explicit(counter, now, memory_order_relaxed);
}

/* Takes a block that is not in use any more into the owner's lists, or back to the system. */
static void keep(fs_slab *slab, void *block)
{
    unsigned cls = head_of(block)->cls;
    size_t size = class_size(cls);
    slab->out--;
    if (atomic_load_explicit(&slab->cached, memory_order_relaxed) + size > slab->cache_limit) {
        system_free(block);
        return;
    }
    free_block *f = block;
    f->next = slab->lists[cls];
    slab->lists[cls] = f;
    slab->n_free[cls]++;
    cached_add(slab, size);
    ASAN_POISON_MEMORY_REGION(block, fs_slab_usable(block));
}

/* Takes back what other threads have freed. */
static void collect(fs_slab *slab)
{
    if (atomic_load_explicit(&slab->returned, memory_order_relaxed) == NULL)
        return;
    /* acquire: pairs with the release push in fs_slab_free, so the freeing thread's accesses are over. */
    free_block *f = atomic_exchange_explicit(&slab->returned, NULL, memory_order_acquire);
    while (f != NULL) {
        free_block *next = f->next;
        keep(slab, f);
        f = next;
    }
}

static void *large_alloc(fs_slab *slab, size_t size)
{
    if (size > SIZE_MAX / 2)
        return NULL;
    uint8_t *base = aligned_alloc(64, (size + 64 + 63) & ~(size_t)63);
    if (base == NULL)
        return NULL;
    head *h = head_of(base + 64);
    *h = (head){.size = size, .offset = 64, .cls = LARGE};
    count(&slab->system_allocs);
    count(&slab->large_allocs);
    return base + 64;
}

void fs_slab_own(fs_slab *slab)
{
    atomic_store_explicit(&slab->owner, pthread_self(), memory_order_relaxed); /* read by its writer only */
}

void fs_slab_disown(fs_slab *slab)
{
    atomic_store_explicit(&slab->owner, (pthread_t)0, memory_order_relaxed);
}

void *fs_slab_alloc(fs_slab *slab, size_t size)
{
    if (size > FS_SLAB_MAX_BLOCK)
        return large_alloc(slab, size);
    pthread_t self = pthread_self();
    if (atomic_load_explicit(&slab->owner, memory_order_relaxed) != self)
        atomic_store_explicit(&slab->owner, self, memory_order_relaxed);

    size_t offset = payload_offset(size);
    unsigned cls = class_of(size + offset);
    if (slab->lists[cls] == NULL)
        collect(slab);
    free_block *f = slab->lists[cls];
    if (f != NULL) {
        ASAN_UNPOISON_MEMORY_REGION(f, fs_slab_usable(f));
        slab->lists[cls] = f->next;
        if (--slab->n_free[cls] < slab->least_free[cls])
            slab->least_free[cls] = slab->n_free[cls];
        cached_add(slab, -class_size(cls));
        slab->out++;
        return f;
    }
    /* A class is wholly of one alignment: its payloads are either all below ALIGNED_FROM or all above. */
    offset = class_size(cls) - sizeof(head) >= ALIGNED_FROM ? 64 : sizeof(head);
    uint8_t *base = offset == 64 ? aligned_alloc(64, class_size(cls)) : malloc(class_size(cls));
    if (base == NULL)
        return NULL;
    *head_of(base + offset) = (head){.slab = slab, .offset = (uint32_t)offset, .cls = cls};
    count(&slab->system_allocs);
    slab->out++;
    return base + offset;
}

size_t fs_slab_trim(fs_slab *slab, size_t keep_bytes)
{
    collect(slab);
    size_t cached = atomic_load_explicit(&slab->cached, memory_order_relaxed);
    size_t gone = 0;
    /* Small ones first: kept, they would lie scattered, each in a page that can then not be given back. */
    for (unsigned cls = 0; cls < CLASSES; cls++) {
        size_t size = class_size(cls);
        uint32_t spare = slab->least_free[cls];
        while (spare > 0 && cached - gone > keep_bytes && gone < TRIM_BYTES) {
            free_block *f = slab->lists[cls];
            ASAN_UNPOISON_MEMORY_REGION(f, fs_slab_usable(f));
            slab->lists[cls] = f->next;
            slab->n_free[cls]--;
            system_free(f);
            gone += size;
            spare--;
        }
        slab->least_free[cls] = slab->n_free[cls];
    }
    cached_add(slab, -gone);
#ifdef __GLIBC__
    if (gone >= PAGES_FROM)
        malloc_trim(0);
#endif
    return gone;
}

size_t fs_slab_usable(const void *block)
{
    const head *h = head_of(block);
    return h->cls == LARGE ? h->size : class_size(h->cls) - h->offset;
}

void fs_slab_free(void *block)
{
    if (block == NULL)
        return;
    head *h = head_of(block);
    if (h->cls == LARGE) {
        system_free(block);
        return;
    }
    fs_slab *slab = h->slab;
    /* Only a thread that stored its own id can read it back here: relaxed is enough. */
    if (atomic_load_explicit(&slab->owner, memory_order_relaxed) == pthread_self()) {
        keep(slab, block);
        return;
    }
    free_block *f = block;
    free_block *top = atomic_load_explicit(&slab->returned, memory_order_acquire);
    do {
        if (top == CLOSED) {
            system_free(block);
            /* acq_rel: the last one must see every other's use of the slab as finished. */
            if (atomic_fetch_sub_explicit(&slab->remaining, 1, memory_order_acq_rel) == 1)
                free(slab);
            return;
        }
        f->next = top;
        /* release: pairs with the acquire exchange in collect and fs_slab_release. */
    } while (!atomic_compare_exchange_weak_explicit(&slab->returned, &top, f, memory_order_release,
                                                    memory_order_acquire));
}

static void release_of_thread(void *slab)
{
    fs_slab_release(slab);
}

int fs_slab_key(pthread_key_t *key)
{
    return pthread_key_create(key, release_of_thread);
}

fs_slab *fs_slab_of_thread(pthread_key_t key, size_t cache_bytes)
{
    fs_slab *slab = pthread_getspecific(key);
    if (slab != NULL)
        return slab;
    slab = fs_slab_new(cache_bytes);
    if (slab != NULL && pthread_setspecific(key, slab) != 0) {
        fs_slab_release(slab);
        return NULL;
    }
    return slab;
}

void fs_slab_release(fs_slab *slab)
{
    if (slab == NULL)
        return;
    slab->cache_limit = 0;
    atomic_store_explicit(&slab->owner, (pthread_t)0, memory_order_relaxed);
    for (unsigned cls = 0; cls < CLASSES; cls++) {
        while (slab->lists[cls] != NULL) {
            free_block *f = slab->lists[cls];
            ASAN_UNPOISON_MEMORY_REGION(f, fs_slab_usable(f));
            slab->lists[cls] = f->next;
            system_free(f);
        }
    }
    /* acq_rel: acquire what was returned; release the slab's last plain writes to later foreign frees. */
    free_block *f = atomic_exchange_explicit(&slab->returned, CLOSED, memory_order_acq_rel);
    while (f != NULL) {
        free_block *next = f->next;
        slab->out--;
        system_free(f);
        f = next;
    }
    /* Foreign frees since the exchange have counted down from 0. Nobody reaches 0 before this adds. */
    long out = slab->out;
    if (atomic_fetch_add_explicit(&slab->remaining, out, memory_order_acq_rel) + out == 0)
        free(slab);
}

void *fs_slab_realloc(fs_slab *slab, void *block, size_t size)
{
    if (block == NULL)
        return fs_slab_alloc(slab, size);
    size_t old = fs_slab_usable(block);
    if (size <= old && size >= old / 2)
        return block;
    void *bigger = fs_slab_alloc(slab, size);
    if (bigger == NULL)
        return NULL;
    memcpy(bigger, block, old < size ? old : size);
    fs_slab_free(block);
    return bigger;
}

fs_slab_stats fs_slab_read(const fs_slab *slab)
{
    return (fs_slab_stats){
        .system_allocs = atomic_load_explicit(&slab->system_allocs, memory_order_relaxed),
        .large_allocs = atomic_load_explicit(&slab->large_allocs, memory_order_relaxed),
        .cached_bytes = atomic_load_explicit(&slab->cached, memory_order_relaxed),
    };
}

/* ---- fs_buf ---------------------------------------------------------------------------- */

fs_buf *fs_buf_new(fs_slab *slab, size_t size)
{
    if (size > SIZE_MAX / 4)
        return NULL;
    /* Never below ALIGNED_FROM, so that data is 64-byte aligned. */
    size_t total = sizeof(fs_buf) + size + FS_BUF_SLACK;
    fs_buf *buf = fs_slab_alloc(slab, total < ALIGNED_FROM ? ALIGNED_FROM : total);
    if (buf == NULL)
        return NULL;
    atomic_init(&buf->refs, 1);
    buf->size = size;
    return buf;
}

fs_buf *fs_buf_ref(fs_buf *buf)
{
    /* relaxed: the caller's own reference keeps the buffer alive. */
    atomic_fetch_add_explicit(&buf->refs, 1, memory_order_relaxed);
    return buf;
}

void fs_buf_unref(fs_buf *buf)
{
    /* acq_rel: whoever frees must see every other holder's accesses as finished. */
    if (buf != NULL && atomic_fetch_sub_explicit(&buf->refs, 1, memory_order_acq_rel) == 1)
        fs_slab_free(buf);
}

/* ---- fs_arena -------------------------------------------------------------------------- */

struct fs_arena_chunk {
    struct fs_arena_chunk *next;
    size_t unused; /* keeps the payload 16-byte aligned */
};

void fs_arena_init(fs_arena *arena, fs_slab *slab)
{
    *arena = (fs_arena){.slab = slab};
}

void *fs_arena_alloc(fs_arena *arena, size_t size)
{
    if (size > SIZE_MAX / 4)
        return NULL;
    size = size == 0 ? 16 : (size + 15) & ~(size_t)15; /* NULL means out of memory and nothing else */
    if (size > arena->left) {
        enum { CHUNK = 1008 - sizeof(struct fs_arena_chunk) }; /* fills a 1 KiB class exactly */
        size_t room = size > CHUNK ? size : CHUNK;
        struct fs_arena_chunk *chunk = fs_slab_alloc(arena->slab, sizeof *chunk + room);
        if (chunk == NULL)
            return NULL;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        arena->next = (uint8_t *)(chunk + 1);
        arena->left = room;
    }
    void *p = arena->next;
    arena->next += size;
    arena->left -= size;
    memset(p, 0, size);
    return p;
}

void fs_arena_clear(fs_arena *arena)
{
    struct fs_arena_chunk *chunk = arena->chunks;
    while (chunk != NULL) {
        struct fs_arena_chunk *next = chunk->next;
        fs_slab_free(chunk);
        chunk = next;
    }
    arena->chunks = NULL;
    arena->next = NULL;
    arena->left = 0;
}
