/* column: see column.h. */
#include "column.h"

static uint32_t load32(const uint8_t *at)
{
    uint32_t point;
    memcpy(&point, at, sizeof point);
    return point;
}

/* `n` without the NULs at the end. */
static int64_t trimmed(const uint8_t *at, int64_t n)
{
    while (n > 0 && load32(at + 4 * (n - 1)) == 0)
        n--;
    return n;
}

int64_t fs_ucs4_bytes(const uint8_t *at, int64_t n)
{
    int64_t bytes = 0;
    n = trimmed(at, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t point = load32(at + 4 * i);
        if (point < 0x80)
            bytes += 1;
        else if (point < 0x800)
            bytes += 2;
        else if (point < 0x10000 && (point < 0xd800 || point > 0xdfff))
            bytes += 3;
        else if (point >= 0x10000 && point < 0x110000)
            bytes += 4;
        else
            return -1;
    }
    return bytes;
}

uint8_t *fs_ucs4_write(const uint8_t *at, int64_t n, uint8_t *dst, const uint8_t *end)
{
    n = trimmed(at, n);
    for (int64_t i = 0; i < n; i++) {
        uint32_t point = load32(at + 4 * i);
        ptrdiff_t more = point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
        if (end - dst < more)
            break;
        if (point < 0x80) {
            *dst++ = (uint8_t)point;
        } else if (point < 0x800) {
            *dst++ = (uint8_t)(0xc0 | point >> 6);
            *dst++ = (uint8_t)(0x80 | (point & 0x3f));
        } else if (point < 0x10000) {
            *dst++ = (uint8_t)(0xe0 | point >> 12);
            *dst++ = (uint8_t)(0x80 | (point >> 6 & 0x3f));
            *dst++ = (uint8_t)(0x80 | (point & 0x3f));
        } else {
            *dst++ = (uint8_t)(0xf0 | point >> 18);
            *dst++ = (uint8_t)(0x80 | (point >> 12 & 0x3f));
            *dst++ = (uint8_t)(0x80 | (point >> 6 & 0x3f));
            *dst++ = (uint8_t)(0x80 | (point & 0x3f));
        }
    }
    return dst;
}

bool fs_column_valid(const fs_column *column, int64_t *row)
{
    if (column->kind != FS_COLUMN_UCS4)
        return true;
    for (int64_t r = 0; r < column->rows; r++)
        for (int64_t i = 0; i < column->width; i++)
            if (fs_ucs4_bytes(fs_column_at(column, r, i), column->item_bytes / 4) < 0) {
                *row = r;
                return false;
            }
    return true;
}
