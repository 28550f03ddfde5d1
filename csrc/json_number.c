/* json_number: see json_number.h.
 *
 * A decimal is w * 10^q with whole w and q. Where a double has both w and the power exactly, one multiplication or
 * division rounds as it should. Otherwise 10^q is 5^q * 2^q, 5^q fits in 64 bits, and the product is exact in 128
 * bits, or the quotient is with what its remainder says. Neither can be too large or too small for a double. */
#include "json_number.h"

#include <math.h>
#include <stddef.h>

enum {
    MAX_DIGITS = 19, /* of any whole number below 2^64 */
    MAX_POWER = 27,  /* the largest power of five below 2^63 */
    MAX_EXACT = 22,  /* the largest power of ten that a double has */
    SPARE = 64 - 53, /* bits that a double has no room for */
};

static const uint64_t FIVES[MAX_POWER + 1] = {
    UINT64_C(1), UINT64_C(5), UINT64_C(25), UINT64_C(125), UINT64_C(625), UINT64_C(3125), UINT64_C(15625),
    UINT64_C(78125), UINT64_C(390625), UINT64_C(1953125), UINT64_C(9765625), UINT64_C(48828125), UINT64_C(244140625),
    UINT64_C(1220703125), UINT64_C(6103515625), UINT64_C(30517578125), UINT64_C(152587890625), UINT64_C(762939453125),
    UINT64_C(3814697265625), UINT64_C(19073486328125), UINT64_C(95367431640625), UINT64_C(476837158203125),
    UINT64_C(2384185791015625), UINT64_C(11920928955078125), UINT64_C(59604644775390625), UINT64_C(298023223876953125),
    UINT64_C(1490116119384765625), UINT64_C(7450580596923828125),
};

static const double TENS[MAX_EXACT + 1] = {
    1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
};

typedef unsigned __int128 wide;

/* The double nearest to bits * 2^exponent, bits > 0. `more`: the number is larger than that by less than one of
 * `bits`, which has 62 bits at least then. */
static double rounded(uint64_t bits, bool more, int exponent)
{
    int zeros = __builtin_clzll(bits);
    bits <<= zeros;
    uint64_t kept = bits >> SPARE, rest = bits & ((1u << SPARE) - 1), half = 1u << (SPARE - 1);
    if (rest > half || (rest == half && (more || (kept & 1) != 0)))
        kept++;
    return ldexp((double)kept, exponent - zeros + SPARE);
}

static double times(uint64_t w, int power)
{
    wide product = (wide)w * FIVES[power];
    uint64_t high = (uint64_t)(product >> 64);
    if (high == 0)
        return rounded((uint64_t)product, false, power);
    int over = 64 - __builtin_clzll(high);
    bool more = (product & (((wide)1 << over) - 1)) != 0;
    return rounded((uint64_t)(product >> over), more, over + power);
}

static double divided(uint64_t w, int power)
{
    uint64_t five = FIVES[power];
    int w_zeros = __builtin_clzll(w), five_zeros = __builtin_clzll(five);
    /* The numerator's upper half is below the divisor, so the quotient has 64 bits at most, and 62 at least. */
    wide numerator = (wide)(w << w_zeros) << 63;
    uint64_t divisor = five << five_zeros;
    uint64_t quotient = (uint64_t)(numerator / divisor);
    bool more = (wide)quotient * divisor != numerator;
    return rounded(quotient, more, five_zeros - w_zeros - 63 - power);
}

/* w * 10^power. */
static double decimal(uint64_t w, int power)
{
    if (w == 0)
        return 0.0;
    int size = power < 0 ? -power : power;
    if (w <= UINT64_C(1) << 53 && size <= MAX_EXACT)
        return power < 0 ? (double)w / TENS[size] : (double)w * TENS[size];
    return power < 0 ? divided(w, size) : times(w, size);
}

static inline bool is_digit(uint8_t c)
{
    return (uint8_t)(c - '0') < 10;
}

/* Appends the digits that stand at *at to *w, which wraps around when they are too many. */
static inline const uint8_t *digits(const uint8_t *at, const uint8_t *end, uint64_t *w)
{
    uint64_t value = *w;
    for (; at < end && is_digit(*at); at++)
        value = value * 10 + (uint64_t)(*at - '0');
    *w = value;
    return at;
}

/* Whether the digits from `first` to `end`, a point among them perhaps, are too many without the zeros in front. */
static bool too_many(const uint8_t *first, const uint8_t *end)
{
    int count = 0;
    for (const uint8_t *at = first; at < end; at++)
        if (*at != '.' && (count > 0 || *at != '0'))
            count++;
    return count > MAX_DIGITS;
}

bool fs_json_number_read(const uint8_t **at, const uint8_t *end, fs_json_number *number)
{
    const uint8_t *p = *at;
    bool negative = p < end && *p == '-';
    p += negative;
    const uint8_t *first = p;
    uint64_t w = 0;
    p = digits(p, end, &w);
    if (p == first || (*first == '0' && p - first > 1))
        return false;
    bool real = false;
    int64_t power = 0;
    if (p < end && *p == '.') {
        const uint8_t *fraction = p + 1;
        p = digits(fraction, end, &w);
        if (p == fraction)
            return false;
        real = true;
        power = fraction - p;
    }
    if (p - first > MAX_DIGITS && too_many(first, p))
        return false;
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        bool minus = p < end && *p == '-';
        p += p < end && (*p == '-' || *p == '+');
        const uint8_t *exponent = p;
        uint64_t size = 0;
        p = digits(p, end, &size);
        if (p == exponent || p - exponent > 4)
            return false;
        real = true;
        power += minus ? -(int64_t)size : (int64_t)size;
    }
    number->negative = negative;
    number->real = real;
    if (real) {
        if (power < -MAX_POWER || power > MAX_POWER)
            return false;
        double value = decimal(w, (int)power);
        number->value = negative ? -value : value;
    } else if (negative && w == 0) {
        return false;
    } else {
        number->magnitude = w;
    }
    *at = p;
    return true;
}
