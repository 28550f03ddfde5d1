/* test_plugin_open: csrc/plugin_open.c with the stub beside this program, and the ABI's layout. */
#include "plugin_open.h"

#include "check.h"
#include "slab.h"

#include <dlfcn.h>
#include <limits.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

static char beside[PATH_MAX];
static char stub[PATH_MAX + 32];
static int (*live)(void);

static void set_up(void)
{
    ssize_t len = readlink("/proc/self/exe", beside, sizeof beside - 1);
    REQUIRE(len > 0);
    beside[len] = '\0';
    *strrchr(beside, '/') = '\0';
    snprintf(stub, sizeof stub, "%s/stub_plugin.so", beside);
    void *library = dlopen(stub, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library != NULL);
    void *symbol = dlsym(library, "stub_plugin_live");
    REQUIRE(symbol != NULL);
    memcpy(&live, &symbol, sizeof live);
}

/* What opening `path` answers; the message is in *err. */
static int opening(const char *path, enum fs_plugin_kind kind, fs_error *err)
{
    const fs_plugin *plugin = NULL;
    int rc = fs_plugin_open(path, kind, &plugin, err);
    CHECK((plugin != NULL) == (rc == 0));
    return rc;
}

static void check_says(const fs_error *err, const char *words)
{
    CHECK_REPORT(strstr(err->msg, words) != NULL, "\"%s\" should say \"%s\"", err->msg, words);
}

/* ---- what is refused ------------------------------------------------------------------------ */

static void test_files_that_are_no_plugin(void)
{
    fs_error err;
    CHECK_EQ(opening("stub_plugin.so", FS_PLUGIN_RUNTIME, &err), -FS_INVALID_ARGUMENT);
    check_says(&err, "'stub_plugin.so': expected the absolute path");
    CHECK_EQ(opening("", FS_PLUGIN_RUNTIME, &err), -FS_INVALID_ARGUMENT);
    CHECK_EQ(opening("/nowhere/x.so", FS_PLUGIN_RUNTIME, &err), -FS_NOT_FOUND);
    check_says(&err, "/nowhere/x.so: the plug-in cannot be read: No such file");
    CHECK_EQ(opening(beside, FS_PLUGIN_RUNTIME, &err), -FS_INVALID_ARGUMENT);
    check_says(&err, "cannot be opened as a shared library");

    char text[] = "/tmp/fastserve-test-plugin-XXXXXX";
    int fd = mkstemp(text);
    REQUIRE(fd >= 0);
    CHECK_EQ(write(fd, "no library", 10), 10);
    close(fd);
    CHECK_EQ(opening(text, FS_PLUGIN_BATCHER, &err), -FS_INVALID_ARGUMENT);
    check_says(&err, text);
    check_says(&err, "cannot be opened as a shared library");
    unlink(text);

    char other[PATH_MAX + 32];
    snprintf(other, sizeof other, "%s/stub_tf.so", beside);
    CHECK_EQ(opening(other, FS_PLUGIN_RUNTIME, &err), -FS_INVALID_ARGUMENT);
    check_says(&err, "is no plug-in of FastServe: it does not export fastserve_plugin()");
}

static void test_plugins_that_do_not_fit(void)
{
    static const struct {
        const char *stub;
        enum fs_plugin_kind kind;
        int rc;
        const char *words;
    } cases[] = {
        {"null", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "fastserve_plugin() returned nothing"},
        {"old", FS_PLUGIN_RUNTIME, -FS_FAILED_PRECONDITION, "for ABI 2, and this FastServe has ABI 1: build it"},
        {"nameless", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "has no name"},
        {"strange", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "'stub' is of no known kind, and a runtime is"},
        {"runtime", FS_PLUGIN_BATCHER, -FS_INVALID_ARGUMENT, "'stub' is a runtime, and a batcher is needed"},
        {"batcher", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "'stub' is a batcher, and a runtime is needed"},
        {"no_ops", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "the runtime 'stub' has no functions"},
        {"no_run", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "has no function run"},
        {"no_release", FS_PLUGIN_RUNTIME, -FS_INVALID_ARGUMENT, "has no function release"},
        {"idle", FS_PLUGIN_BATCHER, -FS_INVALID_ARGUMENT, "has neither pick nor plan"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_error err;
        setenv("STUB_PLUGIN", cases[i].stub, 1);
        CHECK_EQ(opening(stub, cases[i].kind, &err), cases[i].rc);
        check_says(&err, cases[i].words);
        check_says(&err, stub);
    }
}

static void test_a_message_that_nobody_wants(void)
{
    const fs_plugin *plugin = NULL;
    CHECK_EQ(fs_plugin_open("/nowhere/x.so", FS_PLUGIN_RUNTIME, &plugin, NULL), -FS_NOT_FOUND);
    CHECK_EQ(fs_plugin_fail(NULL, FS_ABORTED, "%d", 1), -FS_ABORTED);
}

static void test_messages_of_plugins_are_cut(void)
{
    char text[FS_MESSAGE_MAX + 100];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    fs_error err;
    CHECK_EQ(fs_plugin_fail(&err, FS_INTERNAL, "%s", text), -FS_INTERNAL);
    CHECK_EQ(err.code, FS_INTERNAL);
    CHECK_EQ(err.len, FS_MESSAGE_MAX);
    CHECK_EQ(strlen(err.msg), FS_MESSAGE_MAX);
}

/* ---- runtimes and batchers ------------------------------------------------------------------- */

static void test_a_runtime_is_made_used_and_destroyed(void)
{
    setenv("STUB_PLUGIN", "runtime", 1);
    fs_error err;
    const fs_plugin *plugin = NULL;
    fs_runtime runtime;
    REQUIRE(fs_runtime_plugin(stub, &plugin, &runtime, &err) == 0);
    CHECK_STR(plugin->name, "stub");
    CHECK_STR(runtime.ops->name, "stub");
    CHECK_EQ(live(), 1);
    fs_model_spec spec = {.path = "/m"};
    fs_model *model;
    CHECK_OK(runtime.ops->open(runtime.self, &spec, &model, &err));

    /* It keeps the input's memory after its owner has let it go. */
    fs_slab *slab = fs_slab_new(0);
    REQUIRE(slab != NULL);
    fs_buf *buf = fs_buf_new(slab, 4096);
    REQUIRE(buf != NULL);
    memset(buf->data, 7, 4096);
    int64_t dims[] = {1024};
    fs_tensor in = {FS_DT_FLOAT, 1, dims, 1024, buf->data, 4096, buf, NULL}, out;
    CHECK_OK(runtime.ops->run(model, 0, FS_RUN_PLAIN, &in, &out, &err));
    fs_buf_unref(buf);
    bool same = true;
    for (size_t i = 0; i < 4096; i++)
        same = same && ((uint8_t *)out.data)[i] == 7;
    CHECK(same);
    runtime.ops->release(&out);
    fs_slab_release(slab);

    runtime.ops->close(model);
    fs_runtime_plugin_free(plugin, &runtime);
    CHECK_EQ(live(), 0);
    CHECK(runtime.ops == NULL);
}

static void test_a_library_opened_twice_is_one(void)
{
    setenv("STUB_PLUGIN", "runtime", 1);
    fs_error err;
    const fs_plugin *first = NULL, *second = NULL;
    CHECK_OK(fs_plugin_open(stub, FS_PLUGIN_RUNTIME, &first, &err));
    CHECK_OK(fs_plugin_open(stub, FS_PLUGIN_RUNTIME, &second, &err));
    CHECK(first == second);
}

static void test_a_runtime_that_cannot_be_made(void)
{
    setenv("STUB_PLUGIN", "refuses", 1);
    fs_error err;
    const fs_plugin *plugin = NULL;
    fs_runtime runtime = {0};
    CHECK_EQ(fs_runtime_plugin(stub, &plugin, &runtime, &err), -FS_UNAVAILABLE);
    check_says(&err, "no licence for this machine");
    CHECK(plugin == NULL && runtime.ops == NULL);
    CHECK_EQ(live(), 0);
    CHECK_EQ(fs_runtime_plugin("/nowhere/x.so", &plugin, &runtime, &err), -FS_NOT_FOUND);
    CHECK(plugin == NULL && runtime.ops == NULL);
    fs_runtime_plugin_free(NULL, &runtime);
}

static void test_a_runtime_with_nothing_to_make(void)
{
    setenv("STUB_PLUGIN", "bare", 1);
    fs_error err;
    const fs_plugin *plugin = NULL;
    fs_runtime runtime;
    REQUIRE(fs_runtime_plugin(stub, &plugin, &runtime, &err) == 0);
    CHECK(runtime.self == NULL);
    fs_runtime_plugin_free(plugin, &runtime);
}

static int our_pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us)
{
    (void)queues;
    (void)n;
    (void)now_us;
    (void)wait_until_us;
    return 1;
}

static int64_t our_plan(const fs_plan_view *view)
{
    return view->max_rows;
}

static void test_a_batcher_takes_the_place_of_what_it_has(void)
{
    setenv("STUB_PLUGIN", "batcher", 1);
    fs_error err;
    fs_policy policy = {our_pick, our_plan};
    CHECK_OK(fs_policy_plugin(stub, &policy, &err));
    int64_t wait_until_us;
    CHECK_EQ(policy.pick(NULL, 0, 0, &wait_until_us), 41);
    CHECK(policy.plan == our_plan);

    policy = (fs_policy){our_pick, our_plan};
    CHECK_EQ(fs_policy_plugin("/nowhere/x.so", &policy, &err), -FS_NOT_FOUND);
    CHECK(policy.pick == our_pick && policy.plan == our_plan);
}

/* ---- the ABI -------------------------------------------------------------------------------- */

/* What a plug-in was built with. A change here is a new FS_PLUGIN_ABI. */
static void test_the_layout_is_that_of_the_number(void)
{
    CHECK_EQ(FS_PLUGIN_ABI, 1);
#if UINTPTR_MAX == UINT64_MAX
    CHECK_EQ(offsetof(fs_plugin, name), 8);
    CHECK_EQ(offsetof(fs_plugin, runtime), 16);
    CHECK_EQ(offsetof(fs_plugin, batcher), 40);
    CHECK_EQ(sizeof(fs_plugin), 56);
    CHECK_EQ(sizeof(fs_host), 16);
    CHECK_EQ(sizeof(fs_runtime_ops), 40);
    CHECK_EQ(offsetof(fs_runtime_ops, run), 16);
    CHECK_EQ(sizeof(fs_model_spec), 80);
    CHECK_EQ(offsetof(fs_model_spec, signatures), 64);
    CHECK_EQ(sizeof(fs_signature), 48);
    CHECK_EQ(offsetof(fs_signature, outputs), 24);
    CHECK_EQ(sizeof(fs_port), 32);
    CHECK_EQ(sizeof(fs_tensor), 56);
    CHECK_EQ(offsetof(fs_tensor, data), 24);
    CHECK_EQ(sizeof(fs_slice), 16);
    CHECK_EQ(offsetof(fs_error, msg), 8);
    CHECK_EQ(sizeof(fs_queue_view), 32);
    CHECK_EQ(sizeof(fs_plan_view), 280);
#endif
}

int main(void)
{
    set_up();
    test_files_that_are_no_plugin();
    test_plugins_that_do_not_fit();
    test_a_message_that_nobody_wants();
    test_messages_of_plugins_are_cut();
    test_a_runtime_is_made_used_and_destroyed();
    test_a_library_opened_twice_is_one();
    test_a_runtime_that_cannot_be_made();
    test_a_runtime_with_nothing_to_make();
    test_a_batcher_takes_the_place_of_what_it_has();
    test_the_layout_is_that_of_the_number();
    return check_done();
}
