/* test_record_file: TFRecord files as they are written, closed, torn and mended; disks that are full, directories
 * that cannot be written. */
#include "record_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>

#include "failmalloc.h"
#include "log_rig.h"

static fs_crc32c crc;
static uint8_t large[3 * FS_RECORD_BUFFER];

static char *name_in(const folder *f, const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    return path;
}

static int append(fs_record_file *file, const void *data, size_t len, uint64_t *lost)
{
    fs_slice pieces[] = {{data, len / 3}, {NULL, 0}, {(const uint8_t *)data + len / 3, len - len / 3}};
    return fs_record_file_append(file, &crc, pieces, 3, lost);
}

static void test_records_of_all_sizes(void)
{
    static const size_t sizes[] = {0, 1, 100, FS_RECORD_BUFFER - 17, FS_RECORD_BUFFER - 16, FS_RECORD_BUFFER - 15,
                                   FS_RECORD_BUFFER, FS_RECORD_BUFFER + 1, 3 * FS_RECORD_BUFFER, 5};
    enum { N = sizeof sizes / sizeof *sizes };
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost, bytes = 0;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(append(&file, large, sizes[i], &lost), 0);
        CHECK_EQ(lost, 0);
        bytes += sizes[i] + 16;
        CHECK_EQ(file.bytes, bytes);
    }
    CHECK_EQ(file.records, N);
    CHECK_EQ(folder_count(&f, FS_RECORD_PART), 1);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    CHECK_EQ(folder_count(&f, ""), 1);
    records r = {0};
    records_read(&r, &f);
    CHECK_EQ(r.n, N);
    CHECK_EQ(r.torn, 0);
    for (int i = 0; i < r.n && i < N; i++) {
        CHECK_EQ(r.len[i], sizes[i]);
        CHECK_MEM(r.data[i], large, sizes[i]);
    }
    records_free(&r);
    folder_remove(&f);
}

static void test_small_records_are_buffered_until_they_are_flushed(void)
{
    folder f = folder_make();
    records r = {0};
    fs_record_file file;
    uint64_t lost;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(append(&file, "abc", 3, &lost), 0);
    CHECK_EQ(file.buffered, 1);
    records_read(&r, &f);
    CHECK_EQ(r.n, 0);
    CHECK_EQ(fs_record_file_flush(&file, &lost), 0);
    CHECK_EQ(file.buffered, 0);
    records_read(&r, &f);
    CHECK_EQ(r.n, 1);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    records_free(&r);
    folder_remove(&f);
}

static void test_an_empty_file_leaves_nothing(void)
{
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(folder_count(&f, ""), 1);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    CHECK_EQ(folder_count(&f, ""), 0);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0); /* once is enough */
    folder_remove(&f);
}

static void test_directories_are_made(void)
{
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "x/y/z")) == 0);
    CHECK_EQ(append(&file, "abc", 3, &lost), 0);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    CHECK_EQ(access(name_in(&f, "x/y/z"), F_OK), 0);
    unlink(name_in(&f, "x/y/z"));
    rmdir(name_in(&f, "x/y"));
    rmdir(name_in(&f, "x"));
    folder_remove(&f);
}

static void test_what_cannot_be_opened_says_why(void)
{
    folder f = folder_make();
    fs_record_file file, other;
    uint64_t lost;
    char longer[PATH_MAX + 10];
    memset(longer, 'a', sizeof longer - 1);
    longer[0] = '/';
    longer[sizeof longer - 1] = '\0';
    CHECK_EQ(fs_record_file_open(&file, longer), ENAMETOOLONG);
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(fs_record_file_open(&other, name_in(&f, "a")), EEXIST); /* it is being written */
    CHECK_EQ(append(&file, "abc", 3, &lost), 0);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    CHECK_EQ(fs_record_file_open(&other, name_in(&f, "a/b")), ENOTDIR);
    CHECK_EQ(other.fd, -1);
    folder_remove(&f);
}

static void test_a_full_disk_loses_what_was_not_written_and_nothing_else(void)
{
    enum { ROOM = 100000, SIZE = 30000 };
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost;
    struct rlimit before, limit;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = (struct rlimit){.rlim_cur = ROOM, .rlim_max = before.rlim_max};
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(append(&file, large, SIZE, &lost), 0);
    CHECK_EQ(fs_record_file_flush(&file, &lost), 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(append(&file, large, SIZE, &lost), 0);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_EQ(fs_record_file_flush(&file, &lost), EFBIG);
    CHECK_EQ(lost, 3);
    CHECK_EQ(file.records, 1);
    CHECK_EQ(append(&file, large, sizeof large, &lost), EFBIG); /* larger than the buffer */
    CHECK_EQ(lost, 1);
    CHECK_EQ(append(&file, large, SIZE, &lost), 0); /* this one fits */
    CHECK_EQ(fs_record_file_flush(&file, &lost), 0);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK_EQ(append(&file, large, sizeof large, &lost), 0);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    records r = {0};
    records_read(&r, &f);
    CHECK_EQ(r.n, 3);
    CHECK_EQ(r.torn, 0);
    records_free(&r);
    folder_remove(&f);
}

static void write_bytes(const char *path, const void *data, size_t len)
{
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL && fwrite(data, 1, len, file) == len);
    fclose(file);
}

static size_t read_bytes(const char *path, uint8_t *data, size_t room)
{
    FILE *file = fopen(path, "rb");
    REQUIRE(file != NULL);
    size_t len = fread(data, 1, room, file);
    fclose(file);
    return len;
}

static void test_a_torn_file_is_mended_wherever_it_was_torn(void)
{
    uint8_t whole[200];
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(append(&file, "abc", 3, &lost), 0);
    CHECK_EQ(append(&file, "defgh", 5, &lost), 0);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    size_t len = read_bytes(name_in(&f, "a"), whole, sizeof whole);
    CHECK_EQ(len, 19 + 21);
    for (size_t cut = 0; cut <= len; cut++) {
        unlink(name_in(&f, "a"));
        write_bytes(name_in(&f, "a" FS_RECORD_PART), whole, cut);
        CHECK_EQ(fs_record_file_salvage(name_in(&f, "a" FS_RECORD_PART)), 0);
        CHECK_EQ(folder_count(&f, FS_RECORD_PART), 0);
        CHECK_EQ(folder_count(&f, ""), cut >= 19);
        records r = {0};
        records_read(&r, &f);
        CHECK_EQ(r.n, cut < 19 ? 0 : cut < len ? 1 : 2);
        CHECK_EQ(r.torn, 0);
        records_free(&r);
    }
    /* A head that is no head ends it, too. */
    whole[19] ^= 1;
    write_bytes(name_in(&f, "b" FS_RECORD_PART), whole, len);
    CHECK_EQ(fs_record_file_salvage(name_in(&f, "b" FS_RECORD_PART)), 0);
    CHECK_EQ(read_bytes(name_in(&f, "b"), whole, sizeof whole), 19);
    CHECK_EQ(fs_record_file_salvage(name_in(&f, "b")), EINVAL);
    CHECK_EQ(fs_record_file_salvage(name_in(&f, "c" FS_RECORD_PART)), ENOENT);
    folder_remove(&f);
}

static void test_a_file_that_is_being_written_is_left_alone(void)
{
    folder f = folder_make();
    fs_record_file file;
    uint64_t lost;
    REQUIRE(fs_record_file_open(&file, name_in(&f, "a")) == 0);
    CHECK_EQ(append(&file, "abc", 3, &lost), 0);
    CHECK_EQ(fs_record_file_salvage(name_in(&f, "a" FS_RECORD_PART)), 0);
    CHECK_EQ(folder_count(&f, FS_RECORD_PART), 1);
    CHECK_EQ(fs_record_file_close(&file, &lost), 0);
    CHECK_EQ(folder_count(&f, FS_RECORD_PART), 0);
    folder_remove(&f);
}

static void test_without_memory_nothing_is_opened(void)
{
    folder f = folder_make();
    fs_record_file file;
    failmalloc_after(1);
    CHECK_EQ(fs_record_file_open(&file, name_in(&f, "a")), ENOMEM);
    failmalloc_after(-1);
    CHECK_EQ(folder_count(&f, ""), 0);
    folder_remove(&f);
}

int main(void)
{
    signal(SIGXFSZ, SIG_IGN); /* as Python has it */
    fs_crc32c_init(&crc);
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (uint8_t)(i * 7 + i / 251);
    test_records_of_all_sizes();
    test_small_records_are_buffered_until_they_are_flushed();
    test_an_empty_file_leaves_nothing();
    test_directories_are_made();
    test_what_cannot_be_opened_says_why();
    test_a_full_disk_loses_what_was_not_written_and_nothing_else();
    test_a_torn_file_is_mended_wherever_it_was_torn();
    test_a_file_that_is_being_written_is_left_alone();
    test_without_memory_nothing_is_opened();
    return check_done();
}
