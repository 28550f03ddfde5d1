/* pread: what TensorFlow calls when it reads a file, in slices.
 *
 * Part of a library of its own that the dynamic linker puts before the C library in the core, the fork server and
 * trials (environment.py): by then TensorFlow's calls are bound. On whichever thread reads. Knows only slices.h. */
#include "../visibility.h"
#include "../slices.h"

FS_SHARED ssize_t pread(int fd, void *buffer, size_t size, off_t at)
{
    return fs_slices_pread(fd, buffer, size, at);
}

FS_SHARED ssize_t pread64(int fd, void *buffer, size_t size, off_t at)
{
    return fs_slices_pread(fd, buffer, size, at);
}
