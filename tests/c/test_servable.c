/* test_servable: opening, pins and closing of one version. */
#include "engine_rig.h"

#include "failmalloc.h"
#include "text.h"

static int open_model(probe *p, rig_model *m, fs_error *err)
{
    m->spec.path = m->path;
    return fs_servable_open(p->runtime, m->name, m->version, &m->spec, m->plans, &m->batching, &m->servable,
                            err);
}

static fs_servable *opened(probe *p, rig_model *m)
{
    fs_error err;
    REQUIRE(open_model(p, m, &err) == 0);
    return m->servable;
}

static void test_what_a_servable_knows(probe *p)
{
    rig_model m = rig_model_make("m", 3, NULL);
    fs_servable *s = opened(p, &m);
    CHECK_STR(s->model, "m");
    CHECK_EQ(s->version, 3);
    CHECK_EQ(s->n_queues, RIG_SIGNATURES);
    CHECK_EQ(s->queue_rows, 8000);
    CHECK(fs_servable_find(s, fs_slice_of("pair")) == &s->queues[RIG_PAIR]);
    CHECK(fs_servable_find(s, fs_slice_of("pai")) == NULL);
    CHECK(fs_servable_find(s, fs_slice_of("pairs")) == NULL);
    CHECK(fs_servable_find(s, fs_slice_of("")) == NULL);
    CHECK(s->queues[RIG_PAIR].static_inner);
    CHECK(s->queues[RIG_HALF].static_inner);
    CHECK(!s->queues[RIG_RAGGED].static_inner);
    CHECK(!s->queues[RIG_SCALAR].static_inner);
    CHECK_EQ(p->open_models, 1);
    fs_servable_close(s);
    CHECK_EQ(p->open_models, 0);
}

static void test_a_model_that_does_not_open(probe *p)
{
    rig_model m = rig_model_make("m", 1, "fail_open=1");
    fs_error err;
    CHECK_EQ(open_model(p, &m, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "opening failed as configured");
    CHECK_EQ(p->open_models, 0);
}

static int unpinned;

static void count_unpinned(fs_servable *s)
{
    (void)s;
    unpinned++;
}

static void test_the_last_pin_is_told_of_once(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    fs_servable *s = opened(p, &m);
    s->unpinned = count_unpinned;
    fs_servable_pin(s, 1);
    fs_servable_pin(s, 3);
    CHECK(fs_servable_try_pin(s));
    fs_servable_unpin(s, 2);
    fs_servable_unpin(s, 2);
    CHECK_EQ(unpinned, 0);
    fs_servable_unpin(s, 1);
    CHECK_EQ(unpinned, 1);
    CHECK(!fs_servable_try_pin(s)); /* too late */
    CHECK_EQ(unpinned, 1);
    fs_servable_close(s);
}

static void test_counters_have_names(void)
{
    for (int i = 0; i < FS_COUNTERS; i++) {
        for (int k = 0; k < i; k++)
            CHECK(strcmp(fs_counter_name(i), fs_counter_name(k)) != 0);
    }
    CHECK_STR(fs_counter_name(FS_COUNT_OK), "ok");
    CHECK_STR(fs_counter_name(FS_COUNT_RERUNS), "reruns");
    CHECK_STR(fs_counter_name(FS_COUNT_RUN_US), "run_us");
}

static void test_opening_without_memory(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    fs_error err;
    long failed = 0;
    for (long n = 1;; n++) {
        failmalloc_after(n);
        int rc = open_model(p, &m, &err);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            break;
        }
        failed++;
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
        CHECK_EQ(p->open_models, 0);
        if (rc == 0)
            fs_servable_close(m.servable);
    }
    CHECK(failed > RIG_SIGNATURES);
    fs_servable_close(m.servable);
}

int main(void)
{
    probe *p = calloc(1, sizeof *p);
    REQUIRE(p != NULL);
    probe_start(p);
    test_what_a_servable_knows(p);
    test_a_model_that_does_not_open(p);
    test_the_last_pin_is_told_of_once(p);
    test_counters_have_names();
    test_opening_without_memory(p);
    probe_stop(p);
    free(p);
    return check_done();
}
