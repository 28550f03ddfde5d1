/* slices: a file read, and memory given back, piece by piece, so that whoever does it can be interrupted between them.
 *
 * TensorFlow reads a variable with one call, however large it is, and malloc gives it back with one. Until the kernel
 * has copied all of it the thread takes no signal, and so no break (breaks.h); until it has unmapped all of it, nobody
 * else can map. Used by csrc/preload, in processes that open models. Knows no thread. */
#ifndef FS_SLICES_H
#define FS_SLICES_H

#include <stddef.h>
#include <sys/types.h>

/* As pread(2), with one system call for each slice. */
ssize_t fs_slices_pread(int fd, void *buffer, size_t size, off_t at);

/* Of a block that is about to be freed: what it has is lost, and its pages but the first and the last are the
 * system's, one system call for each slice. Does nothing with one that is small. Sets errno to anything. */
void fs_slices_discard(void *block, size_t size);

#endif
