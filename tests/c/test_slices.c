/* test_slices: what comes of a read in slices is what comes of one in one piece, at the ends, too; of a block that is
 * discarded no page beside it goes. */
#include "slices.h"

#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SLICE = 256 << 10, FILE_BYTES = 3 * SLICE + 17 };

static int a_file(unsigned char *bytes)
{
    char name[] = "/tmp/fastserve-slices-XXXXXX";
    int fd = mkstemp(name);
    REQUIRE(fd >= 0);
    unlink(name);
    for (size_t i = 0; i < FILE_BYTES; i++)
        bytes[i] = (unsigned char)(i * 2654435761u >> 24);
    REQUIRE(write(fd, bytes, FILE_BYTES) == FILE_BYTES);
    return fd;
}

static void test_any_part_of_a_file(void)
{
    static unsigned char bytes[FILE_BYTES], read_bytes[FILE_BYTES + 100], wanted[FILE_BYTES + 100];
    static const size_t sizes[] = {0, 1, SLICE - 1, SLICE, SLICE + 1, FILE_BYTES, FILE_BYTES + 100};
    static const off_t places[] = {0, 1, SLICE, FILE_BYTES - 1, FILE_BYTES, FILE_BYTES + 5};
    int fd = a_file(bytes);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (size_t p = 0; p < sizeof places / sizeof places[0]; p++) {
            memset(read_bytes, 0, sizeof read_bytes);
            memset(wanted, 0, sizeof wanted);
            ssize_t n = pread(fd, wanted, sizes[s], places[p]);
            CHECK_EQ(fs_slices_pread(fd, read_bytes, sizes[s], places[p]), n);
            CHECK(memcmp(read_bytes, wanted, sizeof wanted) == 0);
        }
    }
    close(fd);
}

static void test_errors(void)
{
    static unsigned char bytes[FILE_BYTES];
    int fd = a_file(bytes), ends[2];
    errno = 0;
    CHECK_EQ(fs_slices_pread(-1, bytes, 10, 0), -1);
    CHECK_EQ(errno, EBADF);
    errno = 0;
    CHECK_EQ(fs_slices_pread(fd, bytes, 10, -1), -1);
    CHECK_EQ(errno, EINVAL);
    REQUIRE(pipe(ends) == 0);
    errno = 0;
    CHECK_EQ(fs_slices_pread(ends[0], bytes, 10, 0), -1);
    CHECK_EQ(errno, ESPIPE);
    close(ends[0]);
    close(ends[1]);
    close(fd);
}

/* The second slice has nowhere to go. */
static void test_an_error_after_the_first_slice(void)
{
    static unsigned char bytes[FILE_BYTES];
    int fd = a_file(bytes);
    unsigned char *room = mmap(NULL, 2 * SLICE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(room != MAP_FAILED);
    REQUIRE(mprotect(room + SLICE, SLICE, PROT_NONE) == 0);
    CHECK_EQ(fs_slices_pread(fd, room, 2 * SLICE, 0), SLICE);
    CHECK(memcmp(room, bytes, SLICE) == 0);
    errno = 0;
    CHECK_EQ(fs_slices_pread(fd, room + SLICE, SLICE, SLICE), -1);
    CHECK_EQ(errno, EFAULT);
    munmap(room, 2 * SLICE);
    close(fd);
}

enum { BLOCK = 7 << 20 };

/* What is left of a block that begins and ends somewhere in a page: those pages. */
static void test_what_is_discarded(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = BLOCK + 2 * page;
    unsigned char *room = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(room != MAP_FAILED);
    memset(room, 7, size);
    fs_slices_discard(room + page - 16, 1 << 20);
    size_t kept = 0;
    for (size_t i = 0; i < size; i++)
        kept += room[i] == 7;
    CHECK_EQ(kept, size); /* a small one as it was */
    fs_slices_discard(room + page - 16, BLOCK + 32);
    for (kept = 0; kept < size && room[kept] == 7; kept++)
        ;
    CHECK_EQ(kept, page);
    for (kept = size; kept > 0 && room[kept - 1] == 7; kept--)
        ;
    CHECK_EQ(kept, size - page);
    size_t left = 0;
    for (size_t i = page; i < size - page; i++)
        left += room[i] != 0;
    CHECK_EQ(left, 0);
    munmap(room, size);
    fs_slices_discard(NULL, 0);
}

int main(void)
{
    test_what_is_discarded();
    test_any_part_of_a_file();
    test_errors();
    test_an_error_after_the_first_slice();
    return check_done();
}
