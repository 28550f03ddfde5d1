/* free: what a thread that gives way frees goes back to the system in slices.
 *
 * A model's variables are unmapped in one piece, however large they are. Until the kernel is done with that nobody in the
 * process can map anything, and a thread that gives way may be put aside half-way (seen: 0.1 s, in which an executor
 * waited for a block). Part of the library that the dynamic linker puts before the C library (see pread.c); an allocator that
 * somebody else preloads comes before that, and returns its memory as it likes. On whichever thread frees. Knows only
 * slices.h. */
#include "../visibility.h"
#include "../slices.h"
#include "own.h"

#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>

typedef void free_block(void *);

static _Atomic(free_block *) next;

/* The first time before there are threads, most often. */
__attribute__((constructor)) static void find_next(void)
{
    free_block *found;
    *(void **)&found = dlsym(RTLD_NEXT, "free");
    atomic_store_explicit(&next, found, memory_order_relaxed);
}

FS_SHARED void free(void *block)
{
    if (fs_own_breaks != NULL && block != NULL) {
        int saved = errno;
        fs_slices_discard(block, malloc_usable_size(block));
        errno = saved;
    }
    if (atomic_load_explicit(&next, memory_order_relaxed) == NULL)
        find_next();
    atomic_load_explicit(&next, memory_order_relaxed)(block);
}
