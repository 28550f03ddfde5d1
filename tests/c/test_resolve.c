/* test_resolve: which version a ModelSpec means, with what Predict would have been told. */
#include "engine_rig.h"

#include "resolve.h"
#include "text.h"

static void check_resolved(rig *r, const char *spec, size_t len, const char *name, int64_t version)
{
    fs_model_ref model;
    fs_error err = {0};
    CHECK_OK(fs_resolve(&r->end.owner, NULL, (fs_slice){(const uint8_t *)spec, len}, &model, &err));
    CHECK_EQ(model.name.len, strlen(name));
    CHECK_MEM(model.name.data, name, strlen(name));
    CHECK_EQ(model.version, version);
}
#define RESOLVED(spec, name, version) check_resolved(r, spec, sizeof(spec) - 1, name, version)

static void check_refused(rig *r, const char *spec, size_t len, int code, const char *text)
{
    fs_model_ref model;
    fs_error err = {0};
    CHECK_EQ(fs_resolve(&r->end.owner, NULL, (fs_slice){(const uint8_t *)spec, len}, &model, &err), -code);
    CHECK_STR(err.msg, text);
}
#define REFUSED(spec, code, text) check_refused(r, spec, sizeof(spec) - 1, code, text)

static void test_versions_and_labels(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model old = rig_model_make("m", 3, NULL), fresh = rig_model_make("m", 9, NULL);
    rig_serve(r, &old);
    rig_serve(r, &fresh);
    fs_label labels[] = {{fs_slice_of("stable"), 3}, {fs_slice_of("gone"), 4}};
    rig_task label = {.task = {.kind = FS_TASK_LABEL, .model = "m", .labels = labels, .n_labels = 2}};
    rig_post(r, &label);
    rig_await(r, &label);

    RESOLVED("\x0a\x01m", "m", 9);
    RESOLVED("\x0a\x01m\x12\x02\x08\x03", "m", 3);
    RESOLVED("\x0a\x01m\x22\x06stable", "m", 3);
    RESOLVED("\x0a\x01x\x0a\x01m\x22\x06stable\x12\x02\x08\x09", "m", 9); /* the last of each stands */
    REFUSED("", FS_INVALID_ARGUMENT, "ModelSpec has no name specified.");
    REFUSED("\x0a\x01x", FS_NOT_FOUND, "Servable not found for request: Latest(x)");
    REFUSED("\x0a\x01m\x12\x00", FS_NOT_FOUND, "Servable not found for request: Specific(m, 0)");
    REFUSED("\x0a\x01m\x22\x04gone", FS_NOT_FOUND, "Servable not found for request: Specific(m, 4)");
    REFUSED("\x0a\x01m\x22\x05other", FS_INVALID_ARGUMENT, "Unrecognized servable version label: other");
    REFUSED("\x0a\x01\xff", FS_INTERNAL, "");
    REFUSED("\x0a\x05m", FS_INTERNAL, "");
    rig_check_idle(&old); /* nothing stays pinned */
    rig_check_idle(&fresh);

    CHECK_OK(rig_do(r, &fresh, FS_TASK_RETIRE));
    RESOLVED("\x0a\x01m", "m", 3);
    CHECK_OK(rig_do(r, &fresh, FS_TASK_CLOSE));
    rig_unserve(r, &old);
    rig_stop(r);
}

static void test_a_route_decides_as_for_predict(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model old = rig_model_make("m", 1, NULL), fresh = rig_model_make("m", 2, NULL);
    rig_serve(r, &old);
    rig_serve(r, &fresh);
    for (int all = 0; all < 2; all++) {
        fs_route_settings settings = {.mode = FS_ROUTE_CANARY, .versions = {1, 2}, .share = all};
        fs_route *route = fs_route_new(fs_slice_of("m"), &settings);
        REQUIRE(route != NULL);
        rig_route(r, "m", route);
        for (int i = 0; i < 50; i++)
            RESOLVED("\x0a\x01m", "m", all ? 2 : 1);
        RESOLVED("\x0a\x01m\x12\x02\x08\x01", "m", 1);
        CHECK_EQ(atomic_load(&route->refs), 2); /* this one's and the catalog's */
        for (enum fs_outcome outcome = 0; outcome < FS_OUTCOMES; outcome++)
            CHECK_EQ(fs_figures_read(&route->figures[all], outcome), 0);
        rig_route(r, "m", NULL);
        fs_route_unref(route);
    }
    rig_unserve(r, &fresh);
    rig_unserve(r, &old);
    rig_stop(r);
}

int main(void)
{
    test_versions_and_labels();
    test_a_route_decides_as_for_predict();
    return check_done();
}
