/* test_lookup: the runtime of examples/plugins/lookup, opened as the core opens it: its answers, what it refuses,
 * and models that share a table while others come and go. */
#include "plugin_open.h"

#include "check.h"

#include <dirent.h>
#include <limits.h>
#include <pthread.h>
#include <unistd.h>

enum { ROWS = 1000, DIMS = 3 };

static char folder[] = "/tmp/fastserve-test-lookup-XXXXXX";
static const fs_plugin *plugin;
static fs_runtime runtime;

static int64_t unknown[] = {-1};
static int64_t out_dims[] = {-1, DIMS};
static fs_port keys_port[] = {{"keys", "keys", FS_DT_INT64, 1, unknown}};
static fs_port vectors_port[] = {{"vectors", "vectors", FS_DT_FLOAT, 2, out_dims}};
static fs_signature signature = {"serving_default", keys_port, 1, vectors_port, 1, NULL};

static const char *in_folder(const char *name)
{
    static _Thread_local char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- tables: key 10 i has the vector (i, i + 0.5, -i), any other key (7, 8, 9) ----------------- */

static void write_file(const char *name, const void *data, size_t bytes)
{
    FILE *file = fopen(in_folder(name), "wb");
    REQUIRE(file != NULL);
    CHECK_EQ(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

static size_t make_table(uint8_t *to, uint64_t rows, uint32_t dims)
{
    memset(to, 0, 64);
    memcpy(to, "fslookup", 8);
    memcpy(to + 8, &rows, sizeof rows);
    memcpy(to + 16, &dims, sizeof dims);
    uint8_t *at = to + 64;
    for (uint64_t i = 0; i < rows; i++, at += 8)
        memcpy(at, &(int64_t){(int64_t)i * 10}, 8);
    for (uint64_t i = 0; i < rows; i++, at += DIMS * sizeof(float))
        memcpy(at, (float[DIMS]){(float)i, (float)i + 0.5f, -(float)i}, DIMS * sizeof(float));
    memcpy(at, (float[DIMS]){7, 8, 9}, DIMS * sizeof(float));
    return (size_t)(at + DIMS * sizeof(float) - to);
}

static void set_up(void)
{
    char library[PATH_MAX];
    ssize_t len = readlink("/proc/self/exe", library, sizeof library - 1);
    REQUIRE(len > 0);
    library[len] = '\0';
    for (int i = 0; i < 3; i++) /* build/c/V/tests/c/test_lookup */
        *strrchr(library, '/') = '\0';
    strcat(library, "/examples/plugins/lookup/fastserve_lookup/lookup.so");
    fs_error err;
    int rc = fs_runtime_plugin(library, &plugin, &runtime, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.msg);
    REQUIRE(rc == 0);
    REQUIRE(mkdtemp(folder) != NULL);
    static uint8_t table[64 + ROWS * (8 + DIMS * 4) + DIMS * 4];
    size_t bytes = make_table(table, ROWS, DIMS);
    REQUIRE(bytes == sizeof table);
    write_file("table", table, bytes);
    write_file("short", table, bytes - 1);
    write_file("cut", table, bytes - 64);
    write_file("header", table, 64);
    write_file("stub", table, 10);
    write_file("empty", table, 0);
    write_file("bare", table, make_table(table, 0, DIMS));
    table[16] = 0; /* no dims */
    write_file("flat", table, 64);
    table[0] = 'F';
    write_file("other", table, bytes);
    char link_to[PATH_MAX];
    strcpy(link_to, in_folder("table"));
    REQUIRE(symlink(link_to, in_folder("link")) == 0);
    REQUIRE(link(link_to, in_folder("hard")) == 0);
}

static void tear_down(void)
{
    fs_runtime_plugin_free(plugin, &runtime);
    DIR *dir = opendir(folder);
    REQUIRE(dir != NULL);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.')
            unlink(in_folder(entry->d_name));
    closedir(dir);
    rmdir(folder);
}

static int open_model(const char *name, fs_model **out, fs_error *err)
{
    fs_model_spec spec = {.path = in_folder(name), .signatures = &signature, .n_signatures = 1};
    return runtime.ops->open(runtime.self, &spec, out, err);
}

static fs_model *opened(const char *name)
{
    fs_error err;
    fs_model *model = NULL;
    int rc = open_model(name, &model, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.msg);
    REQUIRE(rc == 0);
    return model;
}

static fs_tensor tensor_of(const int64_t *keys, const int64_t *dims, int32_t ndim)
{
    int64_t elements = 1;
    for (int32_t i = 0; i < ndim; i++)
        elements *= dims[i];
    return (fs_tensor){.dtype = FS_DT_INT64, .ndim = ndim, .dims = dims, .elements = elements,
                       .data = (void *)(uintptr_t)keys, .bytes = (size_t)elements * 8};
}

/* Whether `n` keys from `first` on get the answers they should. */
static bool answers_right(fs_model *model, int64_t first, int64_t n)
{
    int64_t keys[64];
    for (int64_t i = 0; i < n; i++)
        keys[i] = first + i;
    fs_tensor in = tensor_of(keys, &n, 1), out;
    fs_error err;
    if (runtime.ops->run(model, 0, FS_RUN_PLAIN, &in, &out, &err) != 0)
        return false;
    bool right = out.dtype == FS_DT_FLOAT && out.ndim == 2 && out.dims[0] == n && out.dims[1] == DIMS &&
                 out.elements == n * DIMS && out.bytes == (size_t)out.elements * sizeof(float);
    const float *got = out.data;
    for (int64_t i = 0; right && i < n; i++, got += DIMS) {
        int64_t key = keys[i];
        bool there = key >= 0 && key % 10 == 0 && key / 10 < ROWS;
        float row = (float)(key / 10);
        right = there ? got[0] == row && got[1] == row + 0.5f && got[2] == -row
                      : got[0] == 7 && got[1] == 8 && got[2] == 9;
    }
    runtime.ops->release(&out);
    return right;
}

/* How often the table's file is mapped into this process, whatever it is called there. */
static int mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    REQUIRE(maps != NULL);
    char line[PATH_MAX + 256];
    int n = 0;
    while (fgets(line, sizeof line, maps) != NULL)
        n += strstr(line, folder) != NULL;
    fclose(maps);
    return n;
}

/* ---- one model ------------------------------------------------------------------------------ */

static void test_keys_get_their_vectors_and_others_the_default(void)
{
    fs_model *model = opened("table");
    for (int64_t first = -20; first < ROWS * 10 + 20; first += 50)
        CHECK(answers_right(model, first, 50));
    CHECK(answers_right(model, 0, 0));
    CHECK(answers_right(model, INT64_MIN, 2));
    CHECK(answers_right(model, INT64_MAX - 1, 2));
    runtime.ops->close(model);

    model = opened("bare");
    CHECK(answers_right(model, -1, 1));
    runtime.ops->close(model);
}

static void test_keys_of_another_shape_are_refused(void)
{
    fs_model *model = opened("table");
    int64_t keys[4] = {0}, square[] = {2, 2};
    for (int32_t ndim = 0; ndim <= 2; ndim += 2) {
        fs_tensor in = tensor_of(keys, square, ndim), out;
        fs_error err;
        CHECK_EQ(runtime.ops->run(model, 0, FS_RUN_PLAIN, &in, &out, &err), -FS_INVALID_ARGUMENT);
        CHECK(strstr(err.msg, "keys have one dimension") != NULL);
    }
    fs_tensor in = tensor_of(keys, square, 1), out;
    in.elements = INT64_MAX / 4;
    fs_error err;
    CHECK_EQ(runtime.ops->run(model, 0, FS_RUN_PLAIN, &in, &out, &err), -FS_RESOURCE_EXHAUSTED);
    runtime.ops->close(model);
}

static void test_files_that_are_no_table(void)
{
    static const char *const names[] = {"short", "cut", "header", "stub", "empty", "flat", "other"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fs_error err;
        fs_model *model;
        CHECK_EQ(open_model(names[i], &model, &err), -FS_INVALID_ARGUMENT);
        CHECK_REPORT(strstr(err.msg, in_folder(names[i])) != NULL, "%s", err.msg);
    }
    fs_error err;
    fs_model *model;
    CHECK_EQ(open_model("absent", &model, &err), -FS_NOT_FOUND);
    CHECK_EQ(open_model("absent", &model, NULL), -FS_NOT_FOUND);
    CHECK_EQ(mappings(), 0);
}

static void test_a_signature_of_another_width_is_refused(void)
{
    fs_error err;
    fs_model *model;
    out_dims[1] = DIMS + 1;
    CHECK_EQ(open_model("table", &model, &err), -FS_FAILED_PRECONDITION);
    out_dims[1] = DIMS;
    CHECK_STR(err.msg, "a lookup table of 3 dims has one signature: an int64 input [?] and a float output [?, 3]");
    CHECK_EQ(mappings(), 0);
}

/* ---- several -------------------------------------------------------------------------------- */

static void test_models_of_one_file_share_one_mapping(void)
{
    CHECK_EQ(mappings(), 0);
    fs_model *one = opened("table");
    CHECK_EQ(mappings(), 1);
    fs_model *two = opened("link");
    fs_model *three = opened("hard");
    CHECK_EQ(mappings(), 1);
    fs_model *apart = opened("bare");
    CHECK_EQ(mappings(), 2);
    runtime.ops->close(apart);
    runtime.ops->close(one);
    CHECK_EQ(mappings(), 1);
    CHECK(answers_right(two, 0, 50));
    runtime.ops->close(two);
    CHECK(answers_right(three, 0, 50));
    runtime.ops->close(three);
    CHECK_EQ(mappings(), 0);
}

static void test_a_file_that_took_the_place_of_another_is_another(void)
{
    static uint8_t table[64 + 2 * (8 + DIMS * 4) + DIMS * 4];
    write_file("new", table, make_table(table, 2, DIMS));
    write_file("served", table, make_table(table, 1, DIMS));
    fs_model *before = opened("served");
    char to[PATH_MAX];
    strcpy(to, in_folder("served"));
    REQUIRE(rename(in_folder("new"), to) == 0);
    fs_model *after = opened("served");
    CHECK_EQ(mappings(), 2);
    int64_t key = 10, one = 1;
    fs_tensor in = tensor_of(&key, &one, 1), out;
    CHECK_OK(runtime.ops->run(before, 0, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(((float *)out.data)[0] == 7);
    runtime.ops->release(&out);
    CHECK_OK(runtime.ops->run(after, 0, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(((float *)out.data)[0] == 1);
    runtime.ops->release(&out);
    runtime.ops->close(before);
    runtime.ops->close(after);
}

/* ---- at once -------------------------------------------------------------------------------- */

enum { RUNNERS = 3, OPENERS = 3, ROUNDS = 400 };

static void *keep_running(void *model)
{
    for (int64_t i = 0; i < ROUNDS; i++)
        CHECK(answers_right(model, i * 20, 30));
    return NULL;
}

static void *keep_opening(void *name)
{
    for (int64_t i = 0; i < ROUNDS; i++) {
        fs_model *model = opened(name);
        CHECK(answers_right(model, i, 5));
        runtime.ops->close(model);
    }
    return NULL;
}

static void run_threads(fs_model *model)
{
    static char *const names[OPENERS] = {"table", "link", "hard"};
    pthread_t threads[RUNNERS + OPENERS];
    int n = 0;
    for (int i = 0; model != NULL && i < RUNNERS; i++)
        REQUIRE(pthread_create(&threads[n++], NULL, keep_running, model) == 0);
    for (int i = 0; i < OPENERS; i++)
        REQUIRE(pthread_create(&threads[n++], NULL, keep_opening, names[i]) == 0);
    while (n > 0)
        pthread_join(threads[--n], NULL);
}

static void test_runs_while_others_open_and_close_the_same_table(void)
{
    fs_model *model = opened("table");
    run_threads(model);
    CHECK_EQ(mappings(), 1);
    runtime.ops->close(model);
    CHECK_EQ(mappings(), 0);
}

static void test_the_first_and_the_last_of_a_table_at_once(void)
{
    run_threads(NULL);
    CHECK_EQ(mappings(), 0);
}

int main(void)
{
    set_up();
    test_keys_get_their_vectors_and_others_the_default();
    test_keys_of_another_shape_are_refused();
    test_files_that_are_no_table();
    test_a_signature_of_another_width_is_refused();
    test_models_of_one_file_share_one_mapping();
    test_a_file_that_took_the_place_of_another_is_another();
    test_runs_while_others_open_and_close_the_same_table();
    test_the_first_and_the_last_of_a_table_at_once();
    tear_down();
    return check_done();
}
