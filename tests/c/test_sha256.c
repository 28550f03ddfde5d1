/* sha256: the standard's examples, and every length around a block's end. */
#include "sha256.h"

#include "check.h"
#include "text.h"

static void check_digest(fs_slice data, const char *expected)
{
    uint8_t digest[FS_SHA256_BYTES];
    char text[2 * FS_SHA256_BYTES + 1];
    fs_sha256(data, digest);
    for (int i = 0; i < FS_SHA256_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    CHECK_STR(text, expected);
}

/* NIST's, from FIPS 180-4's examples. */
static void test_examples(void)
{
    check_digest(fs_slice_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_digest((fs_slice){NULL, 0}, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    check_digest(fs_slice_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    check_digest(fs_slice_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
                 "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    check_digest(fs_slice_of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqkl"
                             "mnopqrlmnopqrsmnopqrstnopqrstu"),
                 "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
}

static void test_a_million_letters(void)
{
    enum { MANY = 1000000 };
    uint8_t *data = malloc(MANY);
    REQUIRE(data != NULL);
    memset(data, 'a', MANY);
    check_digest((fs_slice){data, MANY}, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(data);
}

/* The digest of the digests of 0, 1, ... 199 bytes that count up: hashlib's answer. */
static void test_every_length(void)
{
    enum { LENGTHS = 200 };
    uint8_t digests[LENGTHS * FS_SHA256_BYTES];
    for (size_t n = 0; n < LENGTHS; n++) {
        uint8_t *data = malloc(n + 1); /* so that a sanitizer sees reads past it */
        REQUIRE(data != NULL);
        for (size_t i = 0; i < n; i++)
            data[i] = (uint8_t)(i % 251);
        fs_sha256((fs_slice){data, n}, digests + n * FS_SHA256_BYTES);
        free(data);
    }
    check_digest((fs_slice){digests, sizeof digests}, "ba7b0fcea7d10c06b855b43d2b4dce1e3e842fff6be0acefb0faf4f2dd05bb47");
}

int main(void)
{
    test_examples();
    test_a_million_letters();
    test_every_length();
    return check_done();
}
