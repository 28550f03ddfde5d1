/* test_crc32c: the published values, and both ways against a third, at every length and offset that matters. */
#include "crc32c.h"

#include "check.h"
#include "log_rig.h"

static fs_crc32c crc, tables;

static void test_published_values(void)
{
    uint8_t zeros[32] = {0}, ones[32], up[32];
    memset(ones, 0xff, sizeof ones);
    for (int i = 0; i < 32; i++)
        up[i] = (uint8_t)i;
    const fs_crc32c *both[] = {&crc, &tables};
    for (int i = 0; i < 2; i++) { /* RFC 3720's */
        CHECK_EQ(fs_crc32c_extend(both[i], 0, "", 0), 0);
        CHECK_EQ(fs_crc32c_extend(both[i], 0, "123456789", 9), 0xe3069283);
        CHECK_EQ(fs_crc32c_extend(both[i], 0, zeros, 32), 0x8a9136aa);
        CHECK_EQ(fs_crc32c_extend(both[i], 0, ones, 32), 0x62a8ab43);
        CHECK_EQ(fs_crc32c_extend(both[i], 0, up, 32), 0x46dd794e);
    }
}

static void test_pieces_are_as_the_whole(void)
{
    uint8_t data[200];
    uint32_t seed = 7;
    for (size_t i = 0; i < sizeof data; i++) {
        seed = seed * 1664525 + 1013904223;
        data[i] = (uint8_t)(seed >> 24);
    }
    for (size_t from = 0; from < 9; from++) {
        for (size_t len = 0; from + len < 80; len++) {
            uint32_t right = plain_crc32c(data + from, len);
            CHECK_EQ(fs_crc32c_extend(&crc, 0, data + from, len), right);
            CHECK_EQ(fs_crc32c_extend(&tables, 0, data + from, len), right);
            uint32_t half = fs_crc32c_extend(&tables, 0, data + from, len / 2);
            CHECK_EQ(fs_crc32c_extend(&crc, half, data + from + len / 2, len - len / 2), right);
        }
    }
    CHECK_EQ(fs_crc32c_mask(plain_crc32c(data, 10)), plain_masked(data, 10));
}

int main(void)
{
    fs_crc32c_init(&crc);
    fs_crc32c_init(&tables);
    tables.hardware = false;
    test_published_values();
    test_pieces_are_as_the_whole();
    return check_done();
}
