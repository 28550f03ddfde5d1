/* arrivals: see arrivals.h. */
#include "arrivals.h"

#include <math.h>

static uint64_t rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

/* xoroshiro128+: two words of state, good enough by far for gaps. */
static uint64_t draw(uint64_t random[2])
{
    uint64_t a = random[0], b = random[1];
    uint64_t drawn = a + b;
    b ^= a;
    random[0] = rotate(a, 24) ^ b ^ b << 16;
    random[1] = rotate(b, 37);
    return drawn;
}

/* splitmix64 spreads a small seed over all bits; its outputs are never both 0. */
static uint64_t spread(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

void fs_arrivals_constant(fs_arrivals *arrivals, double rate_per_s)
{
    *arrivals = (fs_arrivals){.kind = FS_ARRIVALS_CONSTANT, .gap_ns = 1e9 / rate_per_s};
}

void fs_arrivals_poisson(fs_arrivals *arrivals, double rate_per_s, uint64_t seed)
{
    *arrivals = (fs_arrivals){.kind = FS_ARRIVALS_POISSON, .gap_ns = 1e9 / rate_per_s};
    arrivals->random[0] = spread(&seed);
    arrivals->random[1] = spread(&seed);
}

void fs_arrivals_recorded(fs_arrivals *arrivals, const int64_t *times_us, uint64_t n_times)
{
    *arrivals = (fs_arrivals){.kind = FS_ARRIVALS_RECORDED, .times_us = times_us, .n_times = n_times};
}

int64_t fs_arrivals_next(fs_arrivals *arrivals)
{
    uint64_t i = arrivals->at;
    switch (arrivals->kind) {
    case FS_ARRIVALS_CONSTANT:
        arrivals->now_ns = (double)i * arrivals->gap_ns; /* a product, so that roundings do not add up */
        break;
    case FS_ARRIVALS_POISSON:
        /* 53 random bits, shifted by a half of the last, are never 0, whose logarithm there is none of. */
        arrivals->now_ns -= log(((double)(draw(arrivals->random) >> 11) + 0.5) * 0x1p-53) * arrivals->gap_ns;
        break;
    case FS_ARRIVALS_RECORDED:
        if (i == arrivals->n_times)
            return INT64_MAX;
        arrivals->now_ns = (double)arrivals->times_us[i] * 1e3;
        break;
    }
    arrivals->at++;
    return arrivals->now_ns < 9e18 ? (int64_t)arrivals->now_ns : INT64_MAX;
}
