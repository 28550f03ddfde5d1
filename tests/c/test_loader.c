/* test_loader: versions come and go by tasks, and a version in use is not taken away. */
#include "engine_rig.h"

#include <dirent.h>
#include <errno.h>
#include <sys/resource.h>
#include <unistd.h>

#include "failmalloc.h"
#include "text.h"

static const float ONE[] = {1};

static peer_call *ask(rig *r, const char *model)
{
    return rig_call(r, rig_floats(model, ONE, 1));
}

static rig_task awaited(rig *r, rig_model *m, enum fs_task_kind kind)
{
    rig_task t = rig_task_of(m, kind);
    t.task.runtime = r->probe.runtime;
    rig_post(r, &t);
    rig_await(r, &t);
    return t;
}

static void test_a_version_from_load_to_close(rig *r)
{
    rig_model m = rig_model_make("m", 1, "open_us=2000");
    CHECK_ANSWER(ask(r, "m"), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    rig_task t = awaited(r, &m, FS_TASK_LOAD);
    CHECK_OK(t.task.rc);
    CHECK(t.task.took_us >= 2000);
    CHECK_EQ(t.task.warm.failures, 0);
    CHECK(r->probe.n_log > RIG_SIGNATURES);
    m.servable = t.task.servable;
    CHECK_ANSWER(ask(r, "m"), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    CHECK_OK(rig_do(r, &m, FS_TASK_PUBLISH));
    CHECK_ANSWER(ask(r, "m"), FS_OK, "");
    CHECK_OK(rig_do(r, &m, FS_TASK_RETIRE));
    CHECK_ANSWER(ask(r, "m"), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    CHECK_EQ(r->probe.open_models, 1);
    CHECK_OK(rig_do(r, &m, FS_TASK_PUBLISH)); /* and back */
    CHECK_ANSWER(ask(r, "m"), FS_OK, "");
    CHECK_OK(rig_do(r, &m, FS_TASK_RETIRE));
    CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
    CHECK_EQ(r->probe.open_models, 0);
}

static void test_a_model_that_does_not_open(rig *r)
{
    rig_model m = rig_model_make("m", 1, "fail_open=1");
    rig_task t = awaited(r, &m, FS_TASK_LOAD);
    CHECK_EQ(t.task.rc, -FS_INTERNAL);
    CHECK_STR(t.task.err.msg, "opening failed as configured");
    CHECK(t.task.servable == NULL);
}

static void test_plain_warm_up_runs_may_fail_and_compiled_ones_may_not(rig *r)
{
    rig_model m = rig_model_make("m", 1, "fail_every=21");
    rig_task t = awaited(r, &m, FS_TASK_LOAD);
    CHECK_OK(t.task.rc);
    CHECK_EQ(t.task.warm.failures, 1);
    m.servable = t.task.servable;
    CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
    m = rig_model_make("m", 1, "compiled_rows=1:2:4");
    m.plans[RIG_HALF].compiled = true;
    t = awaited(r, &m, FS_TASK_LOAD);
    CHECK_EQ(t.task.rc, -FS_INTERNAL);
    CHECK_STR(t.task.err.msg, "8 rows were not compiled");
    CHECK(t.task.servable == NULL);
    CHECK_EQ(r->probe.open_models, 0);
}

static void test_one_version_is_published_once(rig *r)
{
    rig_model first = rig_model_make("m", 1, NULL), second = rig_model_make("m", 1, NULL);
    rig_serve(r, &first);
    CHECK_OK(rig_do(r, &second, FS_TASK_LOAD));
    rig_task t = awaited(r, &second, FS_TASK_PUBLISH);
    CHECK_EQ(t.task.rc, -FS_ALREADY_EXISTS);
    CHECK_STR(t.task.err.msg, "that version is published already");
    t = awaited(r, &second, FS_TASK_RETIRE);
    CHECK_EQ(t.task.rc, -FS_NOT_FOUND);
    CHECK_STR(t.task.err.msg, "that version is not published");
    CHECK_OK(rig_do(r, &second, FS_TASK_CLOSE));
    CHECK_ANSWER(ask(r, "m"), FS_OK, "");
    rig_unserve(r, &first);
}

static void test_retiring_waits_for_the_calls_that_run_and_that_wait(rig *r)
{
    rig_model m = rig_model_make("m", 1, NULL), next = rig_model_make("m", 2, NULL);
    m.batching.max_batch_size = 1;
    rig_serve(r, &m);
    probe_gate(&r->probe, true);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *calls[3];
    for (int i = 0; i < 3; i++)
        calls[i] = rig_send(&r->end, &frame, NULL);
    probe_wait(&r->probe, 1); /* one runs, two wait */
    rig_task retire = rig_task_of(&m, FS_TASK_RETIRE);
    rig_post(r, &retire);
    rig_task other = rig_task_of(&next, FS_TASK_LABEL); /* the loader is not held up by it */
    fs_label label = {fs_slice_of("stable"), 1};
    other.task.labels = &label;
    other.task.n_labels = 1;
    rig_post(r, &other);
    rig_await(r, &other);
    CHECK(!retire.done);
    for (int i = 0; i < 3; i++)
        CHECK(!calls[i]->closed);
    CHECK_ANSWER(rig_send(&r->end, &frame, NULL), FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    probe_gate(&r->probe, false);
    rig_await(r, &retire);
    CHECK_OK(retire.task.rc);
    for (int i = 0; i < 3; i++)
        CHECK_ANSWER(calls[i], FS_OK, ""); /* retired means answered */
    CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
    free(frame.data);
}

static void test_a_new_version_takes_over_while_the_old_one_finishes(rig *r)
{
    rig_model old = rig_model_make("m", 1, NULL), new = rig_model_make("m", 2, NULL);
    rig_serve(r, &old);
    probe_gate(&r->probe, true);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *before = rig_send(&r->end, &frame, NULL);
    probe_wait(&r->probe, 1);
    probe_gate(&r->probe, false);
    rig_serve(r, &new);
    peer_call *after = rig_send(&r->end, &frame, NULL);
    rig_settle(&r->end);
    rig_reply replies[] = {rig_read(r->end.slab, before->body, before->body_len),
                           rig_read(r->end.slab, after->body, after->body_len)};
    CHECK_EQ(replies[0].version, 1);
    CHECK_EQ(replies[1].version, 2);
    fs_arena_clear(&replies[0].arena);
    fs_arena_clear(&replies[1].arena);
    rig_unserve(r, &old);
    rig_unserve(r, &new);
    free(frame.data);
}

static void test_labels_by_task(rig *r)
{
    rig_model m = rig_model_make("labelled", 7, NULL);
    rig_serve(r, &m);
    fs_label label = {fs_slice_of("stable"), 7};
    rig_task t = rig_task_of(&m, FS_TASK_LABEL);
    t.task.labels = &label;
    t.task.n_labels = 1;
    rig_post(r, &t);
    rig_await(r, &t);
    CHECK_OK(t.task.rc);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = ONE, .bytes = 4};
    rig_request q = {.model = "labelled", .label = "stable", .inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_OK, "");
    q.label = "canary";
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_INVALID_ARGUMENT,
                 "Unrecognized servable version label: canary");
    rig_unserve(r, &m);
}

static void test_stopping_finishes_what_is_queued(rig *r)
{
    fs_loader *loader = fs_loader_start(&(fs_loader_config){.threads = 2}, r->engine->catalog, r->engine->executors);
    REQUIRE(loader != NULL);
    rig_model models[4];
    rig_task tasks[4];
    for (int i = 0; i < 4; i++) {
        models[i] = rig_model_make("m", i, "open_us=1000");
        tasks[i] = rig_task_of(&models[i], FS_TASK_LOAD);
        tasks[i].task.runtime = r->probe.runtime;
        tasks[i].task.mail.deliver = rig_task_done;
        tasks[i].task.home = &r->end.owner;
        fs_loader_post(loader, &tasks[i].task);
    }
    fs_loader_stop(loader);
    rig_turn(&r->end, 0);
    for (int i = 0; i < 4; i++) {
        CHECK(tasks[i].done);
        CHECK_OK(tasks[i].task.rc);
        models[i].servable = tasks[i].task.servable;
        CHECK_OK(rig_do(r, &models[i], FS_TASK_CLOSE));
    }
}

/* ---- what waits for what, and at which priority --------------------------------------------------- */

/* The nice value of this process's thread of that name. */
static int nice_of(const char *name)
{
    DIR *tasks = opendir("/proc/self/task");
    REQUIRE(tasks != NULL);
    int nice = -100;
    const struct dirent *entry;
    while ((entry = readdir(tasks)) != NULL) {
        char path[300], comm[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        if (fgets(comm, sizeof comm, file) != NULL && strcspn(comm, "\n") == strlen(name) &&
            strncmp(comm, name, strlen(name)) == 0)
            nice = getpriority(PRIO_PROCESS, (id_t)atoi(entry->d_name));
        fclose(file);
    }
    closedir(tasks);
    return nice;
}

static void test_what_is_short_does_not_wait_for_what_is_long(rig *r)
{
    rig_model slow = rig_model_make("slow", 1, NULL), m = rig_model_make("m", 1, NULL);
    CHECK_OK(rig_do(r, &m, FS_TASK_LOAD));
    probe_gate(&r->probe, true);
    rig_task load = rig_task_of(&slow, FS_TASK_LOAD);
    load.task.runtime = r->probe.runtime;
    CHECK_EQ(fs_task_progress(&load.task).stage, FS_STAGE_QUEUED);
    rig_post(r, &load);
    probe_wait(&r->probe, 1); /* the only loader is in its first run */
    fs_progress progress = fs_task_progress(&load.task);
    CHECK_EQ(progress.stage, FS_STAGE_WARM);
    CHECK_EQ(progress.done, 0);
    CHECK_EQ(progress.total, 21);
    CHECK_OK(rig_do(r, &m, FS_TASK_PUBLISH));
    CHECK_OK(rig_do(r, &m, FS_TASK_RETIRE));
    CHECK(!load.done);
    probe_gate(&r->probe, false);
    rig_await(r, &load);
    CHECK_OK(load.task.rc);
    CHECK_EQ(fs_task_progress(&load.task).done, 21);
    slow.servable = load.task.servable;
    CHECK_OK(rig_do(r, &slow, FS_TASK_CLOSE));
    CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
}

static void test_loads_give_way_unless_somebody_is_in_a_hurry(rig *r, int asked)
{
    int normal = getpriority(PRIO_PROCESS, 0), low = fs_loader_nice(r->engine->loader);
    if (low < normal + asked)
        return; /* not privileged: see test_priority */
    rig_model m = rig_model_make("m", 1, NULL);
    for (int served = 0; served < 2; served++) {
        for (int hurry = 0; hurry < 2; hurry++) {
            probe_gate(&r->probe, true);
            rig_task load = rig_task_of(&m, FS_TASK_LOAD);
            load.task.runtime = r->probe.runtime;
            rig_post(r, &load);
            probe_wait(&r->probe, 1);
            CHECK_EQ(nice_of("fs-load-0"), served ? low : normal);
            CHECK_EQ(nice_of("fs-switch"), normal);
            CHECK_EQ(nice_of("fs-exec-0"), normal);
            if (hurry) {
                fs_loader_hurry(r->engine->loader);
                CHECK_EQ(nice_of("fs-load-0"), normal);
            }
            probe_gate(&r->probe, false);
            rig_await(r, &load);
            m.servable = load.task.servable;
            CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
        }
        fs_loader_give_way(r->engine->loader);
    }
}

/* Whether the only loader comes to have that nice value. */
static bool loader_gets(int nice, int64_t ms)
{
    int64_t until_us = fs_now_us() + ms * 1000;
    while (nice_of("fs-load-0") != nice && fs_now_us() < until_us)
        usleep(500);
    return nice_of("fs-load-0") == nice;
}

static void test_what_an_executor_may_wait_for_gets_on(bool no_loans)
{
    fs_engine_config config = rig_config(1);
    config.loader.nice = 8;
    config.loader.no_loans = no_loans;
    rig *r = rig_start(&config);
    int normal = getpriority(PRIO_PROCESS, 0), low = fs_loader_nice(r->engine->loader);
    rig_model m = rig_model_make("m", 1, NULL), next = rig_model_make("m", 2, NULL);
    rig_serve(r, &m);
    fs_loader_give_way(r->engine->loader);
    probe_gate(&r->probe, true);
    rig_task load = rig_task_of(&next, FS_TASK_LOAD);
    load.task.runtime = r->probe.runtime;
    rig_post(r, &load);
    probe_wait(&r->probe, 1);
    CHECK_EQ(nice_of("fs-load-0"), low);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *call = rig_send(&r->end, &frame, NULL);
    probe_wait(&r->probe, 2); /* in the middle of a batch, asleep, for whatever reason */
    bool privileged = low == normal + 8;
    if (privileged && no_loans)
        CHECK(!loader_gets(normal, 50));
    else if (privileged)
        CHECK(loader_gets(normal, RIG_PATIENCE_MS));
    probe_gate(&r->probe, false);
    rig_await(r, &load);
    rig_settle(&r->end);
    CHECK_ANSWER(call, FS_OK, "");
    next.servable = load.task.servable;
    CHECK_OK(rig_do(r, &next, FS_TASK_CLOSE));
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static pthread_t caller;

static int note_thread(void *arg, fs_error *err)
{
    caller = pthread_self();
    return *(bool *)arg ? fs_fail(err, FS_ABORTED, "as asked") : 0;
}

static void test_something_else_off_the_loop(rig *r)
{
    for (int fails = 0; fails < 2; fails++) {
        bool fail = fails;
        rig_task t = {.task = {.kind = FS_TASK_CALL, .call = note_thread, .arg = &fail}};
        rig_post(r, &t);
        rig_await(r, &t);
        CHECK_EQ(t.task.rc, fails ? -FS_ABORTED : 0);
        CHECK(!pthread_equal(caller, pthread_self()));
    }
}

static void test_closing_on_the_poster(void)
{
    fs_engine_config config = rig_config(1);
    config.loader.close_on_poster = true;
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    CHECK_OK(rig_do(r, &m, FS_TASK_LOAD));
    rig_task close = rig_task_of(&m, FS_TASK_CLOSE);
    rig_post(r, &close);
    CHECK_EQ(r->probe.open_models, 0); /* already */
    rig_await(r, &close);
    CHECK_OK(close.task.rc);
    rig_stop(r);
}

/* Runs a task with the n-th allocation failing, for every n, until it goes well. */
static void sweep(rig *r, rig_model *m, enum fs_task_kind kind, int least)
{
    long failed = 0;
    for (long n = 1;; n++) {
        rig_task t = rig_task_of(m, kind);
        t.task.runtime = r->probe.runtime;
        failmalloc_after(n);
        rig_post(r, &t);
        int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
        while (!t.done) { /* without the client, whose memory is not in question */
            REQUIRE(fs_now_us() < until_us);
            struct pollfd p = {.fd = r->end.box.fd, .events = POLLIN};
            poll(&p, 1, 100);
            fs_owner_deliver(&r->end.owner);
        }
        failmalloc_after(-1);
        if (t.task.rc == 0 && t.task.warm.failures == 0) {
            if (kind == FS_TASK_LOAD)
                m->servable = t.task.servable;
            CHECK(failed >= least);
            return;
        }
        failed++;
        if (t.task.rc == 0) { /* loaded, but no memory to warm it */
            m->servable = t.task.servable;
            CHECK_OK(rig_do(r, m, FS_TASK_CLOSE));
        } else {
            CHECK_EQ(t.task.rc, -FS_RESOURCE_EXHAUSTED);
            CHECK_STR(t.task.err.msg, "out of memory");
        }
    }
}

static void test_every_step_without_memory(rig *r)
{
    rig_model m = rig_model_make("m", 1, NULL), other = rig_model_make("other", 1, NULL);
    rig_serve(r, &other);
    sweep(r, &m, FS_TASK_LOAD, 10);
    sweep(r, &m, FS_TASK_PUBLISH, 5);
    CHECK_ANSWER(ask(r, "m"), FS_OK, "");
    sweep(r, &m, FS_TASK_RETIRE, 3);
    CHECK_ANSWER(ask(r, "other"), FS_OK, "");
    sweep(r, &m, FS_TASK_CLOSE, 0);
    rig_unserve(r, &other);
}

int main(void)
{
    fs_engine_config config = rig_config(2);
    rig *r = rig_start(&config);
    test_a_version_from_load_to_close(r);
    test_a_model_that_does_not_open(r);
    test_plain_warm_up_runs_may_fail_and_compiled_ones_may_not(r);
    test_one_version_is_published_once(r);
    test_a_new_version_takes_over_while_the_old_one_finishes(r);
    test_labels_by_task(r);
    test_stopping_finishes_what_is_queued(r);
    test_every_step_without_memory(r);
    test_what_is_short_does_not_wait_for_what_is_long(r);
    test_something_else_off_the_loop(r);
    rig_stop(r);
    test_closing_on_the_poster();
    config = rig_config(1); /* so that what waits, waits */
    config.loader.nice = 8;
    r = rig_start(&config);
    test_loads_give_way_unless_somebody_is_in_a_hurry(r, 8);
    test_retiring_waits_for_the_calls_that_run_and_that_wait(r);
    rig_stop(r);
    test_what_an_executor_may_wait_for_gets_on(false);
    test_what_an_executor_may_wait_for_gets_on(true);
    return check_done();
}
