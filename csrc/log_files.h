/* log_files: the names of a log's files: PREFIX-20261129T031502.123456Z-PID.tfrecord, so that their order is that
 * of time; and what is done to all of them.
 *
 * Used by log_sink, on the logger's thread. Knows directories; knows nothing of what is in the files, save that
 * record_file writes them. */
#ifndef FS_LOG_FILES_H
#define FS_LOG_FILES_H

#include <limits.h>
#include <stdint.h>

/* The name of a file that begins now. 0, or ENAMETOOLONG. */
int fs_log_files_name(const char *prefix, char path[PATH_MAX]);

/* Removes the oldest of the prefix' files, so that no more than `keep` are left; 0: as many as there are. Returns
 * how many are gone. */
uint32_t fs_log_files_prune(const char *prefix, uint32_t keep);

/* Gives those that a crash has left under their other name their own; see fs_record_file_salvage. Returns how many. */
uint32_t fs_log_files_salvage(const char *prefix);

#endif
