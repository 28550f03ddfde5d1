/* bearer: authorization headers to digests, and the memory of the last one. */
#include "bearer.h"

#include "check.h"
#include "failmalloc.h"
#include "text.h"

typedef struct world {
    fs_slab *slab;
    fs_bearer_memory memory;
} world;

static world world_new(void)
{
    world w = {.slab = fs_slab_new(0)}; /* nothing is cached, so that each block is an allocation */
    REQUIRE(w.slab != NULL);
    return w;
}

static void world_free(world *w)
{
    fs_bearer_forget(&w->memory);
    fs_bearer_forget(&w->memory); /* again: nothing happens */
    fs_slab_release(w->slab);
}

/* A header in memory of just its size. */
static fs_bearer take(world *w, const char *header)
{
    size_t len = strlen(header);
    uint8_t *copy = malloc(len + 1);
    REQUIRE(copy != NULL);
    memcpy(copy, header, len);
    copy = realloc(copy, len > 0 ? len : 1);
    REQUIRE(copy != NULL);
    fs_bearer bearer = {0};
    fs_bearer_take(&w->memory, w->slab, (fs_slice){copy, len}, &bearer);
    free(copy);
    return bearer;
}

static bool is_digest_of(const fs_bearer *bearer, const char *token)
{
    uint8_t digest[FS_SHA256_BYTES];
    uint64_t words[FS_BEARER_WORDS];
    fs_sha256(fs_slice_of(token), digest);
    fs_bearer_words(digest, words);
    return bearer->kind == FS_BEARER_TOKEN && fs_bearer_same(bearer->digest, words);
}

static void test_headers(void)
{
    world w = world_new();
    const struct {
        const char *header, *token; /* NULL: none */
    } cases[] = {
        {"Bearer abc", "abc"},    {"bearer abc", "abc"},   {"BEARER abc", "abc"},
        {"Bearer   abc", "abc"},  {"Bearer a b", "a b"},   {"Bearer abc==", "abc=="},
        {"Bearer ", NULL},        {"Bearer", NULL},        {"Bearer    ", NULL},
        {"Bearerabc", NULL},      {"Basic abc", NULL},     {"", NULL},
        {" Bearer abc", NULL},    {"Bearer\tabc", NULL},   {"Bea", NULL},
        {"Bearep abc", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_bearer bearer = take(&w, cases[i].header);
        if (cases[i].token != NULL)
            CHECK(is_digest_of(&bearer, cases[i].token));
        else
            CHECK_EQ(bearer.kind, FS_BEARER_OTHER);
    }
    world_free(&w);
}

static void test_the_longest(void)
{
    world w = world_new();
    char header[FS_BEARER_MAX_BYTES + 16] = "Bearer ";
    memset(header + 7, 'x', FS_BEARER_MAX_BYTES);
    fs_bearer bearer = take(&w, header);
    CHECK(is_digest_of(&bearer, header + 7));
    header[7 + FS_BEARER_MAX_BYTES] = 'x';
    CHECK_EQ(take(&w, header).kind, FS_BEARER_OTHER);
    world_free(&w);
}

static void test_of_several_the_first_stands(void)
{
    world w = world_new();
    fs_bearer bearer = take(&w, "Bearer one");
    fs_bearer_take(&w.memory, w.slab, fs_slice_of("Bearer two"), &bearer);
    CHECK(is_digest_of(&bearer, "one"));
    bearer = take(&w, "Basic abc");
    fs_bearer_take(&w.memory, w.slab, fs_slice_of("Bearer two"), &bearer);
    CHECK_EQ(bearer.kind, FS_BEARER_OTHER);
    world_free(&w);
}

static void test_the_last_one_is_remembered_and_no_other(void)
{
    world w = world_new();
    static const char *const tokens[] = {"first", "other", "a much longer one than those before", "x"};
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++) {
            char header[64];
            snprintf(header, sizeof header, "Bearer %s", tokens[i]);
            for (int again = 0; again < 2; again++) {
                fs_bearer bearer = take(&w, header);
                CHECK(is_digest_of(&bearer, tokens[i]));
            }
        }
    }
    /* What is remembered is used: its digest is another one's now. */
    fs_bearer_words((const uint8_t[FS_SHA256_BYTES]){1}, w.memory.bearer.digest);
    fs_bearer bearer = take(&w, "Bearer x");
    CHECK(fs_bearer_same(bearer.digest, w.memory.bearer.digest));
    bearer = take(&w, "Bearer y");
    CHECK(is_digest_of(&bearer, "y"));
    world_free(&w);
}

static void test_without_memory_it_is_read_every_time(void)
{
    world w = world_new();
    static const char header[] = "Bearer abc";
    for (int i = 0; i < 3; i++) {
        fs_bearer bearer = {0};
        failmalloc_after(1);
        fs_bearer_take(&w.memory, w.slab, fs_slice_of(header), &bearer);
        failmalloc_after(-1);
        CHECK(failmalloc_fired());
        CHECK(is_digest_of(&bearer, "abc"));
        CHECK(w.memory.header == NULL);
    }
    world_free(&w);
}

int main(void)
{
    test_headers();
    test_the_longest();
    test_of_several_the_first_stands();
    test_the_last_one_is_remembered_and_no_other();
    test_without_memory_it_is_read_every_time();
    return check_done();
}
