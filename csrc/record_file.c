/* record_file: see record_file.h.
 *
 * Records are gathered in a buffer that is written when the next one does not fit, so what a write may tear is at
 * the end of the file, and is cut off again at once (or by whoever salvages it). */
#include "record_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIRECTORY_MODE = 0777, FILE_MODE = 0666 }; /* less the umask */

static int part_name(const char *path, char part[PATH_MAX])
{
    int n = snprintf(part, PATH_MAX, "%s" FS_RECORD_PART, path);
    return n < 0 || n >= PATH_MAX ? ENAMETOOLONG : 0;
}

/* Makes the directories above `path`. */
static int make_directories(const char *path)
{
    char upto[PATH_MAX];
    size_t len = strlen(path);
    if (len >= sizeof upto)
        return ENAMETOOLONG;
    memcpy(upto, path, len + 1);
    for (char *slash = strchr(upto + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdir(upto, DIRECTORY_MODE) != 0 && errno != EEXIST)
            return errno;
        *slash = '/';
    }
    return 0;
}

static int create(const char *part)
{
    int fd = open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    if (fd < 0 && errno == ENOENT) {
        int error = make_directories(part);
        if (error != 0) {
            errno = error;
            return -1;
        }
        fd = open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, FILE_MODE);
    }
    return fd;
}

/* Whether nobody has salvaged it in the moment between its making and the lock. A file system without locks has
 * no salvage either. */
static bool held(int fd)
{
    struct stat status;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        return errno != EWOULDBLOCK;
    return fstat(fd, &status) == 0 && status.st_nlink > 0;
}

int fs_record_file_open(fs_record_file *file, const char *path)
{
    char part[PATH_MAX];
    int error = part_name(path, part);
    memset(file, 0, offsetof(fs_record_file, path));
    file->fd = -1;
    if (error != 0)
        return error;
    memcpy(file->path, path, strlen(path) + 1);
    file->buffer = malloc(FS_RECORD_BUFFER);
    if (file->buffer == NULL)
        return ENOMEM;
    file->fd = create(part);
    if (file->fd >= 0 && held(file->fd))
        return 0;
    error = file->fd < 0 ? errno : EAGAIN;
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
    free(file->buffer);
    file->buffer = NULL;
    return error;
}

static int write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : EIO;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Everything since the last whole record that was written for sure is lost. */
static uint64_t give_up(fs_record_file *file)
{
    uint64_t lost = file->buffered;
    /* Should this fail as well, the next write goes on at the right place all the same. */
    (void)!ftruncate(file->fd, (off_t)file->written);
    lseek(file->fd, (off_t)file->written, SEEK_SET);
    file->bytes = file->written;
    file->records -= file->buffered;
    file->buffered = 0;
    file->used = 0;
    return lost;
}

int fs_record_file_flush(fs_record_file *file, uint64_t *lost)
{
    *lost = 0;
    int error = write_all(file->fd, file->buffer, file->used);
    if (error != 0) {
        *lost = give_up(file);
        return error;
    }
    file->written = file->bytes;
    file->buffered = 0;
    file->used = 0;
    return 0;
}

/* Bytes of a record, into the buffer, which is written whenever it is full. */
static int put(fs_record_file *file, const void *data, size_t len)
{
    const uint8_t *at = data;
    while (len > 0) {
        size_t room = FS_RECORD_BUFFER - file->used;
        if (room == 0 || (file->used == 0 && len >= FS_RECORD_BUFFER)) {
            bool past = room > 0; /* large and nothing before it: from where it lies */
            int error = past ? write_all(file->fd, at, len) : write_all(file->fd, file->buffer, file->used);
            if (error != 0 || past)
                return error;
            file->used = 0;
            continue;
        }
        size_t n = len < room ? len : room;
        memcpy(file->buffer + file->used, at, n);
        file->used += n;
        at += n;
        len -= n;
    }
    return 0;
}

static int put_checksum(fs_record_file *file, uint32_t value)
{
    uint32_t masked = fs_crc32c_mask(value);
    return put(file, &masked, sizeof masked);
}

int fs_record_file_append(fs_record_file *file, const fs_crc32c *crc, const fs_slice *pieces, int n,
                          uint64_t *lost)
{
    uint64_t len = 0;
    uint32_t value = 0;
    *lost = 0;
    for (int i = 0; i < n; i++) {
        len += pieces[i].len;
        value = fs_crc32c_extend(crc, value, pieces[i].data, pieces[i].len);
    }
    uint64_t bytes = FS_RECORD_HEAD_BYTES + len + FS_RECORD_FOOT_BYTES;
    if (bytes > FS_RECORD_BUFFER - file->used) {
        int error = fs_record_file_flush(file, lost);
        if (error != 0) {
            *lost += 1;
            return error;
        }
    }
    file->buffered++;
    file->records++;
    file->bytes += bytes;
    int error = put(file, &len, sizeof len);
    if (error == 0)
        error = put_checksum(file, fs_crc32c_extend(crc, 0, &len, sizeof len));
    for (int i = 0; i < n && error == 0; i++)
        error = put(file, pieces[i].data, pieces[i].len);
    if (error == 0)
        error = put_checksum(file, value);
    if (error != 0)
        *lost = give_up(file);
    else if (bytes > FS_RECORD_BUFFER) /* it is in the file in part: all of it shall be, or nothing */
        error = fs_record_file_flush(file, lost);
    return error;
}

/* Gives a file its name, or removes it. */
static int name(const char *part, const char *path, bool keep)
{
    if (keep)
        return rename(part, path) == 0 ? 0 : errno;
    return unlink(part) == 0 ? 0 : errno;
}

int fs_record_file_close(fs_record_file *file, uint64_t *lost)
{
    *lost = 0;
    if (file->fd < 0)
        return 0;
    char part[PATH_MAX];
    int error = fs_record_file_flush(file, lost);
    int named = part_name(file->path, part);
    if (named == 0) /* while it is locked: nobody else may do so */
        named = name(part, file->path, file->records > 0);
    close(file->fd);
    file->fd = -1;
    free(file->buffer);
    file->buffer = NULL;
    return error != 0 ? error : named;
}

/* How many bytes at the start are whole records, by their lengths. */
static uint64_t whole_bytes(int fd, uint64_t size)
{
    fs_crc32c crc;
    fs_crc32c_init(&crc);
    uint64_t at = 0;
    for (;;) {
        struct {
            uint64_t len;
            uint32_t check;
        } head;
        if (size - at < FS_RECORD_HEAD_BYTES ||
            pread(fd, &head, FS_RECORD_HEAD_BYTES, (off_t)at) != FS_RECORD_HEAD_BYTES ||
            head.check != fs_crc32c_mask(fs_crc32c_extend(&crc, 0, &head.len, sizeof head.len)))
            return at;
        uint64_t left = size - at - FS_RECORD_HEAD_BYTES;
        if (left < FS_RECORD_FOOT_BYTES || head.len > left - FS_RECORD_FOOT_BYTES)
            return at;
        at += FS_RECORD_HEAD_BYTES + head.len + FS_RECORD_FOOT_BYTES;
    }
}

int fs_record_file_salvage(const char *part_path)
{
    char path[PATH_MAX];
    size_t len = strlen(part_path), tail = strlen(FS_RECORD_PART);
    if (len >= PATH_MAX || len < tail || strcmp(part_path + len - tail, FS_RECORD_PART) != 0)
        return EINVAL;
    memcpy(path, part_path, len - tail);
    path[len - tail] = '\0';
    int fd = open(part_path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = 0;
    struct stat status;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        error = fstat(fd, &status) == 0 ? 0 : errno;
        uint64_t whole = error == 0 ? whole_bytes(fd, (uint64_t)status.st_size) : 0;
        if (error == 0 && whole < (uint64_t)status.st_size && ftruncate(fd, (off_t)whole) != 0)
            error = errno;
        if (error == 0)
            error = name(part_path, path, whole > 0);
    }
    close(fd);
    return error;
}
