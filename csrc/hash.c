/* hash: see hash.h. */
#include "hash.h"

#include <stddef.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the hashes read words as they lie: a little-endian machine is needed"
#endif

/* ---- FarmHash ---------------------------------------------------------------------------- */

/* Its constants: primes between 2^63 and 2^64. */
#define P0 UINT64_C(0xc3a5c85c97cb3127)
#define P1 UINT64_C(0xb492b66fbe98f273)
#define P2 UINT64_C(0x9ae16a3b2f90404f)

typedef struct words {
    uint64_t a, b;
} words;

static uint64_t word64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static uint64_t word32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static uint64_t rotate(uint64_t word, unsigned by)
{
    return word >> by | word << (64 - by);
}

static uint64_t fold(uint64_t word)
{
    return word ^ word >> 47;
}

/* Two words to one. */
static uint64_t mix(uint64_t u, uint64_t v, uint64_t by)
{
    uint64_t a = fold((u ^ v) * by);
    return fold((v ^ a) * by) * by;
}

static uint64_t up_to_16(const uint8_t *s, size_t len)
{
    uint64_t by = P2 + len * 2;
    if (len >= 8) {
        uint64_t a = word64(s) + P2;
        uint64_t b = word64(s + len - 8);
        return mix(rotate(b, 37) * by + a, (rotate(a, 25) + b) * by, by);
    }
    if (len >= 4)
        return mix(len + (word32(s) << 3), word32(s + len - 4), by);
    if (len == 0)
        return P2;
    uint64_t y = s[0] + ((uint64_t)s[len >> 1] << 8);
    uint64_t z = len + ((uint64_t)s[len - 1] << 2);
    return fold(y * P2 ^ z * P0) * P2;
}

static uint64_t up_to_32(const uint8_t *s, size_t len)
{
    uint64_t by = P2 + len * 2;
    uint64_t a = word64(s) * P1;
    uint64_t b = word64(s + 8);
    uint64_t c = word64(s + len - 8) * by;
    uint64_t d = word64(s + len - 16) * P2;
    return mix(rotate(a + b, 43) + rotate(c, 30) + d, a + rotate(b + P2, 18) + c, by);
}

static uint64_t up_to_64(const uint8_t *s, size_t len)
{
    uint64_t by = P2 + len * 2;
    uint64_t a = word64(s) * P2;
    uint64_t b = word64(s + 8);
    uint64_t c = word64(s + len - 8) * by;
    uint64_t d = word64(s + len - 16) * P2;
    uint64_t y = rotate(a + b, 43) + rotate(c, 30) + d;
    uint64_t z = mix(y, a + rotate(b + P2, 18) + c, by);
    uint64_t e = word64(s + 16) * by;
    uint64_t f = word64(s + 24);
    uint64_t g = (y + word64(s + len - 32)) * by;
    uint64_t h = (z + word64(s + len - 24)) * by;
    return mix(rotate(e + f, 43) + rotate(g, 30) + h, e + rotate(f + a, 18) + g, by);
}

/* 32 bytes into two words of state. */
static words absorb(const uint8_t *s, uint64_t a, uint64_t b)
{
    uint64_t last = word64(s + 24);
    a += word64(s);
    b = rotate(b + a + last, 21);
    uint64_t c = a;
    a += word64(s + 8) + word64(s + 16);
    b += rotate(a, 44);
    return (words){a + last, b + c};
}

static void swap(uint64_t *x, uint64_t *y)
{
    uint64_t t = *x;
    *x = *y;
    *y = t;
}

static uint64_t beyond_64(const uint8_t *s, size_t len)
{
    const uint64_t seed = 81;
    uint64_t x = seed * P2 + word64(s);
    uint64_t y = seed * P1 + 113;
    uint64_t z = fold(y * P2 + 113) * P2;
    words v = {0, 0}, w = {0, 0};
    const uint8_t *last = s + (len - 1) / 64 * 64; /* where the last block of up to 64 bytes begins */

    while (s < last) {
        x = rotate(x + y + v.a + word64(s + 8), 37) * P1;
        y = rotate(y + v.b + word64(s + 48), 42) * P1;
        x ^= w.b;
        y += v.a + word64(s + 40);
        z = rotate(z + w.a, 33) * P1;
        v = absorb(s, v.b * P1, x + w.a);
        w = absorb(s + 32, z + w.b, y + word64(s + 16));
        swap(&z, &x);
        s += 64;
    }

    /* The last 64 bytes, some of which have been read already. */
    uint64_t by = P1 + ((z & 0xff) << 1);
    size_t rest = (len - 1) & 63;
    s = last + rest - 63;
    w.a += rest;
    v.a += w.a;
    w.a += v.a;
    x = rotate(x + y + v.a + word64(s + 8), 37) * by;
    y = rotate(y + v.b + word64(s + 48), 42) * by;
    x ^= w.b * 9;
    y += v.a * 9 + word64(s + 40);
    z = rotate(z + w.a, 33) * by;
    v = absorb(s, v.b * by, x + w.a);
    w = absorb(s + 32, z + w.b, y + word64(s + 16));
    swap(&z, &x);
    return mix(mix(v.a, w.a, by) + fold(y) * P0 + z, mix(v.b, w.b, by) + x, by);
}

uint64_t fs_fingerprint(fs_slice text)
{
    if (text.len <= 16)
        return up_to_16(text.data, text.len);
    if (text.len <= 32)
        return up_to_32(text.data, text.len);
    if (text.len <= 64)
        return up_to_64(text.data, text.len);
    return beyond_64(text.data, text.len);
}

uint64_t fs_fingerprint_join(uint64_t first, uint64_t second)
{
    const uint64_t by = UINT64_C(0xc6a4a7935bd1e995);
    uint64_t joined = first ^ by;
    joined ^= fold(second * by) * by;
    joined *= by;
    return fold(fold(joined) * by);
}

/* ---- SipHash ----------------------------------------------------------------------------- */

typedef struct sip {
    uint64_t v0, v1, v2, v3;
} sip;

static void sip_round(sip *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = rotate(s->v1, 51) ^ s->v0;
    s->v3 = rotate(s->v3, 48) ^ s->v2;
    s->v0 = rotate(s->v0, 32);
    s->v2 += s->v1;
    s->v0 += s->v3;
    s->v1 = rotate(s->v1, 47) ^ s->v2;
    s->v3 = rotate(s->v3, 43) ^ s->v0;
    s->v2 = rotate(s->v2, 32);
}

static void sip_word(sip *s, uint64_t word)
{
    s->v3 ^= word;
    sip_round(s);
    sip_round(s);
    s->v0 ^= word;
}

uint64_t fs_siphash(const uint64_t key[2], fs_slice text)
{
    sip s = {
        key[0] ^ UINT64_C(0x736f6d6570736575),
        key[1] ^ UINT64_C(0x646f72616e646f6d),
        key[0] ^ UINT64_C(0x6c7967656e657261),
        key[1] ^ UINT64_C(0x7465646279746573),
    };
    size_t whole = text.len / 8 * 8;
    for (size_t i = 0; i < whole; i += 8)
        sip_word(&s, word64(text.data + i));
    uint64_t last = (uint64_t)text.len << 56;
    for (size_t i = whole; i < text.len; i++)
        last |= (uint64_t)text.data[i] << (8 * (i - whole));
    sip_word(&s, last);
    s.v2 ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
