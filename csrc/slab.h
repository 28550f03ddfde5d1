/* slab: size-class memory for the request path, so that steady state never calls malloc.
 *
 * Each slab has one owner thread (an I/O thread or an executor), which alone allocates from it.
 * Any thread may free a block: a foreign one pushes it on the slab's return list (lock-free), from
 * which the owner refills. Blocks above FS_SLAB_MAX_BLOCK go straight to malloc and back to the
 * system, so that a 64 MB message leaves nothing behind.
 *
 * Also carries fs_buf, a counted block for tensor memory that outlives the thread that made it,
 * and fs_arena, bump allocation for what lives exactly as long as one call. */
#ifndef FS_SLAB_H
#define FS_SLAB_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define FS_SLAB_MAX_BLOCK ((size_t)1 << 20)

typedef struct fs_slab fs_slab;

typedef struct fs_slab_stats {
    uint64_t system_allocs; /* times memory came from the system; flat in steady state */
    uint64_t large_allocs;  /* of these, blocks above FS_SLAB_MAX_BLOCK */
    size_t cached_bytes;    /* free blocks kept for reuse */
} fs_slab_stats;

/* A slab that keeps at most `cache_bytes` of free blocks. NULL when out of memory. */
fs_slab *fs_slab_new(size_t cache_bytes);

/* Gives the slab up. Blocks still out stay valid; the last one freed takes the slab with it. Owner. */
void fs_slab_release(fs_slab *slab);

/* Slabs by thread: makes a key for them, as pthread_key_create; and gives the calling thread's, which is made the
 * first time, with `cache_bytes`, and goes with the thread. NULL when out of memory. */
int fs_slab_key(pthread_key_t *key);
fs_slab *fs_slab_of_thread(pthread_key_t key, size_t cache_bytes);

/* For a slab that threads own in turn, under a lock of theirs: the caller is the owner until it says
 * fs_slab_disown, and from then on nobody is, so that what is freed without the lock goes by the return list. */
void fs_slab_own(fs_slab *slab);
void fs_slab_disown(fs_slab *slab);

/* At least `size` bytes, aligned to 64 when size >= 1024, else to 16. NULL when out of memory. Owner. */
void *fs_slab_alloc(fs_slab *slab, size_t size);

/* As realloc(); the slab may differ from the block's own. Owner of `slab`. */
void *fs_slab_realloc(fs_slab *slab, void *block, size_t size);

/* NULL is fine. Any thread. */
void fs_slab_free(void *block);

/* Gives free blocks that were not needed since the last call back to the system, as long as more than
 * `keep_bytes` are cached. So what a burst has left behind goes, and steady state, which needs its blocks again
 * and again, keeps them. Returns how many bytes went. Owner, every few seconds. */
size_t fs_slab_trim(fs_slab *slab, size_t keep_bytes);

/* What `block` can hold. */
size_t fs_slab_usable(const void *block);

/* Relaxed counters, any thread. */
fs_slab_stats fs_slab_read(const fs_slab *slab);

/* ---- fs_buf: counted, 64-byte aligned ------------------------------------------------- */

typedef struct fs_buf {
    atomic_int refs;
    size_t size; /* bytes at data */
    _Alignas(64) uint8_t data[];
} fs_buf;

/* A buffer with one reference. What follows its `size` bytes may be read for FS_BUF_SLACK bytes more, whatever
 * stands there: the vector code of some runtimes does. NULL when out of memory. Owner. */
#define FS_BUF_SLACK 16
fs_buf *fs_buf_new(fs_slab *slab, size_t size);
fs_buf *fs_buf_ref(fs_buf *buf); /* any thread that holds a reference */
void fs_buf_unref(fs_buf *buf);  /* any thread; NULL is fine */

/* ---- fs_arena: bump allocation for one call -------------------------------------------- */

typedef struct fs_arena {
    fs_slab *slab;
    struct fs_arena_chunk *chunks;
    uint8_t *next;
    size_t left;
} fs_arena;

void fs_arena_init(fs_arena *arena, fs_slab *slab);
/* 16-byte aligned, zeroed. NULL when out of memory. Owner of the slab. */
void *fs_arena_alloc(fs_arena *arena, size_t size);
/* Frees everything. Any thread, once no other uses the arena. */
void fs_arena_clear(fs_arena *arena);

#endif
