/* access: who may use which model, and changes of it under those who ask. */
#include "access.h"

#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "failmalloc.h"
#include "text.h"

static fs_bearer bearer_of(const char *token)
{
    fs_bearer bearer = {.kind = FS_BEARER_TOKEN};
    uint8_t digest[FS_SHA256_BYTES];
    fs_sha256(fs_slice_of(token), digest);
    fs_bearer_words(digest, bearer.digest);
    return bearer;
}

typedef struct digests {
    uint8_t bytes[4 * FS_SHA256_BYTES];
    uint32_t n;
} digests;

/* Of up to four tokens; NULL ends them. */
static digests digests_of(const char *const *tokens)
{
    digests d = {.n = 0};
    for (; tokens[d.n] != NULL; d.n++)
        fs_sha256(fs_slice_of(tokens[d.n]), d.bytes + d.n * FS_SHA256_BYTES);
    return d;
}

static fs_epoch *epoch_new(void)
{
    fs_epoch *epoch = aligned_alloc(64, sizeof *epoch);
    REQUIRE(epoch != NULL);
    fs_epoch_init(epoch);
    return epoch;
}

/* "ranker" takes one, two and shared, "tower" shared and three, "nobody" none. */
static int set_usual(fs_access *access)
{
    static const char *const of_ranker[] = {"one", "two", "shared", NULL}, *const of_tower[] = {"shared", "three", NULL};
    digests ranker = digests_of(of_ranker), tower = digests_of(of_tower);
    const fs_grant grants[] = {{fs_slice_of("ranker"), ranker.bytes, ranker.n},
                               {fs_slice_of("tower"), tower.bytes, tower.n},
                               {fs_slice_of("nobody"), NULL, 0}};
    return fs_access_set(access, grants, 3);
}

static void ask(const fs_access *access, const char *model, const fs_bearer *bearer, int code, const char *text)
{
    fs_error err = {0};
    CHECK_EQ(fs_access_check(access, fs_slice_of(model), bearer, &err), -code);
    if (code != 0) {
        CHECK_EQ(err.code, code);
        CHECK_STR(err.msg, text);
    }
}

static void test_who_may(void)
{
    fs_epoch *epoch = epoch_new();
    fs_access access;
    fs_access_init(&access, epoch);
    const fs_bearer none = {0}, other = {.kind = FS_BEARER_OTHER};
    const fs_bearer one = bearer_of("one"), two = bearer_of("two"), three = bearer_of("three"),
                    shared = bearer_of("shared"), wrong = bearer_of("wrong");
    ask(&access, "ranker", &none, 0, ""); /* nobody has said otherwise */
    CHECK_OK(set_usual(&access));
    const struct {
        const char *model;
        const fs_bearer *bearer;
        int code;
        const char *text;
    } cases[] = {
        {"ranker", &one, 0, ""},
        {"ranker", &two, 0, ""},
        {"ranker", &shared, 0, ""},
        {"tower", &shared, 0, ""},
        {"tower", &three, 0, ""},
        {"open", &none, 0, ""},
        {"open", &wrong, 0, ""},
        {"", &none, 0, ""},
        {"ranke", &none, 0, ""},
        {"rankers", &none, 0, ""},
        {"ranker", &none, FS_UNAUTHENTICATED,
         "model ranker takes calls with a token only: \"authorization: Bearer TOKEN\" is missing"},
        {"ranker", &other, FS_UNAUTHENTICATED,
         "model ranker takes calls with a token only, and the authorization is not \"Bearer TOKEN\""},
        {"ranker", &wrong, FS_UNAUTHENTICATED, "the token is none that model ranker takes"},
        {"ranker", &three, FS_PERMISSION_DENIED, "the token is not for model ranker"},
        {"tower", &one, FS_PERMISSION_DENIED, "the token is not for model tower"},
        {"nobody", &one, FS_PERMISSION_DENIED, "the token is not for model nobody"},
        {"nobody", &wrong, FS_UNAUTHENTICATED, "the token is none that model nobody takes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        ask(&access, cases[i].model, cases[i].bearer, cases[i].code, cases[i].text);
    CHECK_OK(fs_access_set(&access, NULL, 0));
    ask(&access, "ranker", &none, 0, "");
    fs_access_clear(&access);
    free(epoch);
}

static void test_many_models(void)
{
    enum { MODELS = 500 };
    fs_epoch *epoch = epoch_new();
    fs_access access;
    fs_access_init(&access, epoch);
    static char names[MODELS][16];
    static digests tokens[MODELS];
    static fs_grant grants[MODELS];
    for (int i = 0; i < MODELS; i++) {
        snprintf(names[i], sizeof names[i], "m%d", i);
        const char *const own[] = {names[i], NULL}; /* its token is its name */
        tokens[i] = digests_of(own);
        grants[i] = (fs_grant){fs_slice_of(names[i]), tokens[i].bytes, 1};
    }
    CHECK_OK(fs_access_set(&access, grants, MODELS));
    memset(tokens, 0, sizeof tokens); /* they have been copied */
    for (int i = 0; i < MODELS; i++) {
        fs_error err;
        const fs_bearer own = bearer_of(names[i]), next = bearer_of(names[(i + 1) % MODELS]);
        CHECK_OK(fs_access_check(&access, fs_slice_of(names[i]), &own, &err));
        CHECK_EQ(fs_access_check(&access, fs_slice_of(names[i]), &next, &err), -FS_PERMISSION_DENIED);
    }
    fs_access_clear(&access);
    free(epoch);
}

static void test_without_memory_nothing_changes(void)
{
    fs_epoch *epoch = epoch_new();
    fs_access access;
    fs_access_init(&access, epoch);
    CHECK_OK(set_usual(&access));
    const fs_bearer three = bearer_of("three");
    fs_error err;
    long n = 1;
    for (;; n++) {
        failmalloc_after(n);
        int rc = set_usual(&access);
        failmalloc_after(-1);
        if (!failmalloc_fired())
            break;
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
        CHECK_OK(fs_access_check(&access, fs_slice_of("tower"), &three, &err));
    }
    CHECK(n > 5);
    fs_access_clear(&access);
    free(epoch);
}

/* ---- changes under those who ask -------------------------------------------------------------------- */

typedef struct field {
    fs_epoch *epoch;
    fs_access access;
    atomic_bool done;
    atomic_ulong asked;
} field;

static void *ask_all_the_time(void *arg)
{
    field *f = arg;
    fs_epoch_reader *reader = fs_epoch_join(f->epoch);
    REQUIRE(reader != NULL);
    const fs_bearer shared = bearer_of("shared"), wrong = bearer_of("wrong");
    fs_error err;
    while (!atomic_load_explicit(&f->done, memory_order_relaxed)) {
        fs_epoch_enter(f->epoch, reader);
        /* Taken by the model in every table, and the other one in none. */
        CHECK_OK(fs_access_check(&f->access, fs_slice_of("tower"), &shared, &err));
        CHECK_EQ(fs_access_check(&f->access, fs_slice_of("tower"), &wrong, &err), -FS_UNAUTHENTICATED);
        fs_epoch_leave(reader);
        if (atomic_fetch_add_explicit(&f->asked, 1, memory_order_relaxed) % 64 == 0)
            sched_yield();
    }
    return NULL;
}

static void test_changes_under_those_who_ask(void)
{
    enum { ASKERS = 3, CHANGES = 200 };
    field *f = aligned_alloc(64, (sizeof *f + 63) & ~(size_t)63);
    REQUIRE(f != NULL);
    memset(f, 0, sizeof *f);
    f->epoch = epoch_new();
    fs_access_init(&f->access, f->epoch);
    CHECK_OK(set_usual(&f->access));
    pthread_t threads[ASKERS];
    for (int i = 0; i < ASKERS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, ask_all_the_time, f) == 0);
    static const char *const only[] = {"shared", NULL};
    digests shared = digests_of(only);
    const fs_grant grant = {fs_slice_of("tower"), shared.bytes, 1};
    for (int i = 0; i < CHANGES || atomic_load_explicit(&f->asked, memory_order_relaxed) < 1000; i++) {
        CHECK_OK(i % 2 == 0 ? fs_access_set(&f->access, &grant, 1) : set_usual(&f->access));
        sched_yield();
    }
    atomic_store_explicit(&f->done, true, memory_order_relaxed);
    for (int i = 0; i < ASKERS; i++)
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    fs_access_clear(&f->access);
    free(f->epoch);
    free(f);
}

int main(void)
{
    test_who_may();
    test_many_models();
    test_without_memory_nothing_changes();
    test_changes_under_those_who_ask();
    return check_done();
}
