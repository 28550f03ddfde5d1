/* test_hash: hashes against values from elsewhere: TensorFlow's fingerprints, SipHash's published ones. */
#include "hash.h"

#include "check.h"

static const struct {
    size_t len;
    uint64_t fingerprint;
} FINGERPRINTS[] = {
    /* Of (7 i + 3) mod 256 for i below len, by tf.fingerprint. */
    {0, UINT64_C(0x9ae16a3b2f90404f)}, {1, UINT64_C(0xbec09cc447469d8b)},
    {2, UINT64_C(0x16f8263645a8ecf5)}, {3, UINT64_C(0x40b4412e33eefd64)},
    {4, UINT64_C(0xf3c7ee05197a7b92)}, {7, UINT64_C(0x4fef0b39c12aa9a4)},
    {8, UINT64_C(0x0c97ecbc1e9d2626)}, {9, UINT64_C(0xe51cf38098a5bfff)},
    {15, UINT64_C(0x2ca35f0a039b4f1b)}, {16, UINT64_C(0x7eda0ed8c837a168)},
    {17, UINT64_C(0xc9518fe63ebf6127)}, {24, UINT64_C(0x310064a8de2c42d2)},
    {31, UINT64_C(0xbd5ca6ee28fc43cb)}, {32, UINT64_C(0xa53f806f23a314e8)},
    {33, UINT64_C(0xc24f9d7ce864f0e9)}, {48, UINT64_C(0xa77873935894901f)},
    {63, UINT64_C(0x9643c13fc68d469c)}, {64, UINT64_C(0x0566266cb579eca2)},
    {65, UINT64_C(0x77e0867714e6b0e4)}, {100, UINT64_C(0x9e17c36fe4a61b08)},
    {127, UINT64_C(0xcaa19a12c8273b7e)}, {128, UINT64_C(0x666823960b3ac271)},
    {129, UINT64_C(0x98206b8579bca083)}, {192, UINT64_C(0x3fb42d06dd42f727)},
    {193, UINT64_C(0x9a1776a82b94f2b6)}, {200, UINT64_C(0x6d7105b27cbe2fd7)},
};

/* Exactly `len` bytes, so that a sanitizer sees every read beyond them. */
static uint8_t *bytes_of(size_t len, unsigned by, unsigned from)
{
    uint8_t *data = malloc(len > 0 ? len : 1);
    REQUIRE(data != NULL);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(i * by + from);
    return data;
}

static void fingerprints_are_tensorflows(void)
{
    for (size_t i = 0; i < sizeof FINGERPRINTS / sizeof *FINGERPRINTS; i++) {
        uint8_t *data = bytes_of(FINGERPRINTS[i].len, 7, 3);
        CHECK(fs_fingerprint((fs_slice){data, FINGERPRINTS[i].len}) == FINGERPRINTS[i].fingerprint);
        free(data);
    }
    for (size_t len = 0; len < 400; len++) {
        uint8_t *data = bytes_of(len, 1, 0);
        fs_slice text = {data, len};
        CHECK(fs_fingerprint(text) == fs_fingerprint(text));
        free(data);
    }
}

static void siphash_is_the_published_one(void)
{
    const uint64_t key[2] = {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)};
    uint8_t *data = bytes_of(15, 1, 0);
    CHECK(fs_siphash(key, (fs_slice){data, 15}) == UINT64_C(0xa129ca6149be45e5));
    CHECK(fs_siphash(key, (fs_slice){data, 0}) == UINT64_C(0x726fdb47dd0e0e31));
    CHECK(fs_siphash(key, (fs_slice){data, 8}) == UINT64_C(0x93f5f5799a932462));
    free(data);
}

static void joining_is_not_commutative(void)
{
    CHECK(fs_fingerprint_join(1, 2) != fs_fingerprint_join(2, 1));
    CHECK(fs_fingerprint_join(1, 2) != fs_fingerprint_join(1, 3));
}

int main(void)
{
    fingerprints_are_tensorflows();
    siphash_is_the_published_one();
    joining_is_not_commutative();
    return check_done();
}
