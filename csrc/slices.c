/* slices: see slices.h. */
#include "slices.h"

#include <sys/syscall.h>
#include <unistd.h>

enum { SLICE = 256 << 10 }; /* some 50 us where its pages are in memory */

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
