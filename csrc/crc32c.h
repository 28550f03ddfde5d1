/* crc32c: the Castagnoli checksum, as TFRecord files have it. Pure functions over a table that its user holds.
 *
 * Used by record_file, on the logger's thread. */
#ifndef FS_CRC32C_H
#define FS_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fs_crc32c {
    bool hardware; /* the processor has an instruction for it; the table is for those that have not */
    uint32_t table[8][256];
} fs_crc32c;

void fs_crc32c_init(fs_crc32c *crc);

/* The checksum of what `value` is the checksum of (0: of nothing) and these bytes after it. */
uint32_t fs_crc32c_extend(const fs_crc32c *crc, uint32_t value, const void *data, size_t len);

/* As it stands in a file: so that the checksum of data that holds its own checksums is not a constant. */
static inline uint32_t fs_crc32c_mask(uint32_t value)
{
    return (value >> 15 | value << 17) + UINT32_C(0xa282ead8);
}

#endif
