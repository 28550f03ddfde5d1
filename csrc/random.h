/* random: the numbers that a thread draws lots with: quick, and good enough for shares of traffic. */
#ifndef FS_RANDOM_H
#define FS_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

/* splitmix64's next number, of which 32 bits. `state` is the calling thread's own. */
static inline uint32_t fs_random_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)((z ^ z >> 31) >> 32);
}

/* A share, 0 to 1, as a number of 2^32 that a drawn number is below. */
static inline uint64_t fs_random_share(double share)
{
    return share < 1 ? (uint64_t)((share > 0 ? share : 0) * 0x1p32) : UINT64_C(1) << 32;
}

#endif
