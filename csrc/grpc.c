/* grpc: see grpc.h. */
#include "grpc.h"

#include <string.h>

#include "h2.h"

static bool same(const uint8_t *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

int64_t fs_grpc_timeout_us(const uint8_t *text, size_t len)
{
    bool negative = len > 0 && text[0] == '-';
    if (negative) {
        text++;
        len--;
    }
    if (len < 2 || len > 9)
        return -1;
    int64_t value = 0;
    for (size_t i = 0; i < len - 1; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        value = value * 10 + (text[i] - '0');
    }
    int64_t us;
    switch (text[len - 1]) {
    case 'H':
        us = value * 3600 * 1000000;
        break;
    case 'M':
        us = value * 60 * 1000000;
        break;
    case 'S':
        us = value * 1000000;
        break;
    case 'm':
        us = value * 1000;
        break;
    case 'u':
        us = value;
        break;
    case 'n':
        us = (value + 999) / 1000;
        break;
    default:
        return -1;
    }
    return negative ? 0 : us;
}

size_t fs_grpc_timeout_write(int64_t us, char dst[FS_GRPC_TIMEOUT_ROOM])
{
    static const struct {
        int64_t us;
        char letter;
    } units[] = {{1, 'u'}, {1000, 'm'}, {1000000, 'S'}, {60000000, 'M'}, {3600000000, 'H'}};
    const int64_t most = 99999999;
    size_t unit = 0;
    int64_t value = us;
    while (value > most && unit < sizeof units / sizeof *units - 1) {
        unit++;
        value = us / units[unit].us + (us % units[unit].us != 0);
    }
    value = value > most ? most : value;
    char digits[FS_GRPC_TIMEOUT_ROOM];
    size_t n = 0, at = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (n > 0)
        dst[at++] = digits[--n];
    dst[at++] = units[unit].letter;
    return at;
}

int fs_grpc_encoding(const uint8_t *text, size_t len)
{
    if (same(text, len, "identity"))
        return FS_IDENTITY;
    if (same(text, len, "gzip"))
        return FS_GZIP;
    if (same(text, len, "deflate"))
        return FS_DEFLATE;
    return -1;
}

int fs_grpc_accept(const uint8_t *text, size_t len)
{
    int best = FS_IDENTITY;
    size_t at = 0;
    while (at < len) {
        while (at < len && (text[at] == ' ' || text[at] == '\t' || text[at] == ','))
            at++;
        size_t start = at;
        while (at < len && text[at] != ',' && text[at] != ' ' && text[at] != '\t' && text[at] != ';')
            at++;
        int encoding = fs_grpc_encoding(text + start, at - start);
        while (at < len && text[at] != ',')
            at++;
        if (encoding == FS_GZIP)
            return FS_GZIP;
        if (encoding == FS_DEFLATE)
            best = FS_DEFLATE;
    }
    return best;
}

bool fs_grpc_content_type(const uint8_t *text, size_t len)
{
    static const char word[] = "application/grpc";
    size_t n = sizeof word - 1;
    return len >= n && memcmp(text, word, n) == 0 && (len == n || text[n] == '+' || text[n] == ';');
}

size_t fs_grpc_percent_encode(const char *text, size_t len, char *dst, size_t room)
{
    static const char hex[] = "0123456789ABCDEF";
    size_t at = 0;
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)text[i];
        bool edge = i == 0 || i == len - 1;
        if (c >= 0x20 && c <= 0x7e && c != '%' && !(c == ' ' && edge)) {
            if (room - at < 1)
                break;
            dst[at++] = (char)c;
        } else {
            if (room - at < 3)
                break;
            dst[at++] = '%';
            dst[at++] = hex[c >> 4];
            dst[at++] = hex[c & 15];
        }
    }
    return at;
}

static int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

size_t fs_grpc_percent_decode(const uint8_t *text, size_t len, char *dst, size_t room)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++, n++) {
        uint8_t c = text[i];
        if (c == '%' && len - i > 2) {
            int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
            if (high >= 0 && low >= 0) {
                c = (uint8_t)(high << 4 | low);
                i += 2;
            }
        }
        if (n < room)
            dst[n] = (char)c;
    }
    return n;
}

void fs_grpc_prefix_write(uint8_t dst[FS_GRPC_PREFIX_BYTES], bool compressed, uint32_t len)
{
    dst[0] = compressed;
    dst[1] = (uint8_t)(len >> 24);
    dst[2] = (uint8_t)(len >> 16);
    dst[3] = (uint8_t)(len >> 8);
    dst[4] = (uint8_t)len;
}
