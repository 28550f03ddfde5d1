/* record_file: a TFRecord file that is being written: under another name until it is whole, and never with half a
 * record before a whole one.
 *
 * Used by log_sink, on the logger's thread: it may block. Knows files and checksums; knows no message and no
 * thread. Functions return 0 or an errno. */
#ifndef FS_RECORD_FILE_H
#define FS_RECORD_FILE_H

#include <limits.h>

#include "crc32c.h"
#include "outcome.h"

#define FS_RECORD_PART ".part" /* what follows a file's name until it is closed */

enum { FS_RECORD_BUFFER = 256 << 10, FS_RECORD_HEAD_BYTES = 12, FS_RECORD_FOOT_BYTES = 4 };

typedef struct fs_record_file {
    int fd;             /* -1: there is none */
    uint64_t bytes;     /* of all records */
    uint64_t records;
    uint64_t written;   /* bytes that the file has for sure, all of them of whole records */
    uint64_t buffered;  /* records that are not among them yet */
    size_t used;
    uint8_t *buffer;    /* FS_RECORD_BUFFER bytes */
    char path[PATH_MAX]; /* its name once it is closed */
} fs_record_file;

/* Makes PATH.part, and the directories above it, unless there is such a file; and locks it, so that others can
 * tell that it is being written. Nothing is there on failure, ENOMEM without memory. */
int fs_record_file_open(fs_record_file *file, const char *path);

/* Adds one record, in pieces. On failure neither it nor what was buffered is in the file, which *lost counts, and
 * the file can be written to as before. */
int fs_record_file_append(fs_record_file *file, const fs_crc32c *crc, const fs_slice *pieces, int n,
                          uint64_t *lost);

/* Writes what is buffered. On failure it is lost: *lost is how many records. */
int fs_record_file_flush(fs_record_file *file, uint64_t *lost);

/* Flushes, and gives the file its name; without a record in it, removes it. It is closed in any case. */
int fs_record_file_close(fs_record_file *file, uint64_t *lost);

/* A file that its writer has left behind, as a crash does: cuts off what is no whole record at the end, and gives
 * it its name, or removes it when nothing is left. 0 when that is done, or it is being written and stays as it is. */
int fs_record_file_salvage(const char *part_path);

#endif
