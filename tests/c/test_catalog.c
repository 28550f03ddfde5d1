/* test_catalog: which version a model spec means, and that a change that finds no memory changes nothing. */
#include "catalog.h"

#include "check.h"
#include "failmalloc.h"
#include "text.h"

typedef struct shelf {
    fs_epoch *epoch;
    fs_catalog *catalog;
} shelf;

static shelf set_up(void)
{
    shelf s = {.epoch = aligned_alloc(64, sizeof(fs_epoch))};
    REQUIRE(s.epoch != NULL);
    fs_epoch_init(s.epoch);
    REQUIRE((s.catalog = fs_catalog_new(s.epoch)) != NULL);
    return s;
}

static void tear_down(shelf *s)
{
    fs_catalog_free(s->catalog);
    free(s->epoch);
}

static void never(fs_servable *servable)
{
    (void)servable;
    CHECK(!"the last pin is the test's");
}

/* A servable as far as a catalog looks at one. */
static fs_servable *servable(const char *model, int64_t version)
{
    fs_servable *v = aligned_alloc(64, sizeof *v);
    REQUIRE(v != NULL);
    memset(v, 0, sizeof *v);
    v->model = (char *)(uintptr_t)model;
    v->version = version;
    v->unpinned = never;
    atomic_init(&v->pins, 1);
    return v;
}

static fs_model_ref latest(const char *model)
{
    return (fs_model_ref){.present = true, .name = fs_slice_of(model)};
}

static fs_model_ref number(const char *model, int64_t version)
{
    return (fs_model_ref){.present = true, .name = fs_slice_of(model), .choice = FS_VERSION_NUMBER,
                          .version = version};
}

static fs_model_ref labelled(const char *model, const char *label)
{
    return (fs_model_ref){.present = true, .name = fs_slice_of(model), .choice = FS_VERSION_LABEL,
                          .label = fs_slice_of(label)};
}

static void check_found(shelf *s, fs_model_ref ref, fs_servable *expected)
{
    fs_error err = {.code = 0};
    long pins = atomic_load(&expected->pins);
    fs_servable *found = fs_catalog_find(s->catalog, &ref, NULL, &err);
    CHECK(found == expected);
    CHECK_EQ(atomic_load(&expected->pins), pins + 1);
    if (found != NULL)
        fs_servable_unpin(found, 1);
}

static void check_missing(shelf *s, fs_model_ref ref, int code, const char *text)
{
    fs_error err = {.code = 0};
    CHECK(fs_catalog_find(s->catalog, &ref, NULL, &err) == NULL);
    CHECK_EQ(err.code, code);
    CHECK_STR(err.msg, text);
}

static void test_an_empty_catalog(void)
{
    shelf s = set_up();
    check_missing(&s, (fs_model_ref){0}, FS_INVALID_ARGUMENT, "Missing ModelSpec");
    check_missing(&s, latest(""), FS_INVALID_ARGUMENT, "ModelSpec has no name specified.");
    check_missing(&s, latest("m"), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    check_missing(&s, number("m", -7), FS_NOT_FOUND, "Servable not found for request: Specific(m, -7)");
    check_missing(&s, labelled("m", "stable"), FS_INVALID_ARGUMENT,
                  "Unrecognized servable version label: stable");
    tear_down(&s);
}

static void test_the_newest_published_version_is_latest(void)
{
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 5), servable("m", 9), servable("m", 7), servable("other", 100)};
    for (int i = 0; i < 4; i++)
        CHECK_OK(fs_catalog_publish(s.catalog, v[i]));
    check_found(&s, latest("m"), v[1]);
    check_found(&s, number("m", 5), v[0]);
    check_found(&s, number("m", 7), v[2]);
    check_found(&s, latest("other"), v[3]);
    check_missing(&s, number("m", 6), FS_NOT_FOUND, "Servable not found for request: Specific(m, 6)");
    check_missing(&s, latest("mm"), FS_NOT_FOUND, "Servable not found for request: Latest(mm)");
    CHECK_OK(fs_catalog_withdraw(s.catalog, v[1]));
    check_found(&s, latest("m"), v[2]);
    check_missing(&s, number("m", 9), FS_NOT_FOUND, "Servable not found for request: Specific(m, 9)");
    CHECK_OK(fs_catalog_withdraw(s.catalog, v[0]));
    CHECK_OK(fs_catalog_withdraw(s.catalog, v[2]));
    check_missing(&s, latest("m"), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    CHECK_EQ(fs_catalog_withdraw(s.catalog, v[2]), -FS_NOT_FOUND);
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    check_found(&s, latest("m"), v[0]);
    for (int i = 0; i < 4; i++)
        free(v[i]);
    tear_down(&s);
}

static void test_a_version_is_published_once(void)
{
    shelf s = set_up();
    fs_servable *first = servable("m", 1), *second = servable("m", 1);
    CHECK_OK(fs_catalog_publish(s.catalog, first));
    CHECK_EQ(fs_catalog_publish(s.catalog, second), -FS_ALREADY_EXISTS);
    CHECK_EQ(fs_catalog_publish(s.catalog, first), -FS_ALREADY_EXISTS);
    check_found(&s, latest("m"), first);
    /* The same number is not the same servable. */
    CHECK_EQ(fs_catalog_withdraw(s.catalog, second), -FS_NOT_FOUND);
    check_found(&s, latest("m"), first);
    free(first);
    free(second);
    tear_down(&s);
}

static void test_a_version_takes_the_place_of_itself(void)
{
    shelf s = set_up();
    fs_servable *before = servable("m", 1), *after = servable("m", 1), *newer = servable("m", 2);
    fs_label label = {fs_slice_of("stable"), 1};
    CHECK_EQ(fs_catalog_replace(s.catalog, before, after), -FS_NOT_FOUND);
    CHECK_OK(fs_catalog_publish(s.catalog, before));
    CHECK_OK(fs_catalog_publish(s.catalog, newer));
    CHECK_OK(fs_catalog_label(s.catalog, "m", &label, 1));
    for (long n = 1;; n++) {
        failmalloc_after(n);
        int rc = fs_catalog_replace(s.catalog, before, after);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
        check_found(&s, number("m", 1), before);
    }
    check_found(&s, number("m", 1), after);
    check_found(&s, labelled("m", "stable"), after);
    check_found(&s, latest("m"), newer);
    /* Once, and what was replaced is not there any more. */
    CHECK_EQ(fs_catalog_replace(s.catalog, before, after), -FS_NOT_FOUND);
    CHECK_EQ(fs_catalog_withdraw(s.catalog, before), -FS_NOT_FOUND);
    CHECK_OK(fs_catalog_withdraw(s.catalog, after));
    tear_down(&s);
    free(before);
    free(after);
    free(newer);
}

static void test_labels(void)
{
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 1), servable("m", 2)};
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    fs_label labels[] = {{fs_slice_of("stable"), 1}, {fs_slice_of("canary"), 2}};
    CHECK_OK(fs_catalog_label(s.catalog, "m", labels, 2));
    CHECK_OK(fs_catalog_publish(s.catalog, v[1])); /* labels outlive a change of versions */
    check_found(&s, labelled("m", "stable"), v[0]);
    check_found(&s, labelled("m", "canary"), v[1]);
    check_missing(&s, labelled("m", "stabl"), FS_INVALID_ARGUMENT,
                  "Unrecognized servable version label: stabl");
    check_missing(&s, labelled("n", "stable"), FS_INVALID_ARGUMENT,
                  "Unrecognized servable version label: stable");
    labels[0].version = 3;
    CHECK_OK(fs_catalog_label(s.catalog, "m", labels, 1));
    check_missing(&s, labelled("m", "stable"), FS_NOT_FOUND,
                  "Servable not found for request: Specific(m, 3)");
    check_missing(&s, labelled("m", "canary"), FS_INVALID_ARGUMENT,
                  "Unrecognized servable version label: canary");
    CHECK_OK(fs_catalog_label(s.catalog, "later", labels, 1)); /* before its first version is there */
    check_missing(&s, latest("later"), FS_NOT_FOUND, "Servable not found for request: Latest(later)");
    CHECK_OK(fs_catalog_label(s.catalog, "m", NULL, 0));
    check_missing(&s, labelled("m", "stable"), FS_INVALID_ARGUMENT,
                  "Unrecognized servable version label: stable");
    free(v[0]);
    free(v[1]);
    tear_down(&s);
}

static void test_many_models(void)
{
    enum { MANY = 300 };
    shelf s = set_up();
    static char names[MANY][16];
    fs_servable *v[MANY];
    for (int i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "m%d", i);
        v[i] = servable(names[i], i);
        CHECK_OK(fs_catalog_publish(s.catalog, v[i]));
    }
    for (int i = 0; i < MANY; i++)
        check_found(&s, latest(names[i]), v[i]);
    for (int i = 0; i < MANY; i += 2)
        CHECK_OK(fs_catalog_withdraw(s.catalog, v[i]));
    for (int i = 1; i < MANY; i += 2)
        check_found(&s, number(names[i], i), v[i]);
    for (int i = 0; i < MANY; i++)
        free(v[i]);
    tear_down(&s);
}

static void test_names_that_no_message_holds(void)
{
    static char name[3000];
    memset(name, 'n', sizeof name - 1);
    shelf s = set_up();
    fs_error err;
    fs_model_ref ref = latest(name);
    CHECK(fs_catalog_find(s.catalog, &ref, NULL, &err) == NULL);
    CHECK_EQ(err.len, FS_MESSAGE_MAX + sizeof FS_MESSAGE_MARK - 1);
    CHECK_STR(err.msg + FS_MESSAGE_MAX, FS_MESSAGE_MARK);
    ref = labelled("m", name);
    CHECK(fs_catalog_find(s.catalog, &ref, NULL, &err) == NULL);
    CHECK_STR(err.msg + FS_MESSAGE_MAX, FS_MESSAGE_MARK);
    tear_down(&s);
}

/* Names come as slices that no NUL ends. */
static void test_a_name_is_compared_to_its_end(void)
{
    shelf s = set_up();
    fs_servable *v = servable("model", 1);
    CHECK_OK(fs_catalog_publish(s.catalog, v));
    fs_model_ref ref = latest("modelling");
    ref.name.len = 5;
    check_found(&s, ref, v);
    ref.name = (fs_slice){(const uint8_t *)"model\0x", 7};
    fs_error err;
    CHECK(fs_catalog_find(s.catalog, &ref, NULL, &err) == NULL);
    free(v);
    tear_down(&s);
}

/* ---- routes ------------------------------------------------------------------------------------- */

static fs_route *route(enum fs_route_mode mode, double share, const char *header)
{
    fs_route_settings settings = {.mode = mode, .versions = {1, 2}, .share = share,
                                  .sticky_header = fs_slice_of(header)};
    fs_route *r = fs_route_new(fs_slice_of("m"), &settings);
    REQUIRE(r != NULL);
    return r;
}

/* Sets a route, of which the catalog keeps the only reference. */
static void set_route(shelf *s, fs_route *r)
{
    CHECK_OK(fs_catalog_route(s->catalog, "m", r));
    fs_route_unref(r);
}

/* What a request that comes with `kept` gets. */
static int64_t asked(shelf *s, const fs_kept *kept, uint64_t *random, fs_turn *turn)
{
    fs_error err;
    fs_model_ref ref = latest("m");
    *turn = (fs_turn){.kept = kept, .random = random};
    fs_servable *found = fs_catalog_find(s->catalog, &ref, turn, &err);
    if (found == NULL)
        return -1;
    fs_servable_unpin(found, 1);
    fs_route_unref(turn->route);
    return found->version;
}

/* As the session of a request with that header keeps it. */
static fs_kept header_of(shelf *s, const char *name, const char *value)
{
    fs_kept kept = {0};
    fs_sticky_keep(fs_catalog_sticky(s->catalog), fs_slice_of(name), fs_slice_of(value), &kept);
    return kept;
}

static void test_a_canary_answers_its_share(void)
{
    enum { CALLS = 20000 };
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 1), servable("m", 2), servable("m", 3)};
    for (int i = 0; i < 3; i++)
        CHECK_OK(fs_catalog_publish(s.catalog, v[i]));
    const struct {
        double share;
        int least, most; /* five standard deviations */
    } cases[] = {{0, 0, 0}, {0.1, 1788, 2212}, {0.5, 9646, 10354}, {1, CALLS, CALLS}};
    uint64_t random = 1;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        set_route(&s, route(FS_ROUTE_CANARY, cases[c].share, ""));
        int fresh = 0;
        fs_turn turn;
        for (int i = 0; i < CALLS; i++) {
            int64_t version = asked(&s, NULL, &random, &turn);
            CHECK(version == 1 || version == 2); /* never 3, the newest */
            CHECK_EQ(turn.side, version == 2 ? FS_SIDE_FRESH : FS_SIDE_STABLE);
            CHECK(turn.route != NULL && !turn.shadowed);
            fresh += version == 2;
        }
        CHECK(fresh >= cases[c].least && fresh <= cases[c].most);
    }
    /* Who says which version means it. */
    check_found(&s, number("m", 3), v[2]);
    check_found(&s, number("m", 2), v[1]);
    CHECK_OK(fs_catalog_route(s.catalog, "m", NULL));
    fs_turn turn;
    CHECK_EQ(asked(&s, NULL, &random, &turn), 3);
    CHECK(turn.route == NULL);
    tear_down(&s);
    for (int i = 0; i < 3; i++)
        free(v[i]);
}

static void test_a_header_decides_for_good_as_the_share_grows(void)
{
    enum { CALLERS = 5000 };
    static bool fresh[CALLERS];
    memset(fresh, 0, sizeof fresh);
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 1), servable("m", 2)};
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    CHECK_OK(fs_catalog_publish(s.catalog, v[1]));
    uint64_t random = 1;
    fs_turn turn;
    double shares[] = {0.01, 0.1, 0.25, 0.5, 0.9, 1};
    for (size_t k = 0; k < sizeof shares / sizeof *shares; k++) {
        set_route(&s, route(FS_ROUTE_CANARY, shares[k], "X-User-Id"));
        int n = 0, left = 0, undecided = 0;
        for (int i = 0; i < CALLERS; i++) {
            char value[32];
            snprintf(value, sizeof value, "user-%d", i);
            fs_kept kept = header_of(&s, "x-user-id", value);
            bool now = asked(&s, &kept, &random, &turn) == 2;
            undecided += now != (asked(&s, &kept, &random, &turn) == 2);
            left += fresh[i] && !now;
            fresh[i] = now;
            n += now;
        }
        CHECK_EQ(undecided, 0);
        CHECK_EQ(left, 0);
        CHECK(n >= CALLERS * (shares[k] - 0.036) && n <= CALLERS * (shares[k] + 0.036));
    }
    /* Other headers do not count, nor does an empty value: those callers are drawn. */
    set_route(&s, route(FS_ROUTE_CANARY, 0.5, "x-user-id"));
    const char *others[][2] = {{"x-user", "7"}, {"x-user-id", ""}};
    for (int k = 0; k < 2; k++) {
        fs_kept kept = header_of(&s, others[k][0], others[k][1]);
        int n = 0;
        for (int i = 0; i < 100; i++)
            n += asked(&s, &kept, &random, &turn) == 2;
        CHECK(n > 10 && n < 90);
    }
    CHECK_OK(fs_catalog_route(s.catalog, "m", NULL));
    fs_kept kept = header_of(&s, "x-user-id", "user-1");
    CHECK_EQ(kept.of[0].header, 0); /* nothing is kept when no route wants it */
    tear_down(&s);
    free(v[0]);
    free(v[1]);
}

static void test_a_shadow_leaves_every_answer_to_the_stable_version(void)
{
    enum { CALLS = 4000 };
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 1), servable("m", 2)};
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    CHECK_OK(fs_catalog_publish(s.catalog, v[1]));
    set_route(&s, route(FS_ROUTE_SHADOW, 0.25, ""));
    CHECK(atomic_load(&v[1]->background) && !atomic_load(&v[0]->background));
    uint64_t random = 1;
    int shadowed = 0;
    for (int i = 0; i < CALLS; i++) {
        fs_turn turn;
        CHECK_EQ(asked(&s, NULL, &random, &turn), 1);
        CHECK_EQ(turn.side, FS_SIDE_STABLE);
        shadowed += turn.shadowed;
    }
    CHECK(shadowed > 860 && shadowed < 1140);
    CHECK_OK(fs_catalog_withdraw(s.catalog, v[0])); /* then the new one has callers of its own */
    CHECK(!atomic_load(&v[1]->background));
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    CHECK(atomic_load(&v[1]->background));
    CHECK_OK(fs_catalog_route(s.catalog, "m", NULL));
    CHECK(!atomic_load(&v[1]->background));
    set_route(&s, route(FS_ROUTE_SHADOW, 0.25, ""));
    CHECK_OK(fs_catalog_withdraw(s.catalog, v[1]));
    CHECK(!atomic_load(&v[1]->background));
    tear_down(&s);
    free(v[0]);
    free(v[1]);
}

static void test_a_version_that_is_not_there_leaves_all_to_the_other(void)
{
    shelf s = set_up();
    fs_servable *v[] = {servable("m", 1), servable("m", 2), servable("m", 3)};
    uint64_t random = 1;
    fs_turn turn;
    for (int mode = FS_ROUTE_CANARY; mode <= FS_ROUTE_SHADOW; mode++) {
        set_route(&s, route(mode, 1, ""));
        CHECK_EQ(asked(&s, NULL, &random, &turn), -1);
        CHECK_OK(fs_catalog_publish(s.catalog, v[2]));
        CHECK_EQ(asked(&s, NULL, &random, &turn), 3); /* neither: the newest, and nothing to count */
        CHECK(turn.route == NULL);
        CHECK_OK(fs_catalog_publish(s.catalog, v[1]));
        CHECK_EQ(asked(&s, NULL, &random, &turn), 2);
        CHECK(turn.route != NULL && turn.side == FS_SIDE_FRESH && !turn.shadowed);
        CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
        CHECK_EQ(asked(&s, NULL, &random, &turn), mode == FS_ROUTE_CANARY ? 2 : 1);
        CHECK_OK(fs_catalog_withdraw(s.catalog, v[1]));
        CHECK_EQ(asked(&s, NULL, &random, &turn), 1);
        CHECK(turn.side == FS_SIDE_STABLE && !turn.shadowed);
        CHECK_OK(fs_catalog_withdraw(s.catalog, v[0]));
        CHECK_OK(fs_catalog_withdraw(s.catalog, v[2]));
    }
    tear_down(&s);
    for (int i = 0; i < 3; i++)
        free(v[i]);
}

static void test_routes_share_a_few_headers(void)
{
    static const char *const names[] = {"a", "b", "c", "d", "e"};
    shelf s = set_up();
    for (int i = 0; i < FS_STICKY_HEADERS; i++) {
        fs_route *r = route(FS_ROUTE_CANARY, 0.5, names[i]);
        CHECK_OK(fs_catalog_route(s.catalog, names[i], r));
        fs_route_unref(r);
    }
    fs_route *more = route(FS_ROUTE_CANARY, 0.5, "e"), *same = route(FS_ROUTE_CANARY, 0.5, "A");
    CHECK_EQ(fs_catalog_route(s.catalog, "e", more), -FS_FAILED_PRECONDITION);
    CHECK_EQ(atomic_load(&more->refs), 1);
    CHECK_OK(fs_catalog_route(s.catalog, "f", same));
    fs_kept kept = {0};
    for (int i = 0; i < 5; i++) {
        fs_slice name = fs_slice_of(names[i]);
        fs_sticky_keep(fs_catalog_sticky(s.catalog), name, fs_slice_of("first"), &kept);
        fs_sticky_keep(fs_catalog_sticky(s.catalog), name, fs_slice_of("second"), &kept);
    }
    uint32_t value;
    for (int i = 0; i < 4; i++) {
        CHECK(fs_kept_find(&kept, fs_sticky_header(fs_slice_of(names[i])), &value));
        CHECK_EQ(value, fs_sticky_value(fs_slice_of("first")));
    }
    CHECK(!fs_kept_find(&kept, fs_sticky_header(fs_slice_of("e")), &value));
    CHECK_OK(fs_catalog_route(s.catalog, "b", NULL));
    CHECK_OK(fs_catalog_route(s.catalog, "e", more));
    tear_down(&s);
    CHECK_EQ(atomic_load(&more->refs), 1);
    fs_route_unref(more);
    fs_route_unref(same);
}

static void test_a_change_without_memory_changes_nothing(void)
{
    shelf s = set_up();
    fs_servable *v[] = {servable("a", 1), servable("b", 1), servable("a", 2)};
    fs_label labels[] = {{fs_slice_of("stable"), 1}, {fs_slice_of("canary"), 2}};
    CHECK_OK(fs_catalog_publish(s.catalog, v[0]));
    CHECK_OK(fs_catalog_publish(s.catalog, v[1]));
    CHECK_OK(fs_catalog_label(s.catalog, "a", labels, 1));
    fs_route *old = route(FS_ROUTE_CANARY, 0, ""), *more = route(FS_ROUTE_CANARY, 0, "x");
    CHECK_OK(fs_catalog_route(s.catalog, "b", old));
    enum { PUBLISH, LABEL, ROUTE, WITHDRAW, STEPS };
    for (int step = 0; step < STEPS; step++) {
        long failed = 0;
        for (long n = 1;; n++) {
            failmalloc_after(n);
            int rc = step == PUBLISH ? fs_catalog_publish(s.catalog, v[2])
                     : step == LABEL ? fs_catalog_label(s.catalog, "a", labels, 2)
                     : step == ROUTE ? fs_catalog_route(s.catalog, "b", more)
                                     : fs_catalog_withdraw(s.catalog, v[2]);
            failmalloc_after(-1);
            if (!failmalloc_fired()) {
                CHECK_OK(rc);
                break;
            }
            failed++;
            CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
            CHECK_EQ(atomic_load(&more->refs), step == WITHDRAW ? 2 : 1);
            CHECK((header_of(&s, "x", "1").of[0].header != 0) == (step == WITHDRAW));
            check_found(&s, latest("a"), v[step == PUBLISH ? 0 : 2]);
            check_found(&s, labelled("a", "stable"), v[0]);
            if (step == LABEL)
                check_missing(&s, labelled("a", "canary"), FS_INVALID_ARGUMENT,
                              "Unrecognized servable version label: canary");
        }
        CHECK(failed >= 5);
    }
    check_found(&s, latest("a"), v[0]);
    CHECK_EQ(atomic_load(&more->refs), 2);
    tear_down(&s);
    CHECK(atomic_load(&old->refs) == 1 && atomic_load(&more->refs) == 1);
    fs_route_unref(old);
    fs_route_unref(more);
    for (int i = 0; i < 3; i++)
        free(v[i]);
}

int main(void)
{
    test_an_empty_catalog();
    test_the_newest_published_version_is_latest();
    test_a_version_is_published_once();
    test_a_version_takes_the_place_of_itself();
    test_labels();
    test_many_models();
    test_names_that_no_message_holds();
    test_a_name_is_compared_to_its_end();
    test_a_canary_answers_its_share();
    test_a_header_decides_for_good_as_the_share_grows();
    test_a_shadow_leaves_every_answer_to_the_stable_version();
    test_a_version_that_is_not_there_leaves_all_to_the_other();
    test_routes_share_a_few_headers();
    test_a_change_without_memory_changes_nothing();
    return check_done();
}
