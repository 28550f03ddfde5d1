/* test_log_files: names that sort by time, the oldest removed, what a crash left mended, and nobody else's files
 * touched. */
#include "log_files.h"

#include "log_rig.h"
#include "record_file.h"

static char prefix[128];

static void put(const folder *f, const char *name, const void *data, size_t len)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL && (len == 0 || fwrite(data, 1, len, file) == len));
    fclose(file);
}

static bool there(const folder *f, const char *name)
{
    char path[300];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    return access(path, F_OK) == 0;
}

static folder make(void)
{
    folder f = folder_make();
    snprintf(prefix, sizeof prefix, "%s/m", f.path);
    return f;
}

static void test_names_are_of_the_present_and_sort(void)
{
    folder f = make();
    char first[PATH_MAX], second[PATH_MAX], longer[PATH_MAX + 1];
    CHECK_OK(fs_log_files_name(prefix, first));
    usleep(2);
    CHECK_OK(fs_log_files_name(prefix, second));
    CHECK(strcmp(first, second) < 0);
    CHECK_EQ(strncmp(first, prefix, strlen(prefix)), 0);
    unsigned year, month, day, hour, minute, second_of;
    long micro, pid;
    CHECK_EQ(sscanf(first + strlen(prefix), "-%4u%2u%2uT%2u%2u%2u.%6ldZ-%ld.tfrecord", &year, &month, &day, &hour,
                    &minute, &second_of, &micro, &pid), 8);
    CHECK(year >= 2024 && month >= 1 && month <= 12 && pid == (long)getpid());
    memset(longer, 'a', PATH_MAX - 20);
    longer[PATH_MAX - 20] = '\0';
    CHECK_EQ(fs_log_files_name(longer, first), ENAMETOOLONG);
    folder_remove(&f);
}

static const char *const STRANGERS[] = {
    "m", "m.tfrecord", "m-20261129.tfrecord", "m-20261129T031502.123456Z.tfrecord",
    "m-20261129T031502.123456Z-.tfrecord", "m-20261129T031502.123456Z-7.tfrecord.part.x",
    "mm-20261129T031502.123456Z-7.tfrecord", "m-x-20261129T031502.123456Z-7.tfrecord",
    "m-20261129T03150a.123456Z-7.tfrecord", "x-20261129T031502.123456Z-7.tfrecord",
};

static void test_the_oldest_go_and_strangers_stay(void)
{
    folder f = make();
    for (size_t i = 0; i < sizeof STRANGERS / sizeof *STRANGERS; i++)
        put(&f, STRANGERS[i], "x", 1);
    put(&f, "m-20261129T031502.000003Z-99.tfrecord", "x", 1);
    put(&f, "m-20261129T031502.000001Z-100.tfrecord", "x", 1);
    put(&f, "m-20251231T235959.999999Z-7.tfrecord", "x", 1);
    put(&f, "m-20261129T031502.000002Z-7.tfrecord", "x", 1);
    CHECK_EQ(fs_log_files_prune(prefix, 0), 0);
    CHECK_EQ(fs_log_files_prune(prefix, 4), 0);
    CHECK_EQ(fs_log_files_prune(prefix, 2), 2);
    CHECK(!there(&f, "m-20251231T235959.999999Z-7.tfrecord"));
    CHECK(!there(&f, "m-20261129T031502.000001Z-100.tfrecord"));
    CHECK(there(&f, "m-20261129T031502.000002Z-7.tfrecord"));
    CHECK(there(&f, "m-20261129T031502.000003Z-99.tfrecord"));
    for (size_t i = 0; i < sizeof STRANGERS / sizeof *STRANGERS; i++)
        CHECK(there(&f, STRANGERS[i]));
    folder_remove(&f);
}

static void test_what_a_crash_left_is_mended(void)
{
    static const uint8_t whole[] = {3, 0, 0, 0, 0, 0, 0, 0, 0xb0, 0x99, 0x49, 0x0e, 'a', 'b', 'c',
                                    0x6e, 0x57, 0xf1, 0x21, 9}; /* by tf.io.TFRecordWriter, and one byte more */
    folder f = make();
    put(&f, "m-20261129T031502.000001Z-7.tfrecord.part", whole, sizeof whole);
    put(&f, "m-20261129T031502.000002Z-7.tfrecord.part", whole, 5);
    put(&f, "n-20261129T031502.000002Z-7.tfrecord.part", whole, 5);
    CHECK_EQ(fs_log_files_salvage(prefix), 2);
    CHECK(there(&f, "m-20261129T031502.000001Z-7.tfrecord"));
    CHECK(!there(&f, "m-20261129T031502.000002Z-7.tfrecord"));
    CHECK(there(&f, "n-20261129T031502.000002Z-7.tfrecord.part"));
    CHECK_EQ(folder_count(&f, FS_RECORD_PART), 1);
    CHECK_EQ(fs_log_files_salvage(prefix), 0);
    folder_remove(&f);
}

static void test_a_directory_that_is_not_there(void)
{
    CHECK_EQ(fs_log_files_prune("/tmp/fastserve/no/such", 1), 0);
    CHECK_EQ(fs_log_files_salvage("/tmp/fastserve/no/such"), 0);
}

static void test_a_prefix_without_a_directory_is_here(void)
{
    folder f = make();
    REQUIRE(chdir(f.path) == 0);
    put(&f, "m-20261129T031502.000001Z-7.tfrecord", "x", 1);
    put(&f, "m-20261129T031502.000002Z-7.tfrecord", "x", 1);
    CHECK_EQ(fs_log_files_prune("m", 1), 1);
    CHECK(!there(&f, "m-20261129T031502.000001Z-7.tfrecord"));
    REQUIRE(chdir("/") == 0);
    folder_remove(&f);
}

int main(void)
{
    test_names_are_of_the_present_and_sort();
    test_the_oldest_go_and_strangers_stay();
    test_what_a_crash_left_is_mended();
    test_a_directory_that_is_not_there();
    test_a_prefix_without_a_directory_is_here();
    return check_done();
}
