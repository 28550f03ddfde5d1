/* slices: see slices.h. */
#include "slices.h"

#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SLICE = 256 << 10, /* some 50 us where its pages are in memory */
    /* Of memory, likewise: and a huge page, where there are such, goes whole. */
    DISCARDED = 2 << 20,
    LARGE = 2 * DISCARDED, /* less than that is unmapped quickly */
};

ssize_t fs_slices_pread(int fd, void *buffer, size_t size, off_t at)
{
    size_t done = 0;
    ssize_t n;
    do {
        size_t left = size - done;
        /* Not by name: that may be who calls this. */
        n = syscall(SYS_pread64, fd, (char *)buffer + done, left < SLICE ? left : SLICE, at + (off_t)done);
        if (n > 0)
            done += (size_t)n;
    } while (n > 0 && done < size);
    /* What was read before an error is there; who asks for the rest gets the error. */
    return n < 0 && done == 0 ? -1 : (ssize_t)done;
}

void fs_slices_discard(void *block, size_t size)
{
    if (size < LARGE)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), slice = DISCARDED;
    uintptr_t at = ((uintptr_t)block + page - 1) & -page;
    uintptr_t end = ((uintptr_t)block + size) & -page;
    while (at < end) {
        uintptr_t next = (at & -slice) + slice;
        if (next > end)
            next = end;
        madvise((void *)at, next - at, MADV_DONTNEED);
        at = next;
    }
}
