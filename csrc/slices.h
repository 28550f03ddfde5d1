/* slices: a file read piece by piece, so that whoever reads it can be interrupted between them.
 *
 * TensorFlow reads a variable with one call, however large it is. Until the kernel has copied all of it the
 * thread takes no signal, and so no break (breaks.h). Used by csrc/preload, in processes that open models.
 * Knows no thread. */
#ifndef FS_SLICES_H
#define FS_SLICES_H

#include <stddef.h>
#include <sys/types.h>

/* As pread(2), with one system call for each slice. */
ssize_t fs_slices_pread(int fd, void *buffer, size_t size, off_t at);

#endif
