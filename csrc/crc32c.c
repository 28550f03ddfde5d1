/* crc32c: see crc32c.h. Eight bytes at a time, by the processor's instruction or by eight tables. */
#include "crc32c.h"

#include <string.h>

#define POLYNOMIAL UINT32_C(0x82f63b78) /* with its bits in reverse, as the register has them */

void fs_crc32c_init(fs_crc32c *crc)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
        crc->table[0][byte] = value;
    }
    for (int i = 1; i < 8; i++) { /* what one more byte of zeros makes of it */
        for (int byte = 0; byte < 256; byte++) {
            uint32_t value = crc->table[i - 1][byte];
            crc->table[i][byte] = value >> 8 ^ crc->table[0][value & 0xff];
        }
    }
#if defined(__x86_64__)
    crc->hardware = __builtin_cpu_supports("sse4.2");
#else
    crc->hardware = false;
#endif
}

static uint32_t by_table(const fs_crc32c *crc, uint32_t value, const uint8_t *data, size_t len)
{
    for (; len >= 8; data += 8, len -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        word ^= value;
        value = 0;
        for (int i = 0; i < 8; i++)
            value ^= crc->table[7 - i][word >> (8 * i) & 0xff];
    }
    for (; len > 0; data++, len--)
        value = value >> 8 ^ crc->table[0][(value ^ *data) & 0xff];
    return value;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t value, const uint8_t *data,
                                                                 size_t len)
{
    uint64_t wide = value;
    for (; len >= 8; data += 8, len -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    value = (uint32_t)wide;
    for (; len > 0; data++, len--)
        value = __builtin_ia32_crc32qi(value, *data);
    return value;
}
#endif

uint32_t fs_crc32c_extend(const fs_crc32c *crc, uint32_t value, const void *data, size_t len)
{
#if defined(__x86_64__)
    if (crc->hardware)
        return ~by_instruction(~value, data, len);
#endif
    return ~by_table(crc, ~value, data, len);
}
